//! A distribution's own kernel boots: its drivers for virtio are modules, so ACPI tells it what there
//! is, and the serial port is its console.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use capsa::test_utils::{self, Shell};
use capsa::{Capsa, LinuxBootConfig, MemorySize, VmExit};

/// Names Debian's kernel for cloud machines, as it is; `cargo xtask test` sets it.
const VARIABLE: &str = "CAPSA_TEST_STOCK_KERNEL";

/// What the kernel keeps of the memory for itself, beside a record of 64 bytes for each page.
const KERNEL_MIB: u64 = 64;

async fn shell(cpus: u32, memory: MemorySize) -> Shell {
    let kernel = std::env::var_os(VARIABLE)
        .unwrap_or_else(|| panic!("{VARIABLE} names no kernel; run this by cargo xtask test"));
    let config = LinuxBootConfig::new().kernel(kernel).default_initramfs();
    let builder = Capsa::vm(config)
        .backend(test_utils::backend().await.backend)
        .isolation(test_utils::isolation())
        .cpus(cpus)
        .memory(memory)
        // Its messages would come in between the answers.
        .cmdline("quiet loglevel=1")
        .cmdline(test_utils::SHELL_PARAMETERS);
    Shell::start(builder).await
}

async fn assert_stock_guest(cpus: u32, memory: MemorySize) {
    let mut shell = shell(cpus, memory).await;

    let release = shell.run("uname -r").await;
    assert!(release.ends_with("-cloud-amd64"), "{release}");
    assert_eq!(shell.run("nproc").await, cpus.to_string());
    let total: u64 = shell
        .run("free -m | awk '/Mem/ { print $2 }'")
        .await
        .parse()
        .unwrap();
    let asked = memory.as_mib();
    let least = asked - asked / 32 - KERNEL_MIB;
    assert!((least..=asked).contains(&total), "{total} of {asked} MiB");

    shell.send("poweroff -f").await;
    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);
}

#[tokio::test]
async fn a_stock_kernel_boots_with_one_cpu_and_128_mib() {
    assert_stock_guest(1, MemorySize::mib(128)).await;
}

#[tokio::test]
async fn a_stock_kernel_boots_with_two_cpus_and_3_gib() {
    assert_stock_guest(2, MemorySize::gib(3)).await;
}

#[tokio::test]
async fn a_stock_kernel_boots_with_eight_cpus_and_5_gib() {
    assert_stock_guest(8, MemorySize::gib(5)).await;
}
