//! What is shown of a guest's place on its network.

use capsa::NetworkErrorKind;
use capsa::network::{ForwardInfo, ForwardProtocol, GuestAddresses, VmNetwork};
use serde::Serialize;

use crate::failure::Failure;

/// A guest's network.
#[derive(Serialize)]
pub(crate) struct ShownNetwork {
    network: String,
    guest: String,
    #[serde(flatten)]
    addresses: ShownAddresses,
    /// `None` where the network has ended.
    forwards: Option<Vec<ShownForward>>,
}

#[derive(Serialize)]
pub(crate) struct ShownAddresses {
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4_gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6_gateway: Option<String>,
    mtu: u16,
}

/// A port of this computer that leads to a guest.
#[derive(Serialize)]
pub(crate) struct ShownForward {
    listen: String,
    guest_port: u16,
    protocol: &'static str,
}

impl ShownNetwork {
    pub(crate) async fn of(network: &VmNetwork) -> Result<Self, Failure> {
        let forwards = match network.forwards().await {
            Ok(forwards) => Some(forwards.iter().map(ShownForward::of).collect()),
            Err(capsa::Error::Network {
                kind: NetworkErrorKind::Ended,
                ..
            }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            network: network.network().name().to_owned(),
            guest: network.guest().to_string(),
            addresses: ShownAddresses::of(network.addresses()),
            forwards,
        })
    }
}

impl ShownAddresses {
    pub(crate) fn of(addresses: &GuestAddresses) -> Self {
        Self {
            mac: addresses.mac.to_string(),
            ipv4: addresses
                .ipv4
                .map(|address| format!("{address}/{}", addresses.ipv4_prefix)),
            ipv4_gateway: addresses.ipv4_gateway.map(|address| address.to_string()),
            ipv6: addresses
                .ipv6
                .map(|address| format!("{address}/{}", addresses.ipv6_prefix)),
            ipv6_gateway: addresses.ipv6_gateway.map(|address| address.to_string()),
            mtu: addresses.mtu,
        }
    }
}

impl ShownForward {
    pub(crate) fn of(info: &ForwardInfo) -> Self {
        Self {
            listen: info.bound.map_or_else(
                || info.forward.listen.to_string(),
                |bound| bound.to_string(),
            ),
            guest_port: info.forward.guest_port,
            protocol: match info.forward.protocol {
                ForwardProtocol::Tcp => "tcp",
                ForwardProtocol::Udp => "udp",
            },
        }
    }

    /// As a line for people.
    pub(crate) fn line(&self) -> String {
        format!("{} -> {}/{}", self.listen, self.guest_port, self.protocol)
    }
}
