//! What the benchmarks share: a folder for one run, the archive that guests boot, and the monitors' command lines.

pub mod archive;
pub mod folder;
pub mod monitors;
