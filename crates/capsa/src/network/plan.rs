//! Interfaces and places on networks as plain data, so that they can be given to another process.

use capsa_core::{Error, Result};
use capsa_net::{ControlClient, GuestAddresses, GuestName, NetworkConfig};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::guest_settings::GuestSettings;
use super::interface::{Interface, Own, Target};
use super::shared::Network;
use super::vm_network::VmNetwork;

/// An [`Interface`] for a VM of another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InterfacePlan {
    network: NetworkPlan,
    guest: GuestSettings,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum NetworkPlan {
    Own(Box<Own>),
    /// By its name.
    Kept(String),
}

impl InterfacePlan {
    /// # Errors
    /// [`Error::InvalidSetting`] for an interface to a network that ends with this process.
    pub(crate) fn of(interface: Interface) -> Result<Self> {
        let network = match interface.network {
            Target::Own(own) => NetworkPlan::Own(own),
            Target::Shared(network) if network.0.kept => {
                NetworkPlan::Kept(network.name().to_owned())
            }
            Target::Shared(network) => {
                return Err(Error::invalid_setting(
                    "network",
                    network.name(),
                    "it ends with this process, and a detachable sandbox may live on",
                    "keep it: Network::builder(…).keep()",
                ));
            }
        };
        Ok(Self {
            network,
            guest: interface.guest,
        })
    }

    /// The interface, in the process that has the VM.
    ///
    /// # Errors
    /// Of [`Network::attach`].
    pub(crate) async fn interface(self) -> Result<Interface> {
        let network = match self.network {
            NetworkPlan::Own(own) => Target::Own(own),
            NetworkPlan::Kept(name) => Target::Shared(Network::attach(&name).await?),
        };
        Ok(Interface {
            network,
            guest: self.guest,
        })
    }
}

/// What another process has to know of a VM's place on its network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmNetworkFacts {
    config: NetworkConfig,
    guest: GuestName,
    addresses: GuestAddresses,
}

impl VmNetworkFacts {
    pub(crate) fn of(network: &VmNetwork) -> Self {
        Self {
            config: network.network().config().clone(),
            guest: network.guest().clone(),
            addresses: network.addresses().clone(),
        }
    }

    /// The VM's network, steered over a connection to a [`relay`](super::relay()).
    ///
    /// # Errors
    /// Where the runtime cannot use the connection.
    pub(crate) fn network(self, stream: UnixStream) -> Result<VmNetwork> {
        let client = stream.into_std().and_then(ControlClient::new);
        let client = client.map_err(|error| Error::io("cannot talk to the network", error))?;
        let network = Network::reached(self.config, client, None, false);
        Ok(VmNetwork::new(network, self.guest, self.addresses))
    }
}
