//! Virtual processors: what they are, how they start, and the loop that runs them.

pub mod cpuid;
pub mod fault;
pub mod msrs;
pub mod regs;
pub mod run;
