//! The control connection: the agent makes it at its start, to [`CONTROL_PORT`](crate::CONTROL_PORT)
//! of the host.
//!
//! After the agent's preamble comes a [`ControlEvent::Hello`]. From then on the agent listens on
//! [`AGENT_PORT`](crate::AGENT_PORT), and waits for the boot message where the kernel's parameter
//! `capsa.agent=wait` says so. The host sends its preamble and one [`Request::Boot`](crate::Request),
//! here or on a connection of its own; here it is answered by [`ControlEvent::Booted`] or
//! [`ControlEvent::BootFailed`]. Nothing depends on this connection afterwards: it may be closed, and
//! carries events while it is not.

use serde::{Deserialize, Serialize};

use crate::boot::BootReport;
use crate::{AgentInfo, Ending, Failure};

/// What the agent tells by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlEvent {
    /// It is there.
    Hello(AgentInfo),
    /// The boot message was carried out.
    Booted(BootReport),
    /// It could not be carried out. The agent waits for another one.
    BootFailed(Failure),
    /// The guest ends the machine: it was asked to, or its first process has nothing left to do.
    Ending(Ending),
    /// The agent made a mistake and ends. What it said is on the console, too.
    Panicked(String),
}
