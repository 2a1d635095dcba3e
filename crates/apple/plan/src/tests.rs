//! The plan and the checks of files, as those who use this crate see them.

mod files;
mod vz_plan;
