//! Connections to the host. The first nine bytes say what the host is to do: a letter, and a number of bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const PIECE: usize = 64 << 10;

/// Has the host send `bytes`.
pub(crate) fn receive(address: &str, bytes: u64) -> io::Result<Duration> {
    let mut stream = connect(address)?;
    let mut buffer = vec![0; PIECE];
    let began = Instant::now();
    ask(&mut stream, b'S', bytes)?;
    let mut received = 0;
    while received < bytes {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => received += count as u64,
        }
    }
    Ok(began.elapsed())
}

/// Sends `bytes`, and waits until the host says that it has all.
pub(crate) fn send(address: &str, bytes: u64) -> io::Result<Duration> {
    let mut stream = connect(address)?;
    let buffer = vec![0xa5; PIECE];
    let began = Instant::now();
    ask(&mut stream, b'R', bytes)?;
    let mut left = bytes;
    while left > 0 {
        let (piece, _) = buffer.split_at(left.min(PIECE as u64) as usize);
        stream.write_all(piece)?;
        left -= piece.len() as u64;
    }
    stream.read_exact(&mut [0])?;
    Ok(began.elapsed())
}

/// Sends one byte and waits for one, `count` times.
pub(crate) fn ping(address: &str, count: u64) -> io::Result<Duration> {
    let mut stream = connect(address)?;
    ask(&mut stream, b'E', count)?;
    let began = Instant::now();
    for _ in 0..count {
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(began.elapsed())
}

fn ask(stream: &mut File, what: u8, bytes: u64) -> io::Result<()> {
    let mut request = vec![what];
    request.extend(bytes.to_le_bytes());
    stream.write_all(&request)
}

/// A stream is a file, whatever its family.
fn connect(address: &str) -> io::Result<File> {
    if let Some(address) = address.strip_prefix("tcp:") {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        return Ok(File::from(OwnedFd::from(stream)));
    }
    let port = address
        .strip_prefix("vsock:")
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{address:?} is no address")))?;
    connect_to_host(port).map(File::from)
}

/// Connects to a vsock port of the host.
fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = succeeded(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: zeros are a value of this plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is one of this family, with its length.
    succeeded(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn succeeded(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
