//! Runs test programs one after the other, and tells what happens as it does. The same code runs them here and, started by
//! [`super::lab`], in the lab.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

use super::programs::Program;
use crate::streams;

/// What happens to the program of this place in the series.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    Began(usize),
    Said(usize, String),
    Ended(usize, Outcome),
    /// Nothing, but that the place where they run lives.
    Alive,
}

impl Event {
    /// The same of a program of the whole series, where this is one of those at `places`.
    pub(crate) fn placed(self, places: &[usize]) -> Option<Self> {
        let place = |index: usize| places.get(index).copied();
        Some(match self {
            Self::Began(index) => Self::Began(place(index)?),
            Self::Said(index, line) => Self::Said(place(index)?, line),
            Self::Ended(index, outcome) => Self::Ended(place(index)?, outcome),
            Self::Alive => Self::Alive,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Exited { code: i32, milliseconds: u64 },
    Signalled { signal: i32 },
    TimedOut { seconds: u64 },
    CouldNotRun { why: String },
}

/// Runs all of them; one that fails does not keep the rest from running.
pub(crate) fn run(programs: &[Program], tell: &(dyn Fn(Event) + Sync)) {
    for (place, program) in programs.iter().enumerate() {
        tell(Event::Began(place));
        let outcome =
            run_one(program, &|line| tell(Event::Said(place, line))).unwrap_or_else(|error| {
                Outcome::CouldNotRun {
                    why: format!("{error:#}"),
                }
            });
        tell(Event::Ended(place, outcome));
    }
}

fn run_one(program: &Program, say: &(dyn Fn(String) + Sync)) -> Result<Outcome> {
    let began = Instant::now();
    let (output, theirs) = io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&program.executable)
        .args(&program.arguments)
        .current_dir(&program.directory)
        .envs(
            program
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::null())
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        // Of its own, so that a test that hangs is ended with all that it started.
        .process_group(0);
    let mut child = command.spawn().context("cannot start it")?;
    // The command holds the writing end of the pipe.
    drop(command);

    let output = OwnedFd::from(output);
    let (over, ended) = streams::ending()?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut lines = Lines::default();
            let carried = streams::carry(&output, &over, |piece| lines.take(piece, say));
            lines.finish(say);
            carried
        });
        let in_time = wait_until(&child, Duration::from_secs(program.limit_seconds));
        if !matches!(in_time, Ok(true)) {
            end_group(&child);
        }
        let status = child.wait();
        drop(ended);
        reader
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that reads its output has panicked"))??;
        if !in_time? {
            return Ok(Outcome::TimedOut {
                seconds: program.limit_seconds,
            });
        }
        let status = status.context("cannot wait for it")?;
        Ok(match status.signal() {
            Some(signal) => Outcome::Signalled { signal },
            None => Outcome::Exited {
                code: status.code().unwrap_or(-1),
                milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
        })
    })
}

/// Whether the process ended before the time was over.
fn wait_until(child: &Child, limit: Duration) -> Result<bool> {
    let process = pidfd_open(pid(child)?, PidfdFlags::empty()).context("cannot watch it")?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("too long a time")?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for it"),
        }
    }
}

fn end_group(child: &Child) {
    if let Ok(group) = pid(child) {
        // Fails only where all of it has ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn pid(child: &Child) -> Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the process has no number")
}

/// Puts pieces together to lines.
#[derive(Default)]
struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    fn take(&mut self, piece: &[u8], say: &(dyn Fn(String) + Sync)) {
        self.unfinished.extend_from_slice(piece);
        while let Some(end) = self.unfinished.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            say(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    }

    fn finish(self, say: &(dyn Fn(String) + Sync)) {
        if !self.unfinished.is_empty() {
            say(String::from_utf8_lossy(&self.unfinished).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn shell(script: &str, limit_seconds: u64) -> Program {
        Program {
            label: "a test".to_owned(),
            executable: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            directory: "/".into(),
            environment: vec![("WORD".to_owned(), "hello".to_owned())],
            backend: None,
            limit_seconds,
        }
    }

    fn events(program: Program) -> Vec<Event> {
        let events = Mutex::new(Vec::new());
        run(&[program], &|event| events.lock().unwrap().push(event));
        events.into_inner().unwrap()
    }

    #[test]
    fn program_that_fails_is_told_with_its_lines_and_its_code() {
        let events = events(shell("echo $WORD; printf more >&2; exit 3", 60));

        assert_eq!(events[0], Event::Began(0));
        assert_eq!(events[1], Event::Said(0, "hello".to_owned()));
        assert_eq!(events[2], Event::Said(0, "more".to_owned()));
        assert!(matches!(
            events[3],
            Event::Ended(0, Outcome::Exited { code: 3, .. })
        ));
    }

    #[test]
    fn program_that_takes_too_long_is_ended_with_what_it_started() {
        let sleeper = Mutex::new(None);
        let last = Mutex::new(None);
        run(&[shell("sleep 1000 & echo $!; wait", 1)], &|event| {
            if let Event::Said(0, number) = &event {
                let process = number.parse().ok().and_then(Pid::from_raw).unwrap();
                let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
                *sleeper.lock().unwrap() = Some(process);
            }
            *last.lock().unwrap() = Some(event);
        });

        assert_eq!(
            last.into_inner().unwrap(),
            Some(Event::Ended(0, Outcome::TimedOut { seconds: 1 }))
        );
        let sleeper = sleeper
            .into_inner()
            .unwrap()
            .expect("it said its sleeper's number");
        let patience = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&sleeper, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "the sleeper lives on");
    }

    #[test]
    fn program_killed_by_a_signal_is_told_so() {
        let events = events(shell("kill -SEGV $$", 60));

        assert_eq!(
            events.last(),
            Some(&Event::Ended(0, Outcome::Signalled { signal: 11 }))
        );
    }

    #[test]
    fn program_that_is_run_again_keeps_its_place_in_the_series() {
        let said = Event::Said(1, "a line".to_owned());

        assert_eq!(
            said.placed(&[4, 7]),
            Some(Event::Said(7, "a line".to_owned()))
        );
        assert_eq!(Event::Began(2).placed(&[4, 7]), None);
    }
}
