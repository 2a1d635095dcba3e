//! Network interfaces, over the kernel's rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// The loopback interface has this number in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE_REPLACE: u16 = 0x100 | 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// An IPv6 address is used at once: nobody else has it.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// The next hop is reached directly even if no address of the interface says so.
const RTNH_F_ONLINK: u32 = 4;

/// One interface, to be set up.
pub(crate) struct Link {
    socket: OwnedFd,
    number: u32,
}

/// Brings the loopback interface up; the kernel gives it its addresses.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    Link::open(LOOPBACK)?.bring_up(None)
}

impl Link {
    pub(crate) fn open(number: u32) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0 is NETLINK_ROUTE.
            None,
        )?;
        Ok(Self { socket, number })
    }

    pub(crate) fn bring_up(&mut self, mtu: Option<u32>) -> io::Result<()> {
        // `struct ifinfomsg`: family, padding, type, index, flags, mask of flags.
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.put(&[0; 4]);
        request.put(&self.number.to_ne_bytes());
        request.put(&IFF_UP.to_ne_bytes());
        request.put(&IFF_UP.to_ne_bytes());
        if let Some(mtu) = mtu {
            request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.send(request)
    }

    pub(crate) fn add_address(&mut self, address: IpAddr, prefix: u8) -> io::Result<()> {
        // `struct ifaddrmsg`: family, length of the prefix, flags, scope, index.
        let mut request = Request::new(RTM_NEWADDR, NLM_F_CREATE_REPLACE);
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        request.put(&[family(address), prefix, flags, 0]);
        request.put(&self.number.to_ne_bytes());
        request.attribute(IFA_LOCAL, &bytes(address));
        request.attribute(IFA_ADDRESS, &bytes(address));
        self.send(request)
    }

    /// Everything that no other route is for goes there.
    pub(crate) fn add_gateway(&mut self, gateway: IpAddr) -> io::Result<()> {
        // `struct rtmsg`: family, lengths of destination and source, type of service, table,
        // protocol, scope, type, flags.
        let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE_REPLACE);
        let family = family(gateway);
        request.put(&[family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST]);
        request.put(&RTNH_F_ONLINK.to_ne_bytes());
        request.attribute(RTA_OIF, &self.number.to_ne_bytes());
        request.attribute(RTA_GATEWAY, &bytes(gateway));
        self.send(request)
    }

    fn send(&self, request: Request) -> io::Result<()> {
        let message = request.finish();
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &message, SendFlags::empty(), &kernel)?;
        let mut reply = [0; 1024];
        let (length, _) = recv(&self.socket, &mut reply[..], RecvFlags::empty())?;
        acknowledged(reply.get(..length).unwrap_or_default())
    }
}

/// `struct nlmsghdr` and what follows.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = vec![0; 4];
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST_ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        Self(message)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct rtattr`: length, kind, value, filled up to four bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.put(&length.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(0);
        if let Some(field) = self.0.first_chunk_mut() {
            *field = length.to_ne_bytes();
        }
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    // AF_INET and AF_INET6.
    if address.is_ipv4() { 2 } else { 10 }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `struct nlmsgerr`: a negative error number, 0 for success.
fn acknowledged(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).and_then(|bytes| bytes.first_chunk());
    let error = reply.get(16..20).and_then(|bytes| bytes.first_chunk());
    match (kind.copied().map(u16::from_ne_bytes), error) {
        (Some(NLMSG_ERROR), Some(error)) => match i32::from_ne_bytes(*error) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(error: i32) -> Vec<u8> {
        let mut reply = vec![0; 36];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        reply[16..20].copy_from_slice(&error.to_ne_bytes());
        reply
    }

    #[test]
    fn netlink_success_is_told_from_errors() {
        assert!(acknowledged(&reply(0)).is_ok());
        assert_eq!(
            acknowledged(&reply(-1)).unwrap_err().raw_os_error(),
            Some(1)
        );
    }

    #[test]
    fn netlink_reply_that_is_too_short_is_an_error() {
        assert!(acknowledged(&reply(0)[..18]).is_err());
    }

    #[test]
    fn netlink_attribute_is_filled_up_to_four_bytes() {
        let mut request = Request::new(RTM_NEWADDR, 0);
        request.attribute(9, &[1, 2, 3, 4, 5]);
        let message = request.finish();
        assert_eq!(message.len(), 16 + 12);
        assert_eq!(message[..4], 28u32.to_ne_bytes());
        assert_eq!(message[16..18], 9u16.to_ne_bytes());
    }
}
