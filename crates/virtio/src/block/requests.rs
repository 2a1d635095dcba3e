//! Between the queues and the engine.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::SECTOR;
use super::backend::Backend;
use super::config::QUEUE_SIZE;
use super::device::Shared;
use super::engine::{Done, Engine, Job, MAX_IN_FLIGHT};
use super::image::{ImageFormat, probe};
use super::metrics::{BlockMetrics, count};
use super::request::{ID_BYTES, ParsedRequest, Request, Status, parse};
use crate::guest_io::GuestIoVec;
use crate::queue::Cursor;
use crate::rate::{Limiter, RateLimits};
use crate::{
    Activation, DeviceError, GuestMemory, GuestRam, Interest, Interrupt, Progress, QueueError,
    QueueState, Registrar, Segment, Source, Virtqueue,
};

const COMPLETION: u32 = 0;
const TIMER: u32 = 1;

/// What belongs to the device whether it is active or not.
pub(super) struct Context<'d> {
    pub(super) shared: &'d Shared,
    pub(super) engine: &'d mut dyn Engine,
    pub(super) serial: &'d [u8],
    pub(super) keep_raw: bool,
}

/// A device with a driver.
pub(super) struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Virtqueue>,
    events: Registrar,
    _completion: Source<Arc<OwnedFd>>,
    limiter: Limiter,
    write_through: bool,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Chains were left in a queue because too many were in flight.
    stalled: bool,
    done: Vec<Done>,
}

/// Where the answer of a running request goes.
#[derive(Clone, Copy)]
struct InFlight {
    queue: u16,
    head: u16,
    status: GuestAddress,
    written: u32,
}

impl Active {
    pub(super) fn new(
        activation: Activation,
        completion: Arc<OwnedFd>,
        limits: RateLimits,
        write_through: bool,
    ) -> io::Result<Self> {
        let Activation {
            memory,
            queues,
            interrupt,
            events,
            ..
        } = activation;
        let mut completion = events.source(completion, COMPLETION);
        completion.watch(Some(Interest::Readable))?;
        Ok(Self {
            limiter: Limiter::new(limits, &events, TIMER)?,
            memory,
            interrupt,
            queues,
            events,
            _completion: completion,
            write_through,
            in_flight: vec![None; MAX_IN_FLIGHT],
            free: (0..MAX_IN_FLIGHT).rev().collect(),
            stalled: false,
            done: Vec::new(),
        })
    }

    pub(super) fn queue_states(&self) -> impl Iterator<Item = QueueState> {
        self.queues.iter().map(Virtqueue::state)
    }

