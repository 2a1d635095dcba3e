//! One virtual machine from its start to its end.

use std::io;
use std::time::Duration;

use capsa::{ConsoleReader, ConsoleWriter, ReadFrom, VmExit, VmHandle};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Input;
use super::keys::{Ended, send_keys};
use super::ready::{Filtered, MarkFilter};
use super::signals::{EndSignals, TerminalChange, TerminalSignals};
use super::vsock_port::{self, VsockPortArgument};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::to_stderr;
use crate::terminal::{self, RawMode};

/// How long a guest that is asked to shut down may take.
const GRACE: Duration = Duration::from_secs(5);

/// Why the session does not go on.
enum End {
    /// The guest ended, and its output is written.
    Guest,
    /// Its output cannot be written (or, which cannot be, was lost).
    Output(io::Error),
    Left,
    Signal(u8),
    TimedOut,
}

/// Starts `vm`, whose first `told` warnings the user knows, and stays with it to its end.
pub(super) async fn run(
    vm: VmHandle,
    input: Input,
    limit: Option<Duration>,
    ports: &[VsockPortArgument],
    told: usize,
) -> Result<ExitStatus, Failure> {
    let mut end_signals =
        EndSignals::listen().map_err(|error| Failure::io("listening to signals", error))?;
    // Made before the start, it misses nothing.
    let reader = vm.console()?.lossless_reader(ReadFrom::Start);
    let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
    tokio::select! {
        started = vm.start() => started?,
        signal = end_signals.next() => return Ok(ExitStatus::Signal(signal)),
        () = at(deadline) => return Ok(timed_out()),
    }
    super::warn(&vm, told);
    let _forwards = vsock_port::open(&vm, ports).await?;
    let raw_mode = (input == Input::Keys)
        .then(RawMode::enter)
        .transpose()
        .map_err(|error| Failure::io("setting the terminal to raw mode", error))?;

    let (ready, wait) = match input {
        Input::PipeWhenReady => {
            let (ready, wait) = oneshot::channel();
            (Some(ready), Some(wait))
        }
        Input::Keys | Input::Pipe => (None, None),
    };
    let mut session = Session {
        vm: &vm,
        end_signals,
        raw_mode: raw_mode.as_ref(),
        output: tokio::spawn(write_output(reader, ready)),
        keys: tokio::spawn(send_input(vm.console()?.writer(), input, wait)),
    };
    let end = tokio::select! {
        end = session.end() => end,
        () = at(deadline) => End::TimedOut,
    };
    let exit = match end {
        End::Guest => vm.wait().await,
        _ => session.shut_down(&end).await?,
    };
    drop(session);
    drop(raw_mode);
    Ok(report(end, &exit))
}

/// Writes what the guest does until it ends. Where `ready` is to be told, the guest's mark for it
/// is taken out.
async fn write_output(
    mut reader: ConsoleReader,
    ready: Option<oneshot::Sender<()>>,
) -> io::Result<()> {
    let mut stdout = tokio::io::stdout();
    if let Some(ready) = ready {
        write_until_ready(&mut reader, &mut stdout).await?;
        // Where nobody waits any more, the session is at its end.
        let _ = ready.send(());
    }
    tokio::io::copy(&mut reader, &mut stdout).await?;
    stdout.flush().await
}

async fn write_until_ready(
    reader: &mut ConsoleReader,
    stdout: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut filter = MarkFilter::new();
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            stdout.write_all(&filter.finish()).await?;
            return stdout.flush().await;
        }
        let filtered = filter.pass(buffer.get(..count).unwrap_or_default());
        let (Filtered::Waiting(bytes) | Filtered::Ready(bytes)) = &filtered;
        stdout.write_all(bytes).await?;
        stdout.flush().await?;
        if matches!(filtered, Filtered::Ready(_)) {
            return Ok(());
        }
    }
}

