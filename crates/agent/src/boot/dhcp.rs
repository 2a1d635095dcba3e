//! Asking a DHCP server (RFC 2131) for the address of an interface, once: for as long as the machine
//! runs, which its own network gives it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long each try waits for its answer.
const TRIES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Length of a message before its options: RFC 2131, section 2.
const FIXED_BYTES: usize = 236;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const SELECT: u8 = 3;
const ACKNOWLEDGED: u8 = 5;
const REFUSED: u8 = 6;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVERS: u8 = 6;
const DOMAIN: u8 = 15;
const WANTED_ADDRESS: u8 = 50;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const PARAMETERS: u8 = 55;
const END: u8 = 255;

/// What the server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) servers: Vec<IpAddr>,
    pub(super) domain: Option<String>,
    server: Ipv4Addr,
    kind: u8,
}

/// Asks on the interface of this name and hardware address.
pub(super) fn ask(name: &str, mac: [u8; 6]) -> io::Result<Lease> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    bind_to(&socket, name)?;
    let number = u32::from_ne_bytes([mac[2], mac[3], mac[4], mac[5]]);
    let discover = message(mac, number, DISCOVER, None);
    let offer = exchange(&socket, &discover, number, mac, OFFER)?;
    let select = message(mac, number, SELECT, Some(&offer));
    exchange(&socket, &select, number, mac, ACKNOWLEDGED)
}

/// Packets go out there, and come from there, though it has no address.
fn bind_to(socket: &UdpSocket, interface: &str) -> io::Result<()> {
    // SAFETY: the option takes a name with its length.
    let bound = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            interface.as_ptr().cast(),
            interface.len() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn exchange(
    socket: &UdpSocket,
    request: &[u8],
    number: u32,
    mac: [u8; 6],
    wanted: u8,
) -> io::Result<Lease> {
    let mut packet = [0; 1500];
    for limit in TRIES {
        socket.send_to(request, (Ipv4Addr::BROADCAST, SERVER_PORT))?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let length = match socket.recv(&mut packet) {
                Ok(length) => length,
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(error),
            };
            match parse(packet.get(..length).unwrap_or_default(), number, mac) {
                Some(lease) if lease.kind == wanted => return Ok(lease),
                Some(lease) if lease.kind == REFUSED => {
                    return Err(io::Error::other("the DHCP server refuses an address"));
                }
                // Somebody else's, or late.
                _ => {}
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "no DHCP server answers; give the interface its addresses",
    ))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn message(mac: [u8; 6], number: u32, kind: u8, offer: Option<&Lease>) -> Vec<u8> {
    // Operation, Ethernet, length of an address, hops.
    let mut message = vec![REQUEST, 1, 6, 0];
    message.extend(number.to_be_bytes());
    // No time yet; answers are to be broadcast, since there is no address.
    message.extend([0, 0, 0x80, 0]);
    message.extend([0; 16]);
    message.extend(mac);
    message.resize(FIXED_BYTES, 0);
    message.extend(COOKIE);
    message.extend([MESSAGE_TYPE, 1, kind]);
    if let Some(offer) = offer {
        message.extend([WANTED_ADDRESS, 4]);
        message.extend(offer.address.octets());
        message.extend([SERVER, 4]);
        message.extend(offer.server.octets());
    }
    message.extend([PARAMETERS, 4, SUBNET_MASK, ROUTER, NAME_SERVERS, DOMAIN]);
    message.push(END);
    message
}

fn parse(packet: &[u8], number: u32, mac: [u8; 6]) -> Option<Lease> {
    if packet.first() != Some(&REPLY)
        || packet.get(4..8)? != number.to_be_bytes()
        || packet.get(28..34)? != mac
        || packet.get(FIXED_BYTES..FIXED_BYTES + 4)? != COOKIE
    {
        return None;
    }
    let mut lease = Lease {
        address: address(packet.get(16..20)?)?,
        prefix: 24,
        gateway: None,
        servers: Vec::new(),
        domain: None,
        server: Ipv4Addr::UNSPECIFIED,
        kind: 0,
    };
    let mut options = packet.get(FIXED_BYTES + 4..)?;
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => rest,
            &END => break,
            kind => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                lease.take(*kind, value);
                rest
            }
        };
    }
    Some(lease)
}

impl Lease {
    fn take(&mut self, kind: u8, value: &[u8]) {
        match kind {
            MESSAGE_TYPE => self.kind = value.first().copied().unwrap_or(0),
            SUBNET_MASK => {
                if let Some(mask) = address(value) {
                    self.prefix = u32::from(mask).leading_ones() as u8;
                }
            }
            ROUTER => self.gateway = value.get(..4).and_then(address),
            NAME_SERVERS => {
                let servers = value.chunks_exact(4).filter_map(address);
                self.servers = servers.map(IpAddr::V4).collect();
            }
            SERVER => self.server = address(value).unwrap_or(self.server),
            DOMAIN => {
                let name = String::from_utf8_lossy(value);
                let name = name.trim_end_matches('\0');
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                self.domain =
                    (!name.is_empty() && name.bytes().all(is_name)).then(|| name.to_owned());
            }
            _ => {}
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

    fn answer(kind: u8) -> Vec<u8> {
        let mut packet = message(MAC, 7, kind, None);
        packet[0] = REPLY;
        packet[16..20].copy_from_slice(&[10, 0, 2, 15]);
        packet.truncate(FIXED_BYTES + 4);
        packet.extend([0, MESSAGE_TYPE, 1, kind]);
        packet.extend([SUBNET_MASK, 4, 255, 255, 0, 0, ROUTER, 4, 10, 0, 0, 1]);
        packet.extend([NAME_SERVERS, 8, 1, 1, 1, 1, 8, 8, 8, 8]);
        packet.extend([SERVER, 4, 10, 0, 0, 2, DOMAIN, 3, b'l', b'a', b'n', END]);
        packet
    }

    #[test]
    fn lease_has_all_that_the_server_gave() {
        let lease = parse(&answer(OFFER), 7, MAC).unwrap();
        assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!((lease.prefix, lease.kind), (16, OFFER));
        assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(lease.server, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(lease.servers.len(), 2);
        assert_eq!(lease.domain.as_deref(), Some("lan"));
    }

    #[test]
    fn answers_to_others_are_passed_over() {
        assert_eq!(parse(&answer(OFFER), 8, MAC), None);
        assert_eq!(parse(&answer(OFFER), 7, [0; 6]), None);
    }

    #[test]
    fn every_truncation_of_an_answer_is_borne() {
        let whole = answer(OFFER);
        for length in 0..whole.len() {
            let _ = parse(&whole[..length], 7, MAC);
        }
    }
}
