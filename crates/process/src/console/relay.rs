use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use capsa_core::{ConsoleInput, ConsoleIo};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::{PanicMatcher, PanicText};

/// What the relay holds of a reader that does not keep up, in bytes; the rest waits in the sockets
/// and then in the guest.
const OUTPUT_BYTES: usize = 64 << 10;
/// What the relay takes from the caller ahead of the guest, in bytes.
const INPUT_BYTES: usize = 4 << 10;
/// The most that is taken from the sockets once the child is gone, in bytes: more than two of them
/// can hold.
const REST_BYTES: usize = 4 << 20;

/// The caller's ends of the console sockets.
#[derive(Debug)]
pub struct ConsolePorts {
    /// The serial port, or both devices in one.
    pub serial: StdUnixStream,
    /// The virtio console, where it has a socket of its own.
    pub virtio: Option<StdUnixStream>,
    /// Which one is given the input.
    pub input: ConsoleInput,
}

/// Steers the tasks that carry a VM's console. Dropping it lets them go on until the child's ends
/// are closed.
#[derive(Debug)]
pub struct ConsoleRelay {
    finish: oneshot::Sender<oneshot::Sender<Option<PanicText>>>,
    input_gate: watch::Sender<bool>,
    input_waits: watch::Receiver<bool>,
}

impl ConsoleRelay {
    /// Starts to carry. While `input_open` is false, what the caller writes is kept, up to a few
    /// KiB. Must be called in a runtime with I/O enabled.
    ///
    /// # Errors
    /// Where the runtime cannot watch the sockets.
    pub fn start(ports: ConsolePorts, input_open: bool) -> io::Result<(Self, ConsoleIo)> {
        let serial = Arc::new(watched(ports.serial)?);
        let virtio = ports.virtio.map(watched).transpose()?.map(Arc::new);
        let target = match (ports.input, &virtio) {
            (ConsoleInput::Virtio, Some(virtio)) => virtio.clone(),
            _ => serial.clone(),
        };
        let (input_gate, gate) = watch::channel(input_open);
        let (waits, input_waits) = watch::channel(false);
        let (user_input, input) = duplex(INPUT_BYTES);
        let (user_output, output) = duplex(OUTPUT_BYTES);
        let (finish, finished) = oneshot::channel();
        let sources = [Some(serial), virtio].into_iter().flatten().collect();
        // The input ends with the output: nobody is left to read it.
        let input = tokio::spawn(carry_input(input, target, gate, waits));
        let relay = OutputRelay::new(sources, output);
        tokio::spawn(async move {
            relay.run(finished, || input.abort()).await;
        });
        let io = ConsoleIo {
            output: Box::new(user_output),
            input: Box::new(user_input),
        };
        let relay = Self {
            finish,
            input_gate,
            input_waits,
        };
        Ok((relay, io))
    }

    /// Lets the input through, now and from now on.
    pub fn open_input(&self) {
        self.input_gate.send_replace(true);
    }

    /// Becomes true when there is input that was not let through yet.
    pub fn input_waits(&self) -> watch::Receiver<bool> {
        self.input_waits.clone()
    }

    /// To be called when the child is gone: takes everything that it wrote, whether or not the
    /// reader keeps up, and closes the sockets. Tells the last panic that the console showed.
    pub async fn finish(self) -> Option<PanicText> {
        let (reply, panic) = oneshot::channel();
        // Where the relay has ended before, all sockets were at their end.
        self.finish.send(reply).ok()?;
        panic.await.ok().flatten()
    }
}

fn watched(socket: StdUnixStream) -> io::Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

