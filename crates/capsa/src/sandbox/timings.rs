//! How long each part of a start took.

use std::fmt;
use std::time::{Duration, Instant};

use capsa_core::BootPhase;
use serde::{Deserialize, Serialize};

/// How long each phase of a sandbox's start took, in the order in which they came. A phase that the
/// backend does not tell apart is part of the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BootTimings {
    /// Choosing a backend and checking the settings.
    pub check: Duration,
    /// Starting the monitor and loading the guest, to its first instruction.
    pub monitor: Duration,
    /// From there to an agent that asks for its settings.
    pub kernel: Duration,
    /// From there to an agent that takes commands.
    pub agent: Duration,
}

impl BootTimings {
    /// The phases with their durations.
    pub fn phases(&self) -> [(BootPhase, Duration); 4] {
        [
            (BootPhase::Check, self.check),
            (BootPhase::Monitor, self.monitor),
            (BootPhase::Kernel, self.kernel),
            (BootPhase::Agent, self.agent),
        ]
    }

    /// From the call of `create` to a sandbox that takes commands.
    pub fn total(&self) -> Duration {
        self.phases().iter().map(|(_, duration)| *duration).sum()
    }
}

impl fmt::Display for BootTimings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (phase, duration) in self.phases() {
            write!(f, "{phase} {:.1} ms, ", duration.as_secs_f64() * 1000.0)?;
        }
        write!(f, "together {:.1} ms", self.total().as_secs_f64() * 1000.0)
    }
}

/// Measures one phase after the other.
#[derive(Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the last lap, or the start.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap
    }
}
