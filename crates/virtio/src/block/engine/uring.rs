//! Requests as io_uring operations on a plain file: one system call begins many, none waits. Writes to the page cache
//! are calls on this thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::{Done, Engine, Job, MAX_IN_FLIGHT};
use crate::block::backend::{Backend, perform};
use crate::block::request::Request;
use crate::guest_io::GuestIoVec;
use crate::reactor::{drain, signal};

pub(crate) struct Uring {
    ring: IoUring,
    backend: Arc<dyn Backend>,
    file: types::Fd,
    completion: Arc<OwnedFd>,
    slots: Vec<Option<Slot>>,
    /// Operations that the kernel has.
    in_kernel: usize,
    done: Vec<Done>,
}

struct Slot {
    job: Job,
    /// Bytes dealt with.
    progress: usize,
    vectors: Vectors,
    /// The write is done, its flush is running.
    flushing: bool,
}

/// Vectors into guest memory that the job keeps mapped.
struct Vectors(Vec<libc::iovec>);

// SAFETY: the pointers are into guest memory, which belongs to no thread and stays mapped as long as the job.
unsafe impl Send for Vectors {}

impl Uring {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> io::Result<Self> {
        let file = backend
            .plain_file()
            .ok_or(io::ErrorKind::Unsupported)?
            .as_raw_fd();
        let ring = IoUring::new(MAX_IN_FLIGHT as u32)?;
        let completion = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(completion.as_raw_fd())?;
        Ok(Self {
            ring,
            backend,
            file: types::Fd(file),
            completion: Arc::new(completion),
            slots: std::iter::repeat_with(|| None)
                .take(MAX_IN_FLIGHT)
                .collect(),
            in_kernel: 0,
            done: Vec::new(),
        })
    }

    /// Hands the slot's next operation to the ring.
    fn push(&mut self, tag: usize) {
        let Some(Some(slot)) = self.slots.get_mut(tag) else {
            return;
        };
        let entry = match slot.entry(self.file) {
            Ok(entry) => entry.user_data(tag as u64),
            Err(error) => return self.finish(tag, Err(error)),
        };
        // SAFETY: the vectors live in the slot until the completion is seen, and the job keeps guest memory mapped.
        let mut pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The ring holds as many entries as there are slots, so it is full only of entries not yet begun.
            self.start();
            // SAFETY: as above.
            pushed = unsafe { self.ring.submission().push(&entry) };
        }
        match pushed {
            Ok(()) => self.in_kernel += 1,
            Err(_) => self.finish(tag, Err(io::ErrorKind::ResourceBusy.into())),
        }
    }

    fn finish(&mut self, tag: usize, result: io::Result<()>) {
        if let Some(slot) = self.slots.get_mut(tag) {
            *slot = None;
        }
        // It is taken without a signal: whoever submits looks at the results next, and so does whoever takes some.
        self.done.push((tag, result));
    }

    fn completed(&mut self, tag: usize, result: i32) {
        let Some(Some(slot)) = self.slots.get_mut(tag) else {
            return;
        };
        match slot.advance(result) {
            Next::Again => self.push(tag),
            Next::Finished(result) => {
                if let Some(slot) = self.slots.get_mut(tag) {
                    *slot = None;
                }
                self.done.push((tag, result));
            }
        }
    }

    fn take_completions(&mut self) {
        let mut completions = [(0, 0); 64];
        loop {
            let mut count = 0;
            for (slot, entry) in completions.iter_mut().zip(self.ring.completion()) {
                *slot = (entry.user_data() as usize, entry.result());
                count += 1;
            }
            for &(tag, result) in completions.iter().take(count) {
                self.in_kernel = self.in_kernel.saturating_sub(1);
                self.completed(tag, result);
            }
            if count < completions.len() {
                return;
            }
        }
    }
}

enum Next {
    Again,
    Finished(io::Result<()>),
}

