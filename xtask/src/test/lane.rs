//! Series of test programs that run side by side, and what the user sees of them.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    /// One line for each program that failed, and one for each of its tests that did.
    pub(crate) troubles: Vec<String>,
    /// The same of programs that passed when they were run again.
    pub(crate) passed_again: Vec<String>,
}

/// The state of one program of a lane.
#[derive(Default)]
struct Progress {
    tally: Tally,
    /// Kept to be shown if the program fails; what machines' tests say is shown as it comes.
    said: Vec<String>,
    ended: bool,
    /// What was wrong with the run that ended last; nothing where it passed.
    troubles: Vec<String>,
    /// What was wrong with the run before that.
    earlier: Vec<String>,
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
    let watcher = Mutex::new(Watcher::new(lane, show));
    let all: Vec<usize> = (0..lane.programs.len()).collect();
    run_programs(lane, &all, &watcher)?;
    // An emulated processor with nested virtualization makes mistakes of its own. Whatever fails there fails
    // twice if it is a test's doing; what does not is told at the end.
    let again = lock(&watcher).failed_with_machines();
    if !again.is_empty() {
        show(&format!(
            "[{}] {} programs that failed run again",
            lane.name,
            again.len()
        ));
        run_programs(lane, &again, &watcher)?;
    }
    Ok(watcher
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .result())
}

/// Runs those at `places`.
fn run_programs(lane: &Lane, places: &[usize], watcher: &Mutex<Watcher<'_>>) -> Result<()> {
    let programs: Vec<Program> = places
        .iter()
        .filter_map(|&place| lane.programs.get(place).cloned())
        .collect();
    let tell = |event: Event| {
        if let Some(event) = event.placed(places) {
            lock(watcher).take(event);
        }
    };
    lock(watcher).begin_again(places);
    let lost = match lane.place {
        Place::Here => {
            series::run(&programs, &tell);
            None
        }
        Place::Lab => lab::run_series(&programs, &tell, &|line| {
            show(&format!("[{}] {line}", lane.name));
        })?,
    };
    if let Some(why) = lost {
        lock(watcher).lose_the_rest(&why);
    }
    Ok(())
}

fn lock<'a, 'b>(watcher: &'a Mutex<Watcher<'b>>) -> MutexGuard<'a, Watcher<'b>> {
    watcher.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watcher<'a> {
    lane: &'a Lane,
    show: fn(&str),
    programs: Vec<Progress>,
}

impl<'a> Watcher<'a> {
    fn new(lane: &'a Lane, show: fn(&str)) -> Self {
        Self {
            lane,
            show,
            programs: lane.programs.iter().map(|_| Progress::default()).collect(),
        }
    }

    /// Where the programs with machines are that failed.
    fn failed_with_machines(&self) -> Vec<usize> {
        self.lane
            .programs
            .iter()
            .zip(&self.programs)
            .enumerate()
            .filter(|(_, (program, progress))| {
                program.backend.is_some() && !progress.troubles.is_empty()
            })
            .map(|(place, _)| place)
            .collect()
    }

    /// Forgets how the programs at these places ended, but for what was wrong.
    fn begin_again(&mut self, places: &[usize]) {
        for &place in places {
            if let Some(progress) = self.programs.get_mut(place) {
                *progress = Progress {
                    earlier: std::mem::take(&mut progress.troubles),
                    ..Progress::default()
                };
            }
        }
    }

    fn result(self) -> LaneResult {
        let mut result = LaneResult::default();
        for progress in self.programs {
            result.tally.add(&progress.tally);
            if progress.troubles.is_empty() {
                result.passed_again.extend(progress.earlier);
            } else {
                result.troubles.extend(progress.troubles);
            }
        }
        result
    }

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
                    progress.tally = Tally::default();
                    progress.said.clear();
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
                let failures = tally.failures().map(|failure| format!("    {failure}"));
                progress.troubles = std::iter::once(trouble).chain(failures).collect();
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
        let mut watcher = Watcher::new(&lane, |_| {});
        ends(&mut watcher, 0, 0);

        watcher.lose_the_rest("the lab ended with status 125");

        let result = watcher.result();
        assert_eq!((result.tally.passed, result.tally.failed), (5, 1));
        assert!(result.troubles[0].contains("two: could not be run: the lab ended"));
    }

    /// Five tests pass in the program at `place`, and `failed` more do not.
    fn ends(watcher: &mut Watcher<'_>, place: usize, failed: u64) {
        watcher.take(Event::Began(place));
        watcher.take(Event::Said(
            place,
            format!("test result: ok. 5 passed; {failed} failed; 0 ignored"),
        ));
        watcher.take(Event::Ended(
            place,
            Outcome::Exited {
                code: if failed == 0 { 0 } else { 101 },
                milliseconds: 1,
            },
        ));
    }

    #[test]
    fn program_that_passes_when_run_again_is_told_apart_from_one_that_fails_twice() {
        let lane = lane();
        let mut watcher = Watcher::new(&lane, |_| {});
        ends(&mut watcher, 0, 1);
        ends(&mut watcher, 1, 2);
        let again = watcher.failed_with_machines();
        watcher.begin_again(&again);
        ends(&mut watcher, 0, 0);
        ends(&mut watcher, 1, 2);

        let result = watcher.result();

        assert_eq!(again, [0, 1]);
        assert_eq!((result.tally.passed, result.tally.failed), (10, 2));
        assert_eq!(result.passed_again, ["[kvm-lab] one: 1 failed"]);
        assert_eq!(result.troubles, ["[kvm-lab] two: 2 failed"]);
    }

    #[test]
    fn programs_that_passed_or_have_no_machines_are_not_run_again() {
        let mut lane = lane();
        lane.programs[1].backend = None;
        let mut watcher = Watcher::new(&lane, |_| {});
        ends(&mut watcher, 0, 0);
        ends(&mut watcher, 1, 1);

        assert_eq!(watcher.failed_with_machines(), [0; 0]);
    }
}
