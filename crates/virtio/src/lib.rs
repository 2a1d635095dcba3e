//! Virtio device models: queues and guest memory, no hypervisor in sight.
//!
//! A device model implements [`VirtioDevice`] and knows nothing but its [`Virtqueue`]s, guest memory and the host
//! descriptors that it was given. It is mounted twice: on virtio-mmio ([`mmio::MmioTransport`]) by a monitor, and over
//! vhost-user for QEMU. Both run it on an epoll loop ([`Reactor`], [`Worker`]) that is woken by queue kicks and by host
//! descriptors, and never polls. Everything can be driven without a virtual machine, see [`testing`].
//!
//! Specification: *Virtual I/O Device (VIRTIO) Version 1.2*; section numbers in this crate refer to it.
//!
//! The crate is empty on systems other than Linux.
#![cfg(target_os = "linux")]
// Vectored I/O goes straight between host descriptors and guest memory (`guest_io`), which only raw pointers can say.
#![allow(unsafe_code)]

pub mod balloon;
pub mod block;
pub mod console;
pub mod device;
pub mod fs;
pub mod guest_io;
pub mod interrupt;
pub mod memory;
pub mod mmio;
pub mod mount;
pub mod net;
pub mod queue;
pub mod rate;
pub mod reactor;
pub mod rng;
pub mod setup;
pub mod vsock;
pub mod worker;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use device::{
    ActivateError, Activation, DeviceError, DeviceState, Placement, Progress, StateError,
    VirtioDevice,
};
pub use interrupt::{Interrupt, InterruptLine};
pub use memory::{GuestMemory, GuestRam};
pub use mount::Mount;
pub use queue::{Chain, QueueConfig, QueueError, QueueState, Segment, Virtqueue};
pub use reactor::{Interest, Reactor, ReactorHandle, Readiness, Registrar, Source};
pub use worker::Worker;
