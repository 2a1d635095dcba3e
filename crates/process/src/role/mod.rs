//! Roles: what this executable can become when the library starts it again, ahead of `main`.
//!
//! A crate that does work in a process of its own declares a role:
//!
//! ```
//! use std::os::fd::OwnedFd;
//!
//! capsa_process::role! {
//!     /// Answers the one message that it gets.
//!     static ECHO: "echo", begins b"echo\0", runs echo;
//! }
//!
//! fn echo(socket: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut buffer = Vec::new();
//!     while let Some(_descriptors) = capsa_process::receive(&socket, &mut buffer)? {
//!         capsa_process::send(&socket, &buffer, &[])?;
//!     }
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! and a parent starts it, having sent the first message:
//!
//! ```no_run
//! # capsa_process::role! { static ECHO: "echo", begins b"echo\0", runs echo; }
//! # fn echo(_: std::os::fd::OwnedFd) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (ours, theirs) = capsa_process::ControlSocket::pair()?;
//! ours.send(b"echo\0hello", &[]).await?;
//! let process = ECHO.start(&capsa_process::own_executable(), theirs)?;
//! let answer = ours.receive(&mut Vec::new()).await?;
//! drop(ours); // which is how this role is told to end
//! println!("it {}", process.ended().await.reason);
//! # Ok(())
//! # }
//! # fn main() {}
//! ```
//!
//! The role's function runs on the process's only thread, with the control socket as its own and
//! every other descriptor that it needs coming over that. Warnings and errors that it logs, an error
//! that it returns, and a panic's message become the process's last words ([`ChildEnd`]). It is to
//! end when its control socket does: that is how it goes when its parent is killed.
//!
//! A role is entered only where the environment names it *and* a first message that begins as its
//! messages begin waits on standard input, a `SOCK_SEQPACKET` socket. Whoever sets the variable by
//! accident has no such message waiting and notices nothing.
//!
//! [`ChildEnd`]: crate::ChildEnd

mod log;

use std::error::Error;
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rustix::net::{RecvFlags, SocketType, recv, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{Program, SpawnError, Supervised};

/// Names the role of a process that is to have one.
const ROLE_VARIABLE: &CStr = c"CAPSA_PROCESS_ROLE";
/// The environment that such a process keeps: what its dynamic libraries are found by.
const KEPT_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "RUST_BACKTRACE"];
/// Names the executable with the roles where the caller's own cannot be started again.
const EXECUTABLE_VARIABLE: &str = "CAPSA_MONITOR";
/// The caller's own executable, whatever happened to its file since it was started.
const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// How much of a first message is looked at, and so how long its beginning can be.
const HEADER_BYTES: usize = 64;
/// Exit status of a process whose role could not do its work; what it wrote last says why.
const FAILED: i32 = 70;

/// What a role does: it is given the control socket, on which the first message waits.
pub type RoleFunction = fn(OwnedFd) -> Result<(), Box<dyn Error>>;

/// A role of this executable. Declare it with [`role!`](crate::role!), which also sees to its being
/// entered.
#[derive(Debug)]
pub struct Role {
    name: &'static CStr,
    beginning: &'static [u8],
    run: RoleFunction,
    hook: &'static Hook,
}

/// What the C library calls ahead of `main`.
#[doc(hidden)]
pub type Hook = extern "C" fn();

/// Why a process with a role could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartRoleError {
    /// There are no descriptors left for the pipe of its errors.
    #[error("cannot make the pipe for the errors of {role}: {source}")]
    Pipe {
        /// Which.
        role: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The executable could not be started.
    #[error(
        "{0}: name an executable that has this library with CAPSA_MONITOR (the command `capsa` is \
         one) where this program's own cannot be started again"
    )]
    Spawn(#[from] SpawnError),
    /// The runtime cannot watch it.
    #[error("cannot follow the process of {role}: {source}")]
    Follow {
        /// Which.
        role: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// The executable that has this library's roles: the one that `CAPSA_MONITOR` names, else the
/// caller's own.
pub fn own_executable() -> PathBuf {
    std::env::var_os(EXECUTABLE_VARIABLE)
        .filter(|name| !name.is_empty())
        .map_or_else(|| OWN_EXECUTABLE.into(), PathBuf::from)
}

/// From now on a panic on any thread ends this process, with the panic's message as its last words: for
/// a role whose threads cannot do without one another.
pub fn end_process_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        // SAFETY: it ends the process.
        unsafe { libc::_exit(FAILED) }
    }));
}

impl Role {
    /// For [`role!`](crate::role!).
    #[doc(hidden)]
    pub const fn new(
        name: &'static CStr,
        beginning: &'static [u8],
        run: RoleFunction,
        hook: &'static Hook,
    ) -> Self {
        assert!(
            !beginning.is_empty() && beginning.len() <= HEADER_BYTES,
            "the beginning of a first message has 1 to 64 bytes"
        );
        Self {
            name,
            beginning,
            run,
            hook,
        }
    }

