//! From the VM's specification to vfkit's command line: a pure function, the same on every target.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use capsa_core::{
    BackendKind, BootSpec, DiskAccess, DiskSpec, Error, LinuxBoot, NetworkSpec, Result, ShareSpec,
    UefiBoot, VmSpec, VsockSpec,
};

use crate::argument::{DeviceArgument, path_text, socket_path, unsupported};
use crate::capabilities::capabilities;

/// The descriptor on which vfkit finds its end of the network's socket pair.
pub const NETWORK_DESCRIPTOR: i32 = 3;

/// vfkit's command line, and where its ends of everything are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfkitPlan {
    /// What follows the program's name.
    pub arguments: Vec<OsString>,
    /// Where vfkit listens for requests.
    pub rest_socket: PathBuf,
    /// Whether vfkit makes a pseudo-terminal for the console and names it in its log.
    pub console: bool,
    /// Whether vfkit is to be given the network's socket as [`NETWORK_DESCRIPTOR`].
    pub network: bool,
    /// The Unix sockets behind the vsock ports.
    pub vsock: Vec<VsockWire>,
}

/// A vsock port and the Unix socket that stands for it on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockWire {
    /// The port.
    pub port: u32,
    /// Who connects.
    pub direction: VsockDirection,
    /// The socket.
    pub socket: PathBuf,
}

/// Who opens the connections of a vsock port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockDirection {
    /// The guest: vfkit dials the Unix socket, on which the library listens from before the start.
    GuestConnects,
    /// The host: vfkit listens on the Unix socket.
    HostConnects,
}

/// What a plan depends on besides the specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Where the VM's sockets are made: absolute, short, of plain ASCII characters.
    pub run_directory: PathBuf,
    /// Whether the file that the UEFI variable store is kept in is there.
    pub variable_store_exists: bool,
}

impl VfkitPlan {
    /// Plans a VM.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the first setting that vfkit cannot honour or that its command
    /// line cannot express; [`Error::InvalidSetting`] as [`VmSpec::check`].
    pub fn new(spec: &VmSpec, surroundings: &Surroundings) -> Result<Self> {
        let run_directory = &surroundings.run_directory;
        spec.check()?;
        capabilities().check(BackendKind::Vfkit, spec)?;
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
            balloon: _,
            nested_virtualization,
            rosetta,
            isolation: _,
            start_timeout: _, // the backend's
        } = spec;
        if !memory.as_bytes().is_multiple_of(1 << 20) {
            return Err(unsupported(
                format!("{memory} of memory"),
                format!("ask for whole MiB, such as {}M", memory.as_mib()),
            ));
        }

