//! The two sides: how each is started with each kind of device, and what its guest does first.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use capsa_bench::folder::Folder;
use capsa_bench::monitors::{self, Guest};

use crate::guest::{self, MOUNTED};
use crate::machine::Machine;
use crate::measures::{Group, Sizes};
use crate::{Arguments, ports, virtiofsd};

const MEMORY: u32 = 512;
/// The tag that Capsa gives the first share, and QEMU is told to give.
const TAG: &str = "share0";
/// The host's port for connections, vsock's and TCP's.
const PORT: u16 = 5000;
const MIB: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Capsa,
    Qemu,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Capsa => "capsa",
            Self::Qemu => "qemu",
        }
    }

    /// The command by which its guest ends the monitor.
    pub(crate) fn end(self) -> &'static str {
        match self {
            Self::Capsa => "sync; poweroff -f",
            // The microvm has nothing to switch off.
            Self::Qemu => "sync; reboot -f",
        }
    }
}

/// How QEMU's guest connects to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamsOfQemu {
    Vsock,
    /// Over its user network, where this machine has no vhost-vsock.
    Tcp,
}

impl StreamsOfQemu {
    /// Where the guest's program connects to.
    pub(crate) fn address(self) -> String {
        match self {
            Self::Vsock => format!("vsock:{PORT}"),
            Self::Tcp => format!("tcp:10.0.2.2:{PORT}"),
        }
    }

    /// What a reader of the table has to know.
    pub(crate) fn remark(self) -> &'static str {
        match self {
            Self::Vsock => "",
            Self::Tcp => " (peer: TCP, QEMU's user network)",
        }
    }
}

/// What the machines are made of.
pub(crate) struct Place {
    capsa: PathBuf,
    qemu: PathBuf,
    virtiofsd: PathBuf,
    aio: String,
    kernel: PathBuf,
    initramfs: PathBuf,
    files: Files,
    streams: StreamsOfQemu,
}

/// The files of the run.
struct Files {
    disks: [PathBuf; 2],
    shares: [PathBuf; 2],
    vsock: PathBuf,
    virtiofsd: PathBuf,
}

impl Files {
    fn disk(&self, side: Side) -> &Path {
        of(&self.disks, side)
    }

    fn share(&self, side: Side) -> &Path {
        of(&self.shares, side)
    }
}

fn of(both: &[PathBuf; 2], side: Side) -> &Path {
    let [capsa, qemu] = both;
    match side {
        Side::Capsa => capsa,
        Side::Qemu => qemu,
    }
}

impl Place {
    pub(crate) fn prepare(arguments: &Arguments, folder: &Folder) -> Result<Self> {
        let sides = [Side::Capsa, Side::Qemu];
        let files = Files {
            disks: sides.map(|side| folder.path(&format!("disk-{}", side.name()))),
            shares: sides.map(|side| folder.path(&format!("share-{}", side.name()))),
            vsock: folder.path("vsock"),
            virtiofsd: folder.path("virtiofsd"),
        };
        let sizes = &arguments.sizes;
        for side in sides {
            fill(files.disk(side), sizes.sequential)?;
            fs::create_dir_all(files.share(side))?;
            fill(&files.share(side).join("large"), sizes.share)?;
        }
        ports::serve_unix(&files.vsock)?;
        Ok(Self {
            capsa: arguments.capsa.clone(),
            qemu: arguments.qemu.clone(),
            virtiofsd: arguments.virtiofsd.clone(),
            aio: arguments.aio.clone(),
            kernel: arguments.kernel.clone(),
            initramfs: guest::write_initramfs(folder, &arguments.busybox, &arguments.guest)?,
            files,
            streams: serve_qemu()?,
        })
    }

    pub(crate) fn streams_of_qemu(&self) -> StreamsOfQemu {
        self.streams
    }

    /// Boots a machine with the devices of a group.
    pub(crate) fn start(&self, side: Side, group: Group, limit: Duration) -> Result<Machine> {
        let guest = Guest {
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            memory: MEMORY,
        };
        let mut helpers = Vec::new();
        let command = match side {
            Side::Capsa => {
                let mut command = monitors::capsa(&self.capsa, &guest);
                command.extend(self.devices_of_capsa(group));
                command
            }
            Side::Qemu => {
                if group == Group::Share {
                    helpers.push(virtiofsd::start(
                        &self.virtiofsd,
                        self.files.share(side),
                        &self.files.virtiofsd,
                    )?);
                }
                let mut command = monitors::qemu_microvm(&self.qemu, &guest);
                command.extend(self.devices_of_qemu(group));
                command
            }
        };
        Machine::start(&command, helpers, limit)
    }

