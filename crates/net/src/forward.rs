//! Ports and sockets of the host that lead to guests.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recvfrom, sendto};
use slab::Slab;

use crate::config::{Forward, ForwardProtocol, Listen};
use crate::control::{ForwardId, ForwardInfo, Notice, Refusal};
use crate::engine::{Engine, Source};
use crate::nat::tcp::TcpKey;
use crate::policy::Protocol;
use crate::sys;
use crate::wire::ip::UdpDatagram;

/// Clients of one UDP forward; a further one takes the oldest one's place.
const MAX_CLIENTS: usize = 1024;
/// Clients or datagrams of one event.
const TURN: usize = 256;
/// Ports of the gateway that stand for clients.
const PORTS: std::ops::Range<u16> = 20_000..60_000;

pub(crate) struct ForwardState {
    info: ForwardInfo,
    guest: usize,
    fd: OwnedFd,
    /// The gateway's ends that stand for UDP clients, oldest first.
    clients: VecDeque<(SocketAddr, SocketAddr)>,
    /// Whether clients wait for a descriptor to be free.
    starved: bool,
}

#[derive(Default)]
pub(crate) struct Forwards {
    slab: Slab<ForwardState>,
    next_id: u64,
    next_port: u16,
    /// From a client to the gateway's end that stands for it, and back.
    ends: HashMap<(usize, SocketAddr), SocketAddr>,
    clients: HashMap<(usize, SocketAddr), (usize, SocketAddr)>,
    buffer: Vec<u8>,
    any_starved: bool,
}

