//! A query on its way to the host's servers: by UDP first, over TCP when the answer is too long,
//! from one server to the next when one does not answer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, send};

use super::forwarder::Asker;
use super::message::{Answer, Query, Rcode};
use crate::bytes::put;
use crate::control::Notice;
use crate::engine::{Engine, Source, timers::Deadline};
use crate::sys;

const MAX_ANSWER: usize = 65_535;

pub(crate) struct Exchange {
    pub(crate) guest: usize,
    asker: Asker,
    query: Query,
    /// The identifier under which the server knows the query: not the guest's to choose.
    id: [u8; 2],
    attempt: usize,
    socket: Option<Upstream>,
    deadline: Instant,
}

enum Upstream {
    Udp(OwnedFd),
    /// What is still to be sent, and what came.
    Tcp(OwnedFd, Vec<u8>, Vec<u8>),
}

impl Upstream {
    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Udp(fd) | Self::Tcp(fd, ..) => fd,
        }
    }
}

/// What became of an event.
enum Progress {
    Waiting,
    Failed,
    Message(Vec<u8>),
}

impl Engine {
    /// Sends a query to the first server.
    pub(crate) fn dns_start(&mut self, guest: usize, asker: Asker, query: Query) {
        let [high, low, ..] = self.random().to_ne_bytes();
        let exchange = Exchange {
            guest,
            asker,
            query,
            id: [high, low],
            attempt: 0,
            socket: None,
            deadline: self.now,
        };
        let index = self.dns.exchanges.insert(exchange);
        self.dns_attempt(index, false);
    }

    /// Asks the server whose turn it is, and the ones after it while they cannot even be asked.
    fn dns_attempt(&mut self, index: usize, over_tcp: bool) {
        loop {
            let servers = self.dns.servers.current();
            let Some(exchange) = self.dns.exchanges.get_mut(index) else {
                return;
            };
            let count = servers.addresses.len();
            let most = count * servers.attempts;
            let Some(server) = servers
                .addresses
                .get(exchange.attempt % count.max(1))
                .filter(|_| exchange.attempt < most)
            else {
                let reason = match servers.addresses.first() {
                    Some(first) => format!("{first} was asked, {most} attempts in all"),
                    None => "the network has none".to_owned(),
                };
                return self.dns_give_up(index, reason);
            };
            let (server, timeout) = (*server, servers.timeout);
            let mut message = exchange.query.message.clone();
            put(&mut message, 0, &exchange.id);
            let old = exchange.socket.take();
            let opened = open(server, message, over_tcp);
            if let Some(old) = old {
                self.deregister(old.fd().as_raw_fd());
            }
            let Ok(socket) = opened else {
                self.dns_next_server(index);
                continue;
            };
            let fd = socket.fd().as_raw_fd();
            if let Some(exchange) = self.dns.exchanges.get_mut(index) {
                exchange.socket = Some(socket);
                exchange.deadline = self.now + timeout;
            }
            self.timers.add(self.now + timeout, Deadline::Dns(index));
            if self.register(fd, Source::Dns(index)).is_ok() {
                return;
            }
            self.dns_next_server(index);
        }
    }

    fn dns_next_server(&mut self, index: usize) {
        if let Some(exchange) = self.dns.exchanges.get_mut(index) {
            exchange.attempt += 1;
        }
    }

    /// The server's socket has news.
    pub(crate) fn dns_event(&mut self, index: usize) {
        loop {
            let Some(exchange) = self.dns.exchanges.get_mut(index) else {
                return;
            };
            match exchange.progress() {
                Progress::Waiting => return,
                Progress::Failed => {
                    self.dns_next_server(index);
                    return self.dns_attempt(index, false);
                }
                Progress::Message(message) => {
                    if self.dns_message(index, message) {
                        return;
                    }
                }
            }
        }
    }

