//! From the VM's specification to the objects of Virtualization.framework (VZ), as plain data.
//!
//! The names are those of Apple's documentation of the framework without their `VZ` prefix and
//! `Configuration` suffix.

use std::path::{Path, PathBuf};

use capsa_core::{
    BackendCapabilities, BackendKind, BootKinds, BootSpec, ConsoleKinds, DiskAccess, DiskFormat,
    DiskSpec, Error, LinuxBoot, MAX_CPUS, MacAddress, NetworkSpec, Result, ShareAccess, ShareSpec,
    UefiBoot, VmSpec, VsockSpec,
};
use serde::{Deserialize, Serialize};

use crate::MacosVersion;

/// The tag of the Rosetta share.
const ROSETTA_TAG: &str = "rosetta";
/// The longest tag of a share: `tag` of the virtio-fs configuration has 36 bytes (virtio 1.3,
/// section 5.11.4).
const MAX_TAG_BYTES: usize = 36;
/// The longest identifier of a block device: the serial has 20 bytes (virtio 1.3, section 5.2.6.1).
const MAX_DISK_SERIAL_BYTES: usize = 20;

/// The objects that make up a VM. Every VM has an entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VzPlan {
    /// `VirtualMachine.CPUCount`.
    pub cpus: u32,
    /// `VirtualMachine.memorySize`, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// The boot loader.
    pub boot: VzBoot,
    /// `VirtioConsoleDeviceSerialPort` with a file handle attachment: `hvc0` in the guest.
    pub console: bool,
    /// `VirtioBlockDevice`s, in order.
    pub disks: Vec<VzDisk>,
    /// `VirtioFileSystemDevice`s.
    pub shares: Vec<VzShare>,
    /// `VirtioNetworkDevice` with a file handle attachment.
    pub network: Option<VzNetwork>,
    /// `VirtioSocketDevice`.
    pub vsock: bool,
    /// `VirtioTraditionalMemoryBalloonDevice`.
    pub balloon: bool,
    /// The tag of a `LinuxRosettaDirectoryShare`.
    pub rosetta: Option<String>,
    /// `GenericPlatform.isNestedVirtualizationEnabled`.
    pub nested_virtualization: bool,
}

/// A boot loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VzBoot {
    /// `LinuxBootLoader`.
    Linux {
        /// The kernel.
        kernel: PathBuf,
        /// The initial file system.
        initramfs: Option<PathBuf>,
        /// The kernel command line.
        command_line: String,
    },
    /// `EFIBootLoader`.
    Efi {
        /// Its variable store.
        store: VzVariableStore,
    },
}

/// An `EFIVariableStore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VzVariableStore {
    /// The file is opened, or made where it is not there.
    Kept(PathBuf),
    /// A file that the engine makes and deletes.
    Forgotten,
}

/// A block device with a disk image attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VzDisk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest's writes fail.
    pub read_only: bool,
    /// `blockDeviceIdentifier`.
    pub identifier: Option<String>,
}

/// A file system device with one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VzShare {
    /// The tag that the guest mounts.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether the host refuses writes.
    pub read_only: bool,
}

/// The network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VzNetwork {
    /// Its address; `None` for one that the framework makes.
    pub mac: Option<MacAddress>,
    /// `maximumTransmissionUnit` of the attachment; `None` for 1500, what it is by itself.
    pub mtu: Option<u16>,
}

/// Something that a plan needs and that not every Mac has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The setting.
    pub setting: &'static str,
    /// The oldest macOS that has it.
    pub macos: MacosVersion,
    /// Whether it needs an Apple processor.
    pub apple_processor: bool,
}

/// What a Mac offers, as the framework tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLimits {
    /// Its macOS.
    pub macos: MacosVersion,
    /// Whether it has an Apple processor.
    pub apple_processor: bool,
    /// `VirtualMachine.maximumAllowedCPUCount`.
    pub max_cpus: u32,
    /// `VirtualMachine.minimumAllowedMemorySize` in bytes.
    pub min_memory_bytes: u64,
    /// `VirtualMachine.maximumAllowedMemorySize` in bytes.
    pub max_memory_bytes: u64,
    /// `GenericPlatform.isNestedVirtualizationSupported`.
    pub nested_virtualization: bool,
}

/// What the framework can honour on the best of Macs; [`VzPlan::check_host`] looks at the one at
/// hand.
pub fn vz_capabilities() -> BackendCapabilities {
    let mut can = BackendCapabilities::default();
    can.boot = BootKinds {
        linux: true,
        uefi: true,
    };
    can.max_cpus = MAX_CPUS;
    can.console = ConsoleKinds {
        serial: false,
        virtio: true,
    };
    can.power_button = true;
    can.pause = true;
    can.disk_formats = vec![DiskFormat::Raw];
    can.shares = true;
    can.read_only_shares = true;
    can.network = true;
    can.network_mtu = true;
    can.vsock = true;
    can.balloon = true;
    can.nested_virtualization = true;
    can.rosetta = true;
    can
}

