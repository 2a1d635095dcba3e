//! Virtualization.framework: the native backend, and what it has in common with the daemon.
//!
//! [`EngineBackend`] runs VMs by any [`Engine`]: `VzEngine` (macOS only) is the framework in this
//! process, `capsa-apple-vzd` has one that reaches it in a daemon, and the tests have their own, so
//! that everything but the framework itself is tested on any Unix.

// UNSAFETY: Objective-C messages to Virtualization.framework, one call of the Security framework, and
// objects that are bound to a dispatch queue. Nothing else in this crate.
#![allow(unsafe_code)]

#[cfg(unix)]
mod backend;
#[cfg(unix)]
mod engine;
#[cfg(target_os = "macos")]
mod framework;
#[cfg(unix)]
mod handle;
#[cfg(unix)]
mod vsock;

#[cfg(unix)]
pub use backend::EngineBackend;
#[cfg(target_os = "macos")]
pub use framework::VzEngine;

#[cfg(unix)]
pub use engine::{
    EVENT_BACKLOG, Engine, EnginePorts, Machine, MachineEvent, StartedMachine, VSOCK_BACKLOG,
};

/// The `macos-native` backend: the framework in this process.
#[cfg(target_os = "macos")]
pub fn native_backend() -> EngineBackend<VzEngine> {
    EngineBackend::new(capsa_core::BackendKind::MacosNative, VzEngine::new())
}