    /// Looks at what came from a server; false when it is to be waited on.
    fn dns_message(&mut self, index: usize, message: Vec<u8>) -> bool {
        let Some(exchange) = self.dns.exchanges.get(index) else {
            return true;
        };
        // What is not an answer to this very question was made up by somebody else.
        let ours = message.get(..2) == Some(&exchange.id);
        let Some(answer) = Answer::parse(&message, &exchange.query).filter(|_| ours) else {
            return false;
        };
        let over_udp = matches!(exchange.socket, Some(Upstream::Udp(_)));
        if answer.truncated && over_udp && matches!(exchange.asker, Asker::Tcp { .. }) {
            self.dns_attempt(index, true);
            return true;
        }
        let failed = matches!(answer.code, 2 | 4 | 5);
        let servers = self.dns.servers.current();
        if failed && exchange.attempt + 1 < servers.addresses.len() {
            self.dns_next_server(index);
            self.dns_attempt(index, false);
            return true;
        }
        if let Some(exchange) = self.dns_finish(index) {
            self.dns_answered(
                exchange.guest,
                exchange.asker,
                &exchange.query,
                message,
                &answer,
            );
        }
        true
    }

    /// A server's time may be over.
    pub(crate) fn dns_timer(&mut self, index: usize) {
        let over = self
            .dns
            .exchanges
            .get(index)
            .is_some_and(|exchange| exchange.deadline <= self.now);
        if over {
            self.dns_next_server(index);
            self.dns_attempt(index, false);
        }
    }

    fn dns_give_up(&mut self, index: usize, reason: String) {
        if let Some(exchange) = self.dns_finish(index) {
            let reply = exchange.query.reply(Rcode::ServerFailure);
            self.dns_deliver(exchange.guest, exchange.asker, &exchange.query, reply);
            self.notify(Notice::NoDns(reason));
        }
    }

    fn dns_finish(&mut self, index: usize) -> Option<Exchange> {
        let mut exchange = self.dns.exchanges.try_remove(index)?;
        if let Some(socket) = exchange.socket.take() {
            self.deregister(socket.fd().as_raw_fd());
        }
        self.descriptor_freed();
        Some(exchange)
    }

    /// A connection over which queries came is gone.
    pub(crate) fn dns_forget_stream(&mut self, flow: usize) {
        let asker = Asker::Tcp { flow };
        let exchanges = self
            .dns
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.asker == asker);
        for index in exchanges.map(|(index, _)| index).collect::<Vec<_>>() {
            self.dns_finish(index);
        }
    }

    /// A guest is gone.
    pub(crate) fn dns_forget_guest(&mut self, guest: usize) {
        let exchanges = self
            .dns
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.guest == guest);
        for index in exchanges.map(|(index, _)| index).collect::<Vec<_>>() {
            self.dns_finish(index);
        }
    }
}

fn open(server: SocketAddr, message: Vec<u8>, over_tcp: bool) -> io::Result<Upstream> {
    if over_tcp {
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let mut unsent = length.to_be_bytes().to_vec();
        unsent.extend_from_slice(&message);
        return Ok(Upstream::Tcp(sys::connect_tcp(server)?, unsent, Vec::new()));
    }
    // A socket for each query, so that each has a port that nobody can guess.
    let fd = sys::connect_udp(server)?;
    send(&fd, &message, crate::sys::NO_SIGNAL)?;
    Ok(Upstream::Udp(fd))
}

impl Exchange {
    fn progress(&mut self) -> Progress {
        match &mut self.socket {
            None => Progress::Waiting,
            Some(Upstream::Udp(fd)) => {
                let mut buffer = vec![0; MAX_ANSWER];
                match recv(&*fd, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => {
                        buffer.truncate(length);
                        Progress::Message(buffer)
                    }
                    Err(Errno::AGAIN | Errno::INTR) => Progress::Waiting,
                    Err(_) => Progress::Failed,
                }
            }
            Some(Upstream::Tcp(fd, unsent, received)) => tcp_progress(fd, unsent, received),
        }
    }
}

fn tcp_progress(fd: &OwnedFd, unsent: &mut Vec<u8>, received: &mut Vec<u8>) -> Progress {
    if sys::take_error(fd.as_fd()).is_err() {
        return Progress::Failed;
    }
    while !unsent.is_empty() {
        match send(fd, unsent, crate::sys::NO_SIGNAL) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(Errno::AGAIN | Errno::NOTCONN) => return Progress::Waiting,
            Err(_) => return Progress::Failed,
        }
    }
    let mut buffer = [0; 16 << 10];
    loop {
        match recv(fd, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return Progress::Failed,
            Ok((length, _)) => received.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => return Progress::Waiting,
            Err(Errno::INTR) => continue,
            Err(_) => return Progress::Failed,
        }
        if let Some((prefix, rest)) = received.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*prefix));
            if let Some(message) = rest.get(..length) {
                return Progress::Message(message.to_vec());
            }
        }
    }
}
