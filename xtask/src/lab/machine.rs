//! The emulated machine: QEMU's software CPU with AMD's virtualization extension, and virtiofsd for the host's files.
//!
//! Nothing is left behind however this process ends, SIGKILL included: both programs ask the kernel to be killed with their
//! parent, they get sockets and the initramfs as descriptors, and no file is made that outlives the start.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;

use super::initramfs;
use super::modules::ModuleTree;
use crate::setup::LabKernel;
use crate::setup::tools;

/// Names of the share and of the port, as the machine's inside sees them.
pub(super) const SHARE: &str = "host";

/// A panic ends the machine at once; nobody attacks it from inside. The kernel's check of its timer
/// counts ticks, which a busy host can be late with.
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 reboot=t panic=-1 mitigations=off random.trust_cpu=on no_timer_check";

/// QEMU 7.2 lets a nested guest write XCR0 unseen by its monitor, whose guests then lose registers: nothing here has
/// extended state. `rep stosb` and `rep movsb`, which kernels take for fast with `erms` and `fsrm`, go byte by byte.
const CPU: &str = "max,+svm,-vmx,-xsave,-avx,-avx2,-fma,-f16c,-pku,-erms,-fsrm";

/// What the machine needs to come up, in addition to what it was asked for.
const MODULES: &[&str] = &["virtio_pci", "virtio_console", "virtiofs", "kvm_amd", "tun"];

/// The kernel's messages are only shown when something went wrong; this much of their end.
const CONSOLE_KEPT: usize = 16 << 10;

pub(super) struct MachineOptions<'a> {
    pub(super) kernel: &'a LabKernel,
    pub(super) memory_mib: u64,
    pub(super) cpus: u32,
    pub(super) modules: &'a [String],
    /// Show the kernel's messages as they come.
    pub(super) show_console: bool,
}

