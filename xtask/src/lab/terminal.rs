//! The terminal that a lab run was started on, while the command inside has it.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows and columns of the terminal on standard input.
pub(super) fn size() -> Result<(u16, u16)> {
    let size = tcgetwinsize(io::stdin()).context("--tty needs a terminal on standard input")?;
    Ok((size.ws_row, size.ws_col))
}

/// Raw mode for as long as the value lives: every key goes to the command inside, Ctrl-C too.
pub(super) struct RawTerminal {
    restorer: Restorer,
}

#[derive(Clone)]
pub(super) struct Restorer {
    before: Arc<Termios>,
}

impl RawTerminal {
    pub(super) fn enter() -> Result<Self> {
        let stdin = io::stdin();
        if !isatty(io::stdout()) {
            anyhow::bail!("--tty needs a terminal on standard output");
        }
        let before = tcgetattr(&stdin).context("--tty needs a terminal on standard input")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)
            .context("cannot put the terminal into raw mode")?;
        Ok(Self {
            restorer: Restorer {
                before: Arc::new(before),
            },
        })
    }

    pub(super) fn restorer(&self) -> Restorer {
        self.restorer.clone()
    }
}

impl Restorer {
    pub(super) fn now(&self) {
        // Fails only where the terminal has gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restorer.now();
    }
}
