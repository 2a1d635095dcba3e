//! What the fuzz targets in `fuzz/` call, and the replay of what they found.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::dns::message::{Answer, Query};
use crate::engine::Engine;
use crate::policy::sniff;
use crate::services::dhcp::{DhcpRequest, Lease};
use crate::wire::ip::IpPacket;
use crate::wire::reassembly::Reassembly;
use crate::{FrameFormat, GuestConfig, NetworkConfig, Policy, Resolver};

/// A whole network with one guest, into which frames are put.
pub struct FrameTarget {
    engine: Engine,
    _ends: (OwnedFd, UnixStream),
}

impl Default for FrameTarget {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameTarget {
    /// Sets the network up. Its policy lets nothing out, so that no packet leaves the host; the
    /// network's own DNS, DHCP and forwards are there.
    #[expect(
        clippy::expect_used,
        reason = "a fuzz target has nobody to hand an error to"
    )]
    pub fn new() -> Self {
        let mut guest = GuestConfig::new("fuzz".parse().expect("a name"));
        guest.frames = FrameFormat::Virtio;
        guest.policy = Policy::deny_all();
        let mut config = NetworkConfig::new("fuzz").guest(guest);
        config.resolver = Resolver::None;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("a socket pair");
        let (control, caller) = UnixStream::pair().expect("a socket pair");
        let engine = Engine::new(config, vec![ours], control).expect("a network");
        Self {
            engine,
            _ends: (theirs, caller),
        }
    }

    /// Takes a stream of frames, each behind a 2-byte length and with its virtio-net header. The
    /// source address is put right, as otherwise nothing would be reached behind the first check.
    pub fn frames(&mut self, data: &[u8]) {
        let mut reader = crate::bytes::Reader::new(data);
        while let Some(length) = reader.u16() {
            let Some(frame) = reader.take(usize::from(length).min(reader.rest().len())) else {
                break;
            };
            self.engine.inject(0, frame);
        }
        self.engine.discard_output(0);
    }
}

/// IP packets and fragments.
pub fn packets(data: &[u8]) {
    let mut reassembly = Reassembly::default();
    let mut reader = crate::bytes::Reader::new(data);
    while let Some(length) = reader.u16() {
        let Some(bytes) = reader.take(usize::from(length).min(reader.rest().len())) else {
            break;
        };
        if let Some(packet) = IpPacket::parse(bytes) {
            let _ = packet.is_sound();
            if let Some(whole) = reassembly.add(&packet, Instant::now()) {
                assert!(IpPacket::parse(&whole).is_some_and(|whole| whole.fragment.is_none()));
            }
        }
        if bytes.is_empty() && reader.rest().is_empty() {
            break;
        }
    }
}

/// DHCP messages from a client.
pub fn dhcp(data: &[u8]) {
    let search = ["example.com".to_owned()];
    let lease = Lease {
        address: [10, 0, 2, 3].into(),
        prefix: 24,
        gateway: [10, 0, 2, 1].into(),
        router: true,
        mtu: 1500,
        host_name: "vm",
        search: &search,
    };
    let _ = DhcpRequest::parse(data).and_then(|request| request.answer(&lease));
}

/// A query from a guest, and an answer from a server to it.
pub fn dns(data: &[u8]) {
    let (query, answer) = data.split_at(data.len() / 2);
    if let Ok(query) = Query::parse(query)
        && let Some(read) = Answer::parse(answer, &query)
    {
        assert!(read.ttl_at.iter().all(|at| at + 4 <= answer.len()));
        let mut answer = query.fit_udp(answer.to_vec());
        query.address(&mut answer);
    }
    let _ = Query::parse(data);
}

/// The first bytes of a connection.
pub fn server_name(data: &[u8]) {
    let _ = sniff(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays every file of a corpus.
    fn replay(corpus: &str, mut target: impl FnMut(&[u8])) {
        let path = format!("{}/../../fuzz/seeds/{corpus}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in std::fs::read_dir(&path).unwrap() {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{path} is empty");
    }

    #[test]
    fn corpora_pass() {
        replay("net_packets", packets);
        replay("net_dhcp", dhcp);
        replay("net_dns", dns);
        replay("net_server_name", server_name);
        let mut target = FrameTarget::new();
        replay("net_frames", |data| target.frames(data));
    }
}
