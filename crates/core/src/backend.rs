use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::WindowSize;
use crate::{
    Availability, BackendCapabilities, BackendKind, Error, MemoryReport, Result, VmSpec, VmStatus,
};

/// One way of running virtual machines. The order in which the library calls it:
/// [`probe`](Self::probe) once, [`check`](Self::check) for each VM before anything is started, and
/// [`launch`](Self::launch) for a VM that passed.
#[async_trait]
pub trait HypervisorBackend: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> BackendKind;

    /// What it can honour.
    fn capabilities(&self) -> BackendCapabilities;

    /// Whether it can be used on this host. Quick (well under a second) and free of side effects.
    async fn probe(&self) -> Availability;

    /// Checks `spec` against this backend and this host, files included, and starts nothing.
    ///
    /// # Errors
    /// Names the first setting that cannot be honoured, with the fix.
    async fn check(&self, spec: &VmSpec) -> Result<()>;

    /// Starts the VM. On return its CPUs run; on an error everything that had been started is gone.
    /// A caller that loses patience drops the future: that, too, ends and frees what was started.
    ///
    /// # Errors
    /// As [`check`](Self::check), or [`Error::Start`](crate::Error::Start) naming the phase.
    async fn launch(&self, spec: &VmSpec) -> Result<LaunchedVm>;
}

/// A VM that was just started.
pub struct LaunchedVm {
    /// Steers it.
    pub handle: Box<dyn BackendVmHandle>,
    /// The host's ends of its console; `None` for a VM without one.
    pub console: Option<ConsoleIo>,
    /// What the user should know although the start went well.
    pub warnings: Vec<Warning>,
}

/// Something that a user should know although nothing failed, such as a layer of confinement that
/// this host lacks. One sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host's ends of a console. The output ends (reads of zero bytes) after the VM did.
pub struct ConsoleIo {
    /// What the guest writes, both console devices merged.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// What the guest reads.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
}

/// A stream of bytes in both directions, such as a vsock connection. Shutting down the write half
/// is seen by the other side as the end of its input.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Takes the guest's connections to one vsock port of the host. Dropping it gives the port back;
/// connections that were accepted live on.
#[async_trait]
pub trait VsockListener: Send {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`Error::Ended`] after the VM did.
    async fn accept(&mut self) -> Result<Box<dyn ByteStream>>;
}

/// Steers one VM that was started.
///
/// Dropping it ends the VM and frees everything it held: processes, threads, descriptors, memory,
/// files. The drop itself does not block.
#[async_trait]
pub trait BackendVmHandle: Send + Sync {
    /// Follows the VM's state. [`VmStatus::Exited`] is sent after everything that the VM held on
    /// the host is freed, and it is the last one.
    fn status(&self) -> watch::Receiver<VmStatus>;

    /// The process that runs the guest, if it is one of its own.
    fn process_id(&self) -> Option<u32>;

    /// Presses the power button: asks the guest to shut down.
    async fn power_button(&self) -> Result<()>;

    /// Ends the VM now. It is reported as [`VmExit::Killed`](crate::VmExit::Killed).
    async fn kill(&self) -> Result<()>;

    /// Holds every CPU; on return none runs.
    async fn pause(&self) -> Result<()>;

    /// Lets the CPUs go on.
    async fn resume(&self) -> Result<()>;

    /// Tells the guest the new size of the terminal behind its console, where the console device
    /// can carry it; `Ok(false)` where it cannot.
    async fn resize_console(&self, size: WindowSize) -> Result<bool>;

    /// How long the start took from the call of `launch` to the guest's first instruction.
    fn start_duration(&self) -> Duration;

    /// Connects to a vsock port that a program in the guest listens on.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a VM without a vsock device, [`Error::Io`] where nobody listens.
    async fn vsock_connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        Err(Error::InvalidState {
            operation: "connect to a vsock port",
            state: format!("has no vsock device (port {port})"),
        })
    }

    /// Listens on a vsock port of the host (context identifier 2) for the guest's connections.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a VM without a vsock device or a port that is taken.
    async fn vsock_listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        Err(Error::InvalidState {
            operation: "listen on a vsock port",
            state: format!("has no vsock device (port {port})"),
        })
    }

    /// Asks the guest to give so many bytes of its memory to the host; 0 lets it have everything.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a VM without a balloon.
    async fn set_balloon_target(&self, bytes: u64) -> Result<()> {
        Err(Error::InvalidState {
            operation: "set the balloon's target",
            state: format!("has no balloon to give {bytes} bytes"),
        })
    }

    /// What the guest tells of its memory, asked for now.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a VM without a balloon, and a guest without its driver.
    async fn memory_report(&self) -> Result<MemoryReport> {
        Err(Error::InvalidState {
            operation: "ask for the guest's memory",
            state: "has no balloon".to_owned(),
        })
    }

    /// Makes a disk of the running VM larger, `bytes` in all, and tells the guest. `index` counts
    /// from 0 in the order of [`VmSpec::disks`].
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a disk or a size with which this cannot be,
    /// [`Error::InvalidState`] on a backend without this, [`Error::Io`] where the host fails. The
    /// guest sees the disk as it was.
    async fn grow_disk(&self, index: usize, bytes: u64) -> Result<()> {
        Err(Error::InvalidState {
            operation: "grow a disk",
            state: format!(
                "runs on a backend that cannot tell its guest of {bytes} bytes (disk {index})"
            ),
        })
    }

    /// Looks whether somebody else has changed the size of a disk's file, and tells the guest.
    /// Returns the present size in bytes.
    ///
    /// # Errors
    /// As [`grow_disk`](Self::grow_disk).
    async fn refresh_disk(&self, index: usize) -> Result<u64> {
        Err(Error::InvalidState {
            operation: "refresh a disk",
            state: format!("runs on a backend that cannot tell its guest of a size (disk {index})"),
        })
    }

    /// The host's end of the guest's network interface: a connected socket that carries one frame a
    /// message, in the format of [`network_frames`](Self::network_frames), for `capsa-net` to serve.
    /// There once; `None` for a VM without
    /// an interface, and after it was taken.
    #[cfg(unix)]
    fn take_network_socket(&self) -> Option<std::os::fd::OwnedFd> {
        None
    }

    /// What frames look like on that socket.
    fn network_frames(&self) -> crate::NetworkFrames {
        crate::NetworkFrames::default()
    }

    /// Writes the state of a paused VM to `file`, from which the same backend can start it again.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a VM that is not paused and on a backend without this.
    async fn save_state(&self, file: &Path) -> Result<()> {
        Err(Error::InvalidState {
            operation: "save the machine's state",
            state: format!(
                "runs on a backend that cannot write it to {}",
                file.display()
            ),
        })
    }
}
