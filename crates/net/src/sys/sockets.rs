//! The host's sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, bind, connect, getsockname, ipproto, listen,
    socket_with, sockopt,
};

/// How large the buffers of sockets that carry frames should be.
const FRAME_BUFFER: usize = 8 << 20;

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

fn open(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    #[cfg(not(target_vendor = "apple"))]
    return Ok(socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        protocol,
    )?);
    #[cfg(target_vendor = "apple")]
    {
        let fd = socket_with(family, kind, SocketFlags::empty(), protocol)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        sockopt::set_socket_nosigpipe(&fd, true)?;
        Ok(fd)
    }
}

/// Makes a descriptor that somebody handed over non-blocking.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// Makes the buffers of a frame socket as large as the system lets it, so that bursts fit.
pub(crate) fn enlarge_buffers(fd: BorrowedFd<'_>) {
    // Beyond the administrator's limit only with privilege; what is granted without it will do.
    #[cfg(target_os = "linux")]
    if sockopt::set_socket_send_buffer_size_force(fd, FRAME_BUFFER).is_ok() {
        return;
    }
    let mut size = FRAME_BUFFER;
    while size > 64 << 10 && sockopt::set_socket_send_buffer_size(fd, size).is_err() {
        size /= 2;
    }
}

/// Starts to connect a TCP socket. Ready when it becomes writable; see [`take_error`].
pub(crate) fn connect_tcp(to: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(family(to.ip()), SocketType::STREAM, Some(ipproto::TCP))?;
    prepare_stream(fd.as_fd());
    match connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// The guest does its own Nagle, and a peer that vanished is noticed some day.
pub(crate) fn prepare_stream(fd: BorrowedFd<'_>) {
    // Neither applies to Unix sockets, where the calls fail harmlessly.
    let _ = sockopt::set_tcp_nodelay(fd, true);
    let _ = sockopt::set_socket_keepalive(fd, true);
}

/// The error that a socket has in store, if any.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::socket_error(fd)??;
    Ok(())
}

/// Makes closing the socket send a reset.
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) {
    let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}

/// A UDP socket connected to `to`, which hears of ICMP errors.
pub(crate) fn connect_udp(to: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(family(to.ip()), SocketType::DGRAM, Some(ipproto::UDP))?;
    connect(&fd, &to)?;
    Ok(fd)
}

/// Lets the system fragment datagrams, or report those that would have to be.
pub(crate) fn set_dont_fragment(fd: BorrowedFd<'_>, ipv4: bool, value: bool) {
    #[cfg(target_os = "linux")]
    {
        let v4 = if value {
            sockopt::Ipv4PathMtuDiscovery::DO
        } else {
            sockopt::Ipv4PathMtuDiscovery::DONT
        };
        let v6 = if value {
            sockopt::Ipv6PathMtuDiscovery::DO
        } else {
            sockopt::Ipv6PathMtuDiscovery::DONT
        };
        let _ = if ipv4 {
            sockopt::set_ip_mtu_discover(fd, v4)
        } else {
            sockopt::set_ipv6_mtu_discover(fd, v6)
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (fd, ipv4, value);
}

/// What the system knows about the path of a connected socket, in bytes of an IP packet.
pub(crate) fn path_mtu(fd: BorrowedFd<'_>, ipv4: bool) -> Option<u16> {
    #[cfg(target_os = "linux")]
    {
        let mtu = if ipv4 {
            sockopt::ip_mtu(fd)
        } else {
            sockopt::ipv6_mtu(fd)
        };
        mtu.ok().and_then(|mtu| u16::try_from(mtu).ok())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (fd, ipv4);
        None
    }
}

/// A socket for ICMP echo.
pub(crate) struct PingSocket {
    pub(crate) fd: OwnedFd,
    /// Whether it is a raw one: it gets every echo reply from its peer, with IPv4 headers.
    pub(crate) raw: bool,
}

/// Opens a socket for echo requests to `to`: one that needs no privilege where the system grants
/// those (`net.ipv4.ping_group_range`), else a raw one where this process may.
pub(crate) fn connect_ping(to: IpAddr) -> io::Result<PingSocket> {
    let protocol = if to.is_ipv4() {
        ipproto::ICMP
    } else {
        ipproto::ICMPV6
    };
    let (fd, raw) = match open(family(to), SocketType::DGRAM, Some(protocol)) {
        Ok(fd) => (fd, false),
        Err(_) => (open(family(to), SocketType::RAW, Some(protocol))?, true),
    };
    connect(&fd, &SocketAddr::new(to, 0))?;
    Ok(PingSocket { fd, raw })
}

/// Whether `address` is one of the host's own. Asks the routing table by a socket that sends nothing.
pub(crate) fn is_own_address(address: IpAddr) -> bool {
    let own = || -> io::Result<bool> {
        let fd = connect_udp(SocketAddr::new(address, 9))?;
        let name: SocketAddr = getsockname(&fd)?.try_into().map_err(io::Error::from)?;
        Ok(name.ip().to_canonical() == address.to_canonical())
    };
    own().unwrap_or(false)
}

/// A TCP listener.
pub(crate) fn listen_tcp(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = open(family(address.ip()), SocketType::STREAM, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &address)?;
    listen(&fd, 1024)?;
    let bound = getsockname(&fd)?.try_into().map_err(io::Error::from)?;
    Ok((fd, bound))
}

/// A UDP socket that waits for clients.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = open(family(address.ip()), SocketType::DGRAM, Some(ipproto::UDP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &address)?;
    let bound = getsockname(&fd)?.try_into().map_err(io::Error::from)?;
    Ok((fd, bound))
}

/// Accepts a client. `None` for the address of one on a Unix socket.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    #[cfg(not(target_vendor = "apple"))]
    let (fd, address) =
        rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    #[cfg(target_vendor = "apple")]
    let (fd, address) = {
        let (fd, address) = rustix::net::acceptfrom(listener)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        (fd, address)
    };
    prepare_stream(fd.as_fd());
    Ok((
        fd,
        address.and_then(|address| SocketAddr::try_from(address).ok()),
    ))
}

/// The host's loopback address of the same family.
pub(crate) const fn loopback_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Whether an error means that this process, or the system, has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    matches!(
        code,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