impl Slot {
    fn entry(&mut self, file: types::Fd) -> io::Result<squeue::Entry> {
        let (data, offset, write) = match &self.job.request {
            Request::Read { data, offset } => (data, *offset, false),
            Request::Write { data, offset } if !self.flushing => (data, *offset, true),
            _ => {
                let flags = types::FsyncFlags::DATASYNC;
                return Ok(opcode::Fsync::new(file).flags(flags).build());
            }
        };
        let mut buffers =
            GuestIoVec::new(&self.job.ram, data.iter().copied()).map_err(io::Error::other)?;
        buffers.advance(self.progress);
        self.vectors = Vectors(buffers.to_iovecs());
        let (vectors, count) = (self.vectors.0.as_ptr(), self.vectors.0.len() as u32);
        let at = offset + self.progress as u64;
        Ok(if write {
            opcode::Writev::new(file, vectors.cast(), count)
                .offset(at)
                .build()
        } else {
            opcode::Readv::new(file, vectors.cast(), count)
                .offset(at)
                .build()
        })
    }

    /// Takes the result of the last operation: a count of bytes, or a negative error number.
    fn advance(&mut self, result: i32) -> Next {
        let Ok(count) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(result.saturating_neg());
            let again = error.kind() == io::ErrorKind::Interrupted;
            return if again {
                Next::Again
            } else {
                Next::Finished(Err(error))
            };
        };
        let (data, read) = match &self.job.request {
            Request::Read { data, .. } => (data, true),
            Request::Write { data, .. } if !self.flushing => (data, false),
            _ => return Next::Finished(Ok(())),
        };
        let all: usize = data.iter().map(|segment| segment.len as usize).sum();
        self.progress += count;
        match (self.progress >= all, count, read) {
            (true, _, false) if self.job.write_through => {
                self.flushing = true;
                Next::Again
            }
            (true, ..) => Next::Finished(Ok(())),
            (false, 0, false) => Next::Finished(Err(io::ErrorKind::WriteZero.into())),
            // The last sector of a file that does not end with one.
            (false, 0, true) => match GuestIoVec::new(&self.job.ram, data.iter().copied()) {
                Ok(mut buffers) => {
                    buffers.advance(self.progress);
                    buffers.fill_zeroes();
                    Next::Finished(Ok(()))
                }
                Err(error) => Next::Finished(Err(io::Error::other(error))),
            },
            (false, ..) => Next::Again,
        }
    }
}

impl Engine for Uring {
    fn submit(&mut self, job: Job) {
        let tag = job.tag;
        let empty = match &job.request {
            Request::Read { data, .. } => data.is_empty(),
            // With a flush to come, even after an empty one.
            Request::Write { .. } if job.write_through => false,
            Request::Flush => false,
            // Few file systems let the ring write to the page cache at once. On the others a worker of the kernel's writes,
            // one request of a file after the other, which is this thread's work with two changes of threads more.
            //
            // The rest is rare, and quick on the file systems that support it.
            _ => {
                let result = perform(&*self.backend, &job.request, &job.ram, job.write_through);
                return self.finish(tag, result);
            }
        };
        if empty {
            return self.finish(tag, Ok(()));
        }
        let Some(place) = self.slots.get_mut(tag) else {
            return;
        };
        *place = Some(Slot {
            job,
            progress: 0,
            vectors: Vectors(Vec::new()),
            flushing: false,
        });
        self.push(tag);
    }

    fn start(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        while let Err(error) = self.ring.submit() {
            if error.kind() != io::ErrorKind::Interrupted {
                // Busy: the completion queue is full. What was not taken stays in the ring, for the next call after
                // completions have been taken, of which there are some.
                tracing::debug!(%error, "io_uring takes no more for now");
                signal(&self.completion);
                return;
            }
        }
    }

    fn completion(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.completion)
    }

    fn has_results(&mut self) -> bool {
        !self.done.is_empty() || !self.ring.completion().is_empty()
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        drain(&self.completion);
        self.take_completions();
        self.start();
        done.append(&mut self.done);
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        self.take_completions();
        while self.in_kernel > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::debug!(%error, "io_uring is busy");
            }
            self.take_completions();
        }
        drain(&self.completion);
        done.append(&mut self.done);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel still has pointers into guest memory.
        self.drain(&mut Vec::new());
    }
}
