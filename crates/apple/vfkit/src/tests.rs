//! What the plan makes of a specification.

#[cfg(unix)] // the other plan is a dependency there
mod every_setting;
mod plan;
