//! Boots a kernel in this process, its console on standard input and output. For debugging the monitor.
//!
//! `boot --kernel FILE [--initrd FILE] [--cpus N] [--memory MIB] [--serial] [--no-hvc]
//!  [--discovery auto|acpi|cmdline] [--cmdline WORDS] [--raw-cmdline LINE] [--stats] [--button SECONDS]`

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod in_this_process;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    in_this_process::main();
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    eprintln!("boot: the monitor is for Linux on x86-64");
    std::process::exit(1);
}