impl VzPlan {
    /// Plans a VM for `backend`, one of the two on this framework.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the first setting that the framework cannot honour;
    /// [`Error::InvalidSetting`] as [`VmSpec::check`].
    pub fn new(spec: &VmSpec, backend: BackendKind) -> Result<Self> {
        spec.check()?;
        let mut capabilities = vz_capabilities();
        capabilities.in_process = backend == BackendKind::MacosNative;
        capabilities.check(backend, spec)?;
        let planner = Planner { backend };
        // Every field by name, here and below: whoever adds one has to decide about it. What is not
        // planned was refused above, if it asks for anything, or belongs to someone else.
        let VmSpec {
            name: _,
            cpus,
            memory,
            boot,
            console,
            disks,
            shares,
            network,
            vsock,
            balloon,
            nested_virtualization,
            rosetta,
            isolation: _,
            start_timeout: _, // the backend's
        } = spec;
        if !memory.as_bytes().is_multiple_of(1 << 20) {
            return Err(planner.unsupported(
                format!("{memory} of memory"),
                format!("ask for whole MiB, such as {}M", memory.as_mib()),
            ));
        }
        let disks = (disks.iter().enumerate())
            .map(|(index, disk)| planner.disk(index, disk))
            .collect::<Result<_>>()?;
        Ok(Self {
            cpus: *cpus,
            memory_bytes: memory.as_bytes(),
            boot: planner.boot(boot)?,
            console: console.enabled,
            disks,
            shares: planner.shares(shares, *rosetta)?,
            network: (network.as_ref())
                .map(|network| planner.network(network))
                .transpose()?,
            vsock: (vsock.as_ref())
                .map(|vsock| planner.vsock(vsock))
                .transpose()?
                .is_some(),
            balloon: *balloon,
            rosetta: rosetta.then(|| ROSETTA_TAG.to_owned()),
            nested_virtualization: *nested_virtualization,
        })
    }

    /// What it needs beyond macOS 12 on any processor.
    pub fn requirements(&self) -> Vec<Requirement> {
        let mut needs = Vec::new();
        let mut need = |wanted: bool, setting, major, minor, apple_processor| {
            if wanted {
                needs.push(Requirement {
                    setting,
                    macos: MacosVersion::new(major, minor),
                    apple_processor,
                });
            }
        };
        need(
            matches!(self.boot, VzBoot::Efi { .. }),
            "UEFI boot",
            13,
            0,
            false,
        );
        let identifiers = self.disks.iter().any(|disk| disk.identifier.is_some());
        need(identifiers, "disk serial", 12, 3, false);
        let mtu = self.network.is_some_and(|network| network.mtu.is_some());
        need(mtu, "an MTU other than 1500", 13, 0, false);
        need(self.rosetta.is_some(), "Rosetta", 13, 0, true);
        need(
            self.nested_virtualization,
            "nested virtualization",
            15,
            0,
            true,
        );
        needs
    }

    /// Checks it against one Mac.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the first setting that this Mac cannot honour.
    pub fn check_host(&self, host: &HostLimits, backend: BackendKind) -> Result<()> {
        let planner = Planner { backend };
        for need in self.requirements() {
            if host.macos < need.macos {
                return Err(planner.unsupported(
                    format!("{} on macOS {}", need.setting, host.macos),
                    format!("update to macOS {} or newer", need.macos),
                ));
            }
            if need.apple_processor && !host.apple_processor {
                return Err(planner.unsupported(
                    format!("{} on a Mac with an Intel processor", need.setting),
                    "use a Mac with an Apple processor",
                ));
            }
        }
        if self.nested_virtualization && !host.nested_virtualization {
            return Err(planner.unsupported(
                "nested virtualization on this processor",
                "use a Mac with an M3 or newer",
            ));
        }
        if self.cpus > host.max_cpus {
            return Err(planner.unsupported(
                format!("{} CPUs", self.cpus),
                format!("ask for at most {}: this Mac has no more", host.max_cpus),
            ));
        }
        if self.memory_bytes > host.max_memory_bytes || self.memory_bytes < host.min_memory_bytes {
            return Err(planner.unsupported(
                format!("{} MiB of memory", self.memory_bytes >> 20),
                format!(
                    "ask for {} to {} MiB on this Mac",
                    host.min_memory_bytes.div_ceil(1 << 20),
                    host.max_memory_bytes >> 20
                ),
            ));
        }
        Ok(())
    }
}

struct Planner {
    backend: BackendKind,
}

impl Planner {
    fn unsupported(&self, setting: impl Into<String>, fix: impl Into<String>) -> Error {
        Error::unsupported(setting, self.backend, fix)
    }

    /// The framework takes paths as UTF-8.
    fn path(&self, setting: &str, path: &Path) -> Result<PathBuf> {
        match path.to_str() {
            None => Err(self.unsupported(
                format!("a path that is not UTF-8 ({setting}: {})", path.display()),
                "rename the file",
            )),
            Some(text) if text.is_empty() || text.contains('\0') => Err(Error::invalid_setting(
                setting,
                format!("{text:?}"),
                "this is not the path of a file",
                "give the path of a file that exists",
            )),
            Some(_) => Ok(path.to_owned()),
        }
    }

