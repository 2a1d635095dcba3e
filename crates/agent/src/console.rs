//! The shell on the console.
//!
//! The agent starts itself again for it: that process makes a session of its own, takes the console
//! as its terminal and becomes the shell, without any code between fork and exec.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::{Pid, ioctl_tiocsctty, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{InputModes, OptionalActions, tcgetattr, tcsetattr, tcsetwinsize};

use crate::parameters::Parameters;
use crate::report;

/// The first argument of the process that becomes the shell.
pub(crate) const SHELL_ROLE: &str = "console-shell";
const SHELL: &str = "/bin/sh";
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What nearly every terminal understands.
const PLAIN_TERMINAL: &str = "vt220";

/// What BusyBox's shell runs on a raw console. With the console as a script instead of as standard
/// input, no shell takes it for a person. The functions keep it from using its own `poweroff`,
/// which leaves the kernel's farewell behind the output.
const BUSYBOX_SCRIPT: &str = "\
    poweroff() { /sbin/poweroff \"$@\"; }; \
    halt() { /sbin/halt \"$@\"; }; \
    reboot() { /sbin/reboot \"$@\"; }; \
    . /dev/stdin";

/// Whether there is a shell to start.
pub(crate) fn has_shell() -> bool {
    Path::new(SHELL).exists()
}

/// Starts the shell; gives its process.
pub(crate) fn start_shell() -> io::Result<Pid> {
    let child = Command::new("/proc/self/exe").arg(SHELL_ROLE).spawn()?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the process started by [`start_shell`] does; returns only where that fails.
pub(crate) fn become_shell() -> ExitCode {
    let error = match take_console() {
        Ok(parameters) => shell(&parameters).exec(),
        Err(error) => error,
    };
    report::problem(format_args!("cannot run {SHELL} on the console: {error}"));
    ExitCode::FAILURE
}

fn take_console() -> io::Result<Parameters> {
    let parameters = Parameters::of_this_boot()?;
    setsid()?;
    let console = open_console()?;
    ioctl_tiocsctty(&console)?;
    set_modes(&console, &parameters)?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    if let Some(mark) = &parameters.ready_mark {
        (&console).write_all(format!("{mark}\n").as_bytes())?;
    }
    Ok(parameters)
}

/// The device behind /dev/console: that name itself cannot become a controlling terminal.
fn open_console() -> io::Result<File> {
    let path = fs::read_to_string("/sys/class/tty/console/active")
        .ok()
        .and_then(|names| preferred(&names))
        .unwrap_or_else(|| "/dev/console".into());
    File::options().read(true).write(true).open(path)
}

/// The kernel lists the consoles in use; the last one is behind /dev/console.
fn preferred(names: &str) -> Option<PathBuf> {
    let name = names.split_ascii_whitespace().next_back()?;
    Some(Path::new("/dev").join(name))
}

fn set_modes(console: &File, parameters: &Parameters) -> io::Result<()> {
    let mut modes = tcgetattr(console)?;
    if parameters.raw_console {
        modes.make_raw();
    } else {
        modes.input_modes |= InputModes::IUTF8;
    }
    tcsetattr(console, OptionalActions::Now, &modes)?;
    match parameters.window_size() {
        Some(size) => Ok(tcsetwinsize(console, size)?),
        None => Ok(()),
    }
}

/// Whether the shell is that of the default initramfs, with the agent as `/sbin/poweroff`.
fn is_busybox() -> bool {
    fs::read_link(SHELL).is_ok_and(|target| target.ends_with("busybox"))
}

fn shell(parameters: &Parameters) -> Command {
    let mut shell = Command::new(SHELL);
    let home = if Path::new("/root").is_dir() {
        "/root"
    } else {
        "/"
    };
    shell
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", SEARCH_PATH)
        .env("SHELL", SHELL)
        .env("USER", "root")
        .env("LOGNAME", "root");
    if parameters.raw_console {
        shell.env("TERM", "dumb");
        if is_busybox() {
            shell.args(["-c", BUSYBOX_SCRIPT, "sh"]);
        } else {
            shell.arg("/dev/stdin");
        }
    } else {
        let terminal = parameters.terminal.as_deref().unwrap_or(PLAIN_TERMINAL);
        shell.arg("-i").env("TERM", terminal);
    }
    shell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_console_in_the_kernels_list_is_taken() {
        assert_eq!(preferred("hvc0 ttyS0\n"), Some(PathBuf::from("/dev/ttyS0")));
        assert_eq!(preferred("\n"), None);
    }
}