        let mut plan = Self {
            arguments: Vec::new(),
            rest_socket: run_directory.join("rest"),
            console: console.enabled,
            network: network.is_some(),
            vsock: Vec::new(),
        };
        let mebibytes = memory.as_mib().to_string();
        plan.option("--cpus", cpus.to_string());
        plan.option("--memory", mebibytes);
        match boot {
            BootSpec::Linux(boot) => plan.linux(boot)?,
            BootSpec::Uefi(boot) => plan.uefi(boot, surroundings)?,
            other => return Err(unsupported(format!("{other:?}"), "boot Linux or by UEFI")),
        }
        if plan.console {
            plan.device(DeviceArgument::new("virtio-serial").flag("pty"));
        }
        for (index, disk) in disks.iter().enumerate() {
            plan.device(disk_argument(index, disk)?);
        }
        for (index, share) in shares.iter().enumerate() {
            plan.device(share_argument(index, share)?);
        }
        if let Some(network) = network {
            plan.device(network_argument(network)?);
        }
        if let Some(vsock) = vsock {
            plan.vsock(vsock, run_directory)?;
        }
        plan.device(DeviceArgument::new("virtio-rng"));
        if *rosetta {
            plan.device(
                DeviceArgument::new("rosetta")
                    .value("mountTag", "rosetta", "the tag of Rosetta")?
                    .flag("install"),
            );
        }
        if *nested_virtualization {
            plan.arguments.push("--nested".into());
        }
        let socket = socket_path(&plan.rest_socket)?;
        let uri = format!("unix://{socket}");
        plan.option("--restful-uri", uri);
        Ok(plan)
    }

    fn option(&mut self, name: &str, value: String) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    fn device(&mut self, device: DeviceArgument) {
        device.push_to(&mut self.arguments);
    }

    /// `--bootloader`, or where its syntax cannot express a value the three older options, which
    /// take their values as they are.
    fn linux(&mut self, boot: &LinuxBoot) -> Result<()> {
        let LinuxBoot {
            kernel,
            initramfs,
            command_line: line,
        } = boot;
        let kernel = path_text("kernel", kernel)?;
        let Some(initramfs) = initramfs else {
            return Err(unsupported(
                "a Linux kernel without an initramfs",
                "give it an initramfs",
            ));
        };
        let initramfs = path_text("initramfs", initramfs)?;
        if line.is_empty() {
            return Err(unsupported(
                "an empty kernel command line",
                "name at least the console: console=hvc0",
            ));
        }
        if line.contains('\0') {
            return Err(Error::invalid_setting(
                "cmdline",
                format!("{line:?}"),
                "it holds a NUL byte",
                "remove it",
            ));
        }
        let expressible = |path: &str| !path.contains([',', '"']);
        if expressible(kernel) && expressible(initramfs) && !line.contains('"') {
            let value = format!("linux,kernel={kernel},initrd={initramfs},cmdline=\"{line}\"");
            self.option("--bootloader", value);
        } else {
            self.option("--kernel", kernel.to_owned());
            self.option("--initrd", initramfs.to_owned());
            self.option("--kernel-cmdline", line.clone());
        }
        Ok(())
    }

    fn uefi(&mut self, boot: &UefiBoot, surroundings: &Surroundings) -> Result<()> {
        let UefiBoot {
            firmware,
            variable_store,
        } = boot;
        if let Some(firmware) = firmware {
            return Err(unsupported(
                format!("a firmware of one's own ({})", firmware.display()),
                "leave the firmware out: Apple's is used",
            ));
        }
        let (store, exists) = match variable_store {
            Some(store) => (store.clone(), surroundings.variable_store_exists),
            None => (surroundings.run_directory.join("variables"), false),
        };
        let text = path_text("variable_store", &store)?;
        if text.contains([',', '"']) {
            return Err(unsupported(
                format!("a comma or a quote in variable_store ({text})"),
                "rename it, or use the macos-subprocess backend",
            ));
        }
        // `create` would overwrite a store that is there.
        let create = if exists { "" } else { ",create" };
        self.option("--bootloader", format!("efi,variable-store={text}{create}"));
        Ok(())
    }

    fn vsock(&mut self, vsock: &VsockSpec, run_directory: &Path) -> Result<()> {
        let VsockSpec {
            cid,
            listen_ports,
            connect_ports,
        } = vsock;
        if let Some(cid) = cid
            && *cid != 3
        {
            return Err(unsupported(
                format!("the vsock context identifier {cid}"),
                "leave it out: the guest's is always 3",
            ));
        }
        let ports = (listen_ports.iter())
            .map(|port| (*port, VsockDirection::GuestConnects))
            .chain((connect_ports.iter()).map(|port| (*port, VsockDirection::HostConnects)));
        for (port, direction) in ports {
            let (word, prefix) = match direction {
                VsockDirection::GuestConnects => ("listen", "l"),
                VsockDirection::HostConnects => ("connect", "c"),
            };
            if port == 0 || port == u32::MAX {
                return Err(Error::invalid_setting(
                    "vsock port",
                    port,
                    "this number is reserved",
                    "use 1 to 4294967294",
                ));
            }
            let taken = |wire: &VsockWire| wire.port == port && wire.direction == direction;
            if self.vsock.iter().any(taken) {
                return Err(Error::invalid_setting(
                    "vsock port",
                    port,
                    "it is named twice",
                    "name each port once",
                ));
            }
            let socket = run_directory.join(format!("{prefix}{port}"));
            self.device(
                DeviceArgument::new("virtio-vsock")
                    .value("port", &port.to_string(), "vsock port")?
                    .value("socketURL", socket_path(&socket)?, "runtime directory")?
                    .flag(word),
            );
            self.vsock.push(VsockWire {
                port,
                direction,
                socket,
            });
        }
        if self.vsock.is_empty() {
            return Err(unsupported(
                "a vsock device without ports",
                "name the ports before the start, in listen_ports and connect_ports",
            ));
        }
        Ok(())
    }
}

fn disk_argument(index: usize, disk: &DiskSpec) -> Result<DeviceArgument> {
    let DiskSpec {
        path,
        format: _,
        access,
        serial,
        allow_backing_file: _,
        limits: _,
    } = disk;
    let setting = format!("disk {index}");
    let mut argument = DeviceArgument::new("virtio-blk").path("path", path, &setting)?;
    match access {
        DiskAccess::ReadOnly => argument = argument.flag("readonly"),
        DiskAccess::ReadWrite => {}
        other => return Err(unsupported(format!("{other:?}"), "use ReadWrite")),
    }
    if let Some(serial) = serial {
        if serial.is_empty() || serial.len() > 20 || !serial.is_ascii() {
            return Err(Error::invalid_setting(
                "disk serial",
                format!("{serial:?}"),
                "a serial number has 1 to 20 bytes of ASCII",
                "shorten it",
            ));
        }
        argument = argument.value("deviceId", serial, "disk serial")?;
    }
    Ok(argument)
}

fn share_argument(index: usize, share: &ShareSpec) -> Result<DeviceArgument> {
    let ShareSpec {
        host_path,
        guest_path: _, // the guest's business
        tag: _,
        access: _, // refused above where it is read-only
        owners: _,
        cache: _,
        filter: _,
    } = share;
    DeviceArgument::new("virtio-fs")
        .path("sharedDir", host_path, &format!("share {index}"))?
        .value("mountTag", &share.tag_at(index), "share tag")
}

fn network_argument(network: &NetworkSpec) -> Result<DeviceArgument> {
    let NetworkSpec {
        mac,
        ipv4: _,
        ipv6: _,
        mtu: _,
        mode: _,
    } = network;
    let descriptor = NETWORK_DESCRIPTOR.to_string();
    let argument = DeviceArgument::new("virtio-net").value("fd", &descriptor, "network")?;
    match mac {
        Some(mac) => argument.value("mac", &mac.to_string(), "mac"),
        None => Ok(argument),
    }
}
