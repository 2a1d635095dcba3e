//! What is written down of a kept network.

use std::path::PathBuf;
use std::time::Duration;

use capsa_net::{Cidr, NetworkConfig};
use serde::{Deserialize, Serialize};

use crate::keepers::now;
use crate::keepers::registry::{self, Record};

/// The version of the file; another one is not understood.
const VERSION: u32 = 1;

/// The kept networks of this user.
pub(super) type Registry = registry::Registry<NetworkInfo>;
/// A network's folder, held by its keeper.
pub(super) type Claim = registry::Claim<NetworkInfo>;

/// What is known of a kept network; see [`Network::list`](super::Network::list).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkInfo {
    version: u32,
    /// Its name.
    pub name: String,
    /// The process that looks after it, which runs it, too.
    pub process: u32,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its IPv4 range.
    pub ipv4: Option<Cidr>,
    /// Its IPv6 range.
    pub ipv6: Option<Cidr>,
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// Whether guests may reach the outside at all.
    pub outside: bool,
    /// Whether guests reach one another.
    pub peers: bool,
    /// Where it is in its life.
    pub state: NetworkState,
    /// Where its files are.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Where a kept network is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NetworkState {
    /// It is being made.
    Starting,
    /// It runs.
    Running,
    /// The process that looked after it is gone without a word, and the network with it.
    Crashed,
}

impl NetworkInfo {
    /// Of a network that begins now, looked after by this process.
    pub(super) fn new(config: &NetworkConfig) -> Self {
        Self {
            version: VERSION,
            name: config.name.clone(),
            process: std::process::id(),
            created: now(),
            ipv4: config.ipv4,
            ipv6: config.ipv6,
            mtu: config.mtu,
            outside: config.outside,
            peers: config.peers,
            state: NetworkState::Starting,
            directory: PathBuf::new(),
        }
    }

    /// How long ago it was made.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.created))
    }
}

impl Record for NetworkInfo {
    const KIND: &'static str = "network";
    const FILE: &'static str = "network.json";
    const BELOW: Option<&'static str> = Some(".networks");
    const COMMANDS: (&'static str, &'static str) = ("capsa network ls", "capsa network rm");
    const LIVES: &'static str = "`capsa network rm` it first";

    fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes)
            .ok()
            .filter(|info| info.version == VERSION)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn is_alive(&self) -> bool {
        self.state != NetworkState::Crashed
    }

    fn is_crashed(&self) -> bool {
        self.state == NetworkState::Crashed
    }

    fn set_crashed(&mut self) {
        self.state = NetworkState::Crashed;
    }

    fn set_directory(&mut self, directory: PathBuf) {
        self.directory = directory;
    }
}