pub(super) struct Machine {
    qemu: Child,
    virtiofsd: Child,
    console: Arc<Mutex<VecDeque<u8>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Machine {
    /// Starts the machine. The stream is connected to its port; it reaches its end when the machine ends.
    pub(super) fn start(options: &MachineOptions<'_>) -> Result<(Self, UnixStream)> {
        let wanted: Vec<&str> = MODULES
            .iter()
            .copied()
            .chain(options.modules.iter().map(String::as_str))
            .collect();
        let modules = ModuleTree::open(&options.kernel.modules)?.in_load_order(&wanted)?;
        let initramfs = in_memory_file("initramfs", &initramfs::build(&modules)?)?;
        let (listener, share) = connected_listener()?;
        let (port, port_of_machine) =
            UnixStream::pair().context("cannot make a pair of sockets")?;

        let mut virtiofsd = virtiofsd(&listener)?
            .spawn()
            .context("cannot start virtiofsd")?;
        drop(listener);
        let qemu = qemu(options, &initramfs, &share, &port_of_machine)?
            .spawn()
            .context("cannot start QEMU");
        let mut qemu = match qemu {
            Ok(qemu) => qemu,
            Err(error) => {
                end(&mut virtiofsd);
                return Err(error);
            }
        };

        let console = Arc::new(Mutex::new(VecDeque::new()));
        let mut readers = Vec::new();
        for stream in [
            qemu.stdout.take().map(OwnedFd::from),
            qemu.stderr.take().map(OwnedFd::from),
            virtiofsd.stderr.take().map(OwnedFd::from),
        ]
        .into_iter()
        .flatten()
        {
            readers.push(keep_end(stream, Arc::clone(&console), options.show_console));
        }
        Ok((
            Self {
                qemu,
                virtiofsd,
                console,
                readers,
            },
            port,
        ))
    }

    /// Ends the machine at once, and waits until nothing of it is left.
    pub(super) fn end(&mut self) {
        end(&mut self.qemu);
        end(&mut self.virtiofsd);
    }

    /// What the kernel, QEMU and virtiofsd said last. Only complete after [`Machine::end`].
    pub(super) fn last_words(&mut self) -> String {
        for reader in self.readers.drain(..) {
            // A reader that panicked has kept what it had read.
            let _ = reader.join();
        }
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = console
            .iter()
            .copied()
            .filter(|&byte| byte != b'\r')
            .collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn end(child: &mut Child) {
    // Fails only where the process has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn qemu(
    options: &MachineOptions<'_>,
    initramfs: &File,
    share: &UnixStream,
    port: &UnixStream,
) -> Result<Command> {
    let program = tools::find("qemu-system-x86_64")
        .context("qemu-system-x86_64 is not installed: run `cargo xtask setup`")?;
    let memory = options.memory_mib;
    let loudness = if options.show_console {
        "debug"
    } else {
        "quiet"
    };
    let mut command = bound_to_us(&program);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
        .args([
            "-smp",
            &options.cpus.to_string(),
            "-m",
            &format!("{memory}M"),
        ])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
            "-numa",
            "node,memdev=memory",
        ])
        .args([
            "-chardev",
            &format!("socket,id=share,fd={}", inherited(share)?),
        ])
        .args([
            "-device",
            &format!("vhost-user-fs-pci,chardev=share,tag={SHARE}"),
        ])
        .args([
            "-chardev",
            &format!("socket,id=port,fd={}", inherited(port)?),
        ])
        .args([
            "-device",
            "virtio-serial-pci,max_ports=2",
            "-device",
            "virtserialport,nr=1,chardev=port,name=capsa.lab",
        ])
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(&options.kernel.image)
        .args([
            "-initrd",
            &format!("/proc/self/fd/{}", inherited(initramfs)?),
        ])
        .args([
            "-append",
            &format!("{KERNEL_PARAMETERS} {loudness} -- lab-init"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(path) = std::env::var_os("CAPSA_LAB_MONITOR") {
        let mut socket = std::ffi::OsString::from("unix:");
        socket.push(path);
        socket.push(",server=on,wait=off");
        command.arg("-monitor").arg(socket);
    }
    Ok(command)
}

fn virtiofsd(listener: &UnixListener) -> Result<Command> {
    let program =
        tools::virtiofsd().context("virtiofsd is not installed: run `cargo xtask setup`")?;
    let mut command = bound_to_us(&program.path);
    command.arg(format!("--fd={}", inherited(listener)?));
    if program.is_rust {
        command.args([
            "--shared-dir",
            "/",
            "--cache",
            "always",
            "--xattr",
            "--sandbox",
            "chroot",
            "--log-level",
            "warn",
        ]);
    } else {
        command.args([
            "-o",
            "source=/",
            "-o",
            "cache=always",
            "-o",
            "xattr",
            "-o",
            "sandbox=chroot",
            "-o",
            "log_level=warn",
        ]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// A command that the kernel kills when the thread that started it ends. An ordinary user gets a user namespace in which
/// he is root, because virtiofsd confines itself with what only root may do; the machine then sees his files as root's.
fn bound_to_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if !rustix::process::geteuid().is_root() {
        command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "setpriv"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Lets the next programs started have this descriptor, and returns its number.
fn inherited(descriptor: &impl AsFd) -> Result<i32> {
    rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).context("cannot pass a descriptor on")?;
    Ok(descriptor.as_fd().as_raw_fd())
}

fn in_memory_file(name: &str, content: &[u8]) -> Result<File> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
        .context("cannot make a file in memory")?;
    let mut file = File::from(memory);
    file.write_all(content)
        .context("not enough memory for the lab's first file system")?;
    Ok(file)
}

/// A listening socket whose first connection is ours, and that connection. Its name is gone again when this returns.
fn connected_listener() -> Result<(UnixListener, UnixStream)> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let path: PathBuf = directory.path().join("share");
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let stream = UnixStream::connect(&path)
        .with_context(|| format!("cannot connect to {}", path.display()))?;
    Ok((listener, stream))
}

/// Keeps the end of what comes out of `stream`.
fn keep_end(
    stream: OwnedFd,
    console: Arc<Mutex<VecDeque<u8>>>,
    show: bool,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = File::from(stream);
        let mut buffer = [0; 4096];
        loop {
            let read = match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => &buffer[..read],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if show {
                // Nobody may be reading; the lab goes on.
                let _ = std::io::stderr().write_all(read);
            }
            let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
            console.extend(read);
            let excess = console.len().saturating_sub(CONSOLE_KEPT);
            console.drain(..excess);
        }
    })
}

/// Fails early, and in words, where the machine could not be built.
pub(super) fn check_size(memory_mib: u64, cpus: u32) -> Result<()> {
    if !(512..=1 << 20).contains(&memory_mib) {
        bail!("--memory is {memory_mib}, but must be between 512 and 1048576 (in MiB)");
    }
    if !(1..=64).contains(&cpus) {
        bail!("--cpus is {cpus}, but must be between 1 and 64");
    }
    Ok(())
}