    fn boot(&self, boot: &BootSpec) -> Result<VzBoot> {
        match boot {
            BootSpec::Linux(LinuxBoot {
                kernel,
                initramfs,
                command_line,
            }) => {
                if command_line.contains('\0') {
                    return Err(Error::invalid_setting(
                        "cmdline",
                        format!("{command_line:?}"),
                        "it holds a NUL byte",
                        "remove it",
                    ));
                }
                let initramfs = (initramfs.as_ref())
                    .map(|path| self.path("initramfs", path))
                    .transpose()?;
                Ok(VzBoot::Linux {
                    kernel: self.path("kernel", kernel)?,
                    initramfs,
                    command_line: command_line.clone(),
                })
            }
            BootSpec::Uefi(UefiBoot {
                firmware,
                variable_store,
            }) => {
                if let Some(firmware) = firmware {
                    return Err(self.unsupported(
                        format!("a firmware of one's own ({})", firmware.display()),
                        "leave the firmware out: Apple's is used",
                    ));
                }
                let store = match variable_store {
                    Some(path) => VzVariableStore::Kept(self.path("variable_store", path)?),
                    None => VzVariableStore::Forgotten,
                };
                Ok(VzBoot::Efi { store })
            }
            other => Err(self.unsupported(format!("{other:?}"), "boot Linux or by UEFI")),
        }
    }

    fn disk(&self, index: usize, disk: &DiskSpec) -> Result<VzDisk> {
        let DiskSpec {
            path,
            format: _,
            access,
            serial,
            allow_backing_file: _,
            limits: _,
        } = disk;
        if let Some(serial) = serial
            && (serial.is_empty() || serial.len() > MAX_DISK_SERIAL_BYTES || !serial.is_ascii())
        {
            return Err(Error::invalid_setting(
                "disk serial",
                format!("{serial:?}"),
                format!("a serial number has 1 to {MAX_DISK_SERIAL_BYTES} bytes of ASCII"),
                "shorten it",
            ));
        }
        Ok(VzDisk {
            path: self.path(&format!("disk {index}"), path)?,
            read_only: match access {
                DiskAccess::ReadOnly => true,
                DiskAccess::ReadWrite => false,
                other => return Err(self.unsupported(format!("{other:?}"), "use ReadWrite")),
            },
            identifier: serial.clone(),
        })
    }

    fn shares(&self, shares: &[ShareSpec], rosetta: bool) -> Result<Vec<VzShare>> {
        let mut planned: Vec<VzShare> = Vec::new();
        for (index, share) in shares.iter().enumerate() {
            let ShareSpec {
                host_path,
                guest_path: _, // the guest's business
                tag: _,
                access,
                owners: _,
                cache: _,
                filter: _,
            } = share;
            let tag = share.tag_at(index).into_owned();
            if tag.is_empty() || tag.len() > MAX_TAG_BYTES || tag.contains('\0') {
                return Err(Error::invalid_setting(
                    "share tag",
                    format!("{tag:?}"),
                    format!("a tag has 1 to {MAX_TAG_BYTES} bytes"),
                    "shorten it",
                ));
            }
            let taken = planned.iter().any(|other| other.tag == tag);
            if taken || (rosetta && tag == ROSETTA_TAG) {
                return Err(Error::invalid_setting(
                    "share tag",
                    tag,
                    "another share has this tag",
                    "give each share a tag of its own",
                ));
            }
            planned.push(VzShare {
                tag,
                path: self.path(&format!("share {index}"), host_path)?,
                read_only: *access == ShareAccess::ReadOnly,
            });
        }
        Ok(planned)
    }

    fn network(&self, network: &NetworkSpec) -> Result<VzNetwork> {
        let NetworkSpec {
            mac,
            ipv4: _,
            ipv6: _,
            mtu: _,
            mode: _,
        } = network;
        let mtu = network.mtu();
        if mtu < NetworkSpec::DEFAULT_MTU {
            return Err(self.unsupported(
                format!("an MTU of {mtu}"),
                format!("use {} or more", NetworkSpec::DEFAULT_MTU),
            ));
        }
        Ok(VzNetwork {
            mac: *mac,
            mtu: (mtu != NetworkSpec::DEFAULT_MTU).then_some(mtu),
        })
    }

    fn vsock(&self, vsock: &VsockSpec) -> Result<()> {
        let VsockSpec {
            cid,
            // Each port can be listened on and connected to at any time.
            listen_ports: _,
            connect_ports: _,
        } = vsock;
        match cid {
            None | Some(3) => Ok(()),
            Some(cid) => Err(self.unsupported(
                format!("the vsock context identifier {cid}"),
                "leave it out: the guest's is always 3",
            )),
        }
    }
}