    fn devices_of_capsa(&self, group: Group) -> [OsString; 2] {
        let option = |name: &str, value: OsString| [name.into(), value];
        match group {
            Group::Block => option("--disk", self.files.disk(Side::Capsa).into()),
            Group::Share => option(
                "--share",
                joined(&[
                    self.files.share(Side::Capsa),
                    format!(":{MOUNTED}:rw").as_ref(),
                ]),
            ),
            Group::Vsock => option(
                "--vsock-port",
                joined(&[format!("{PORT}:").as_ref(), &self.files.vsock]),
            ),
        }
    }

    fn devices_of_qemu(&self, group: Group) -> Vec<OsString> {
        // Without this the devices are those of before virtio 1, and lack what the others need.
        let mut options: Vec<OsString> = ["-global", "virtio-mmio.force-legacy=false"]
            .map(OsString::from)
            .into();
        let mut add = |option: &str, value: OsString| options.extend([option.into(), value]);
        match group {
            Group::Block => {
                let rest = format!(",format=raw,cache=writeback,aio={}", self.aio);
                let disk = self.files.disk(Side::Qemu);
                let drive = joined(&["if=none,id=d,file=".as_ref(), disk, rest.as_ref()]);
                add("-drive", drive);
                add("-device", "virtio-blk-device,drive=d".into());
            }
            Group::Share => {
                // virtiofsd needs the guest's memory, too.
                let memory = format!("memory-backend-memfd,id=m,share=on,size={MEMORY}M");
                add("-object", memory.into());
                add("-machine", "memory-backend=m".into());
                let socket = joined(&["socket,id=c,path=".as_ref(), &self.files.virtiofsd]);
                add("-chardev", socket);
                add(
                    "-device",
                    format!("vhost-user-fs-device,chardev=c,tag={TAG}").into(),
                );
            }
            Group::Vsock if self.streams == StreamsOfQemu::Vsock => {
                // One that other machines of this host do not have.
                let address = 3 + std::process::id();
                add(
                    "-device",
                    format!("vhost-vsock-device,guest-cid={address}").into(),
                );
            }
            Group::Vsock => {
                add("-netdev", "user,id=n".into());
                add("-device", "virtio-net-device,netdev=n".into());
            }
        }
        options
    }

    /// What a guest does before anything is measured.
    pub(crate) fn preparations(&self, side: Side, group: Group, sizes: &Sizes) -> Vec<String> {
        match group {
            Group::Block => Vec::new(),
            Group::Share => vec![
                format!("mount -t virtiofs {TAG} {MOUNTED}"),
                format!("/bench-guest make-archive /archive.tar {}", sizes.files),
            ],
            Group::Vsock if side == Side::Qemu && self.streams == StreamsOfQemu::Tcp => vec![
                "ip link set eth0 up".to_owned(),
                "ip addr add 10.0.2.15/24 dev eth0".to_owned(),
            ],
            Group::Vsock => Vec::new(),
        }
    }

    /// Removes what a measure has left.
    pub(crate) fn tidy(&self, side: Side) -> Result<()> {
        let tree = self.files.share(side).join("tree");
        match fs::remove_dir_all(&tree) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", tree.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Serves QEMU's guests, by vsock where this machine can.
fn serve_qemu() -> Result<StreamsOfQemu> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/vhost-vsock");
    match device {
        Ok(_) => ports::serve_vsock(u32::from(PORT)).map(|()| StreamsOfQemu::Vsock),
        Err(error) => {
            eprintln!("/dev/vhost-vsock cannot be used ({error}): QEMU's guests connect by TCP");
            ports::serve_tcp(PORT).map(|()| StreamsOfQemu::Tcp)
        }
    }
}

/// Writes `mib` MiB to a file, so that all of it is there.
fn fill(path: &Path, mib: u64) -> Result<()> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(MIB);
    while bytes.len() < MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    let mut file =
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    for _ in 0..mib {
        file.write_all(&bytes)?;
    }
    Ok(())
}

fn joined(parts: &[&Path]) -> OsString {
    let mut whole = OsString::new();
    for part in parts {
        whole.push(part);
    }
    whole
}
