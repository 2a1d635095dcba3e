//! The monitor's main thread: one start, then requests, to the guest's end or the library's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use capsa_process::{ReceiveError, SendError};
use rustix::event::{PollFd, PollFlags, poll};

use super::confinement::{self, Confined};
use super::disks;
use super::memory_reports::MemoryReports;
use crate::machine::{DeviceConfig, Machine, MachineError, MachineFiles};
use crate::protocol::{self, Command, Event, Failure, ProtocolError, Request, Start};

/// What to do where a layer of confinement is missing and all were asked for.
const UNCONFINED: &str = "have the host provide it, or start the VM with Isolation::BestEffort";

/// Where the monitor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a process that is there for it alone, and that is confined.
    OwnProcess,
    /// On a thread of the caller's process.
    CallersProcess,
}

/// Why the monitor could not do its work. The library has been told already where it could be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ServeError {
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("{0}")]
    Receive(#[from] ReceiveError),
    #[error("{0}")]
    Send(#[from] SendError),
    #[error("the start message came with {got} descriptors instead of {needed}")]
    Descriptors { got: usize, needed: usize },
    #[error("cannot wait for requests: {0}")]
    Wait(#[source] io::Error),
    #[error("cannot confine the thread that answers requests: {0}")]
    Confine(#[source] io::Error),
}

/// Runs one machine for the library at the other end of `socket`.
///
/// # Errors
/// [`ServeError`]; a machine that cannot be built or a guest that ends badly is not one: the library
/// is told by an event.
pub(crate) fn serve(socket: OwnedFd, place: Place) -> Result<(), ServeError> {
    let control = Control {
        socket,
        buffer: Vec::new(),
    };
    control.serve(place)
}

/// What the monitor was woken for.
#[derive(Clone, Copy, Debug)]
struct Woken {
    requested: bool,
    ended: bool,
    reported: bool,
}

struct Control {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Control {
    fn serve(mut self, place: Place) -> Result<(), ServeError> {
        let Some(descriptors) = capsa_process::receive(&self.socket, &mut self.buffer)? else {
            return Ok(());
        };
        let start = match protocol::decode_start(&self.buffer) {
            Ok(start) => start,
            Err(error) => {
                self.fail(
                    &error.to_string(),
                    "give library and monitor the same version",
                )?;
                return Err(error.into());
            }
        };
        let files = files(&start, descriptors)?;
        let confined = match place {
            Place::OwnProcess => {
                let (confined, missing) =
                    confinement::enter(self.socket.as_fd(), &start.machine, &files);
                if start.strict
                    && let Some(missing) = missing.first()
                {
                    return self.fail(&missing.to_string(), UNCONFINED);
                }
                for missing in missing {
                    self.tell(&Event::Warning(missing.to_string()))?;
                }
                confined
            }
            Place::CallersProcess => Confined::not_at_all(),
        };
        let built = Machine::build_with(&start.machine, files, confined.prepare());
        let built = built.and_then(|mut machine| {
            machine.start()?;
            Ok(machine)
        });
        let machine = match built {
            Ok(machine) => machine,
            Err(error) => return self.fail(&error.to_string(), fix(&error)),
        };
        confined.finish().map_err(ServeError::Confine)?;
        self.tell(&Event::Running)?;
        self.follow(machine)
    }

    /// Answers requests until the guest has ended or the library is gone.
    fn follow(&mut self, machine: Machine) -> Result<(), ServeError> {
        let mut memory = MemoryReports::of(&machine);
        loop {
            let woken = self.wait(&machine, &memory)?;
            if woken.ended {
                break;
            }
            if woken.reported {
                for (number, report) in memory.take() {
                    self.tell(&Event::Memory { number, report })?;
                }
            }
            if woken.requested {
                let Some(_none_expected) = capsa_process::receive(&self.socket, &mut self.buffer)?
                else {
                    // The library let go: so does the guest.
                    return Ok(());
                };
                let request = protocol::decode(&self.buffer)?;
                self.carry_out(request, &machine, &mut memory)?;
            }
        }
        machine.wait_for_output();
        let end = machine.end();
        drop(machine);
        match end {
            Some(end) => self.tell(&Event::Ended(end)),
            None => Ok(()),
        }
    }

    fn wait(&self, machine: &Machine, memory: &MemoryReports) -> Result<Woken, ServeError> {
        let mut sources = vec![
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::from_borrowed_fd(machine.end_event(), PollFlags::IN),
        ];
        if let Some(changed) = memory.changed() {
            sources.push(PollFd::from_borrowed_fd(changed, PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| poll(&mut sources, None))
            .map_err(|error| ServeError::Wait(error.into()))?;
        let woken = |at: usize| {
            sources
                .get(at)
                .is_some_and(|source| !source.revents().is_empty())
        };
        Ok(Woken {
            requested: woken(0),
            ended: woken(1),
            reported: woken(2),
        })
    }

    fn carry_out(
        &self,
        request: Request,
        machine: &Machine,
        memory: &mut MemoryReports,
    ) -> Result<(), ServeError> {
        let number = request.number;
        let done = match request.command {
            Command::PowerButton => machine.power_button().map_err(|error| error.to_string()),
            Command::Pause => machine.pause().map_err(|error| error.to_string()),
            Command::Resume => {
                machine.resume();
                Ok(())
            }
            Command::SetBalloonTarget(bytes) => memory.set_target(bytes),
            Command::ReportMemory => match memory.ask(number) {
                // The answer follows.
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            },
            Command::GrowDisk { disk, bytes } => {
                let result = disks::grow(machine.controls(), disk, bytes);
                return self.tell(&Event::DiskSize { number, result });
            }
            Command::RefreshDisk { disk } => {
                let result = disks::refresh(machine.controls(), disk);
                return self.tell(&Event::DiskSize { number, result });
            }
        };
        self.tell(&Event::Done {
            number,
            error: done.err(),
        })
    }

    fn fail(&self, reason: &str, fix: &str) -> Result<(), ServeError> {
        let failure = Failure {
            reason: reason.to_owned(),
            fix: fix.to_owned(),
        };
        self.tell(&Event::Failed(failure))
    }

    fn tell(&self, event: &Event) -> Result<(), ServeError> {
        match capsa_process::send(&self.socket, &protocol::encode(event)?, &[]) {
            // The library is gone, and nobody is left to be told.
            Err(SendError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent?),
        }
    }
}

/// Puts the descriptors of a start message in their places.
fn files(start: &Start, descriptors: Vec<OwnedFd>) -> Result<MachineFiles, ServeError> {
    let devices = &start.machine.devices;
    let needed = 2
        + usize::from(start.initramfs)
        + usize::from(start.machine.serial)
        + devices.iter().map(DeviceConfig::descriptors).sum::<usize>();
    let got = descriptors.len();
    let wrong = || ServeError::Descriptors { got, needed };
    if got != needed {
        return Err(wrong());
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(wrong);
    let kvm = next()?;
    let kernel = File::from(next()?);
    let initrd = start.initramfs.then(&mut next).transpose()?.map(File::from);
    let serial = start.machine.serial.then(&mut next).transpose()?;
    let devices = devices
        .iter()
        .map(|device| (0..device.descriptors()).map(|_| next()).collect())
        .collect::<Result<_, _>>()?;
    Ok(MachineFiles {
        kvm,
        kernel,
        initrd,
        serial,
        devices,
    })
}

fn fix(error: &MachineError) -> &'static str {
    match error {
        MachineError::Config(_) | MachineError::Memory { .. } => "change the setting it names",
        MachineError::Kernel(_) => "give another kernel, or more memory where it asks for it",
        MachineError::Initrd(_) => "give another initramfs, or more memory where it asks for it",
        MachineError::CommandLine(_) => "change the kernel parameters",
        MachineError::KvmUnusable { .. } | MachineError::Kvm { .. } => {
            "run `capsa doctor` to see what this host's KVM can do, or use the qemu backend"
        }
        _ => "run `capsa doctor` to see what this host can do",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DeviceDiscovery, MachineConfig};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn start() -> Start {
        Start {
            machine: MachineConfig {
                vcpus: 1,
                memory: 64 << 20,
                command_line: String::new(),
                discovery: DeviceDiscovery::Auto,
                serial: false,
                devices: vec![DeviceConfig::Console, DeviceConfig::Rng],
            },
            initramfs: true,
            strict: false,
        }
    }

    fn null(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect()
    }

    /// Sends `message` to a monitor and gives what it told, with how it ended.
    fn served(message: &[u8], descriptors: &[OwnedFd]) -> (Vec<Event>, Result<(), ServeError>) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        capsa_process::send(&ours, message, &descriptors).unwrap();
        let end = serve(theirs, Place::CallersProcess);
        let mut events = Vec::new();
        let mut buffer = Vec::new();
        while capsa_process::receive(&ours, &mut buffer)
            .unwrap()
            .is_some()
        {
            events.push(protocol::decode(&buffer).unwrap());
        }
        (events, end)
    }

    #[test]
    fn descriptors_of_a_start_are_put_in_their_places() {
        let files = files(&start(), null(4)).unwrap();
        assert!(files.initrd.is_some());
        assert!(files.serial.is_none());
        assert_eq!(
            files.devices.iter().map(Vec::len).collect::<Vec<_>>(),
            [1, 0]
        );
    }

    #[test]
    fn a_start_with_descriptors_too_few_or_too_many_is_refused() {
        for count in [0, 1, 3, 5] {
            let refused = files(&start(), null(count));
            assert!(
                matches!(refused, Err(ServeError::Descriptors { got, needed: 4 }) if got == count)
            );
        }
    }

    #[test]
    fn a_descriptor_that_is_not_kvm_is_told_as_a_failed_start() {
        let message = protocol::encode_start(&start()).unwrap();
        let (events, end) = served(&message, &null(4));
        assert!(end.is_ok(), "{end:?}");
        assert!(
            matches!(&events[..], [Event::Failed(failure)] if failure.reason.contains("/dev/kvm")),
            "{events:?}"
        );
    }

    #[test]
    fn another_version_is_told_and_refused() {
        let mut message = protocol::encode_start(&start()).unwrap();
        message[protocol::MAGIC.len()] = 77;
        let (events, end) = served(&message, &null(4));
        assert!(matches!(
            end,
            Err(ServeError::Protocol(ProtocolError::Version { theirs: 77 }))
        ));
        assert!(
            matches!(&events[..], [Event::Failed(failure)] if failure.reason.contains("version 77"))
        );
    }

    #[test]
    fn a_library_that_says_nothing_ends_the_monitor() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        drop(ours);
        assert!(serve(theirs, Place::CallersProcess).is_ok());
    }
}
