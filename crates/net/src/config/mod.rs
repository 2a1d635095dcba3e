//! What a network is made of: plain data, built and checked on any platform.

mod addresses;
mod check;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use capsa_core::MacAddress;
use serde::{Deserialize, Serialize};

#[cfg(unix)]
pub(crate) use addresses::GATEWAY_MAC;
pub use addresses::GuestAddresses;
pub use check::{ConfigError, ConfigWarning, overlapping};
#[cfg(unix)]
pub(crate) use check::{check_forward, check_link};

use crate::{Cidr, Policy};

/// The domain under which guests find one another and the host: `NAME.capsa.internal`.
pub const INTERNAL_DOMAIN: &str = "capsa.internal";

/// The largest MTU: with its Ethernet header and a virtio-net header a frame fits 64 KiB.
pub const MAX_MTU: u16 = 65_521;

/// A guest's name on its network: one lower-case DNS label, so that other guests can look it up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestName {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let name = text.to_ascii_lowercase();
        let label = (1..=63).contains(&name.len())
            && !name.starts_with('-')
            && !name.ends_with('-')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !label || matches!(name.as_str(), "host" | "gateway" | "localhost") {
            return Err(ConfigError::GuestName(text.to_owned()));
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for GuestName {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One network with its guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Its name; stable hardware addresses are made from it.
    pub name: String,
    /// The guests' IPv4 network, /8 to /29; `None` for a network without IPv4. The first address is
    /// the gateway and DNS server, the second one the host (`host.capsa.internal`).
    pub ipv4: Option<Cidr>,
    /// The guests' IPv6 network, a /64; `None` for a network without IPv6.
    pub ipv6: Option<Cidr>,
    /// The largest IP packet on it, 1280 to [`MAX_MTU`] bytes.
    pub mtu: u16,
    /// Whether guests may reach the outside at all, as far as their policy lets them.
    pub outside: bool,
    /// Whether guests reach one another.
    pub peers: bool,
    /// Where the network's DNS gets its answers.
    pub resolver: Resolver,
    /// How much of the host a guest may use up.
    pub limits: Limits,
    /// The guests that are there from the start.
    pub guests: Vec<GuestConfig>,
}

impl NetworkConfig {
    /// A network for one or more guests with a way out, 10.0.2.0/24 and an IPv6 network made from the name.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            ipv4: Some(Cidr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 0)), 24)),
            ipv6: Some(addresses::unique_local_network(&name)),
            mtu: 1500,
            outside: true,
            peers: true,
            resolver: Resolver::Host,
            limits: Limits::default(),
            guests: Vec::new(),
            name,
        }
    }

    /// The same network with one more guest.
    #[must_use]
    pub fn guest(mut self, guest: GuestConfig) -> Self {
        self.guests.push(guest);
        self
    }
}

/// Where the network's DNS gets its answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolver {
    /// From the servers that the host itself uses, looked up anew when its configuration changes.
    Host,
    /// From these servers, tried in their order.
    Servers(Vec<SocketAddr>),
    /// From nowhere: only names on this network resolve.
    None,
}

/// How much of the host a guest may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open TCP flows of one guest, 1 to 65536.
    pub tcp_flows: u32,
    /// TCP flows of one guest that wait for the server's answer; a new one takes the place of
    /// the oldest.
    pub tcp_pending: u32,
    /// UDP and ICMP flows of one guest; a new one takes the place of the longest unused.
    pub udp_flows: u32,
    /// Buffers of all TCP flows of one guest, in bytes, from 1 MiB. A flow gets smaller buffers as
    /// this fills up.
    pub tcp_buffers: u64,
    /// Frames on their way to one guest, in bytes, from 256 KiB.
    pub frame_queue: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 8192,
            tcp_pending: 512,
            udp_flows: 1024,
            tcp_buffers: 256 << 20,
            frame_queue: 4 << 20,
        }
    }
}

