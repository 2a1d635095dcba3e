//! A series of test programs in one run of the lab: the plan goes in on standard input, what happens comes out on standard
//! output, as lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::programs::Program;
use super::series::{self, Event};

/// For all of them; each program's own limit is shorter.
const LIMIT_SECONDS: &str = "3000";
/// How often the lab says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long it may say nothing. QEMU's software emulation of nested virtualization stands still now and then, with
/// one of its processors spinning and its kernel dead: no test's doing, and nothing but another lab helps.
const SILENCE: Duration = Duration::from_secs(75);
/// How many labs are started at most.
const LABS: usize = 8;

/// Runs the programs in the lab; those that one did not come to the end of, because it stood still, in another. The
/// answer says what kept the lab from running all of them, if something did.
pub(crate) fn run_series(
    programs: &[Program],
    tell: &(dyn Fn(Event) + Sync),
    show: &dyn Fn(&str),
) -> Result<Option<String>> {
    let mut left: Vec<usize> = (0..programs.len()).collect();
    for lab in 1..=LABS {
        let chosen: Vec<&Program> = left
            .iter()
            .filter_map(|&place| programs.get(place))
            .collect();
        let mut ended = Vec::new();
        let outcome = run_in_one(&chosen, |event| {
            let Some(event) = event.placed(&left) else {
                return;
            };
            if let Event::Ended(place, _) = event {
                ended.push(place);
            }
            tell(event);
        })?;
        left.retain(|place| !ended.contains(place));
        match outcome {
            // It had come to the end of the last program.
            LabEnd::StoodStill if left.is_empty() => return Ok(None),
            LabEnd::StoodStill if lab < LABS => show(&format!(
                "the lab stood still for {} seconds; {} programs go on in another",
                SILENCE.as_secs(),
                left.len()
            )),
            LabEnd::StoodStill => return Ok(Some(format!("{LABS} labs stood still"))),
            LabEnd::Ended(why) => return Ok(why),
        }
    }
    Ok(None)
}

enum LabEnd {
    /// By itself; the words say what was wrong, if something was.
    Ended(Option<String>),
    StoodStill,
}

fn run_in_one(programs: &[&Program], mut tell: impl FnMut(Event)) -> Result<LabEnd> {
    let (mut lab, output) = start(programs)?;
    let (lines, events) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let stood_still = follow(&events, &mut tell)?;
    if stood_still {
        // Its machine goes with it.
        lab.kill().context("cannot end the lab")?;
    }
    let status = lab.wait().context("cannot wait for the lab")?;
    drop(events);
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that reads what the lab says has panicked"))?;
    Ok(match stood_still {
        true => LabEnd::StoodStill,
        false => LabEnd::Ended((!status.success()).then(|| format!("the lab ended with {status}"))),
    })
}

fn start(programs: &[&Program]) -> Result<(Child, ChildStdout)> {
    let xtask = std::env::current_exe().context("cannot tell this program's own path")?;
    let mut lab = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&xtask)
        .args(["lab", "--timeout", LIMIT_SECONDS, "--"])
        .arg(&xtask)
        .arg("test-series")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the lab")?;
    let plan = serde_json::to_vec(programs)?;
    let mut input = lab.stdin.take().context("the lab has no standard input")?;
    // Where the lab has ended already, its exit status says why.
    let _ = input.write_all(&plan);
    drop(input);
    let output = lab
        .stdout
        .take()
        .context("the lab has no standard output")?;
    Ok((lab, output))
}

/// Passes events on to the end of the lab; whether it stands still instead.
fn follow(lines: &Receiver<std::io::Result<String>>, tell: &mut impl FnMut(Event)) -> Result<bool> {
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => tell(
                serde_json::from_str(&line?)
                    .context("cannot read what the lab says of its tests")?,
            ),
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

/// The inner side: started in the lab by [`run_series`].
pub(crate) fn run_series_inside() -> Result<ExitCode> {
    let programs: Vec<Program> = serde_json::from_reader(std::io::stdin().lock())
        .context("cannot read which tests to run")?;
    let output = Mutex::new(std::io::stdout());
    let tell = |event| {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(line) = serde_json::to_string(&event) {
            // Where the outside has gone, the lab goes too.
            let _ = writeln!(output, "{line}");
        }
    };
    let (done, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(|| {
            // In a closure of its own, so that the end of the series is the end of this.
            let over = over;
            while over.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                tell(Event::Alive);
            }
        });
        series::run(&programs, &tell);
        drop(done);
    });
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_that_has_ended_does_not_stand_still_and_what_it_said_is_passed_on() {
        let (sender, lines) = mpsc::channel();
        sender
            .send(Ok(serde_json::to_string(&Event::Alive).unwrap()))
            .unwrap();
        drop(sender);
        let mut seen = Vec::new();

        let stood_still = follow(&lines, &mut |event| seen.push(event)).unwrap();

        assert!(!stood_still);
        assert_eq!(seen, [Event::Alive]);
    }
}
