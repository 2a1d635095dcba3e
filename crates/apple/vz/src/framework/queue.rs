//! Values that live on one serial dispatch queue.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use capsa_apple_plan::{EngineFailure, FailureKind};
use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use tokio::sync::oneshot;

/// A value that is made, used and dropped on its queue alone.
pub(super) struct OnQueue<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    value: ManuallyDrop<T>,
}

// SAFETY: the value is reached only by closures that run on the queue, which is serial: never by two
// threads at once, and with the order of memory that the queue gives. It is dropped there, too.
unsafe impl<T> Send for OnQueue<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for OnQueue<T> {}

/// Moves a value to its queue's drop.
struct Parcel<T>(T);

// SAFETY: it is unpacked only on the queue that the value belongs to.
unsafe impl<T> Send for Parcel<T> {}

impl<T> Parcel<T> {
    fn open(self) -> T {
        self.0
    }
}

impl<T: 'static> OnQueue<T> {
    /// Makes a queue and, on it, the value.
    pub(super) async fn build(
        label: &str,
        make: impl FnOnce(&DispatchQueue) -> Result<T, EngineFailure> + Send + 'static,
    ) -> Result<Arc<Self>, EngineFailure> {
        let queue = DispatchQueue::new(label, DispatchQueueAttr::SERIAL);
        let (sender, made) = oneshot::channel();
        let own = queue.clone();
        queue.exec_async(move || {
            let made = make(&own).map(|value| {
                Arc::new(Self {
                    queue: own,
                    value: ManuallyDrop::new(value),
                })
            });
            // Whoever asked may have lost patience: the value is dropped then.
            let _unheard = sender.send(made);
        });
        made.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Runs `work` on the queue, without waiting for it.
    pub(super) fn run(self: &Arc<Self>, work: impl FnOnce(&T) + Send + 'static) {
        let this = self.clone();
        self.queue.exec_async(move || work(&this.value));
    }

    /// Runs `work` on the queue. It is given the place for its answer, which may come later.
    pub(super) async fn ask<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&T, oneshot::Sender<Result<R, EngineFailure>>) + Send + 'static,
    ) -> Result<R, EngineFailure> {
        let (sender, answer) = oneshot::channel();
        self.run(move |value| work(value, sender));
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl<T: 'static> Drop for OnQueue<T> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the value after this.
        let value = Parcel(unsafe { ManuallyDrop::take(&mut self.value) });
        self.queue.exec_async(move || drop(value.open()));
    }
}

fn lost() -> EngineFailure {
    EngineFailure::new(
        FailureKind::Framework,
        "the framework did not answer",
        "see Console.app for messages of com.apple.Virtualization",
    )
}
