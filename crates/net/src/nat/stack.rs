//! The TCP stack of one flow: a smoltcp interface with one socket. A flow has a stack to itself so
//! that a segment costs the same however many flows there are.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Instant;

use capsa_core::MacAddress;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant as StackTime};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::bytes::{Reader, put};
use crate::engine::outbox::Outbox;
use crate::wire::checksum::pseudo_header;
use crate::wire::frame::{Accepts, FramePool, Offload, SegmentKind};
use crate::wire::{ETHERNET, build, ethertype, protocol, tcp_flag};

/// A guest that says nothing for this long does not want the connection any more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a flow's packets to the guest go.
pub(crate) struct Exit<'a> {
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) pool: &'a mut FramePool,
    pub(crate) to: MacAddress,
    pub(crate) from: MacAddress,
    pub(crate) accepts: Accepts,
    pub(crate) now: Instant,
}

pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: DeviceCapabilities,
    /// Payload bytes of a full IPv6 segment, which smoltcp 0.14 does not tell with the packets that
    /// are to be cut.
    segment6: u16,
    /// The largest IP packet on the link.
    mtu: u16,
}

/// The payload of a full segment on the smallest IPv6 MTU.
const MIN_SEGMENT6: u16 = 1280 - 60;

struct FlowDevice<'a, 'e> {
    packet: Option<&'a [u8]>,
    exit: &'a mut Exit<'e>,
    capabilities: &'a DeviceCapabilities,
    segment6: u16,
    /// Answers to a packet may exceed the outbox's limit, as there are no more of them than packets.
    forced: bool,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a, 'e> {
    exit: &'a mut Exit<'e>,
    segment_size: u16,
    segment6: u16,
}

impl smoltcp::phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl smoltcp::phy::TxToken for Outgoing<'_, '_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size.map_or(0, Into::into);
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Exit {
            outbox,
            pool,
            to,
            from,
            accepts,
            now,
        } = self.exit;
        let mut frame = pool.frame(ETHERNET + len, *to, *from, ethertype::IPV4);
        let result = f(frame.ip_mut());
        let ipv6 = frame.ip_mut().first().is_some_and(|byte| byte >> 4 == 6);
        let segment_size = match self.segment_size {
            0 if ipv6 && len > usize::from(self.segment6) + 60 => self.segment6,
            size => size,
        };
        let offload = seal(frame.ip_mut(), segment_size, accepts.checksum);
        if ipv6 {
            put(
                frame.with_header_mut(),
                crate::wire::VNET + 12,
                &ethertype::IPV6.to_be_bytes(),
            );
        }
        if offload != Offload::default() {
            frame.set_offload(offload);
        }
        outbox.push(frame, *now, pool);
        result
    }
}

/// Writes the checksums of a TCP packet, or leaves them to whoever gets it.
fn seal(packet: &mut [u8], segment_size: u16, partial: bool) -> Offload {
    let ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    if ipv4 {
        build::seal_ipv4(packet);
    }
    let start = if ipv4 { 20 } else { 40 };
    let Some((header, message)) = packet.split_at_mut_checked(start) else {
        return Offload::default();
    };
    let address = |at: usize, len: usize| -> Option<IpAddr> {
        let bytes = header.get(at..at + len)?;
        match bytes.first_chunk::<16>() {
            Some(octets) => Some(IpAddr::from(*octets)),
            None => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        }
    };
    let (src, dst) = if ipv4 {
        (address(12, 4), address(16, 4))
    } else {
        (address(8, 16), address(24, 16))
    };
    let (Some(src), Some(dst)) = (src, dst) else {
        return Offload::default();
    };
    put(message, 16, &[0, 0]);
    let pseudo = pseudo_header(src, dst, protocol::TCP, message.len());
    if !partial {
        let checksum = pseudo.add(message).finish();
        put(message, 16, &checksum);
        return Offload::default();
    }
    put(message, 16, &pseudo.fold());
    Offload {
        needs_checksum: true,
        checked: false,
        kind: match (segment_size, ipv4) {
            (0, _) => SegmentKind::None,
            (_, true) => SegmentKind::Tcp4,
            (_, false) => SegmentKind::Tcp6,
        },
        segment_size,
        checksum_start: (ETHERNET + start) as u16,
        checksum_offset: 16,
    }
}

