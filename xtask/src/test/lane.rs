//! Series of test programs that run side by side, and what the user sees of them.

use std::io::Write;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use anyhow::Result;

use super::programs::Program;
use super::report::Tally;
use super::series::{Event, Outcome};
use super::{lab, series};

pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    pub(crate) programs: Vec<Program>,
}

pub(crate) enum Place {
    Here,
    Lab,
}

#[derive(Default)]
pub(crate) struct LaneResult {
    pub(crate) tally: Tally,
    /// One line for each program that failed.
    pub(crate) troubles: Vec<String>,
}

/// The state of one program of a lane.
#[derive(Default)]
struct Progress {
    tally: Tally,
    /// Kept to be shown if the program fails; what machines' tests say is shown as it comes.
    said: Vec<String>,
    ended: bool,
}

pub(crate) fn run_side_by_side(lanes: &[Lane]) -> Result<Vec<LaneResult>> {
    thread::scope(|scope| {
        let running: Vec<_> = lanes.iter().map(|lane| scope.spawn(|| run(lane))).collect();
        running
            .into_iter()
            .map(|lane| {
                lane.join().map_err(|_| {
                    anyhow::anyhow!("the thread that runs a series of tests has panicked")
                })?
            })
            .collect()
    })
}

fn run(lane: &Lane) -> Result<LaneResult> {
    let watcher = Mutex::new(Watcher {
        lane,
        show,
        programs: lane.programs.iter().map(|_| Progress::default()).collect(),
        result: LaneResult::default(),
    });
    let tell = |event| {
        watcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(event)
    };
    let lost = match lane.place {
        Place::Here => {
            series::run(&lane.programs, &tell);
            None
        }
        Place::Lab => lab::run_series(&lane.programs, &tell, &|line| {
            show(&format!("[{}] {line}", lane.name));
        })?,
    };
    let mut watcher = watcher.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(why) = lost {
        watcher.lose_the_rest(&why);
    }
    Ok(watcher.result)
}

struct Watcher<'a> {
    lane: &'a Lane,
    show: fn(&str),
    programs: Vec<Progress>,
    result: LaneResult,
}

impl Watcher<'_> {
    fn take(&mut self, event: Event) {
        match event {
            Event::Began(place) => {
                if let Some(program) = self.lane.programs.get(place)
                    && program.backend.is_some()
                {
                    (self.show)(&format!("[{}] {} …", self.lane.name, program.label));
                }
                // What a run said that a lost lab broke off does not count.
                if let Some(progress) = self.programs.get_mut(place) {
                    *progress = Progress::default();
                }
            }
            Event::Alive => {}
            Event::Said(place, line) => {
                let (Some(program), Some(progress)) =
                    (self.lane.programs.get(place), self.programs.get_mut(place))
                else {
                    return;
                };
                progress.tally.take(&line);
                if program.backend.is_none() {
                    progress.said.push(line);
                } else if !line.is_empty() {
                    (self.show)(&format!("[{}] {line}", self.lane.name));
                }
            }
            Event::Ended(place, outcome) => self.end(place, &outcome),
        }
    }

    fn end(&mut self, place: usize, outcome: &Outcome) {
        let (Some(program), Some(progress)) =
            (self.lane.programs.get(place), self.programs.get_mut(place))
        else {
            return;
        };
        progress.ended = true;
        let trouble = progress.tally.end(outcome);
        let tally = &progress.tally;
        self.result.tally.add(tally);
        let took = match outcome {
            Outcome::Exited { milliseconds, .. } => {
                format!(" in {:.1} s", *milliseconds as f64 / 1000.0)
            }
            _ => String::new(),
        };
        match trouble {
            None if tally.passed == 0 => {}
            None => (self.show)(&format!(
                "[{}] {}: {} passed{took}",
                self.lane.name, program.label, tally.passed
            )),
            Some(trouble) => {
                for line in progress.said.drain(..) {
                    (self.show)(&format!("[{}] {line}", self.lane.name));
                }
                let trouble = format!("[{}] {}: {trouble}", self.lane.name, program.label);
                (self.show)(&trouble);
                self.result.troubles.push(trouble);
                let failures = tally.failures().map(|failure| format!("    {failure}"));
                self.result.troubles.extend(failures);
            }
        }
    }

    /// Counts the programs that never came to their end as failed.
    fn lose_the_rest(&mut self, why: &str) {
        for place in 0..self.programs.len() {
            if !self.programs[place].ended {
                self.end(
                    place,
                    &Outcome::CouldNotRun {
                        why: why.to_owned(),
                    },
                );
            }
        }
    }
}

fn show(line: &str) {
    // Where nobody reads there is nobody to tell; the exit status says it all the same.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::programs::Backend;
    use super::*;

    fn lane() -> Lane {
        let program = |label: &str| Program {
            label: label.to_owned(),
            executable: "true".into(),
            arguments: vec![],
            directory: "/".into(),
            environment: vec![],
            backend: Some(Backend::Kvm),
            limit_seconds: 1,
        };
        Lane {
            name: "kvm-lab",
            place: Place::Lab,
            programs: vec![program("one"), program("two")],
        }
    }

    #[test]
    fn programs_that_a_lost_lab_never_ran_count_as_failed() {
        let lane = lane();
        let mut watcher = Watcher {
            lane: &lane,
            show: |_| {},
            programs: vec![Progress::default(), Progress::default()],
            result: LaneResult::default(),
        };
        watcher.take(Event::Began(0));
        watcher.take(Event::Said(
            0,
            "test result: ok. 5 passed; 0 failed; 0 ignored".to_owned(),
        ));
        watcher.take(Event::Ended(
            0,
            Outcome::Exited {
                code: 0,
                milliseconds: 1,
            },
        ));

        watcher.lose_the_rest("the lab ended with status 125");

        assert_eq!(
            (watcher.result.tally.passed, watcher.result.tally.failed),
            (5, 1)
        );
        assert!(watcher.result.troubles[0].contains("two: could not be run: the lab ended"));
    }
}
