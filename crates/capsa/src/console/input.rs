//! The host's end of the console's input, shared by any number of writers.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::AsyncWrite;

type Sink = Box<dyn AsyncWrite + Send + Unpin>;

pub(super) struct Input {
    state: Mutex<State>,
    waiting: Arc<Waiting>,
}

enum State {
    NotStarted,
    Open(Sink),
    Closed,
}

/// Everybody who waits for the sink: it remembers one waker only, so it is given this one.
#[derive(Default)]
struct Waiting(Mutex<Vec<Waker>>);

impl Waiting {
    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, waker: &Waker) {
        let mut wakers = self.wakers();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let wakers = std::mem::take(&mut *self.wakers());
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::NotStarted),
            waiting: Arc::default(),
        }
    }

    pub(super) fn open(&self, sink: Sink) {
        *self.state() = State::Open(sink);
    }

    /// Frees the sink; writers get an error from now on.
    pub(super) fn close(&self) {
        let sink = std::mem::replace(&mut *self.state(), State::Closed);
        drop(sink);
        self.waiting.clone().wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls the sink on behalf of `cx`.
    pub(super) fn poll<T>(
        &self,
        cx: &Context<'_>,
        operation: impl FnOnce(Pin<&mut Sink>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.state() {
            State::NotStarted => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the virtual machine is not started",
            ))),
            State::Closed => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the virtual machine has ended",
            ))),
            State::Open(sink) => {
                self.waiting.add(cx.waker());
                let waker = Waker::from(self.waiting.clone());
                operation(Pin::new(sink), &mut Context::from_waker(&waker))
            }
        }
    }
}
