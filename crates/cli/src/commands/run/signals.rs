//! The signals that `capsa run` hears.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the virtual machine and the command.
pub(crate) struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl EndSignals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or(0)
    }
}

/// The signals that tell of the terminal.
pub(crate) struct TerminalSignals {
    resized: Signal,
    continued: Signal,
}

/// What happened to the terminal.
pub(crate) enum TerminalChange {
    /// It has another size.
    Resized,
    /// The command was stopped, and goes on.
    Continued,
}

impl TerminalSignals {
    pub(crate) fn listen() -> io::Result<Self> {
        let continued = rustix::process::Signal::CONT.as_raw();
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            continued: signal(SignalKind::from_raw(continued))?,
        })
    }

    pub(crate) async fn next(&mut self) -> TerminalChange {
        tokio::select! {
            _ = self.resized.recv() => TerminalChange::Resized,
            _ = self.continued.recv() => TerminalChange::Continued,
        }
    }
}
