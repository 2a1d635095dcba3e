//! Ending the machine.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::events::Events;
use crate::parameters::Parameters;
use crate::reap::{self, Left};
use crate::{mounts, report, service};

/// How long processes have after SIGTERM before they are killed.
const GRACE: Duration = Duration::from_secs(5);
/// The kernel writes messages below the first number in here to the console.
const PRINTK: &str = "/proc/sys/kernel/printk";

pub(crate) use capsa_agent_protocol::Ending;

/// Asks process 1, which is this program, to end the machine, as the command of that name does.
pub(crate) fn ask_init(ending: Ending) {
    signal_init(match ending {
        Ending::PowerOff => libc::SIGUSR2,
        Ending::Restart => libc::SIGTERM,
    });
}

/// Asks another init, as systemd(1) understands it; the signals stand for its targets.
pub(crate) fn ask_foreign_init(ending: Ending) {
    if service::is_of_a_guest() {
        signal_init(match ending {
            Ending::PowerOff => libc::SIGRTMIN() + 4,
            Ending::Restart => libc::SIGRTMIN() + 5,
        });
    } else {
        // There is no machine: the service is all that there is.
        std::process::exit(0);
    }
}

fn signal_init(signal: i32) {
    // SAFETY: a bare system call.
    if unsafe { libc::kill(1, signal) } < 0 {
        let error = std::io::Error::last_os_error();
        report::problem(format_args!("cannot tell init to end: {error}"));
    }
}

/// Ends every process but this one: SIGTERM, and SIGKILL after [`GRACE`].
pub(crate) fn end_processes(events: &mut Events) {
    signal_all(Signal::TERM);
    // Interactive shells ignore SIGTERM, and end when their terminal goes.
    signal_all(Signal::HUP);
    // A stopped process acts on SIGTERM only once it goes on.
    signal_all(Signal::CONT);
    if wait_for_end(events, Instant::now() + GRACE) == Left::Some {
        signal_all(Signal::KILL);
        // The kernel ends them; what hangs in it for longer than this would hang for ever.
        wait_for_end(events, Instant::now() + GRACE);
    }
}

/// To every process but this one: that is what group 1 stands for when it is killed (kill(2), -1).
fn signal_all(signal: Signal) {
    // An error says that there is no process left.
    let _ = kill_process_group(Pid::INIT, signal);
}

fn wait_for_end(events: &mut Events, deadline: Instant) -> Left {
    while reap::collect(|_| {}) == Left::Some {
        match events.wait(Some(deadline)) {
            Ok(happened) if happened.is_empty() => return Left::Some,
            Ok(_) => {}
            Err(error) => {
                report::problem(format_args!("cannot wait for processes to end: {error}"));
                return Left::Some;
            }
        }
    }
    Left::None
}

/// Writes everything to the disks and ends the machine; returns only if the kernel refuses.
pub(crate) fn off_after(ending: Ending) -> ExitCode {
    rustix::fs::sync();
    mounts::release_all();
    end_machine(ending)
}

/// Ends the machine at once; returns only if the kernel refuses.
pub(crate) fn end_machine(ending: Ending) -> ExitCode {
    if Parameters::of_this_boot().is_ok_and(|parameters| parameters.raw_console)
        // The kernel's farewell would be the last line of what the console carries.
        && let Err(error) = std::fs::write(PRINTK, "0")
    {
        report::problem(format_args!("cannot silence the kernel: {error}"));
    }
    let command = match ending {
        Ending::PowerOff => RebootCommand::PowerOff,
        Ending::Restart => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        report::problem(format_args!(
            "the kernel refuses to end the machine: {error}"
        ));
    }
    ExitCode::FAILURE
}
