//! Each kind of thread, in a process that is confined as a monitor is, tries what it must not.

use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;

use capsa_process::{ChildEnd, ControlSocket, ExitReason, receive, send};

use super::*;
use crate::machine::DeviceDiscovery;

capsa_process::role! {
    static TRIES: "test-tries", begins b"tries\0", runs tries;
}

const THREADS: [&str; 5] = ["vCPU", "device", "serial port", "disk", "control"];

/// Confines the process, and makes the system call that the message names on a thread of the kind
/// that it names.
fn tries(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    let mut buffer = Vec::new();
    let Some(descriptors) = receive(&socket, &mut buffer)? else {
        return Ok(());
    };
    let message = String::from_utf8(buffer.split_off(b"tries\0".len()))?;
    let (thread, call) = message.split_once(": ").ok_or("no message")?;
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or("no descriptor");
    let files = MachineFiles {
        kvm: next()?,
        kernel: File::from(next()?),
        initrd: None,
        serial: None,
        devices: Vec::new(),
    };
    let config = MachineConfig {
        vcpus: 1,
        memory: 64 << 20,
        command_line: String::new(),
        discovery: DeviceDiscovery::Auto,
        serial: false,
        devices: Vec::new(),
    };
    let (confined, missing) = enter(socket.as_fd(), &config, &files);
    if let Some(missing) = missing.first() {
        send(&socket, missing.to_string().as_bytes(), &[])?;
        return Ok(());
    }
    let kind = match thread {
        "vCPU" => Some(ThreadKind::Vcpu),
        "device" => Some(ThreadKind::Devices),
        "serial port" => Some(ThreadKind::Serial),
        "disk" => Some(ThreadKind::Files),
        _ => None,
    };
    let prepare = confined.prepare();
    let call = call.parse()?;
    let attempt = move || -> i64 {
        // SAFETY: every argument is zero or no descriptor, so that the calls that are tried fail or
        // change nothing.
        unsafe { libc::syscall(call, -1, 0, 0, 0, 0, 0) }
    };
    let result = match kind {
        Some(kind) => {
            let thread = std::thread::spawn(move || prepare(kind).map(|()| attempt()));
            thread.join().map_err(|_| "the thread panicked")??
        }
        None => {
            confined.finish()?;
            attempt()
        }
    };
    send(&socket, result.to_string().as_bytes(), &[])?;
    Ok(())
}

async fn tried(thread: &str, call: i64) -> (String, ChildEnd) {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    let message = format!("tries\0{thread}: {call}");
    let descriptors = [null.as_fd(), null.as_fd()];
    ours.send(message.as_bytes(), &descriptors).await.unwrap();
    let process = TRIES
        .start(&capsa_process::own_executable(), theirs)
        .unwrap();
    let mut buffer = Vec::new();
    let answered = ours.receive(&mut buffer).await.unwrap().is_some();
    let end = process.ended().await;
    let answer = if answered { buffer } else { Vec::new() };
    (String::from_utf8(answer).unwrap(), end)
}

#[tokio::test]
async fn calls_that_no_thread_may_make_end_the_process_and_are_named() {
    for call in [
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_clone,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_bpf,
    ] {
        for thread in THREADS {
            let (answer, end) = tried(thread, call).await;

            assert_eq!(answer, "", "{thread} threads may make call {call}");
            assert_eq!(end.reason, ExitReason::Status(71));
            let words = format!("ended: a {thread} thread made system call {call},");
            assert!(end.last_words.contains(&words), "{}", end.last_words);
        }
    }
}

#[tokio::test]
async fn opening_a_file_fails_on_threads_that_have_none_to_open() {
    for thread in THREADS {
        let (answer, end) = tried(thread, libc::SYS_openat).await;

        assert_eq!(answer, "-1", "{thread}: {}", end.last_words);
        assert_eq!(end.reason, ExitReason::Status(0));
    }
}

#[tokio::test]
async fn threads_do_what_they_are_for() {
    for (thread, call) in [
        ("vCPU", libc::SYS_eventfd2),
        ("device", libc::SYS_recvmsg),
        ("serial port", libc::SYS_recvfrom),
        ("disk", libc::SYS_fdatasync),
        ("control", libc::SYS_recvmsg),
    ] {
        let (answer, end) = tried(thread, call).await;

        assert_ne!(answer, "", "{thread}: {}", end.last_words);
    }
}

#[test]
fn every_policy_compiles() {
    for policy in [
        &start::POLICY,
        &control::POLICY,
        &vcpu::POLICY,
        &devices::POLICY,
        &serial::POLICY,
        &files::OF_DISKS,
        &files::OF_SHARES,
    ] {
        Filter::compile(policy).unwrap();
    }
}
