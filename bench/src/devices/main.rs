//! Disks, shares and connections, Capsa beside QEMU: the same kernel, the same initial file system, one CPU,
//! 512 MiB, in turn. A program in the guest uses the device and tells how long it took.
//!
//! - disks: QEMU's own virtio-blk, both through the host's page cache;
//! - shares: Debian's virtiofsd under QEMU;
//! - connections: vhost-vsock under QEMU, or where the host has none QEMU's user network.
//!
//! Run it where KVM works: `cargo xtask bench devices` puts it into the lab where it must.
//!
//! Unsafe code is allowed here because vsock ports of the host are listened on by bare system calls; see
//! [`ports`].
#![allow(unsafe_code)]

mod console;
mod guest;
mod host_program;
mod machine;
mod measures;
mod peers;
mod ports;
mod process;
mod summary;
mod virtiofsd;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use capsa_bench::folder::Folder;
use clap::Parser;

use crate::measures::{Group, Measure};
use crate::peers::{Place, Side};
use crate::summary::Samples;

/// Measures disks, shares and vsock connections beside QEMU.
#[derive(Parser)]
// `cargo xtask bench` gives sizes for the lab, which its user's own follow.
#[command(args_override_self = true)]
struct Arguments {
    /// The `capsa` command to measure.
    #[arg(long)]
    capsa: PathBuf,
    /// The kernel that both boot: an uncompressed vmlinux.
    #[arg(long)]
    kernel: PathBuf,
    /// The guest's side of the benchmark, statically linked: `capsa-bench-guest`.
    #[arg(long)]
    guest: PathBuf,
    /// A statically linked busybox, for the guest.
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// The peer.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The peer's file server.
    #[arg(long, default_value = "/usr/lib/qemu/virtiofsd")]
    virtiofsd: PathBuf,
    /// How QEMU uses its disk: threads (its default), io_uring.
    #[arg(long, default_value = "threads")]
    aio: String,
    /// Only these devices (repeatable) [default: all].
    #[arg(long, value_enum)]
    only: Vec<Group>,
    /// How often each measure is taken of either, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the disks and the shared directory are [default: the place for temporary files].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Seconds that one command may take in a guest.
    #[arg(long, default_value_t = 300)]
    limit: u64,
    #[command(flatten)]
    sizes: measures::Sizes,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = match &arguments.folder {
        Some(parent) => Folder::inside(parent)?,
        None => Folder::new()?,
    };
    let place = Place::prepare(&arguments, &folder)?;
    let measures = measures::all(&arguments.sizes, place.streams_of_qemu());
    let mut samples: Vec<Samples> = measures.iter().map(Samples::new).collect();
    for group in Group::ALL {
        if arguments.only.is_empty() || arguments.only.contains(&group) {
            let of_group = measures
                .iter()
                .zip(&mut samples)
                .filter(|(measure, _)| measure.group == group);
            run(&place, &arguments, group, of_group)
                .with_context(|| format!("the measures of the {group}"))?;
        }
    }
    summary::print(&samples);
    Ok(())
}

/// Takes the measures of one group: both machines run, of which one at a time has something to do, so that
/// whatever else this computer does meets both.
fn run<'m>(
    place: &Place,
    arguments: &Arguments,
    group: Group,
    measures: impl Iterator<Item = (&'m Measure, &'m mut Samples)>,
) -> Result<()> {
    let limit = Duration::from_secs(arguments.limit);
    let mut machines = Vec::new();
    for side in [Side::Capsa, Side::Qemu] {
        let mut machine = place.start(side, group, limit).context(side.name())?;
        for command in place.preparations(side, group, &arguments.sizes) {
            machine.run(&command).context(side.name())?;
        }
        machines.push((side, machine));
    }
    for (measure, samples) in measures {
        for round in 0..arguments.rounds {
            for (side, machine) in &mut machines {
                let seconds = machine.time(measure.command(*side)).context(side.name())?;
                place.tidy(*side)?;
                eprintln!(
                    "{:40} {} {:5} {seconds:9.3} s, {}",
                    measure.name,
                    round + 1,
                    side.name(),
                    measure.unit.rate(measure.amount, seconds)
                );
                samples.add(*side, seconds);
            }
            // Each goes first as often as the other.
            machines.reverse();
        }
    }
    machines
        .into_iter()
        .try_for_each(|(side, machine)| machine.end(side.end()))
}
