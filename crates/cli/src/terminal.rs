//! The terminal that `capsa` runs on.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};

use capsa::WindowSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal's settings from before raw mode; `None` while they are in force.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a person sits at both ends of the console.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The size of the terminal, where it is known.
pub(crate) fn window_size() -> Option<WindowSize> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal's type, where it is a plain word that can stand on a kernel command line.
pub(crate) fn kind() -> Option<String> {
    let kind = std::env::var("TERM").ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    (!kind.is_empty() && kind.len() <= 64 && kind.chars().all(plain)).then_some(kind)
}

/// While it lives, every key goes to the guest as it is. Dropping it brings the terminal back.
pub(crate) struct RawMode(());

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let settings = tcgetattr(stdin())?;
        *before() = Some(settings.clone());
        let raw = Self(());
        raw.apply(settings)?;
        Ok(raw)
    }

    /// Sets raw mode again: after a stop and a `fg`, the shell has brought back its own.
    pub(crate) fn again(&self) -> io::Result<()> {
        self.apply(tcgetattr(stdin())?)
    }

    fn apply(&self, mut settings: Termios) -> io::Result<()> {
        settings.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &settings)?;
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(settings) = before().take() {
        // Where the terminal is gone there is nothing to bring back.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &settings);
    }
}

/// Lets the message of a panic appear on a terminal that shows it as it should.
pub(crate) fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}
