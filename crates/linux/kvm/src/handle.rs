//! One running VM, from the library's side: a task that owns the monitor, and the handle to it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::{
    BackendVmHandle, ByteStream, Error, GuestPanic, MemoryReport, MonitorFailure, NetworkFrames,
    Result, VmExit, VmStatus, VsockListener, WindowSize,
};
use capsa_process::VsockPorts;
use tokio::sync::{mpsc, oneshot, watch};

use crate::launch::{Body, BodyEnd, Monitor};
use crate::machine::MachineEnd;
use crate::protocol::{self, Command, DiskRefusal, Event, Request};

/// Requests of callers that wait for the monitor's answer; more callers wait for their turn.
const REQUESTS_AHEAD: usize = 16;

/// Steers a VM. Dropping it ends the VM.
pub(crate) struct KvmHandle {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<VmStatus>,
    process_id: Option<u32>,
    start_duration: Duration,
    vsock: Option<VsockPorts>,
    network: Mutex<Option<OwnedFd>>,
}

/// What the monitor answers, or why it could not do what was asked for.
type Answer = Result<Reply, String>;

enum Reply {
    Done,
    Memory(MemoryReport),
    DiskSize(Result<u64, DiskRefusal>),
}

enum Order {
    Command(Command, oneshot::Sender<Answer>),
    Kill,
}

impl KvmHandle {
    /// Takes over a monitor whose vCPUs run.
    ///
    /// # Errors
    /// The runtime cannot watch the socket device's control socket.
    pub(crate) fn new(mut monitor: Monitor, start_duration: Duration) -> Result<Self> {
        let (orders, received) = mpsc::channel(REQUESTS_AHEAD);
        let (sender, status) = watch::channel(VmStatus::Running);
        let process_id = monitor.body.process_id();
        let vsock = monitor
            .vsock
            .take()
            .map(|socket| VsockPorts::new(socket, status.clone()))
            .transpose()
            .map_err(|error| Error::io("cannot watch the socket device", error))?;
        let network = Mutex::new(monitor.network.take());
        let follower = Follower {
            orders: received,
            status: sender,
            waiting: HashMap::new(),
            next_number: 0,
            killed: false,
            end: None,
        };
        tokio::spawn(follower.follow(monitor));
        Ok(Self {
            orders,
            status,
            process_id,
            start_duration,
            vsock,
            network,
        })
    }

    async fn order(&self, operation: &'static str, command: Command) -> Result<Reply> {
        let (reply, answered) = oneshot::channel();
        // A refused order comes back with the reply's sender in it: it is dropped ahead of the wait.
        let sent = self
            .orders
            .send(Order::Command(command, reply))
            .await
            .is_ok();
        match answered.await {
            Ok(Ok(reply)) if sent => Ok(reply),
            Ok(Err(reason)) => Err(Error::InvalidState {
                operation,
                state: format!("could not: {reason}"),
            }),
            _ => Err(self.ended().await),
        }
    }

    /// A disk's size after `command`, or why it was not changed.
    async fn disk_size(
        &self,
        operation: &'static str,
        command: Command,
    ) -> Result<Result<u64, DiskRefusal>> {
        match self.order(operation, command).await? {
            Reply::DiskSize(result) => Ok(result),
            _ => Err(other_answer(operation)),
        }
    }

    fn vsock(&self, operation: &'static str) -> Result<&VsockPorts> {
        self.vsock.as_ref().ok_or_else(|| Error::InvalidState {
            operation,
            state: "was built without vsock".to_owned(),
        })
    }

    /// The error for an operation that came too late.
    async fn ended(&self) -> Error {
        let mut status = self.status.clone();
        let last = status.wait_for(|status| status.exit().is_some()).await;
        let exit = last.ok().and_then(|status| status.exit().cloned());
        Error::Ended(exit.unwrap_or(VmExit::Killed))
    }
}

