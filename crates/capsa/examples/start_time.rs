//! How long it takes from `build()` until the guest's CPUs run, on KVM:
//! `cargo run --release --package capsa --example start_time`. Outside the lab a KVM that emulates will do: no guest has
//! to get anywhere. `bench/README.md` has figures.

use std::time::Instant;

use capsa::{BackendKind, Capsa, LinuxBootConfig};

const ROUNDS: usize = 21;

#[tokio::main(flavor = "current_thread")]
async fn main() -> capsa::Result<()> {
    let mut took = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let builder = Capsa::vm(LinuxBootConfig::new())
            .backend(BackendKind::Kvm)
            .memory_mib(128);
        let began = Instant::now();
        let vm = builder.build().await?;
        vm.start().await?;
        took.push(began.elapsed());
        vm.kill().await?;
    }
    took.sort();
    if let (Some(least), Some(median), Some(most)) =
        (took.first(), took.get(ROUNDS / 2), took.last())
    {
        println!(
            "build() to running CPUs, {ROUNDS} times: {least:.1?} to {most:.1?}, median {median:.1?}"
        );
    }
    Ok(())
}
