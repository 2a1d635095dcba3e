//! Boot time and monitor memory, Capsa beside QEMU's microvm: the same kernel, the same initial
//! file system, one CPU, 128 MiB, runs in turn. Time goes from process start to the line that the
//! guest's `/init` prints; memory is what the monitor's process has resident besides guest memory
//! at that moment.
//!
//! Run it where KVM works: `cargo xtask bench boot` puts it into the lab where it must.

mod guest;
mod memory;
mod monitor;
mod summary;

use std::path::PathBuf;

use anyhow::{Context, Result};
use capsa_bench::folder::Folder;
use capsa_bench::monitors::Guest;
use clap::Parser;

use crate::monitor::Monitor;
use crate::summary::Samples;

/// Measures boot time and monitor memory beside QEMU's microvm.
#[derive(Parser)]
struct Arguments {
    /// The `capsa` command to measure.
    #[arg(long)]
    capsa: PathBuf,
    /// The kernel that both boot: an uncompressed vmlinux.
    #[arg(long)]
    kernel: PathBuf,
    /// A statically linked busybox, for the guest's `/init`.
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// The peer.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Another monitor to measure, such as a Firecracker binary.
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// Runs of each monitor.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = Folder::new()?;
    let initramfs = guest::write_initramfs(&folder, &arguments.busybox)?;
    let guest = Guest {
        kernel: &arguments.kernel,
        initramfs: &initramfs,
        memory: arguments.memory,
    };
    let mut monitors = vec![
        Monitor::capsa(&arguments.capsa, &guest),
        Monitor::qemu_microvm(&arguments.qemu, &guest),
    ];
    if let Some(firecracker) = &arguments.firecracker {
        monitors.push(Monitor::firecracker(firecracker, &guest, &folder)?);
    }
    let mut samples: Vec<Samples> = monitors.iter().map(|m| Samples::new(m.name())).collect();
    for round in 0..arguments.rounds {
        for (monitor, samples) in monitors.iter().zip(&mut samples) {
            let run = monitor
                .run()
                .with_context(|| format!("{} did not boot", monitor.name()))?;
            eprintln!(
                "round {}: {:16} {:.3} s",
                round + 1,
                monitor.name(),
                run.seconds
            );
            samples.add(run);
        }
    }
    summary::print(&samples);
    Ok(())
}
