use crate::VmExit;

/// Where a virtual machine is in its life. It only moves forward, except between
/// [`Running`](VmStatus::Running) and [`Paused`](VmStatus::Paused).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmStatus {
    /// Built, checked, and not started; no process exists yet.
    Created,
    /// The monitor is being started and the guest loaded.
    Starting,
    /// The guest's CPUs run.
    Running,
    /// The guest's CPUs are held.
    Paused,
    /// The guest was asked to power off.
    Stopping,
    /// It ended, and everything it held was freed.
    Exited(VmExit),
}

impl VmStatus {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<&VmExit> {
        match self {
            Self::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}
