//! The command `vsock`: streams between programs of the guest and the host, for scripts.
//!
//! - `vsock connect PORT` connects to a port of the host; standard input goes there, and what comes
//!   from there to standard output, each to its end.
//! - `vsock listen PORT PROGRAM…` says `listening` on standard output, and then runs a PROGRAM for
//!   each connection of the host, with that as its standard input and output.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socket_with};

const NAME: &str = "vsock";
const HOST: u32 = libc::VMADDR_CID_HOST;
const BACKLOG: i32 = 1024;
/// Enough to start a program and to wait for it.
const WAITER_STACK: usize = 64 << 10;

/// Whether the program of the name `program` is this command.
pub(crate) fn is_named(program: &OsStr) -> bool {
    Path::new(program)
        .file_name()
        .is_some_and(|name| name == NAME)
}

/// Carries it out with `arguments`.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let port = |text: &OsString| text.to_str()?.parse().ok();
    let done = match &arguments[..] {
        [verb, number] if verb == "connect" => port(number).map(connect),
        [verb, number, program, rest @ ..] if verb == "listen" => {
            port(number).map(|port| serve(port, program, rest))
        }
        _ => None,
    };
    match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: {NAME} connect PORT | {NAME} listen PORT PROGRAM…");
            ExitCode::from(2)
        }
    }
}

fn connect(port: u32) -> io::Result<()> {
    let socket = socket()?;
    let address = address(HOST, port);
    // SAFETY: the address is one of this family, with its length.
    succeeded(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_BYTES,
        )
    })?;
    // Nothing that is done with it depends on the family.
    let stream = UnixStream::from(socket);
    let sending = stream.try_clone()?;
    let sender = thread::spawn(move || {
        let copied = io::copy(&mut io::stdin().lock(), &mut &sending);
        // It fails where the other side is gone already.
        let _gone = sending.shutdown(Shutdown::Write);
        copied
    });
    let mut output = io::stdout().lock();
    io::copy(&mut &stream, &mut output)?;
    output.flush()?;
    match sender.join() {
        Ok(sent) => sent.map(drop),
        Err(_) => Err(io::Error::other("the sender panicked")),
    }
}

fn serve(port: u32, program: &OsStr, arguments: &[OsString]) -> io::Result<()> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is one of this family, with its length.
    succeeded(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_BYTES,
        )
    })?;
    listen(&socket, BACKLOG)?;
    let mut output = io::stdout().lock();
    output.write_all(b"listening\n")?;
    output.flush()?;
    loop {
        let input = accept_with(&socket, SocketFlags::CLOEXEC)?;
        let output = input.try_clone()?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .spawn()?;
        thread::Builder::new()
            .stack_size(WAITER_STACK)
            .spawn(move || child.wait())?;
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

#[allow(clippy::cast_possible_truncation, reason = "16 bytes")]
const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(machine: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: zeros are a value of this plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = machine;
    address.svm_port = port;
    address
}

fn succeeded(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(arguments: &[&str]) -> ExitCode {
        run(arguments.iter().map(OsString::from))
    }

    #[test]
    fn command_is_known_by_the_last_part_of_its_path() {
        assert!(is_named(OsStr::new("/bin/vsock")));
        assert!(!is_named(OsStr::new("/init")));
    }

    #[test]
    fn senseless_arguments_are_refused() {
        for arguments in [
            &["connect"][..],
            &["connect", "x"],
            &["connect", "-1"],
            &["connect", "1", "2"],
            &["listen", "1"],
            &["talk", "1"],
        ] {
            let status = format!("{:?}", status(arguments));
            assert_eq!(status, format!("{:?}", ExitCode::from(2)), "{arguments:?}");
        }
    }
}
