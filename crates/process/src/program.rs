use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::Pid;

use crate::Child;
use crate::sys::Process;

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}: {source}", program.display())]
pub struct SpawnError {
    /// The program.
    pub program: PathBuf,
    /// The operating system's error.
    #[source]
    pub source: io::Error,
}

/// A program to be started as a child process.
///
/// The child has exactly the descriptors that it was given, and `/dev/null` for standard input and
/// outputs that it was not given; default signal handling, and a process
/// group of its own, so that keys typed at the caller's terminal do not signal it.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    descriptors: Vec<(OwnedFd, RawFd)>,
}

impl Program {
    /// The program at `path`, with its path as first argument and an empty environment.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            arguments: vec![path.clone().into_os_string()],
            path,
            environment: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what it sees as its own name (`argv[0]`).
    pub fn name(&mut self, name: impl Into<OsString>) -> &mut Self {
        self.arguments[0] = name.into();
        self
    }

    /// Adds an argument.
    pub fn argument(&mut self, argument: impl Into<OsString>) -> &mut Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn arguments<I>(&mut self, arguments: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to its environment.
    pub fn variable(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> &mut Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Hands it `descriptor` under `number`. Numbers are small and each is given once.
    pub fn descriptor(&mut self, number: RawFd, descriptor: impl Into<OwnedFd>) -> &mut Self {
        self.descriptors.push((descriptor.into(), number));
        self
    }

    /// Starts it. The calling thread waits until the program runs or could not be executed.
    ///
    /// # Errors
    /// The operating system's error, with the program's path.
    pub fn spawn(self) -> Result<Child, SpawnError> {
        let Self {
            path,
            arguments,
            environment,
            descriptors,
        } = self;
        let spawned = strings(&path, &arguments, &environment)
            .and_then(|strings| spawn(&strings, descriptors));
        spawned.map_err(|source| SpawnError {
            program: path,
            source,
        })
    }
}

struct Strings {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

fn strings(
    path: &Path,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> io::Result<Strings> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let variable = |(name, value): &(OsString, OsString)| {
        let mut text = name.clone();
        text.push("=");
        text.push(value);
        c_string(&text)
    };
    Ok(Strings {
        path: c_string(path.as_os_str())?,
        arguments: arguments
            .iter()
            .map(|a| c_string(a))
            .collect::<io::Result<_>>()?,
        environment: environment
            .iter()
            .map(variable)
            .collect::<io::Result<_>>()?,
    })
}

/// A list of C strings as `execve` wants it. It borrows them.
fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr().cast_mut())
        .chain([ptr::null_mut()])
        .collect()
}

fn spawn(strings: &Strings, descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    let beyond = descriptors
        .iter()
        .map(|(_, number)| number + 1)
        .max()
        .unwrap_or(0)
        .max(3);
    let numbers: Vec<RawFd> = descriptors.iter().map(|(_, number)| *number).collect();
    let mut actions = FileActions::new()?;
    let mut held = Vec::with_capacity(descriptors.len());
    for (descriptor, number) in descriptors {
        // A descriptor whose own number is somebody's target would be overwritten before its turn.
        let descriptor = if descriptor.as_raw_fd() < beyond {
            fcntl_dupfd_cloexec(&descriptor, beyond)?
        } else {
            descriptor
        };
        actions.duplicate(descriptor.as_raw_fd(), number)?;
        held.push(descriptor);
    }
    for number in 0..beyond {
        if !numbers.contains(&number) {
            match number {
                // Standard input and outputs are always open, or something else would take
                // their numbers.
                0..3 => actions.open_null(number)?,
                _ => actions.close(number)?,
            }
        }
    }
    actions.close_from(beyond)?;
    let attributes = Attributes::new()?;
    let arguments = pointers(&strings.arguments);
    let environment = pointers(&strings.environment);
    let mut pid: libc::pid_t = 0;
    // SAFETY: every pointer is to a live object: the strings outlive the call, both lists end in
    // null, and the actions and attributes were initialised.
    let error = unsafe {
        libc::posix_spawn(
            &mut pid,
            strings.path.as_ptr(),
            &actions.0,
            &attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    drop(held);
    check(error)?;
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the child has no number"))?;
    match Process::of_child(pid) {
        Ok(process) => Ok(Child::new(process)),
        Err(error) => {
            // A child that cannot be followed must not live: it is ours and unreaped, so that its
            // number is still its own.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _reaped =
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(error)
        }
    }
}

/// The `posix_spawn` functions return the error number.
fn check(error: libc::c_int) -> io::Result<()> {
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the function initialises what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: it succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn duplicate(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: the actions were initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from, to) })
    }

    fn open_null(&mut self, number: RawFd) -> io::Result<()> {
        // SAFETY: the actions were initialised, and the path is copied or static.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(
                &mut self.0,
                number,
                c"/dev/null".as_ptr(),
                libc::O_RDWR,
                0,
            )
        })
    }

    fn close(&mut self, number: RawFd) -> io::Result<()> {
        // SAFETY: the actions were initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclose(&mut self.0, number) })
    }

    /// Closes descriptors that the caller left open across `exec`. Where the C library has no such
    /// action, macOS's `POSIX_SPAWN_CLOEXEC_DEFAULT` does the same.
    #[cfg_attr(
        not(all(target_os = "linux", target_env = "gnu")),
        allow(unused_variables)
    )]
    fn close_from(&mut self, lowest: RawFd) -> io::Result<()> {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: the actions were initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut self.0, lowest) })?;
        Ok(())
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: they were initialised, and are not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// Default handling of every signal, none blocked, a process group of its own.
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the function initialises what it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: it succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let flags = libc::POSIX_SPAWN_SETSIGDEF
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETPGROUP;
        #[cfg(target_vendor = "apple")]
        let flags = flags | libc::POSIX_SPAWN_CLOEXEC_DEFAULT;
        let mut signals = MaybeUninit::uninit();
        // SAFETY: the sets are initialised by sigemptyset and sigfillset before they are read, and
        // the attributes were initialised. The flags fit a short by definition of the interface.
        unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(
                &mut attributes.0,
                signals.as_ptr(),
            ))?;
            libc::sigfillset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigdefault(
                &mut attributes.0,
                signals.as_ptr(),
            ))?;
            check(libc::posix_spawnattr_setpgroup(&mut attributes.0, 0))?;
            check(libc::posix_spawnattr_setflags(
                &mut attributes.0,
                flags as libc::c_short,
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they were initialised, and are not used again.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}