impl Drop for ForwardState {
    fn drop(&mut self) {
        if let Listen::Unix(path) = &self.info.forward.listen {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn refusal(listen: &Listen, error: &io::Error) -> Refusal {
    let place = listen.to_string();
    match error.kind() {
        io::ErrorKind::AddrInUse => Refusal::InUse(place),
        io::ErrorKind::PermissionDenied => Refusal::NotPermitted(place),
        io::ErrorKind::AddrNotAvailable => Refusal::Listen(
            place,
            "it is not an address of this host; use one that is".to_owned(),
        ),
        _ => Refusal::Listen(place, error.to_string()),
    }
}

/// Listens on a Unix socket. One that nobody listens on any more is replaced.
fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let bind = || UnixListener::bind(path);
    let listener = match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let dead = std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !dead {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            bind()?
        }
        result => result?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

impl Engine {
    /// Opens a forward.
    pub(crate) fn forward_open(
        &mut self,
        guest: usize,
        forward: Forward,
    ) -> Result<ForwardInfo, Refusal> {
        let name = match self.guests.get(guest) {
            Some(state) => state.config.name.clone(),
            None => return Err(Refusal::NoForward),
        };
        let opened = match (&forward.listen, forward.protocol) {
            (Listen::Address(address), ForwardProtocol::Tcp) => {
                sys::listen_tcp(*address).map(|(fd, bound)| (fd, Some(bound)))
            }
            (Listen::Address(address), ForwardProtocol::Udp) => {
                sys::bind_udp(*address).map(|(fd, bound)| (fd, Some(bound)))
            }
            (Listen::Unix(path), _) => listen_unix(path).map(|fd| (fd, None)),
        };
        let (fd, bound) = opened.map_err(|error| refusal(&forward.listen, &error))?;
        self.forwards.next_id += 1;
        let info = ForwardInfo {
            id: ForwardId(self.forwards.next_id),
            guest: name,
            forward,
            bound,
        };
        let raw = fd.as_raw_fd();
        let index = self.forwards.slab.insert(ForwardState {
            info: info.clone(),
            guest,
            fd,
            clients: VecDeque::new(),
            starved: false,
        });
        if let Err(error) = self.register(raw, Source::Forward(index)) {
            self.forwards.slab.remove(index);
            return Err(Refusal::System(error.to_string()));
        }
        Ok(info)
    }

    pub(crate) fn forward_close(&mut self, id: ForwardId) -> Result<(), Refusal> {
        let found = self
            .forwards
            .slab
            .iter()
            .find(|(_, forward)| forward.info.id == id);
        let index = found.map(|(index, _)| index).ok_or(Refusal::NoForward)?;
        self.forward_remove(index);
        Ok(())
    }

    fn forward_remove(&mut self, index: usize) {
        let Some(forward) = self.forwards.slab.try_remove(index) else {
            return;
        };
        self.deregister(forward.fd.as_raw_fd());
        self.forwards
            .ends
            .retain(|(forward, _), _| *forward != index);
        self.forwards
            .clients
            .retain(|_, (forward, _)| *forward != index);
    }

    /// Closes every forward of a guest.
    pub(crate) fn forward_close_all(&mut self, guest: usize) {
        let forwards = self
            .forwards
            .slab
            .iter()
            .filter(|(_, forward)| forward.guest == guest);
        for index in forwards.map(|(index, _)| index).collect::<Vec<_>>() {
            self.forward_remove(index);
        }
    }

    pub(crate) fn forward_infos(&self) -> Vec<ForwardInfo> {
        self.forwards
            .slab
            .iter()
            .map(|(_, forward)| forward.info.clone())
            .collect()
    }

    /// Forgets which UDP clients a guest had.
    pub(crate) fn forward_forget_clients(&mut self, guest: usize) {
        let Forwards {
            slab,
            ends,
            clients,
            ..
        } = &mut self.forwards;
        clients.retain(|(of, _), _| *of != guest);
        for (index, forward) in slab
            .iter_mut()
            .filter(|(_, forward)| forward.guest == guest)
        {
            forward.clients.clear();
            ends.retain(|(of, _), _| *of != index);
        }
    }

    /// Clients or datagrams have come.
    pub(crate) fn forward_event(&mut self, index: usize) {
        let Some(forward) = self.forwards.slab.get(index) else {
            return;
        };
        match forward.info.forward.protocol {
            ForwardProtocol::Tcp => self.forward_accept(index),
            ForwardProtocol::Udp => self.forward_receive(index),
        }
    }

    fn forward_accept(&mut self, index: usize) {
        loop {
            let Some(forward) = self.forwards.slab.get_mut(index) else {
                return;
            };
            let (guest, port) = (forward.guest, forward.info.forward.guest_port);
            match sys::accept(forward.fd.as_fd()) {
                Ok((fd, client)) => self.forward_client(guest, port, fd, client, index),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sys::is_out_of_descriptors(&error) => {
                    if self.free_descriptors(guest) {
                        continue;
                    }
                    // The client waits until a flow ends.
                    if let Some(forward) = self.forwards.slab.get_mut(index) {
                        forward.starved = true;
                    }
                    self.forwards.any_starved = true;
                    return self.notify(Notice::OutOfDescriptors);
                }
                // The client gave up before it was accepted.
                Err(_) => {}
            }
        }
    }

    fn forward_client(
        &mut self,
        guest: usize,
        port: u16,
        fd: OwnedFd,
        client: Option<SocketAddr>,
        index: usize,
    ) {
        let listen_v6 = self
            .forwards
            .slab
            .get(index)
            .and_then(|forward| forward.info.bound);
        let ends = self.forward_ends(guest, port, listen_v6.is_some_and(|bound| bound.is_ipv6()));
        let Some((local, gateway)) = ends else {
            return sys::reset_on_close(fd.as_fd());
        };
        // Whoever may open a Unix socket is as good as on the host itself.
        let client = client.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        if !self.admits(guest, Protocol::Tcp, local, client) {
            return sys::reset_on_close(fd.as_fd());
        }
        let Some(remote) = self.forward_port(gateway, |engine, remote| {
            !engine.tcp_has(&TcpKey {
                guest,
                local,
                remote,
            })
        }) else {
            return sys::reset_on_close(fd.as_fd());
        };
        self.tcp_call_guest(
            TcpKey {
                guest,
                local,
                remote,
            },
            fd,
        );
    }

    /// The guest's end, and the gateway's address from which it is called.
    fn forward_ends(&self, guest: usize, port: u16, v6: bool) -> Option<(SocketAddr, IpAddr)> {
        let state = self.guests.get(guest)?;
        state.link.as_ref()?;
        // The address it uses may be another than the one its hardware address makes.
        let network = self.config.ipv6;
        let used = state.own_v6.iter().rev().copied();
        let own6 = used
            .map(IpAddr::V6)
            .find(|v6| network.is_some_and(|network| network.contains(*v6)));
        let own6 = own6.or(state.addresses.ipv6.map(IpAddr::V6));
        let own4 = state.addresses.ipv4.map(IpAddr::V4);
        let address = if v6 { own6.or(own4) } else { own4.or(own6) }?;
        Some((SocketAddr::new(address, port), self.gateway_like(address)?))
    }

    /// A free port of the gateway's.
    fn forward_port(
        &mut self,
        gateway: IpAddr,
        free: impl Fn(&Self, SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        for _ in PORTS {
            let next = self
                .forwards
                .next_port
                .checked_add(1)
                .filter(|port| PORTS.contains(port));
            self.forwards.next_port = next.unwrap_or(PORTS.start);
            let end = SocketAddr::new(gateway, self.forwards.next_port);
            if free(self, end) {
                return Some(end);
            }
        }
        None
    }

    fn forward_receive(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.forwards.buffer);
        buffer.resize(65_535, 0);
        for _ in 0..TURN {
            let Some(forward) = self.forwards.slab.get(index) else {
                break;
            };
            let received = recvfrom(&forward.fd, &mut buffer[..], RecvFlags::empty());
            match received {
                Ok((length, _, Some(client))) => {
                    let data = buffer.get(..length).unwrap_or_default();
                    if let Ok(client) = SocketAddr::try_from(client) {
                        self.forward_datagram(index, client, data);
                    }
                }
                Err(Errno::AGAIN) => break,
                // An earlier answer could not be delivered to its client.
                Ok(_) | Err(_) => {}
            }
        }
        self.forwards.buffer = buffer;
    }

    fn forward_datagram(&mut self, index: usize, client: SocketAddr, data: &[u8]) {
        let Some(forward) = self.forwards.slab.get(index) else {
            return;
        };
        let (guest, port) = (forward.guest, forward.info.forward.guest_port);
        let Some((local, gateway)) = self.forward_ends(guest, port, client.is_ipv6()) else {
            return;
        };
        let end = match self.forwards.ends.get(&(index, client)) {
            Some(end) => *end,
            None => {
                if !self.admits(guest, Protocol::Udp, local, client) {
                    return;
                }
                let free =
                    |engine: &Self, end| !engine.forwards.clients.contains_key(&(guest, end));
                let Some(end) = self.forward_port(gateway, free) else {
                    return;
                };
                self.forward_remember(index, guest, client, end);
                end
            }
        };
        self.send_udp(guest, end, local, data);
    }

    fn forward_remember(
        &mut self,
        index: usize,
        guest: usize,
        client: SocketAddr,
        end: SocketAddr,
    ) {
        let Forwards {
            slab,
            ends,
            clients,
            ..
        } = &mut self.forwards;
        let Some(forward) = slab.get_mut(index) else {
            return;
        };
        if forward.clients.len() >= MAX_CLIENTS
            && let Some((old_client, old_end)) = forward.clients.pop_front()
        {
            ends.remove(&(index, old_client));
            clients.remove(&(guest, old_end));
        }
        forward.clients.push_back((client, end));
        ends.insert((index, client), end);
        clients.insert((guest, end), (index, client));
    }

    /// Passes a guest's datagram on to the client that the gateway's end stands for. False when it
    /// stands for none.
    pub(crate) fn forward_reply(&mut self, guest: usize, datagram: &UdpDatagram<'_>) -> bool {
        let Some((index, client)) = self.forwards.clients.get(&(guest, datagram.dst)) else {
            return false;
        };
        let Some(forward) = self.forwards.slab.get(*index) else {
            return false;
        };
        if datagram.src.port() != forward.info.forward.guest_port {
            return false;
        }
        // A client that is gone, or a full socket: the datagram is lost, as on any network.
        let _ = sendto(&forward.fd, datagram.payload, crate::sys::NO_SIGNAL, client);
        true
    }

    /// A descriptor is free for a client that waits.
    pub(crate) fn descriptor_freed(&mut self) {
        if !self.forwards.any_starved {
            return;
        }
        self.forwards.any_starved = false;
        let starved = self
            .forwards
            .slab
            .iter_mut()
            .filter(|(_, forward)| forward.starved);
        let starved: Vec<usize> = starved
            .map(|(index, forward)| {
                forward.starved = false;
                index
            })
            .collect();
        for index in starved {
            self.forward_accept(index);
        }
    }
}