impl<'e> Device for FlowDevice<'_, 'e> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t, 'e>
    where
        Self: 't;

    fn receive(&mut self, _: StackTime) -> Option<(Incoming<'_>, Outgoing<'_, 'e>)> {
        let packet = self.packet.take()?;
        let outgoing = Outgoing {
            exit: self.exit,
            segment_size: 0,
            segment6: self.segment6,
        };
        Some((Incoming(packet), outgoing))
    }

    fn transmit(&mut self, _: StackTime) -> Option<Outgoing<'_, 'e>> {
        let room = self.forced || self.exit.outbox.has_room();
        room.then_some(Outgoing {
            exit: self.exit,
            segment_size: 0,
            segment6: self.segment6,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// What a new stack is made for.
pub(crate) struct Ends {
    /// The end that the stack plays: the server which the guest called, or the client that calls
    /// the guest.
    pub(crate) ours: SocketAddr,
    /// The guest's end.
    pub(crate) guest: SocketAddr,
    /// Bytes of each of the two buffers.
    pub(crate) buffer: usize,
    /// The largest IP packet.
    pub(crate) mtu: u16,
    pub(crate) seed: u64,
}

impl Stack {
    fn new(ends: &Ends, exit: &mut Exit<'_>, time: StackTime) -> Option<Self> {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = ends.mtu.into();
        // Checksums are verified before a packet comes here and written after it left.
        capabilities.checksum = ChecksumCapabilities::ignored();
        if exit.accepts.checksum {
            let largest = NonZeroUsize::new(65_535);
            capabilities.segmentation.tcpv4 = largest.filter(|_| exit.accepts.tcp4);
            if exit.accepts.tcp6 && ends.ours.is_ipv6() {
                capabilities.segmentation.tcpv6 = largest;
                // smoltcp 0.14 drops IPv6 packets beyond the MTU also when they are to be cut. The
                // guest keeps to its own MTU, and what it gets is cut to `segment6`.
                capabilities.max_transmission_unit = 65_535;
            }
        }
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = ends.seed;
        let mut device = FlowDevice {
            packet: None,
            exit,
            capabilities: &capabilities,
            segment6: MIN_SEGMENT6,
            forced: false,
        };
        let mut interface = Interface::new(config, &mut device, time);
        let address = IpAddress::from(ends.ours.ip());
        let width = if ends.ours.is_ipv4() { 32 } else { 128 };
        let mut added = false;
        interface.update_ip_addrs(|addresses| {
            added = addresses.push(IpCidr::new(address, width)).is_ok()
        });
        let routed = match ends.ours.ip() {
            IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(v4).is_ok(),
            IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(v6).is_ok(),
        };
        if !added || !routed {
            return None;
        }
        let buffer = || tcp::SocketBuffer::new(vec![0; ends.buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // The other side's Nagle has already run; holding data back once more costs a round trip.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(OPEN_TIMEOUT));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self {
            interface,
            sockets,
            handle,
            capabilities,
            segment6: MIN_SEGMENT6,
            mtu: ends.mtu,
        })
    }

    /// A stack that answers the guest's SYN, which is to be put into it next.
    pub(crate) fn answer(ends: &Ends, exit: &mut Exit<'_>, time: StackTime) -> Option<Self> {
        let mut stack = Self::new(ends, exit, time)?;
        let (address, port) = (IpAddress::from(ends.ours.ip()), ends.ours.port());
        stack.socket().listen((address, port)).ok()?;
        Some(stack)
    }

    /// A stack that calls the guest.
    pub(crate) fn call(ends: &Ends, exit: &mut Exit<'_>, time: StackTime) -> Option<Self> {
        let mut stack = Self::new(ends, exit, time)?;
        let remote = (IpAddress::from(ends.guest.ip()), ends.guest.port());
        let local = (IpAddress::from(ends.ours.ip()), ends.ours.port());
        let Self {
            interface,
            sockets,
            handle,
            ..
        } = &mut stack;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        socket.connect(interface.context(), remote, local).ok()?;
        Some(stack)
    }

    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes one packet of the guest's. What is sent because of it besides an immediate answer is
    /// sent by the next [`egress`](Self::egress).
    pub(crate) fn ingress(&mut self, packet: &[u8], exit: &mut Exit<'_>, time: StackTime) {
        if let Some(mss) = segment_size6(packet) {
            self.segment6 = mss.clamp(48, self.mtu.saturating_sub(60).max(48));
        }
        let Self {
            interface,
            sockets,
            capabilities,
            segment6,
            ..
        } = self;
        let mut device = FlowDevice {
            packet: Some(packet),
            exit,
            capabilities,
            segment6: *segment6,
            forced: true,
        };
        interface.poll_ingress_single(time, &mut device, sockets);
    }

    /// Sends at most one packet; false when there was nothing to send, or no room.
    pub(crate) fn egress(&mut self, exit: &mut Exit<'_>, time: StackTime) -> bool {
        let Self {
            interface,
            sockets,
            capabilities,
            segment6,
            ..
        } = self;
        let mut device = FlowDevice {
            packet: None,
            exit,
            capabilities,
            segment6: *segment6,
            forced: false,
        };
        let result = interface.poll_egress(time, &mut device, sockets);
        result != smoltcp::iface::PollResult::None
    }

    /// When it wants a turn without being asked for one.
    pub(crate) fn poll_at(&mut self, time: StackTime) -> Option<StackTime> {
        let Self {
            interface, sockets, ..
        } = self;
        interface.poll_at(time, sockets)
    }
}

/// The largest segment that the sender of an IPv6 packet takes, if the packet says so
/// (RFC 9293 section 3.7.1). Packets come here without extension headers that matter.
fn segment_size6(packet: &[u8]) -> Option<u16> {
    let tcp = packet.get(40..)?;
    let syn = tcp.get(13)? & tcp_flag::SYN != 0;
    if packet.first()? >> 4 != 6 || packet.get(6) != Some(&protocol::TCP) || !syn {
        return None;
    }
    let end = usize::from(tcp.get(12)? >> 4) * 4;
    let mut options = Reader::new(tcp.get(20..end)?);
    loop {
        match options.u8()? {
            0 => return None,
            1 => {}
            kind => {
                let length = usize::from(options.u8()?);
                let value = options.take(length.checked_sub(2)?)?;
                if kind == 2 {
                    return value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                }
            }
        }
    }
}
