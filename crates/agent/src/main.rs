//! The agent in the guest: the default init.
//!
//! As process 1 it mounts the usual file systems, runs a shell on the console and powers the machine
//! off when that ends. It is driven by the kernel's command line; see [`parameters`]. Started by the
//! name of `poweroff`, `halt`, `reboot` or `vsock` it is that command.
//!
//! Beside that it serves the host: commands, files, and the boot message that sets the guest up; see
//! [`serve`]. `capsa-agent serve` does only that, in a guest with an init of its own;
//! `capsa-agent serve --directory DIR` does it over Unix sockets, without a guest.
//!
//! Unsafe code is allowed here because processes are started, and sockets of the host's kind made, by
//! bare system calls; see [`exec`] and [`serve`].
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod boot;
#[cfg(target_os = "linux")]
mod children;
#[cfg(target_os = "linux")]
mod console;
#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
mod events;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod parameters;
#[cfg(target_os = "linux")]
mod power;
#[cfg(target_os = "linux")]
mod reap;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod shutdown;
#[cfg(target_os = "linux")]
mod vsock_command;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        if let Some(command) = shutdown::Command::named(&name) {
            return command.run(arguments);
        }
        if vsock_command::is_named(&name) {
            return vsock_command::run(arguments);
        }
    }
    match arguments.next() {
        Some(first) if first == console::SHELL_ROLE => return console::become_shell(),
        Some(first) if first == service::ROLE => return service::run_alone(arguments),
        _ => {}
    }
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("capsa-agent is the first process of a guest: boot it as /init");
        return ExitCode::FAILURE;
    }
    power::off_after(init::run())
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("capsa-agent runs in Linux guests only");
    std::process::ExitCode::FAILURE
}
