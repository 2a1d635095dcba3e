//! What a command prints.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Prints `text` and a newline to standard output.
pub(crate) fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::io("writing to standard output", error))
}

/// Prints `value` as JSON to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::io("writing JSON", error.into()))?;
    to_stdout(&text)
}

/// Prints `capsa: ` and `text` to standard error. Where that is closed there is nobody to tell.
pub(crate) fn to_stderr(text: &str) {
    let _ = writeln!(io::stderr().lock(), "capsa: {}", text.trim_end());
}
