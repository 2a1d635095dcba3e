//! The boot message: setting the guest up.

mod clock;
mod dhcp;
mod interfaces;
mod mount;
mod names;
mod root;

use std::io;

use capsa_agent_protocol::boot::{BootConfig, BootReport};
use capsa_agent_protocol::{Failure, Timestamp};
use rustix::system::sethostname;
use rustix::time::{ClockId, clock_gettime};

use crate::exec::environment;
use crate::parameters::Parameters;
use crate::report;

pub(crate) use clock::set_clock;

/// What the guest can do without, and has not got.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, warning: String) {
        report::problem(&warning);
        self.0.push(warning);
    }

    fn check(&mut self, what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            self.add(format!("{what}: {error}"));
        }
    }
}

/// Carries it out. Root and mounts are what programs work on: without them the guest is not set up.
pub(crate) fn apply(config: BootConfig) -> Result<BootReport, Failure> {
    let mut warnings = Warnings::default();
    // The time comes first: what is made from here on carries it.
    if let Some(time) = config.time {
        warnings.check("cannot set the clock", set_clock(time));
    }
    if !config.entropy.0.is_empty() {
        let added = clock::add_entropy(config.entropy.as_bytes());
        warnings.check("cannot take the host's random bytes", added);
    }
    if let Some(root) = &config.root {
        root::enter(root, &mut warnings)?;
    }
    for one in &config.mounts {
        mount::mount_one(one)?;
    }
    if let Some(name) = &config.host_name {
        let named = sethostname(name.as_bytes()).map_err(io::Error::from);
        warnings.check("cannot set the host name", named);
    }
    let learnt = interfaces::set_up(&config.interfaces)?;
    // A new root does not have what the old one was told.
    let of_command_line = || Parameters::of_this_boot().ok()?.resolver();
    let resolver = config.resolver.clone().or(learnt).or_else(of_command_line);
    names::set_up(&config, resolver.as_ref(), &mut warnings);
    environment::set_for_all(config.environment);
    Ok(BootReport {
        warnings: warnings.0,
        since_kernel_start: since_kernel_start(),
    })
}

/// Sets up what the kernel's command line tells of the network.
pub(crate) fn set_up_network(parameters: &Parameters) -> Result<(), Failure> {
    let config = BootConfig {
        host_name: parameters.host_name.clone(),
        interfaces: parameters.interface.iter().cloned().collect(),
        resolver: parameters.resolver(),
        ..BootConfig::default()
    };
    apply(config).map(drop)
}

fn since_kernel_start() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

/// As text, for messages.
fn failed(context: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let context = context.into();
    move |error| Failure::system(&error, context)
}

/// As the kernel's own structure.
fn timespec(time: Timestamp) -> rustix::time::Timespec {
    rustix::time::Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.min(999_999_999).into(),
    }
}
