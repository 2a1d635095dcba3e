//! Counts the tests, from what the programs print and from how they end.

use super::series::Outcome;

/// What one program's run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: Vec<String>,
    /// The tests that failed, each with the first words of its panic where it said some.
    pub(crate) failures: Vec<String>,
    panics: Panics,
}

/// What tests said when they panicked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Panics {
    said: Vec<(String, String)>,
    /// The line before named this test's panic; its words come with the next one.
    next: Option<String>,
}

impl Panics {
    /// `thread 'name' (17) panicked at file:1:2:`, and the line behind it.
    fn take(&mut self, line: &str) {
        if let Some(name) = self.next.take() {
            self.said.push((name, line.to_owned()));
        }
        if let Some(rest) = line.strip_prefix("thread '")
            && let Some((name, rest)) = rest.split_once('\'')
            && rest.contains(" panicked at ")
        {
            self.next = Some(name.to_owned());
        }
    }

    fn of(&self, test: &str) -> Option<&str> {
        let panic = self.said.iter().find(|(name, _)| name == test)?;
        Some(&panic.1)
    }
}

impl Tally {
    /// Takes one line of a program's output into account.
    pub(crate) fn take(&mut self, line: &str) {
        if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            self.ignored.push(test.0.to_owned());
        }
        self.panics.take(line);
        if let Some((test, _)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... FAILED"))
        {
            self.failures.push(test.to_owned());
        }
        if let Some((passed, failed)) = counts(line) {
            self.passed += passed;
            self.failed += failed;
        }
    }

    /// Takes the end of the program into account. A program that ended badly without having counted a failure failed all
    /// the same; the answer says how.
    pub(crate) fn end(&mut self, outcome: &Outcome) -> Option<String> {
        let trouble = match outcome {
            Outcome::Exited { code: 0, .. } if self.failed == 0 => return None,
            Outcome::Exited { .. } if self.failed > 0 => {
                return Some(format!("{} failed", self.failed));
            }
            Outcome::Exited { code, .. } => format!("ended with status {code}"),
            Outcome::Signalled { signal } => format!("was ended by signal {signal}"),
            Outcome::TimedOut { seconds } => format!("was ended after {seconds} seconds"),
            Outcome::CouldNotRun { why } => format!("could not be run: {why}"),
        };
        self.failed += 1;
        Some(trouble)
    }

    /// One line for each test that failed: its name and the first words of its panic.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> + '_ {
        self.failures.iter().map(|test| match self.panics.of(test) {
            Some(words) => format!("{test}: {words}"),
            None => test.clone(),
        })
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored.extend(other.ignored.iter().cloned());
    }
}

/// `test result: ok. 11 passed; 0 failed; 1 ignored; …`
fn counts(line: &str) -> Option<(u64, u64)> {
    let mut passed = None;
    let mut failed = None;
    let rest = line.strip_prefix("test result: ")?;
    for part in rest.split(['.', ';']) {
        match part.trim().split_once(' ') {
            Some((count, "passed")) => passed = count.parse().ok(),
            Some((count, "failed")) => failed = count.parse().ok(),
            _ => {}
        }
    }
    Some((passed?, failed?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Outcome = Outcome::Exited {
        code: 0,
        milliseconds: 1,
    };
    const BAD: Outcome = Outcome::Exited {
        code: 101,
        milliseconds: 1,
    };

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.take(line);
        }
        tally
    }

    #[test]
    fn closing_lines_are_added_up() {
        let tally = tally(&[
            "test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ]);

        assert_eq!((tally.passed, tally.failed), (14, 2));
    }

    #[test]
    fn ignored_tests_are_named() {
        let tally = tally(&["test boot::slow ... ignored, takes an hour"]);

        assert_eq!(tally.ignored, ["boot::slow"]);
    }

    #[test]
    fn failed_tests_are_named_with_the_first_words_of_their_panic() {
        let tally = tally(&[
            "test one ... ok",
            "test two ... FAILED",
            "test three ... FAILED",
            "thread 'two' (71) panicked at src/lib.rs:1:2:",
            "assertion failed: it works",
            "stack backtrace:",
        ]);

        let failures: Vec<_> = tally.failures().collect();

        assert_eq!(failures, ["two: assertion failed: it works", "three"]);
    }

    #[test]
    fn program_that_crashed_before_its_closing_line_counts_as_a_failure() {
        let mut tally = tally(&["test a ... ok"]);

        let trouble = tally.end(&Outcome::Signalled { signal: 11 });

        assert_eq!(tally.failed, 1);
        assert_eq!(trouble.unwrap(), "was ended by signal 11");
    }

    #[test]
    fn failures_that_were_counted_are_not_counted_again() {
        let mut tally = tally(&[
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);

        let trouble = tally.end(&BAD);

        assert_eq!(tally.failed, 1);
        assert!(trouble.is_some());
    }

    #[test]
    fn good_end_is_no_trouble() {
        let mut tally = tally(&["test result: ok. 1 passed; 0 failed; 0 ignored"]);

        assert_eq!(tally.end(&GOOD), None);
        assert_eq!(tally.passed, 1);
    }
}
