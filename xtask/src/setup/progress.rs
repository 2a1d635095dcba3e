//! What set-up says while it works: on standard error, so that it never mixes with a command's output.

use std::io::Write;
use std::time::Instant;

/// A step that takes a while; says how long when it is finished.
pub(crate) struct Step {
    what: String,
    began: Instant,
}

/// Says what is being done now.
pub(crate) fn step(what: impl Into<String>) -> Step {
    let what = what.into();
    say(&format!("setup: {what} …"));
    Step {
        what,
        began: Instant::now(),
    }
}

impl Step {
    pub(crate) fn finish(self) {
        say(&format!(
            "setup: {} – done in {:.1} s",
            self.what,
            self.began.elapsed().as_secs_f64()
        ));
    }
}

pub(crate) fn done(what: &str) {
    say(&format!("setup: {what}"));
}

fn say(line: &str) {
    // Where nobody listens there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}