    pub(super) fn process_queue(
        &mut self,
        index: u16,
        context: &mut Context<'_>,
    ) -> Result<Progress, DeviceError> {
        let memory = self.memory.clone();
        let ram = memory.memory();
        let progress = self.begin(index, context, &ram);
        // Also what was begun before a broken request.
        context.engine.start();
        let progress = progress?;
        // What the host had in memory is done by now: its answer need not wait for another turn of the loop.
        if context.engine.has_results() {
            self.reap(context)?;
        }
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.notify(&ram, &*self.interrupt)?;
        }
        Ok(progress)
    }

    /// Begins requests of one queue.
    fn begin(
        &mut self,
        index: u16,
        context: &mut Context<'_>,
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        for _ in 0..QUEUE_SIZE {
            let Some(queue) = self.queues.get_mut(usize::from(index)) else {
                break;
            };
            if self.free.is_empty() {
                self.stalled = true;
                return Ok(Progress::Done);
            }
            queue.disable_kicks(ram)?;
            if !queue.has_available(ram)? && !queue.enable_kicks(ram)? {
                return Ok(Progress::Done);
            }
            let passes = self.limiter.may_pass();
            if !passes.map_err(|source| DeviceError::Io {
                doing: "setting the rate timer",
                source,
            })? {
                count(&context.shared.metrics.throttled, 1);
                return Ok(Progress::Done);
            }
            let Some(chain) = queue.pop(ram)? else {
                return Ok(Progress::Done);
            };
            let capacity = context.shared.capacity_sectors.load(Ordering::Acquire);
            let read_only = context.shared.backend.is_read_only();
            let parsed = parse(&chain, ram, capacity, read_only)?;
            self.limiter.take(parsed.data_len);
            self.carry_out(index, chain.head(), parsed, context, ram)?;
        }
        Ok(Progress::More)
    }

    fn carry_out(
        &mut self,
        queue: u16,
        head: u16,
        parsed: ParsedRequest,
        context: &mut Context<'_>,
        ram: &GuestRam,
    ) -> Result<(), DeviceError> {
        let ParsedRequest {
            request,
            status,
            written,
            data_len,
        } = parsed;
        let waiting = InFlight {
            queue,
            head,
            status,
            written,
        };
        let metrics = &context.shared.metrics;
        let request = match request {
            Ok(Request::GetId { data }) => {
                let mut id = [0u8; ID_BYTES];
                id.iter_mut()
                    .zip(context.serial)
                    .for_each(|(to, from)| *to = *from);
                Cursor::new(&data).write_all(ram, &id)?;
                return self.answer(waiting, Status::Ok, metrics, ram);
            }
            Ok(Request::Write { offset: 0, data }) if context.keep_raw && !data.is_empty() => {
                match write_start(&data, &*context.shared.backend, ram)? {
                    Ok(rest) => rest,
                    Err(status) => return self.answer(waiting, status, metrics, ram),
                }
            }
            Ok(request) => request,
            Err(refused) => return self.answer(waiting, refused, metrics, ram),
        };
        account(&request, data_len, metrics);
        let Some(tag) = self.free.pop() else {
            return self.answer(waiting, Status::IoError, metrics, ram);
        };
        if let Some(place) = self.in_flight.get_mut(tag) {
            *place = Some(waiting);
        }
        let write_through = self.write_through;
        context.engine.submit(Job {
            tag,
            request,
            write_through,
            ram: self.memory.memory(),
        });
        Ok(())
    }

    fn answer(
        &mut self,
        to: InFlight,
        status: Status,
        metrics: &BlockMetrics,
        ram: &GuestRam,
    ) -> Result<(), DeviceError> {
        if status != Status::Ok {
            count(&metrics.failures, 1);
        }
        let gone = |_| QueueError::MemoryGone(to.status.0);
        ram.write_obj(status as u8, to.status).map_err(gone)?;
        // After a failure nothing is promised about the data.
        let written = if status == Status::Ok { to.written } else { 1 };
        if let Some(queue) = self.queues.get_mut(usize::from(to.queue)) {
            queue.push(ram, to.head, written)?;
        }
        Ok(())
    }

    pub(super) fn handle_event(
        &mut self,
        token: u32,
        context: &mut Context<'_>,
    ) -> Result<(), DeviceError> {
        match token {
            COMPLETION => self.reap(context)?,
            TIMER => {
                self.limiter.timer_fired();
                self.kick_all();
            }
            _ => {}
        }
        Ok(())
    }

    /// Answers what is done.
    fn reap(&mut self, context: &mut Context<'_>) -> Result<(), DeviceError> {
        let mut done = std::mem::take(&mut self.done);
        context.engine.reap(&mut done);
        self.complete(&mut done, context)?;
        self.done = done;
        if std::mem::take(&mut self.stalled) {
            self.kick_all();
        }
        Ok(())
    }

    /// Waits for everything in flight.
    pub(super) fn drain(&mut self, context: &mut Context<'_>) -> Result<(), DeviceError> {
        let mut done = Vec::new();
        context.engine.drain(&mut done);
        self.complete(&mut done, context)
    }

    fn complete(&mut self, done: &mut Vec<Done>, context: &Context<'_>) -> Result<(), DeviceError> {
        let memory = self.memory.clone();
        let ram = memory.memory();
        for (tag, result) in done.drain(..) {
            let Some(waiting) = self.in_flight.get_mut(tag).and_then(Option::take) else {
                continue;
            };
            self.free.push(tag);
            let status = match result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    tracing::debug!(%error, "a disk request failed");
                    Status::IoError
                }
            };
            self.answer(waiting, status, &context.shared.metrics, &ram)?;
        }
        for queue in &mut self.queues {
            queue.notify(&ram, &*self.interrupt)?;
        }
        Ok(())
    }

    fn kick_all(&self) {
        (0..self.queues.len()).for_each(|index| self.events.kick(index as u16));
    }
}

/// Writes the first sector, unless that would make a raw disk look like an image in another format. Returns what is left
/// to write.
///
/// From a copy: the guest could otherwise change it between the look and the write.
fn write_start(
    data: &[Segment],
    backend: &dyn Backend,
    ram: &GuestRam,
) -> Result<Result<Request, Status>, DeviceError> {
    let mut cursor = Cursor::new(data);
    let mut start = [0u8; SECTOR as usize];
    cursor.read_exact(ram, &mut start)?;
    if probe(&start) != Ok(ImageFormat::Raw) {
        tracing::warn!("a guest may not make its raw disk look like another image format");
        return Ok(Err(Status::IoError));
    }
    if backend.write(GuestIoVec::from_host(&mut start), 0).is_err() {
        return Ok(Err(Status::IoError));
    }
    let data = cursor.segments(u64::MAX).collect();
    Ok(Ok(Request::Write {
        offset: SECTOR,
        data,
    }))
}

fn account(request: &Request, data_len: u64, metrics: &BlockMetrics) {
    match request {
        Request::Read { .. } => {
            count(&metrics.reads, 1);
            count(&metrics.read_bytes, data_len);
        }
        Request::Write { .. } => {
            count(&metrics.writes, 1);
            count(&metrics.written_bytes, data_len);
        }
        Request::Flush => count(&metrics.flushes, 1),
        Request::Discard(_) | Request::WriteZeroes(_) => count(&metrics.discards, 1),
        Request::GetId { .. } => {}
    }
}