    /// Starts `executable`, which has this role, as a process with it. The first message was sent to
    /// the other end of `socket` already, or the executable goes on as usual.
    ///
    /// Its process is called `capsa-` and the role's name. Must be called in a runtime with I/O
    /// enabled; the thread waits until the executable runs.
    ///
    /// # Errors
    /// [`StartRoleError`]. Nothing is left behind.
    pub fn start(&self, executable: &Path, socket: OwnedFd) -> Result<Supervised, StartRoleError> {
        // No linker leaves out the hook of a role that can be started.
        std::hint::black_box(self.hook);
        let name = self.name.to_string_lossy();
        let pipe = |source| StartRoleError::Pipe {
            role: name.clone().into_owned(),
            source,
        };
        let (errors, their_errors) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| pipe(error.into()))?;
        rustix::io::ioctl_fionbio(&errors, true).map_err(|error| pipe(error.into()))?;
        let mut program = Program::new(executable);
        program
            .name(format!("capsa-{name}"))
            .variable(&*ROLE_VARIABLE.to_string_lossy(), &*name)
            .descriptor(libc::STDIN_FILENO, socket)
            .descriptor(libc::STDERR_FILENO, their_errors);
        for kept in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(kept) {
                program.variable(kept, value);
            }
        }
        let child = program.spawn()?;
        Supervised::new(child, Some(errors)).map_err(|source| StartRoleError::Follow {
            role: name.clone().into_owned(),
            source,
        })
    }

    /// As [`start`](Self::start), for a life of its own: it goes on when the caller ends, keeps the
    /// caller's environment, and its errors go nowhere. Gives its process number.
    ///
    /// It stays in the caller's session, in a process group of its own.
    ///
    /// # Errors
    /// [`StartRoleError`]. Nothing is left behind.
    pub fn start_independent(
        &self,
        executable: &Path,
        socket: OwnedFd,
    ) -> Result<u32, StartRoleError> {
        std::hint::black_box(self.hook);
        let name = self.name.to_string_lossy();
        let mut program = Program::new(executable);
        program
            .name(format!("capsa-{name}"))
            .descriptor(libc::STDIN_FILENO, socket);
        let role_variable = ROLE_VARIABLE.to_string_lossy();
        for (variable, value) in std::env::vars_os() {
            if variable != *role_variable {
                program.variable(variable, value);
            }
        }
        program.variable(&*role_variable, &*name);
        let child = program.spawn()?;
        let id = child.id();
        child.let_go().map_err(|source| StartRoleError::Follow {
            role: name.into_owned(),
            source,
        })?;
        Ok(id)
    }

    /// For [`role!`](crate::role!): called in every start of the executable, ahead of `main`.
    /// Returns where this start is none of a process with this role.
    #[doc(hidden)]
    pub fn enter_if_asked(&self) {
        // SAFETY: the name ends in NUL, and so does what is found. Ahead of `main` there is one
        // thread, so that nobody changes the environment meanwhile. The standard library's own
        // look-up would allocate.
        let chosen = unsafe {
            let value = libc::getenv(ROLE_VARIABLE.as_ptr());
            !value.is_null() && CStr::from_ptr(value) == self.name
        };
        if !chosen || !self.message_waits() {
            return;
        }
        let status = match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                // The parent keeps what is written here as the last words.
                let _unheard = writeln!(io::stderr(), "{error}");
                FAILED
            }
            // The panic's own message has been written.
            Err(_) => FAILED,
        };
        // SAFETY: it ends the process; nothing that would have been set up by `main` is torn down.
        unsafe { libc::_exit(status) }
    }

    /// Whether standard input is a control socket with a first message for this role waiting.
    fn message_waits(&self) -> bool {
        let input = io::stdin();
        let input = input.as_fd();
        if sockopt::socket_type(input) != Ok(SocketType::SEQPACKET) {
            return false;
        }
        let mut header = [0; HEADER_BYTES];
        recv(input, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .is_ok_and(|(bytes, _)| header[..bytes].starts_with(self.beginning))
    }

    fn run(&self) -> Result<(), Box<dyn Error>> {
        // SAFETY: there is one thread, and the variable must not reach anything this process starts.
        unsafe { libc::unsetenv(ROLE_VARIABLE.as_ptr()) };
        // SAFETY: ignoring a signal is always sound. A reader that goes must not end the process;
        // `main` would have done the same.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        log::to_standard_error();
        // SAFETY: standard input is open, as was just seen, and it is used through this alone.
        let socket = unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) };
        (self.run)(socket)
    }
}

/// Declares a [`Role`] of every executable that links the crate: its name, the bytes (1 to 64) with
/// which its first message begins, and the [function](RoleFunction) that it runs.
///
/// ```
/// # use std::os::fd::OwnedFd;
/// capsa_process::role! {
///     /// Serves frames.
///     pub(crate) static NETWORK: "network", begins b"capsanet", runs serve;
/// }
/// fn serve(socket: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
/// #   drop(socket);
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! role {
    (
        $(#[$attribute:meta])*
        $visibility:vis static $role:ident: $name:literal, begins $beginning:expr, runs $run:path;
    ) => {
        $(#[$attribute])*
        $visibility static $role: $crate::role::Role = {
            // Where the C library finds functions to call ahead of `main`.
            #[used]
            // SAFETY: the section holds pointers to functions of this kind, and nothing else.
            #[unsafe(link_section = ".init_array")]
            static HOOK: $crate::role::Hook = start_up;
            extern "C" fn start_up() {
                $role.enter_if_asked();
            }
            // A name with a NUL in it does not compile.
            const NAME: &::core::ffi::CStr = match ::core::ffi::CStr::from_bytes_with_nul(
                ::core::concat!($name, "\0").as_bytes(),
            ) {
                ::core::result::Result::Ok(name) => name,
                ::core::result::Result::Err(_) => ::core::panic!("a role's name has no NUL"),
            };
            $crate::role::Role::new(NAME, $beginning, $run, &HOOK)
        };
    };
}

#[cfg(test)]
mod tests;
