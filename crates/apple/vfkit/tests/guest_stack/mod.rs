//! A guest's own network stack (Ethernet, ARP, DHCP, IPv4, TCP) on the guest's end of a frame socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

const MTU: usize = 1500;
const ETHERNET_HEADER: usize = 14;
const BUFFER: usize = 64 << 10;
/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// What DHCP gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) router: Option<Ipv4Addr>,
}

/// The stack. It does nothing by itself: its methods keep it going until they have what they wait for.
pub(crate) struct GuestStack {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    began: Instant,
}

impl GuestStack {
    /// On a connected socket that carries one Ethernet frame a datagram.
    pub(crate) fn new(socket: UnixDatagram, mac: [u8; 6]) -> Self {
        socket.set_nonblocking(true).unwrap();
        let mut wire = Wire(socket);
        let hardware = HardwareAddress::Ethernet(EthernetAddress(mac));
        let now = smoltcp::time::Instant::ZERO;
        Self {
            interface: Interface::new(Config::new(hardware), &mut wire, now),
            wire,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
        }
    }

    /// Asks for an address by DHCP and takes what is given.
    pub(crate) fn lease(&mut self) -> Lease {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        loop {
            self.turn();
            let event = self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll();
            let Some(dhcpv4::Event::Configured(given)) = event else {
                continue;
            };
            let (cidr, router) = (given.address, given.router);
            self.sockets.remove(handle);
            self.interface.update_ip_addrs(|addresses| {
                addresses.push(IpCidr::Ipv4(cidr)).unwrap();
            });
            if let Some(router) = router {
                let routes = self.interface.routes_mut();
                routes.add_default_ipv4_route(router).unwrap();
            }
            return Lease {
                address: cidr.address(),
                router,
            };
        }
    }

    /// Sends `data` to `server` and returns all that the server sends, both at the same time.
    pub(crate) fn exchange(&mut self, server: SocketAddrV4, data: &[u8]) -> Vec<u8> {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let remote = (*server.ip(), server.port());
        (socket.connect(self.interface.context(), remote, 49_152_u16)).unwrap();
        let handle = self.sockets.add(socket);
        let mut rest = data;
        let mut received = Vec::new();
        loop {
            self.turn();
            let socket = self.socket(handle);
            while socket.can_recv() {
                let taken = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
                received.extend(socket.recv(taken).unwrap());
            }
            if socket.can_send() {
                let sent = socket.send_slice(rest).unwrap();
                rest = &rest[sent..];
                if rest.is_empty() {
                    socket.close();
                }
            }
            match socket.state() {
                tcp::State::TimeWait => return received,
                // Its last acknowledgement has come, after the server's own end.
                tcp::State::Closed if rest.is_empty() => return received,
                tcp::State::Closed => panic!("the connection ended early"),
                _ => {}
            }
        }
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Does what there is to do. Where that is nothing, waits for a frame or the next thing that is
    /// due.
    fn turn(&mut self) {
        assert!(self.began.elapsed() < PATIENCE, "the guest's network hangs");
        if !self.poll() {
            let due = self.interface.poll_delay(self.now(), &self.sockets);
            let wait = due.map_or(PATIENCE, Duration::from);
            let timeout = Timespec::try_from(wait).unwrap();
            poll(
                &mut [PollFd::new(&self.wire.0, PollFlags::IN)],
                Some(&timeout),
            )
            .unwrap();
            self.poll();
        }
    }

    /// Whether anything has changed.
    fn poll(&mut self) -> bool {
        let now = self.now();
        let result = (self.interface).poll(now, &mut self.wire, &mut self.sockets);
        result == smoltcp::iface::PollResult::SocketStateChanged
    }

    fn now(&self) -> smoltcp::time::Instant {
        let elapsed = self.began.elapsed();
        smoltcp::time::Instant::from_micros(i64::try_from(elapsed.as_micros()).unwrap())
    }
}

/// One Ethernet frame a datagram. What does not fit into the socket is lost, as on any wire.
struct Wire(UnixDatagram);

struct Received(Vec<u8>);

struct Outgoing<'w>(&'w UnixDatagram);

impl Device for Wire {
    type RxToken<'t> = Received;
    type TxToken<'t> = Outgoing<'t>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Outgoing<'_>)> {
        let mut frame = vec![0; ETHERNET_HEADER + MTU];
        match self.0.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Some((Received(frame), Outgoing(&self.0)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("the wire: {error}"),
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut can = DeviceCapabilities::default();
        can.medium = Medium::Ethernet;
        can.max_transmission_unit = ETHERNET_HEADER + MTU;
        can
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        let _lost = self.0.send(&frame);
        result
    }
}