#[async_trait]
impl BackendVmHandle for KvmHandle {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.clone()
    }

    fn process_id(&self) -> Option<u32> {
        self.process_id
    }

    async fn power_button(&self) -> Result<()> {
        self.order("press the power button", Command::PowerButton)
            .await
            .map(drop)
    }

    async fn kill(&self) -> Result<()> {
        // Where the task is gone the VM has ended already.
        let _ended = self.orders.send(Order::Kill).await;
        let mut status = self.status.clone();
        let _gone = status.wait_for(|status| status.exit().is_some()).await;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.order("pause", Command::Pause).await.map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.order("resume", Command::Resume).await.map(drop)
    }

    async fn resize_console(&self, _size: WindowSize) -> Result<bool> {
        Ok(false)
    }

    fn start_duration(&self) -> Duration {
        self.start_duration
    }

    async fn set_balloon_target(&self, bytes: u64) -> Result<()> {
        let command = Command::SetBalloonTarget(bytes);
        self.order("set the balloon's target", command)
            .await
            .map(drop)
    }

    async fn memory_report(&self) -> Result<MemoryReport> {
        let operation = "ask for the guest's memory";
        match self.order(operation, Command::ReportMemory).await? {
            Reply::Memory(report) => Ok(report),
            _ => Err(other_answer(operation)),
        }
    }

    async fn grow_disk(&self, index: usize, bytes: u64) -> Result<()> {
        let command = Command::GrowDisk { disk: index, bytes };
        match self.disk_size("grow a disk", command).await? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.of_growing(index, bytes)),
        }
    }

    async fn refresh_disk(&self, index: usize) -> Result<u64> {
        let command = Command::RefreshDisk { disk: index };
        let size = self.disk_size("look at a disk again", command).await?;
        size.map_err(|refusal| refusal.of_refreshing(index))
    }

    async fn vsock_connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        self.vsock("connect to a vsock port")?.connect(port).await
    }

    async fn vsock_listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        self.vsock("listen on a vsock port")?.listen(port).await
    }

    fn take_network_socket(&self) -> Option<OwnedFd> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.take()
    }

    fn network_frames(&self) -> NetworkFrames {
        NetworkFrames::VirtioHeader
    }
}

/// The error for a monitor that answered another question.
fn other_answer(operation: &'static str) -> Error {
    Error::InvalidState {
        operation,
        state: "answered something else".to_owned(),
    }
}

/// The task's side of a VM.
struct Follower {
    orders: mpsc::Receiver<Order>,
    status: watch::Sender<VmStatus>,
    waiting: HashMap<u32, (Command, oneshot::Sender<Answer>)>,
    next_number: u32,
    killed: bool,
    end: Option<MachineEnd>,
}

impl Follower {
    async fn follow(mut self, mut monitor: Monitor) {
        let trouble = self.carry(&mut monitor).await;
        let Monitor {
            socket,
            body,
            relay,
            ..
        } = monitor;
        if self.killed || trouble.is_some() {
            body.kill();
        }
        // A monitor on a thread ends by this.
        drop(socket);
        let body_end = Body::ended(body).await;
        if let Some(relay) = relay {
            relay.finish().await;
        }
        self.orders.close();
        self.waiting.clear();
        let exit = exit(self.end.take(), self.killed, trouble, body_end);
        self.status.send_replace(VmStatus::Exited(exit));
        // Callers whose orders came too late learn it by the drop of their reply channels.
    }

