//! Commands about sandboxes.

mod arguments;
#[cfg(target_os = "linux")]
pub(crate) mod copy;
#[cfg(target_os = "linux")]
pub(crate) mod exec;
#[cfg(target_os = "linux")]
pub(crate) mod inspect;
#[cfg(target_os = "linux")]
pub(crate) mod list;
#[cfg(target_os = "linux")]
pub(crate) mod logs;
#[cfg(target_os = "linux")]
pub(crate) mod network_facts;
#[cfg(target_os = "linux")]
pub(crate) mod port;
#[cfg(target_os = "linux")]
pub(crate) mod remove;
pub(crate) mod run;
mod stdio;
#[cfg(target_os = "linux")]
pub(crate) mod stop;
#[cfg(target_os = "linux")]
pub(crate) mod wait;

pub(crate) use arguments::CommandArguments;
