//! What the macOS backends build from a VM's specification, as plain data.
//!
//! [`VzPlan`] lists the objects of Virtualization.framework that make up a VM. It is made by a pure
//! function, compiled and tested on every target; the thin layer that carries it out is in
//! `capsa-apple-vz`. [`check_files`] looks at the files that a specification names, before anything
//! starts.

mod engine_failure;
mod files;
#[cfg(unix)]
mod frame_sockets;
mod macos_version;
mod vz_plan;

#[cfg(test)]
mod tests;

pub use engine_failure::{EngineFailure, FailureKind, MachineEnd};
pub use files::{Architecture, check_files};
#[cfg(unix)]
pub use frame_sockets::frame_sockets;
pub use macos_version::{MacosVersion, ParseMacosVersionError};
pub use vz_plan::{
    HostLimits, Requirement, VzBoot, VzDisk, VzNetwork, VzPlan, VzShare, VzVariableStore,
    vz_capabilities,
};
