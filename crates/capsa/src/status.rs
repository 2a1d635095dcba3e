use std::pin::Pin;
use std::task::{Context, Poll, ready};

use capsa_core::{VmExit, VmStatus};
use futures_core::Stream;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// How the VM ended, once it has. One that goes away without a word was ended by its owner.
pub(crate) async fn exit_of(mut status: watch::Receiver<VmStatus>) -> VmExit {
    match status.wait_for(|status| status.exit().is_some()).await {
        Ok(status) => status.exit().cloned().unwrap_or(VmExit::Killed),
        Err(_) => VmExit::Killed,
    }
}

/// The states of a VM, from the present one on. It ends after [`VmStatus::Exited`].
///
/// A state that is left before the stream is polled again may be skipped; the last never is.
#[derive(Debug)]
pub struct StatusStream {
    changes: WatchStream<VmStatus>,
    ended: bool,
}

impl StatusStream {
    pub(crate) fn new(status: watch::Receiver<VmStatus>) -> Self {
        Self {
            changes: WatchStream::new(status),
            ended: false,
        }
    }
}

impl Stream for StatusStream {
    type Item = VmStatus;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<VmStatus>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = ready!(Pin::new(&mut self.changes).poll_next(cx));
        self.ended = status.as_ref().is_none_or(|status| status.exit().is_some());
        Poll::Ready(status)
    }
}
