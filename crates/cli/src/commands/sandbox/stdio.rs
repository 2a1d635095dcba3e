//! This command's standard streams and terminal, tied to a command in a guest.

use std::io;

use capsa::{Child, ChildControl, ChildStdin, Terminal};
use tokio::io::{AsyncRead, AsyncWriteExt, copy};
use tokio::task::JoinHandle;

use crate::commands::run::signals::{EndSignals, TerminalChange, TerminalSignals};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::terminal::{self, RawMode};

/// A terminal's size where it cannot be told.
const USUAL_SIZE: Terminal = Terminal {
    rows: 24,
    columns: 80,
};

/// How the guest's command is tied to this one's streams.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    /// Standard input is passed on.
    pub(crate) interactive: bool,
    /// The command has a terminal.
    pub(crate) terminal: bool,
}

/// Why the command is not waited for any more.
pub(crate) enum Carried {
    /// It ended.
    Ended(capsa::ExitStatus),
    /// A second signal came, or the output is closed.
    Broken(ExitStatus),
}

/// The size of the terminal that the guest's is to have.
pub(crate) fn terminal_size() -> Terminal {
    terminal::window_size().map_or(USUAL_SIZE, |size| Terminal {
        rows: size.rows,
        columns: size.columns,
    })
}

/// Stays with a command to its end. Signals are passed on to it; a second one leaves it.
pub(crate) async fn carry(mut child: Child, streams: Streams) -> Result<Carried, Failure> {
    let mut end_signals =
        EndSignals::listen().map_err(|error| Failure::io("listening to signals", error))?;
    let raw_mode = (streams.terminal && streams.interactive && terminal::is_interactive())
        .then(RawMode::enter)
        .transpose()
        .map_err(|error| Failure::io("setting the terminal to raw mode", error))?;
    let control = child.control();
    let input = Input(
        child
            .stdin
            .take()
            .filter(|_| streams.interactive)
            .map(|to| tokio::spawn(pass_input(to))),
    );
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = async {
        let stdout = pass_output(stdout, tokio::io::stdout());
        let stderr = pass_output(stderr, tokio::io::stderr());
        tokio::try_join!(stdout, stderr)
    };
    let terminal = follow_terminal(raw_mode.as_ref(), control.clone());
    let carried = async {
        // The output first: a command that has ended may have written more than was read yet.
        match output.await {
            Ok(_) => Ok(Carried::Ended(
                child.wait().await.map_err(capsa::SandboxError::from)?,
            )),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                child.kill();
                Ok(Carried::Broken(ExitStatus::Signal(13)))
            }
            Err(error) => Err(Failure::io("passing on the command's output", error)),
        }
    };
    let signals = async {
        let first = end_signals.next().await;
        control.signal(first.into());
        end_signals.next().await
    };
    let ended = tokio::select! {
        carried = carried => carried,
        signal = signals => Ok(Carried::Broken(ExitStatus::Signal(signal))),
        never = terminal => match never {},
    };
    drop(input);
    drop(raw_mode);
    ended
}

/// The task that passes on standard input; it ends with the command.
struct Input(Option<JoinHandle<()>>);

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn pass_input(mut to: ChildStdin) {
    let passed = async {
        copy(&mut tokio::io::stdin(), &mut to).await?;
        to.shutdown().await
    };
    // A command that reads no more is no failure.
    if let Err(error) = passed.await {
        tracing::debug!(%error, "standard input is not passed on any more");
    }
}

async fn pass_output(
    from: Option<impl AsyncRead + Unpin>,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) -> io::Result<()> {
    let Some(mut from) = from else {
        return Ok(());
    };
    copy(&mut from, &mut to).await?;
    to.flush().await
}

/// Tells the guest's terminal the size of this one.
async fn follow_terminal(
    raw_mode: Option<&RawMode>,
    control: ChildControl,
) -> std::convert::Infallible {
    let (Some(raw_mode), Ok(mut signals)) = (raw_mode, TerminalSignals::listen()) else {
        return std::future::pending().await;
    };
    loop {
        if let TerminalChange::Continued = signals.next().await
            && let Err(error) = raw_mode.again()
        {
            tracing::debug!(%error, "the terminal cannot be set to raw mode again");
        }
        control.resize(terminal_size());
    }
}
