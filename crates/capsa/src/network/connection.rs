//! A VM's place on its network while it runs.

use std::os::fd::OwnedFd;

use capsa_core::{Error, NetworkErrorKind, NetworkFrames, Result};
use capsa_net::{FrameFormat, GuestConfig};

use super::error;
use super::shared::Network;
use super::vm_network::VmNetwork;

/// A guest that was given its place. Leaving it gives the place back; dropping it does so in the
/// background.
#[derive(Debug)]
pub(crate) struct Connection {
    vm_network: VmNetwork,
    /// Whether the network is there for this VM alone.
    own: bool,
    left: bool,
}

impl Connection {
    pub(crate) async fn reserve(network: Network, guest: GuestConfig, own: bool) -> Result<Self> {
        let name = guest.name.clone();
        let addresses = network.reserve(guest).await?;
        Ok(Self {
            vm_network: VmNetwork::new(network, name, addresses),
            own,
            left: false,
        })
    }

    /// Connects the guest by its backend's socket.
    ///
    /// # Errors
    /// There is none, or the network has ended.
    pub(crate) async fn connect(
        &self,
        frames: Option<OwnedFd>,
        format: NetworkFrames,
    ) -> Result<()> {
        let network = self.vm_network.network();
        let frames = frames.ok_or_else(|| -> Error {
            error::network_error(
                network.name(),
                NetworkErrorKind::System,
                "the backend gave no socket for the interface",
            )
        })?;
        let format = match format {
            NetworkFrames::VirtioHeader => FrameFormat::Virtio,
            _ => FrameFormat::Datagram,
        };
        network
            .connect(self.vm_network.guest(), format, frames)
            .await
    }

    /// What the default init of a guest has to know, as kernel parameters.
    pub(crate) fn kernel_parameters(&self) -> Vec<String> {
        let addresses = self.vm_network.addresses();
        let mut parameters = vec![format!("capsa.mac={}", addresses.mac)];
        if let (Some(address), Some(gateway)) = (addresses.ipv4, addresses.ipv4_gateway) {
            let prefix = addresses.ipv4_prefix;
            parameters.push(format!("capsa.ipv4={address}/{prefix},{gateway}"));
        }
        if let (Some(address), Some(gateway)) = (addresses.ipv6, addresses.ipv6_gateway) {
            let prefix = addresses.ipv6_prefix;
            parameters.push(format!("capsa.ipv6={address}/{prefix},{gateway}"));
        }
        parameters.push(format!("capsa.domain={}", capsa_net::INTERNAL_DOMAIN));
        parameters.push(format!("capsa.hostname={}", self.vm_network.guest()));
        parameters
    }

    pub(crate) fn vm_network(&self) -> &VmNetwork {
        &self.vm_network
    }

    /// Gives the place back: on return its forwards are closed.
    pub(crate) async fn leave(mut self) {
        self.left = true;
        leave(self.vm_network.clone(), self.own).await;
    }
}

async fn leave(vm_network: VmNetwork, own: bool) {
    let network = vm_network.network();
    if own {
        network.shutdown().await;
    } else {
        network.remove_guest(vm_network.guest()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // Without a runtime the network is about to end as well.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(leave(self.vm_network.clone(), self.own));
        }
    }
}
