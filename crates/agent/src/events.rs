//! What wakes init: signals and the power button.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::report;

/// Something that init has to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// At least one process has ended.
    ChildEnded,
    /// The machine is to be powered off: the button, or `poweroff` and `halt`.
    PowerOff,
    /// The machine is to be restarted: Ctrl-Alt-Del, or `reboot`.
    Restart,
}

/// Signals to process 1 and what they ask for, as BusyBox's `poweroff`, `halt` and `reboot` send
/// them; the kernel sends SIGINT for Ctrl-Alt-Del.
const SIGNALS: [(i32, Event); 5] = [
    (SIGCHLD, Event::ChildEnded),
    (SIGUSR1, Event::PowerOff),
    (SIGUSR2, Event::PowerOff),
    (SIGTERM, Event::Restart),
    (SIGINT, Event::Restart),
];

/// `struct input_event` on 64-bit Linux: two words of time, type, code, value.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const KEY_PRESSED: i32 = 1;

enum Source {
    Signal(UnixStream, Event),
    Buttons(File),
}

/// Everything that init waits for.
pub(crate) struct Events {
    sources: Vec<Source>,
}

impl Events {
    /// Begins to listen; from here on no signal is lost.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut sources = Vec::new();
        for (signal, event) in SIGNALS {
            let (receiver, sender) = UnixStream::pair()?;
            receiver.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, OwnedFd::from(sender))?;
            sources.push(Source::Signal(receiver, event));
        }
        sources.extend(input_devices().map(Source::Buttons));
        Ok(Self { sources })
    }

    /// Waits for the next events, at most until `deadline`: none when it passes.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        loop {
            let mut ready: Vec<PollFd<'_>> = self.sources.iter().map(poll_entry).collect();
            let left = deadline.map(|deadline| timespec(deadline.duration_since(Instant::now())));
            match poll(&mut ready, left.as_ref()) {
                Ok(0) if deadline.is_some() => return Ok(Vec::new()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let woken: Vec<bool> = ready
                .iter()
                .map(|entry| !entry.revents().is_empty())
                .collect();
            let events = self.take(&woken);
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Reads the woken sources; those that failed are dropped, so that they wake nobody again.
    fn take(&mut self, woken: &[bool]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut woken = woken.iter();
        self.sources.retain_mut(|source| {
            if !woken.next().copied().unwrap_or(false) {
                return true;
            }
            match source.read() {
                Ok(event) => {
                    events.extend(event);
                    true
                }
                Err(error) => {
                    report::problem(format_args!("an event source failed: {error}"));
                    false
                }
            }
        });
        events
    }
}

impl Source {
    fn read(&mut self) -> io::Result<Option<Event>> {
        let mut buffer = [0; 64 * INPUT_EVENT_BYTES];
        let (count, pressed) = match self {
            Self::Signal(stream, event) => (stream.read(&mut buffer), Some(*event)),
            Self::Buttons(device) => (device.read(&mut buffer), None),
        };
        match count {
            Ok(count) => {
                Ok(pressed
                    .or_else(|| power_pressed(buffer.get(..count)?).then_some(Event::PowerOff)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn poll_entry(source: &Source) -> PollFd<'_> {
    match source {
        Source::Signal(stream, _) => PollFd::new(stream, PollFlags::IN),
        Source::Buttons(device) => PollFd::new(device, PollFlags::IN),
    }
}

fn power_pressed(events: &[u8]) -> bool {
    events.chunks_exact(INPUT_EVENT_BYTES).any(|event| {
        let number = |at: usize| {
            event
                .get(at..at + 2)
                .and_then(|bytes| bytes.first_chunk())
                .copied()
                .map(u16::from_ne_bytes)
        };
        let value = event.get(20..24).and_then(|bytes| bytes.first_chunk());
        number(16) == Some(EV_KEY)
            && number(18) == Some(KEY_POWER)
            && value.copied().map(i32::from_ne_bytes) == Some(KEY_PRESSED)
    })
}

/// Every input device that is there: which of them has a power button is told by its events.
fn input_devices() -> impl Iterator<Item = File> {
    fs::read_dir("/dev/input")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| {
            File::options()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(entry.path())
                .inspect_err(|error| {
                    report::problem(format_args!(
                        "cannot open {}: {error}",
                        entry.path().display()
                    ));
                })
                .ok()
        })
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![7; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn power_button_pressed_behind_other_events_is_seen() {
        let events = [
            event(0, 0, 0),
            event(EV_KEY, 30, 1),
            event(EV_KEY, KEY_POWER, 1),
        ]
        .concat();

        assert!(power_pressed(&events));
    }

    #[test]
    fn power_button_released_and_other_keys_are_not_a_press() {
        for other in [
            event(EV_KEY, KEY_POWER, 0),
            event(EV_KEY, 30, 1),
            event(2, KEY_POWER, 1),
        ] {
            assert!(!power_pressed(&other));
        }
    }

    #[test]
    fn half_an_event_is_not_a_press() {
        assert!(!power_pressed(&event(EV_KEY, KEY_POWER, 1)[..20]));
    }
}