/// One guest on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Its name, by which the others find it.
    pub name: GuestName,
    /// Its hardware address; `None` for a stable one made from the two names.
    pub mac: Option<MacAddress>,
    /// Its IPv4 address; `None` for the first free one.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address; `None` for the one it makes itself from its hardware address.
    pub ipv6: Option<Ipv6Addr>,
    /// What it may talk to.
    pub policy: Policy,
    /// Ports of the host which lead to it.
    pub forwards: Vec<Forward>,
    /// How its link behaves.
    pub link: LinkConditions,
    /// What its frames look like on the way to and from it.
    pub frames: FrameFormat,
}

impl GuestConfig {
    /// A guest on an ideal link that may talk to the public Internet.
    pub const fn new(name: GuestName) -> Self {
        Self {
            name,
            mac: None,
            ipv4: None,
            ipv6: None,
            policy: Policy::allow_all(),
            forwards: Vec::new(),
            link: LinkConditions::ideal(),
            frames: FrameFormat::Datagram,
        }
    }
}

/// What frames look like on a guest's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameFormat {
    /// One Ethernet frame a datagram (`SOCK_DGRAM` or `SOCK_SEQPACKET`): QEMU's `-netdev dgram`,
    /// VZ's file handle, vfkit.
    Datagram,
    /// One Ethernet frame a datagram behind a 12-byte virtio-net header (virtio 1.2, section 5.1.6),
    /// with checksum and TCP segmentation offloads once the other side has said what it takes.
    Virtio,
    /// A stream in which a 4-byte big-endian length stands before each frame: QEMU's `-netdev stream`.
    Stream,
}

/// A port, or a socket, of the host that leads to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// What carries it.
    pub protocol: ForwardProtocol,
    /// Where clients come to.
    pub listen: Listen,
    /// Where they are led to: the guest's port, 1 to 65535.
    pub guest_port: u16,
}

impl Forward {
    /// A TCP port on the IPv4 loopback address; 0 for a free one.
    pub const fn tcp(host_port: u16, guest_port: u16) -> Self {
        Self {
            protocol: ForwardProtocol::Tcp,
            listen: Listen::Address(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), host_port)),
            guest_port,
        }
    }

    /// A UDP port on the IPv4 loopback address; 0 for a free one.
    pub fn udp(host_port: u16, guest_port: u16) -> Self {
        Self {
            protocol: ForwardProtocol::Udp,
            ..Self::tcp(host_port, guest_port)
        }
    }

    /// A Unix stream socket that leads to a TCP port of the guest.
    pub fn unix(path: impl Into<PathBuf>, guest_port: u16) -> Self {
        Self {
            protocol: ForwardProtocol::Tcp,
            listen: Listen::Unix(path.into()),
            guest_port,
        }
    }

    /// The same forward from another address of the host.
    #[must_use]
    pub fn on(mut self, address: IpAddr) -> Self {
        if let Listen::Address(listen) = &mut self.listen {
            listen.set_ip(address);
        }
        self
    }
}

/// What carries a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardProtocol {
    /// TCP, or a Unix stream socket.
    Tcp,
    /// UDP.
    Udp,
}

/// Where the clients of a forward come to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listen {
    /// An address of the host; port 0 takes a free one. IPv6 clients are led to the guest's IPv6
    /// address.
    Address(SocketAddr),
    /// A Unix socket, made there and removed with the forward.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// How a guest's link behaves, for tests. Each way by itself; times are added by the network, so
/// they have a granularity of 1 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkConditions {
    /// The most bytes a second from the guest, 1,000 or more; `None` for no limit.
    pub upload: Option<u64>,
    /// The most bytes a second to the guest, 1,000 or more; `None` for no limit.
    pub download: Option<u64>,
    /// How long each frame takes, each way; at most a minute.
    pub latency: Duration,
    /// Frames that get lost each way, of a million.
    pub loss_ppm: u32,
    /// Whether nothing at all passes.
    pub partitioned: bool,
}

impl LinkConditions {
    /// A link without limit, delay and loss.
    pub const fn ideal() -> Self {
        Self {
            upload: None,
            download: None,
            latency: Duration::ZERO,
            loss_ppm: 0,
            partitioned: false,
        }
    }
}