async fn carry_input(
    mut input: DuplexStream,
    target: Arc<UnixStream>,
    mut gate: watch::Receiver<bool>,
    waits: watch::Sender<bool>,
) {
    let mut buffer = vec![0; 1024];
    loop {
        let count = match input.read(&mut buffer).await {
            // The caller's end of input is not the end of the guest's.
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if !*gate.borrow_and_update() {
            waits.send_replace(true);
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
        }
        if write_all(&target, &buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Writes through a shared socket; its reading side is somebody else's.
async fn write_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct OutputRelay {
    sources: Vec<Arc<UnixStream>>,
    /// `None` once the reader is gone.
    output: Option<DuplexStream>,
    panic: PanicMatcher,
    /// Taken from the sockets and not handed on yet; the first `done` bytes are.
    pending: Vec<u8>,
    done: usize,
}

impl OutputRelay {
    fn new(sources: Vec<Arc<UnixStream>>, output: DuplexStream) -> Self {
        Self {
            sources,
            output: Some(output),
            panic: PanicMatcher::default(),
            pending: Vec::new(),
            done: 0,
        }
    }

    async fn run(
        mut self,
        mut finish: oneshot::Receiver<oneshot::Sender<Option<PanicText>>>,
        stop_input: impl FnOnce(),
    ) {
        let mut buffer = vec![0; 4096];
        let reply = tokio::select! {
            biased;
            reply = &mut finish => reply,
            () = poll_fn(|context| self.poll(context, &mut buffer)) => finish.await,
        };
        if reply.is_err() {
            // Nobody wants the verdict: carry on until the child closes its ends.
            poll_fn(|context| self.poll(context, &mut buffer)).await;
        }
        self.take_rest(&mut buffer);
        stop_input();
        let Self {
            output,
            panic,
            pending,
            done,
            ..
        } = self;
        if let Ok(reply) = reply {
            // It goes unheard where the VM's task was dropped.
            let _unheard = reply.send(panic.finish());
        }
        if let Some(mut output) = output {
            // An error means that the reader is gone.
            let _unread = output.write_all(&pending[done..]).await;
        }
    }

    /// Carries bytes until every source has ended.
    fn poll(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<()> {
        while !self.sources.is_empty() {
            if self.done < self.pending.len() {
                ready!(self.poll_hand_on(context));
            } else {
                self.pending.clear();
                self.done = 0;
                ready!(self.poll_take(context, buffer));
            }
        }
        Poll::Ready(())
    }

    fn poll_hand_on(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(output) = &mut self.output else {
            self.done = self.pending.len();
            return Poll::Ready(());
        };
        match ready!(Pin::new(output).poll_write(context, &self.pending[self.done..])) {
            Ok(count @ 1..) => self.done += count,
            Ok(0) | Err(_) => self.output = None,
        }
        Poll::Ready(())
    }

    /// Ready when there is something to hand on, or a source has ended.
    fn poll_take(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<()> {
        for index in 0..self.sources.len() {
            loop {
                match self.sources[index].poll_read_ready(context) {
                    Poll::Pending => break,
                    Poll::Ready(Err(_)) => {
                        self.sources.remove(index);
                        return Poll::Ready(());
                    }
                    Poll::Ready(Ok(())) => {}
                }
                match self.take(index, buffer) {
                    Taken::Some => return Poll::Ready(()),
                    Taken::NothingNow => {}
                    Taken::End => {
                        self.sources.remove(index);
                        return Poll::Ready(());
                    }
                }
            }
        }
        Poll::Pending
    }

    fn take(&mut self, index: usize, buffer: &mut [u8]) -> Taken {
        let read = self.sources[index].try_read(buffer);
        self.taken(read, buffer)
    }

    fn taken(&mut self, read: io::Result<usize>, buffer: &[u8]) -> Taken {
        match read {
            Ok(0) => Taken::End,
            Ok(count) => {
                self.panic.feed(&buffer[..count]);
                self.pending.extend_from_slice(&buffer[..count]);
                Taken::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Taken::NothingNow,
            Err(_) => Taken::End,
        }
    }

    /// Takes what is left in the sockets, without waiting. It asks the kernel: the runtime may not
    /// have heard of it yet.
    fn take_rest(&mut self, buffer: &mut [u8]) {
        for source in std::mem::take(&mut self.sources) {
            while self.pending.len() < REST_BYTES {
                let read = rustix::io::retry_on_intr(|| rustix::io::read(&source, &mut *buffer));
                if !matches!(self.taken(read.map_err(Into::into), buffer), Taken::Some) {
                    break;
                }
            }
        }
    }
}

enum Taken {
    Some,
    NothingNow,
    End,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use super::*;

    struct Fixture {
        guest: StdUnixStream,
        relay: ConsoleRelay,
        io: ConsoleIo,
    }

    fn fixture(input_open: bool) -> Fixture {
        let (guest, serial) = StdUnixStream::pair().unwrap();
        let ports = ConsolePorts {
            serial,
            virtio: None,
            input: ConsoleInput::Serial,
        };
        let (relay, io) = ConsoleRelay::start(ports, input_open).unwrap();
        Fixture { guest, relay, io }
    }

    #[tokio::test]
    async fn output_at_the_end_is_reported_first_and_read_to_the_last_byte() {
        // Arrange: more than the relay holds, and a reader that does not read.
        let Fixture {
            mut guest,
            relay,
            mut io,
        } = fixture(true);
        guest.set_nonblocking(true).unwrap();
        let mut written = Vec::new();
        let mut line = 0;
        loop {
            let text = format!("line {line}\n");
            match guest.write(text.as_bytes()) {
                Ok(count) => written.extend_from_slice(&text.as_bytes()[..count]),
                Err(_) => break,
            }
            line += 1;
            if line % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(written.len() > OUTPUT_BYTES);
        drop(guest);

        // Act
        let panic = relay.finish().await;
        let mut read = Vec::new();
        io.output.read_to_end(&mut read).await.unwrap();

        // Assert
        assert_eq!(panic, None);
        assert!(read == written, "{} of {} bytes", read.len(), written.len());
    }

    #[tokio::test]
    async fn a_panic_is_reported_although_nobody_reads() {
        let Fixture {
            mut guest,
            relay,
            io,
        } = fixture(true);
        drop(io);
        guest
            .write_all(b"[ 1.0] Kernel panic - not syncing: oh\n")
            .unwrap();
        drop(guest);

        let panic = relay.finish().await.unwrap();

        assert_eq!(panic.message, "oh");
    }

    #[tokio::test]
    async fn a_dropped_reader_does_not_hold_the_guest_up() {
        let Fixture { guest, io, .. } = fixture(true);
        drop(io.output);

        let writer = tokio::task::spawn_blocking(move || {
            let mut guest = guest;
            guest.write_all(&vec![b'x'; 4 << 20])
        });

        assert!(writer.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn input_is_kept_until_the_gate_opens() {
        // Arrange
        let Fixture {
            mut guest,
            relay,
            mut io,
        } = fixture(false);
        guest.set_nonblocking(true).unwrap();
        io.input.write_all(b"uname\n").await.unwrap();
        let mut waits = relay.input_waits();
        waits.wait_for(|waits| *waits).await.unwrap();
        assert_eq!(
            guest.read(&mut [0; 16]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );

        // Act
        relay.open_input();

        // Assert
        let read = tokio::task::spawn_blocking(move || {
            guest.set_nonblocking(false).unwrap();
            let mut line = [0; 6];
            guest.read_exact(&mut line).map(|()| line)
        });
        assert_eq!(&read.await.unwrap().unwrap(), b"uname\n");
    }

    #[tokio::test]
    async fn the_end_of_the_input_does_not_end_the_output() {
        let Fixture {
            mut guest,
            relay,
            io,
        } = fixture(true);
        let ConsoleIo { mut output, input } = io;
        drop(input);

        guest.write_all(b"still here").unwrap();
        guest.shutdown(Shutdown::Both).unwrap();
        relay.finish().await;
        let mut text = String::new();
        output.read_to_string(&mut text).await.unwrap();

        assert_eq!(text, "still here");
    }
}
