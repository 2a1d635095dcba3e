//! The loopback interface, brought up by a message to the kernel: the host's root may have no `ip` command.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, bind, recv, send, socket,
};

/// `NETLINK_ROUTE` of netlink(7) is protocol 0, which is what no protocol stands for.
const ROUTE: Option<Protocol> = None;
/// `RTM_NEWLINK` of rtnetlink(7).
const NEW_LINK: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK` of netlink(7).
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
/// `NLMSG_ERROR` of netlink(7): the answer; its error number is 0 where all went well.
const ANSWER: u16 = 2;
/// `IFF_UP` of netdevice(7).
const UP: u32 = 1;
/// The loopback interface is the first of each network namespace.
const LOOPBACK_INDEX: u32 = 1;

pub(super) fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, ROUTE)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, &up_request(LOOPBACK_INDEX), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (received, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    check(&answer[..received.min(1024)])
}

/// A netlink header and an `ifinfomsg`, in the machine's byte order.
fn up_request(index: u32) -> [u8; 32] {
    let mut message = [0; 32];
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_WITH_ANSWER.to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[24..28].copy_from_slice(&UP.to_ne_bytes());
    message[28..32].copy_from_slice(&UP.to_ne_bytes());
    message
}

fn check(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let error = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(ANSWER), Some(0)) => Ok(()),
        (Some(ANSWER), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an unexpected answer from the kernel",
        )),
    }
}
