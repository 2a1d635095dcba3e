//! A VM's network interface, before the VM starts.

use std::net::{Ipv4Addr, Ipv6Addr};

use capsa_core::{MacAddress, NetworkMode, NetworkSpec, Result, Warning};
use capsa_net::{Cidr, Forward, GuestConfig, LinkConditions, NetworkConfig, Policy, Resolver};

use serde::{Deserialize, Serialize};

use super::guest_settings::GuestSettings;
use super::shared::{Network, OnLoss};
use super::{Connection, error};

/// What a network of a VM's own is called where the VM has no name.
const OWN_NETWORK: &str = "nat";
/// What a guest is called where neither it nor its VM has a name that can be a host's.
const GUEST: &str = "vm";

/// A VM's network interface: to a network of its own ([`user_nat`](Self::user_nat)), or to one that
/// it shares with other VMs ([`Network::interface`]).
///
/// ```
/// use capsa::network::{Forward, Interface, Policy};
///
/// # fn example() -> Result<Interface, Box<dyn std::error::Error>> {
/// let interface = Interface::user_nat()
///     .policy(Policy::allow_only(["example.com:443"])?)
///     .forward(Forward::tcp(8080, 80));
/// # Ok(interface)
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "give it to a builder's `network`"]
pub struct Interface {
    pub(super) network: Target,
    pub(super) guest: GuestSettings,
}

#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A network for this VM alone.
    Own(Box<Own>),
    Shared(Network),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Own {
    config: NetworkConfig,
    on_loss: OnLoss,
}

impl Interface {
    /// An interface to a network of the VM's own, from which it reaches what this computer reaches,
    /// as its policy lets it: everything public by default, and nothing private.
    pub fn user_nat() -> Self {
        Self {
            network: Target::Own(Box::new(Own {
                config: NetworkConfig::new(OWN_NETWORK),
                on_loss: OnLoss::default(),
            })),
            guest: GuestSettings::default(),
        }
    }

    pub(crate) fn on(network: Network) -> Self {
        Self {
            network: Target::Shared(network),
            guest: GuestSettings::default(),
        }
    }

    /// The guest's name on the network, one DNS label; by default its VM's.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.guest.name = Some(name.into());
        self
    }

    /// Its hardware address; by default one that is always the same for the names of network and
    /// guest.
    pub fn mac(mut self, mac: MacAddress) -> Self {
        self.guest.mac = Some(mac);
        self
    }

    /// Its IPv4 address; by default the first free one.
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.guest.ipv4 = Some(address);
        self
    }

    /// Its IPv6 address; by default the one that belongs to its hardware address.
    pub fn ipv6(mut self, address: Ipv6Addr) -> Self {
        self.guest.ipv6 = Some(address);
        self
    }

    /// What it may talk to; everything public by default.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.guest.policy = policy;
        self
    }

    /// Leads a port or a Unix socket of this computer to a port of the guest.
    pub fn forward(mut self, forward: Forward) -> Self {
        self.guest.forwards.push(forward);
        self
    }

    /// Slows the interface down, or has it lose frames: for tests.
    pub fn link(mut self, conditions: LinkConditions) -> Self {
        self.guest.link = conditions;
        self
    }

    /// The address ranges of the VM's own network: IPv4 from /8 to /29, IPv6 /64; `None` for none.
    /// Of no effect on a shared one, which has its own.
    pub fn ranges(mut self, ipv4: Option<Cidr>, ipv6: Option<Cidr>) -> Self {
        if let Target::Own(own) = &mut self.network {
            (own.config.ipv4, own.config.ipv6) = (ipv4, ipv6);
        }
        self
    }

    /// The largest IP packet on the VM's own network, 1280 to 65521 bytes. Of no effect on a shared
    /// one.
    pub fn mtu(mut self, bytes: u16) -> Self {
        if let Target::Own(own) = &mut self.network {
            own.config.mtu = bytes;
        }
        self
    }

    /// Where the DNS of the VM's own network gets its answers; by default where this computer does.
    /// Of no effect on a shared one.
    pub fn resolver(mut self, resolver: Resolver) -> Self {
        if let Target::Own(own) = &mut self.network {
            own.config.resolver = resolver;
        }
        self
    }

    /// What becomes of the VM's own network when its process is lost. Of no effect on a shared one.
    pub fn on_loss(mut self, on_loss: OnLoss) -> Self {
        if let Target::Own(own) = &mut self.network {
            own.on_loss = on_loss;
        }
        self
    }

    fn config(&self, vm: Option<&str>) -> NetworkConfig {
        match &self.network {
            Target::Shared(network) => network.config().clone(),
            Target::Own(own) => {
                let mut config = own.config.clone();
                if let Some(vm) = vm {
                    config.name = vm.to_owned();
                }
                config
            }
        }
    }

    fn guest(&self, network: &str, vm: Option<&str>) -> Result<GuestConfig> {
        self.guest.config(network, vm, GUEST)
    }

    /// Checks everything that can be checked before the start. Gives what a backend has to know.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) naming the first setting that cannot be.
    pub(crate) fn check(&self, vm: Option<&str>) -> Result<(NetworkSpec, Vec<Warning>)> {
        let config = self.config(vm);
        let name = config.name.clone();
        let guest = self.guest(&name, vm)?;
        let mode = match &self.network {
            Target::Own(_) => NetworkMode::UserNat,
            Target::Shared(network) => NetworkMode::Cluster(network.name().to_owned()),
        };
        let spec = NetworkSpec {
            mac: Some(config.mac_of(&guest)),
            ipv4: guest.ipv4,
            ipv6: guest.ipv6,
            mtu: Some(config.mtu),
            mode,
        };
        let warnings = config
            .guest(guest)
            .check()
            .map_err(|error| error::setting(&name, &error))?;
        let warnings = warnings
            .iter()
            .map(|warning| Warning(format!("network {name}: {warning}")));
        Ok((spec, warnings.collect()))
    }

    /// Gives the guest its place on the network, which is started where it is its own, and opens its
    /// forwards.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network); nothing is left behind.
    pub(crate) async fn join(&self, vm: Option<&str>) -> Result<Connection> {
        let (network, own) = match &self.network {
            Target::Shared(network) => (network.clone(), false),
            Target::Own(own) => {
                let network = Network::start(self.config(vm), own.on_loss).await?;
                (network, true)
            }
        };
        let guest = self.guest(network.name(), vm)?;
        Connection::reserve(network, guest, own).await
    }
}

impl Default for Interface {
    fn default() -> Self {
        Self::user_nat()
    }
}

/// The interface of a plain specification: to a network of its own.
impl From<NetworkSpec> for Interface {
    fn from(spec: NetworkSpec) -> Self {
        let mut interface = Self::user_nat();
        interface.guest.mac = spec.mac;
        interface.guest.ipv4 = spec.ipv4;
        interface.guest.ipv6 = spec.ipv6;
        match spec.mtu {
            Some(mtu) => interface.mtu(mtu),
            None => interface,
        }
    }
}
