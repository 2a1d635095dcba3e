//! What steers a VM's part of its network while it runs.

use std::path::Path;

use capsa_core::Result;
use capsa_net::{
    FlowInfo, Forward, ForwardId, ForwardInfo, GuestAddresses, GuestInfo, GuestName,
    LinkConditions, Policy,
};

use super::events::PolicyEvents;
use super::shared::{Member, Network, ended};

/// A running VM's part of its network. Everything can be changed while it runs.
#[derive(Clone, Debug)]
pub struct VmNetwork {
    network: Network,
    guest: GuestName,
    addresses: GuestAddresses,
}

impl VmNetwork {
    pub(crate) fn new(network: Network, guest: GuestName, addresses: GuestAddresses) -> Self {
        Self {
            network,
            guest,
            addresses,
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The VM's name on it.
    pub fn guest(&self) -> &GuestName {
        &self.guest
    }

    /// The VM's addresses, its gateway's, and the MTU.
    pub fn addresses(&self) -> &GuestAddresses {
        &self.addresses
    }

    /// Leads a port or a Unix socket of this computer to a port of the guest. Tells the port that was
    /// chosen where 0 was asked for.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network), whose kind tells a port in use from one that
    /// this user must not use.
    pub async fn forward(&self, forward: Forward) -> Result<ForwardInfo> {
        let opened = self
            .network
            .client()?
            .add_forward(self.guest.clone(), forward)
            .await;
        let info = opened.map_err(|error| self.network.failed(&error))?;
        self.remember(|member| member.config.forwards.push(info.forward.clone()));
        Ok(info)
    }

    /// Closes a forward; connections through it go on.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where there is none.
    pub async fn remove_forward(&self, id: ForwardId) -> Result<()> {
        let open = self.forwards().await?;
        let closed = self.network.client()?.remove_forward(id).await;
        closed.map_err(|error| self.network.failed(&error))?;
        if let Some(info) = open.into_iter().find(|info| info.id == id) {
            self.remember(|member| {
                member
                    .config
                    .forwards
                    .retain(|forward| *forward != info.forward);
            });
        }
        Ok(())
    }

    /// The forwards that are open to this VM.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn forwards(&self) -> Result<Vec<ForwardInfo>> {
        let mut forwards = self.network.forwards().await?;
        forwards.retain(|info| info.guest == self.guest);
        Ok(forwards)
    }

    /// Puts another policy in force. Connections that it denies end at once.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where it cannot be one.
    pub async fn set_policy(&self, policy: Policy) -> Result<()> {
        let set = self
            .network
            .client()?
            .set_policy(self.guest.clone(), policy.clone())
            .await;
        set.map_err(|error| self.network.failed(&error))?;
        self.remember(|member| member.config.policy = policy);
        Ok(())
    }

    /// Each decision of the policy from now on, with the rule that made it.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn policy_events(&self) -> Result<PolicyEvents> {
        let events = PolicyEvents::new(self.network.events(), self.guest.clone());
        let subscribed = self.network.client()?.subscribe_policy(true).await;
        subscribed.map_err(|error| self.network.failed(&error))?;
        self.network.state().policy_events = true;
        Ok(events)
    }

    /// The smallest allow-list that covers what the VM did while its policy
    /// [only watched](Policy::learn).
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn learned(&self) -> Result<Policy> {
        let learned = self.network.client()?.learned(self.guest.clone()).await;
        learned.map_err(|error| self.network.failed(&error))
    }

    /// Slows the VM's link down, has it lose frames, or cuts it: for tests.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where a number is out of range.
    pub async fn set_link(&self, conditions: LinkConditions) -> Result<()> {
        let set = self
            .network
            .client()?
            .set_link(self.guest.clone(), conditions)
            .await;
        set.map_err(|error| self.network.failed(&error))?;
        self.remember(|member| member.config.link = conditions);
        Ok(())
    }

    /// What the VM did: frames, flows, lookups, and what was denied.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn info(&self) -> Result<GuestInfo> {
        let guests = self.network.guests().await?;
        let own = guests
            .into_iter()
            .find(|info| info.counters.guest == self.guest);
        own.ok_or_else(|| ended(self.network.name()))
    }

    /// The VM's open connections.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn flows(&self) -> Result<Vec<FlowInfo>> {
        let flows = self.network.client()?.flows(self.guest.clone()).await;
        flows.map_err(|error| self.network.failed(&error))
    }

    /// Writes the VM's frames to a new file as pcapng, up to `most` bytes. A network has one capture at
    /// a time: another one takes its place.
    ///
    /// # Errors
    /// [`Error::File`](capsa_core::Error::File) where the file cannot be made,
    /// [`Error::Network`](capsa_core::Error::Network) where the network has ended.
    pub async fn start_capture(&self, file: impl AsRef<Path>, most: u64) -> Result<()> {
        let guest = Some(self.guest.clone());
        self.network.capture(guest, file.as_ref(), most).await
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// [`Error::Network`](capsa_core::Error::Network) where the file could not be written.
    pub async fn stop_capture(&self) -> Result<()> {
        self.network.stop_capture().await
    }

    fn remember(&self, change: impl FnOnce(&mut Member)) {
        self.network.remember(&self.guest, change);
    }
}