/// Sends what is typed or piped to the guest, once it is ready for it.
async fn send_input(
    mut writer: ConsoleWriter,
    input: Input,
    ready: Option<oneshot::Receiver<()>>,
) -> io::Result<Ended> {
    let mut stdin = tokio::io::stdin();
    if input == Input::Keys {
        return send_keys(stdin, writer).await;
    }
    if let Some(ready) = ready
        && ready.await.is_err()
    {
        return Ok(Ended::Closed);
    }
    // Reads on only when the guest has taken what was read.
    tokio::io::copy(&mut stdin, &mut writer).await?;
    writer.flush().await?;
    Ok(Ended::Closed)
}

async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

struct Session<'a> {
    vm: &'a VmHandle,
    end_signals: EndSignals,
    raw_mode: Option<&'a RawMode>,
    output: JoinHandle<io::Result<()>>,
    keys: JoinHandle<io::Result<Ended>>,
}

impl Session<'_> {
    /// Waits for a reason to end.
    async fn end(&mut self) -> End {
        let mut terminal_signals = match self.raw_mode {
            Some(_) => TerminalSignals::listen().ok(),
            None => None,
        };
        let mut typing = true;
        loop {
            tokio::select! {
                written = &mut self.output => {
                    return match written {
                        Ok(Ok(())) => End::Guest,
                        Ok(Err(error)) => End::Output(error),
                        Err(panic) => End::Output(panic.into()),
                    };
                }
                left = &mut self.keys, if typing => {
                    typing = false;
                    match left {
                        Ok(Ok(Ended::Left)) => return End::Left,
                        // The guest may go on although nobody types any more.
                        Ok(Ok(Ended::Closed)) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "the input has ended"),
                        Err(error) => tracing::debug!(%error, "the input has ended"),
                    }
                }
                signal = self.end_signals.next() => return End::Signal(signal),
                change = next_change(&mut terminal_signals) => self.follow_terminal(change).await,
            }
        }
    }

    async fn follow_terminal(&self, change: TerminalChange) {
        if let (TerminalChange::Continued, Some(raw_mode)) = (&change, self.raw_mode)
            && let Err(error) = raw_mode.again()
        {
            tracing::debug!(%error, "the terminal cannot be set to raw mode again");
        }
        let Some(size) = terminal::window_size() else {
            return;
        };
        if let Err(error) = self.vm.resize_console(size).await {
            tracing::debug!(%error, "the guest cannot be told the terminal's size");
        }
    }

    /// Asks the guest to shut down; a second signal, or the grace period's end, kills it.
    async fn shut_down(&mut self, end: &End) -> Result<VmExit, Failure> {
        let stop = async {
            match self.vm.stop(GRACE).await {
                Err(capsa::Error::Unsupported { .. }) => self.vm.kill().await,
                Err(error) => Err(error),
                Ok(_) => Ok(()),
            }
        };
        tokio::select! {
            stopped = stop => stopped?,
            _ = self.end_signals.next() => self.vm.kill().await?,
        }
        let exit = self.vm.wait().await;
        if !matches!(end, End::Output(_)) {
            // The rest of the output; whoever does not take it can still send a signal.
            tokio::select! {
                _ = &mut self.output => {}
                _ = self.end_signals.next() => {}
            }
        }
        Ok(exit)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.output.abort();
        self.keys.abort();
    }
}

async fn next_change(signals: &mut Option<TerminalSignals>) -> TerminalChange {
    match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    }
}

fn timed_out() -> ExitStatus {
    to_stderr("the time of --timeout was over, so the virtual machine was ended");
    ExitStatus::TimedOut
}

fn report(end: End, exit: &VmExit) -> ExitStatus {
    match end {
        End::Guest => {
            if *exit != VmExit::PoweredOff {
                to_stderr(&exit.to_string());
            }
            exit.into()
        }
        End::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Signal(13),
        End::Output(error) => {
            to_stderr(&format!(
                "error: the guest's output cannot be written, so the virtual machine was ended: \
                 {error}"
            ));
            ExitStatus::Failed
        }
        End::Left => {
            to_stderr("left with Ctrl-], so the virtual machine was ended");
            ExitStatus::Left
        }
        End::Signal(number) => {
            to_stderr(&format!(
                "signal {number} came, so the virtual machine was ended"
            ));
            ExitStatus::Signal(number)
        }
        End::TimedOut => timed_out(),
    }
}
