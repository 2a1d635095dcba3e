//! What process 1 does from its start to the end of the machine.

use std::fs::File;
use std::io;

use capsa_agent_protocol::control::ControlEvent;
use rustix::process::Pid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::system::{RebootCommand, reboot, sethostname};

use crate::events::{Event, Events};
use crate::parameters::Parameters;
use crate::power::{self, Ending};
use crate::reap;
use crate::serve::Channel;
use crate::{boot, console, control, mounts, network, report, service};

/// Sets the guest up, runs the shell on the console, and gives how the machine is to end.
pub(crate) fn run() -> Ending {
    mounts::mount_all();
    if let Err(error) = reopen_console() {
        report::problem(format_args!("cannot open /dev/console: {error}"));
    }
    let mut events = match Events::listen() {
        Ok(events) => events,
        Err(error) => {
            report::problem(format_args!(
                "cannot listen for events: {error}; powering off"
            ));
            return Ending::PowerOff;
        }
    };
    set_up();
    let wait_for_host = Parameters::of_this_boot().is_ok_and(|parameters| parameters.wait_for_host);
    match service::start(&Channel::Vsock) {
        Ok(()) => {}
        Err(error) if wait_for_host => {
            report::problem(format_args!(
                "cannot serve the host: {error}; give the machine a vsock device; powering off"
            ));
            return Ending::PowerOff;
        }
        // A machine without such a device is served by its console.
        Err(_) => {}
    }
    if wait_for_host {
        let ending = serve(&mut events, None);
        return end(&mut events, ending);
    }
    if !console::has_shell() {
        report::problem("there is no /bin/sh in this guest, so nothing to run; powering off");
        return Ending::PowerOff;
    }
    let ending = match console::start_shell() {
        Ok(shell) => serve(&mut events, Some(shell)),
        Err(error) => {
            report::problem(format_args!(
                "cannot start the shell: {error}; powering off"
            ));
            Ending::PowerOff
        }
    };
    end(&mut events, ending)
}

fn end(events: &mut Events, ending: Ending) -> Ending {
    control::tell(&ControlEvent::Ending(ending));
    power::end_processes(events);
    ending
}

/// The kernel opens it for init only where the initramfs has the device node.
fn reopen_console() -> io::Result<()> {
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// What a guest can do without is reported and passed over.
fn set_up() {
    let parameters = Parameters::of_this_boot().unwrap_or_default();
    let host_name = parameters.host_name.as_deref().unwrap_or("capsa");
    if let Err(error) = sethostname(host_name.as_bytes()) {
        report::problem(format_args!("cannot set the host name: {error}"));
    }
    // Else the host's boot message says what goes where.
    if !parameters.wait_for_host {
        mounts::mount_shares(&parameters.mounts);
    }
    if let Err(error) = network::bring_loopback_up() {
        report::problem(format_args!(
            "cannot bring up the loopback interface: {error}"
        ));
    }
    if parameters.interface.is_some()
        && let Err(failure) = boot::set_up_network(&parameters)
    {
        report::problem(format_args!("cannot set up the network: {failure}"));
    }
    // Ctrl-Alt-Del is to send a signal instead of restarting the machine at once.
    if let Err(error) = reboot(RebootCommand::CadOff) {
        report::problem(format_args!("cannot take over Ctrl-Alt-Del: {error}"));
    }
}

/// Collects ended processes until the shell is among them, or somebody asks for the end.
fn serve(events: &mut Events, shell: Option<Pid>) -> Ending {
    loop {
        let happened = match events.wait(None) {
            Ok(happened) => happened,
            Err(error) => {
                report::problem(format_args!(
                    "cannot wait for events: {error}; powering off"
                ));
                return Ending::PowerOff;
            }
        };
        for event in happened {
            match event {
                Event::PowerOff => return Ending::PowerOff,
                Event::Restart => return Ending::Restart,
                Event::ChildEnded => {
                    let mut shell_ended = false;
                    reap::collect(|pid| shell_ended |= Some(pid) == shell);
                    if shell_ended {
                        return Ending::PowerOff;
                    }
                }
            }
        }
    }
}
