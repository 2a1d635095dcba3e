//! Where connections come from: the machine's vsock device, or, in tests, a Unix socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use capsa_agent_protocol::{AGENT_PORT, CONTROL_PORT};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socket_with};

use super::Connection;

/// The host, among the machines of vsock.
const HOST: u32 = 2;
/// Socket options of `<linux/vm_sockets.h>`; the largest size bounds the size.
const BUFFER_SIZE: i32 = 0;
const BUFFER_MAX_SIZE: i32 = 2;
/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`: this machine's number.
const GET_LOCAL_CID: libc::Ioctl = 0x7b9;
/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;

/// How agent and host reach each other.
#[derive(Clone, Debug)]
pub(crate) enum Channel {
    /// The machine's vsock device.
    Vsock,
    /// A directory with a socket for each port, by its number.
    Directory(PathBuf),
}

/// Takes the host's connections.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    pub(crate) fn new(channel: &Channel) -> io::Result<Self> {
        match channel {
            Channel::Vsock => {
                find_device()?;
                let socket = vsock()?;
                let address = address(libc::VMADDR_CID_ANY, AGENT_PORT);
                // SAFETY: the address is one of this family, with its length.
                let bound = unsafe {
                    libc::bind(
                        socket.as_raw_fd(),
                        (&raw const address).cast(),
                        ADDRESS_BYTES,
                    )
                };
                succeeded(bound)?;
                rustix::net::listen(&socket, BACKLOG)?;
                Ok(Self(socket))
            }
            Channel::Directory(directory) => {
                let path = directory.join(AGENT_PORT.to_string());
                let _ = fs::remove_file(&path);
                Ok(Self(UnixListener::bind(path)?.into()))
            }
        }
    }

    pub(super) fn accept(&self) -> io::Result<Connection> {
        let socket = accept_with(&self.0, SocketFlags::CLOEXEC)?;
        Ok(Connection::new(socket))
    }
}

/// Connects to the host's side of the control connection.
pub(crate) fn connect_to_host(channel: &Channel) -> io::Result<OwnedFd> {
    match channel {
        Channel::Vsock => {
            let socket = vsock()?;
            let address = address(HOST, CONTROL_PORT);
            // SAFETY: the address is one of this family, with its length.
            let connected = unsafe {
                libc::connect(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    ADDRESS_BYTES,
                )
            };
            succeeded(connected)?;
            Ok(socket)
        }
        Channel::Directory(directory) => {
            Ok(UnixStream::connect(directory.join(CONTROL_PORT.to_string()))?.into())
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // 16 bytes
const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Sockets can be made without a device: then nobody could ever reach them.
fn find_device() -> io::Result<()> {
    let vsock = File::open("/dev/vsock")?;
    let mut machine = libc::VMADDR_CID_ANY;
    // SAFETY: the call writes a number of 4 bytes.
    let asked = unsafe { libc::ioctl(vsock.as_raw_fd(), GET_LOCAL_CID, &raw mut machine) };
    succeeded(asked)?;
    if machine == libc::VMADDR_CID_ANY || machine <= HOST {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the machine has no vsock device",
        ));
    }
    Ok(())
}

fn vsock() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // The default of 256 KiB holds up large transfers.
    let bytes: u64 = 1 << 20;
    for option in [BUFFER_MAX_SIZE, BUFFER_SIZE] {
        // SAFETY: the option takes a number of 8 bytes.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                option,
                (&raw const bytes).cast(),
                8,
            )
        };
        succeeded(set)?;
    }
    Ok(socket)
}

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
