//! What a process with a role logs goes to its standard error, which its parent keeps the end of.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The most lines one process writes: a guest can cause them.
const MOST_LINES: u32 = 1000;

/// Writes warnings and errors of this process to its standard error from now on.
pub(super) fn to_standard_error() {
    // It fails only where there is one already, and nothing runs ahead of the hook.
    let _first = tracing::subscriber::set_global_default(StandardError::default());
}

#[derive(Default)]
struct StandardError {
    lines: AtomicU32,
}

impl Subscriber for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let line = self.lines.fetch_add(1, Ordering::Relaxed);
        if line >= MOST_LINES {
            // It does not come round to 0 again.
            self.lines.store(MOST_LINES, Ordering::Relaxed);
            return;
        }
        let mut text = Line(format!("{}: ", event.metadata().level()));
        event.record(&mut text);
        // Nobody is left to be told.
        let _unheard = writeln!(std::io::stderr(), "{}", text.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _infallible = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