    /// Carries orders and events until the monitor or its handle is gone. Gives what went wrong with
    /// the monitor, if something did.
    async fn carry(&mut self, monitor: &mut Monitor) -> Option<String> {
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                event = monitor.next_event(&mut buffer) => match event {
                    Ok(Some(event)) => self.take_event(event)?,
                    Ok(None) => return None,
                    Err(error) => return Some(error.to_string()),
                },
                order = self.orders.recv() => match order {
                    Some(Order::Command(command, reply)) => {
                        if let Err(error) = self.send(monitor, command, reply).await {
                            return Some(error);
                        }
                    }
                    Some(Order::Kill) | None => {
                        self.killed = true;
                        return None;
                    }
                },
            }
        }
    }

    /// `None` ends the carrying, and is the function's way to say "nothing went wrong".
    fn take_event(&mut self, event: Event) -> Option<()> {
        match event {
            Event::Done { number, error } => {
                let (command, reply) = self.waiting.remove(&number)?;
                if error.is_none() {
                    self.show(command);
                }
                // It goes unheard where the caller's future was dropped.
                let _unheard = reply.send(error.map_or(Ok(Reply::Done), Err));
            }
            Event::Memory { number, report } => {
                let (_, reply) = self.waiting.remove(&number)?;
                let _unheard = reply.send(Ok(Reply::Memory(report)));
            }
            Event::DiskSize { number, result } => {
                let (_, reply) = self.waiting.remove(&number)?;
                let _unheard = reply.send(Ok(Reply::DiskSize(result)));
            }
            Event::Ended(end) => self.end = Some(end),
            Event::Warning(text) => tracing::warn!("{text}"),
            Event::Running | Event::Failed(_) => {}
        }
        Some(())
    }

    fn show(&self, command: Command) {
        self.status.send_if_modified(|status| {
            let next = match command {
                Command::PowerButton if *status == VmStatus::Running => VmStatus::Stopping,
                Command::Pause => VmStatus::Paused,
                Command::Resume => VmStatus::Running,
                _ => return false,
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    async fn send(
        &mut self,
        monitor: &Monitor,
        command: Command,
        reply: oneshot::Sender<Answer>,
    ) -> Result<(), String> {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.waiting.insert(number, (command, reply));
        let message =
            protocol::encode(&Request { number, command }).map_err(|error| error.to_string())?;
        match monitor.socket.send(&message, &[]).await {
            Ok(()) => Ok(()),
            // It is about to be seen that the monitor has gone, with the reason.
            Err(capsa_process::SendError::Io(error))
                if error.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// How the VM ended, from all that is known.
fn exit(guest: Option<MachineEnd>, killed: bool, trouble: Option<String>, body: BodyEnd) -> VmExit {
    let failure = |reason: String| {
        VmExit::MonitorFailure(MonitorFailure {
            reason,
            last_words: body.last_words.clone(),
        })
    };
    match guest {
        Some(MachineEnd::PoweredOff) => VmExit::PoweredOff,
        Some(MachineEnd::Reset) => VmExit::Reset,
        Some(MachineEnd::GuestPanic { message }) => VmExit::GuestPanic(GuestPanic { message }),
        Some(MachineEnd::TripleFault) => VmExit::TripleFault,
        Some(MachineEnd::Fault(fault)) => failure(format!(
            "KVM gave up on vCPU {}: {}\n{}",
            fault.vcpu, fault.reason, fault.registers
        )),
        None if killed => VmExit::Killed,
        None => failure(trouble.unwrap_or_else(|| body.reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> BodyEnd {
        BodyEnd {
            reason: "its process was killed by signal 9".into(),
            last_words: "oh".into(),
        }
    }

    #[test]
    fn an_end_of_the_guest_s_own_counts_even_when_it_was_killed_too() {
        let exit = exit(Some(MachineEnd::PoweredOff), true, None, body());
        assert_eq!(exit, VmExit::PoweredOff);
    }

    #[test]
    fn a_monitor_that_went_without_a_word_failed_with_its_last_words() {
        let exit = exit(None, false, None, body());
        let VmExit::MonitorFailure(failure) = exit else {
            panic!("{exit:?}")
        };
        assert_eq!(failure.reason, "its process was killed by signal 9");
        assert_eq!(failure.last_words, "oh");
    }

    #[test]
    fn a_killed_vm_is_reported_as_killed() {
        assert_eq!(exit(None, true, None, body()), VmExit::Killed);
    }
}
