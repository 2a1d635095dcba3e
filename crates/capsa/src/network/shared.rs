//! A network of one or more VMs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capsa_core::{Error, NetworkErrorKind, Result, Warning};
use capsa_net::{
    Cidr, ControlClient, ControlError, Event, ForwardInfo, FrameFormat, GuestAddresses,
    GuestConfig, GuestInfo, GuestName, Limits, NetworkConfig, Resolver,
};
use capsa_network::{NetworkProcess, Place};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::error;
use super::events::{NetworkEvent, NetworkEvents};
use super::interface::Interface;
use super::supervise::supervise;

/// Events that a subscriber may be behind.
const EVENTS: usize = 4096;

/// What becomes of a network whose process is lost: it was killed, or crashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnLoss {
    /// Its VMs see their links go down and have no network from then on.
    #[default]
    StayDown,
    /// It is started again, with its guests as they were, their policies and forwards. Connections
    /// are broken.
    Restart,
}

/// A network that several VMs share, where they find one another by name.
///
/// It has a process of its own, which lives as long as this, a clone of it, or a VM on it does. One
/// that is [kept](NetworkBuilder::keep) lives until it is removed.
///
/// ```no_run
/// # async fn example() -> capsa::Result<()> {
/// use capsa::network::Network;
/// use capsa::{Capsa, LinuxBootConfig};
///
/// let network = Network::builder("lab").without_outside().create().await?;
/// let vm = || Capsa::vm(LinuxBootConfig::new());
/// let server = vm().name("server").network(network.interface()).start().await?;
/// let client = vm().name("client").network(network.interface()).start().await?;
/// // In the client: ping server
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Network(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: NetworkConfig,
    pub(super) on_loss: OnLoss,
    /// Whether others find it by its name.
    #[cfg(target_os = "linux")]
    pub(super) kept: bool,
    pub(super) events: broadcast::Sender<NetworkEvent>,
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// `None` once it has ended for good.
    pub(super) process: Option<Access>,
    pub(super) guests: BTreeMap<GuestName, Member>,
    pub(super) policy_events: bool,
}

/// How a network's process is reached.
#[derive(Debug)]
pub(super) enum Access {
    /// It is this process's own, and ends with it.
    Own(NetworkProcess),
    /// Another process looks after it.
    #[cfg(target_os = "linux")]
    Others {
        client: ControlClient,
        process: Option<u32>,
    },
}

impl Access {
    pub(super) fn client(&self) -> &ControlClient {
        match self {
            Self::Own(process) => process.client(),
            #[cfg(target_os = "linux")]
            Self::Others { client, .. } => client,
        }
    }

    fn process_id(&self) -> Option<u32> {
        match self {
            Self::Own(process) => process.process_id(),
            #[cfg(target_os = "linux")]
            Self::Others { process, .. } => *process,
        }
    }
}

/// What is kept of a guest, to give it back to a network that was started again.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) config: GuestConfig,
    /// Holding on to the network's end keeps the guest's from being told that it is gone.
    pub(super) frames: Option<(FrameFormat, OwnedFd)>,
}

/// Makes a [`Network`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `create`"]
pub struct NetworkBuilder {
    config: NetworkConfig,
    on_loss: OnLoss,
    #[cfg(target_os = "linux")]
    pub(super) keep: bool,
}

impl NetworkBuilder {
    /// The address ranges: IPv4 from /8 to /29 (10.0.2.0/24 by default), IPv6 /64 (by default one made
    /// from the name); `None` for none.
    pub fn ranges(mut self, ipv4: Option<Cidr>, ipv6: Option<Cidr>) -> Self {
        (self.config.ipv4, self.config.ipv6) = (ipv4, ipv6);
        self
    }

    /// The IPv4 range alone; see [`ranges`](Self::ranges).
    pub fn ipv4(mut self, range: Option<Cidr>) -> Self {
        self.config.ipv4 = range;
        self
    }

    /// The IPv6 range alone; see [`ranges`](Self::ranges).
    pub fn ipv6(mut self, range: Option<Cidr>) -> Self {
        self.config.ipv6 = range;
        self
    }

    /// The largest IP packet, 1280 to 65521 bytes; 1500 by default.
    pub fn mtu(mut self, bytes: u16) -> Self {
        self.config.mtu = bytes;
        self
    }

    /// Leaves the guests to themselves: whatever its policy says, none reaches anything outside but
    /// those services of this computer that its policy names.
    pub fn without_outside(mut self) -> Self {
        self.config.outside = false;
        self
    }

    /// Keeps the guests apart: each reaches what its policy lets it, and none of the others.
    pub fn without_peers(mut self) -> Self {
        self.config.peers = false;
        self
    }

    /// Where its DNS gets its answers; by default where this computer does.
    pub fn resolver(mut self, resolver: Resolver) -> Self {
        self.config.resolver = resolver;
        self
    }

    /// How much of this computer each guest may use up.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// What becomes of it when its process is lost. One that is [kept](Self::keep) stays down.
    pub fn on_loss(mut self, on_loss: OnLoss) -> Self {
        self.on_loss = on_loss;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::Network`] naming what is wrong with it, or what keeps it from being started.
    pub async fn create(self) -> Result<Network> {
        #[cfg(target_os = "linux")]
        if self.keep {
            return super::kept::create(self.config).await;
        }
        Network::start(self.config, self.on_loss).await
    }
}

impl Network {
    /// A network of this name, with a way out and with guests that reach one another.
    pub fn builder(name: impl Into<String>) -> NetworkBuilder {
        NetworkBuilder {
            config: NetworkConfig::new(name),
            on_loss: OnLoss::default(),
            #[cfg(target_os = "linux")]
            keep: false,
        }
    }

    pub(super) async fn start(config: NetworkConfig, on_loss: OnLoss) -> Result<Self> {
        Self::start_in(Place::default(), config, on_loss).await
    }

    pub(super) async fn start_in(
        place: Place,
        config: NetworkConfig,
        on_loss: OnLoss,
    ) -> Result<Self> {
        let process = NetworkProcess::start(&config, place)
            .await
            .map_err(|error| error::start(&config.name, &error))?;
        let end = process.watch_end();
        let (inner, told) = Inner::new(config, on_loss, Access::Own(process));
        let inner = Arc::new(inner);
        tokio::spawn(supervise(Arc::downgrade(&inner), end, told));
        Ok(Self(inner))
    }

    /// The network that another process looks after, reached by a connection to that.
    #[cfg(target_os = "linux")]
    pub(super) fn reached(
        config: NetworkConfig,
        client: ControlClient,
        process: Option<u32>,
        kept: bool,
    ) -> Self {
        let gone = client.ended();
        let end = async move {
            gone.await;
            capsa_network::NetworkEnd {
                reason: "the process that looks after it has ended".to_owned(),
                last_words: String::new(),
            }
        };
        let access = Access::Others { client, process };
        let (mut inner, told) = Inner::new(config, OnLoss::StayDown, access);
        inner.kept = kept;
        let inner = Arc::new(inner);
        tokio::spawn(supervise(Arc::downgrade(&inner), end, told));
        Self(inner)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// An interface to it, for a VM's builder.
    pub fn interface(&self) -> Interface {
        Interface::on(self.clone())
    }

    /// What is odd about it, such as a range whose real addresses are out of reach.
    pub fn warnings(&self) -> Vec<Warning> {
        let warnings = self.config().check().unwrap_or_default();
        warnings
            .iter()
            .map(|warning| Warning(warning.to_string()))
            .collect()
    }

    /// Its guests, what they did, and what is under way.
    ///
    /// # Errors
    /// [`Error::Network`] where it has ended.
    pub async fn guests(&self) -> Result<Vec<GuestInfo>> {
        let guests = self.client()?.guests().await;
        guests.map_err(|error| self.failed(&error))
    }

    /// The forwards that are open to its guests.
    ///
    /// # Errors
    /// [`Error::Network`] where it has ended.
    pub async fn forwards(&self) -> Result<Vec<ForwardInfo>> {
        let forwards = self.client()?.forwards().await;
        forwards.map_err(|error| self.failed(&error))
    }

    /// What happens to it from now on. Decisions of policies are among it once somebody has asked for
    /// [`VmNetwork::policy_events`](super::VmNetwork::policy_events).
    pub fn events(&self) -> NetworkEvents {
        NetworkEvents::new(self.0.events.subscribe())
    }

    /// Writes every guest's frames to a new file as pcapng, up to `most` bytes. There is one capture
    /// at a time: another one takes its place.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be made, [`Error::Network`] where the network has ended.
    pub async fn start_capture(&self, file: impl AsRef<Path>, most: u64) -> Result<()> {
        self.capture(None, file.as_ref(), most).await
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// [`Error::Network`] where the file could not be written.
    pub async fn stop_capture(&self) -> Result<()> {
        let stopped = self.client()?.stop_capture().await;
        stopped.map_err(|error| self.failed(&error))
    }

    /// The network's process; `None` where it has ended.
    pub fn process_id(&self) -> Option<u32> {
        self.state().process.as_ref()?.process_id()
    }

    /// Ends the network now. Its VMs see their links go down. One that is
    /// [kept](NetworkBuilder::keep) only loses the VMs of this process.
    pub async fn shutdown(&self) {
        let process = {
            let mut state = self.state();
            state.guests.clear();
            state.process.take()
        };
        if let Some(Access::Own(process)) = process {
            let end = process.watch_end();
            // An orderly end writes out what is captured. Where it cannot be had, dropping ends it.
            let _ = process.client().shutdown().await;
            drop(process);
            end.await;
        }
    }

    pub(super) fn config(&self) -> &NetworkConfig {
        &self.0.config
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    pub(super) fn client(&self) -> Result<ControlClient> {
        let state = self.state();
        let process = state.process.as_ref();
        process
            .map(|process| process.client().clone())
            .ok_or_else(|| self.failed(&ControlError::Ended))
    }

    pub(super) fn failed(&self, error: &ControlError) -> Error {
        error::control(self.name(), error)
    }

    pub(super) async fn reserve(&self, guest: GuestConfig) -> Result<GuestAddresses> {
        let reserved = self.client()?.reserve_guest(guest.clone()).await;
        let addresses = reserved.map_err(|error| self.failed(&error))?;
        let member = Member {
            // It keeps its address, also on a network that was started again.
            config: GuestConfig {
                ipv4: addresses.ipv4,
                ..guest.clone()
            },
            frames: None,
        };
        self.state().guests.insert(guest.name, member);
        Ok(addresses)
    }

    pub(super) async fn connect(
        &self,
        guest: &GuestName,
        format: FrameFormat,
        frames: OwnedFd,
    ) -> Result<()> {
        let kept = frames
            .try_clone()
            .map_err(|error| Error::io("cannot keep a network socket", error))?;
        if let Some(member) = self.state().guests.get_mut(guest) {
            member.frames = Some((format, kept));
        }
        let connected = self
            .client()?
            .connect_guest(guest.clone(), format, frames)
            .await;
        connected.map(drop).map_err(|error| self.failed(&error))
    }

    pub(super) async fn remove_guest(&self, guest: &GuestName) {
        self.state().guests.remove(guest);
        if let Ok(client) = self.client() {
            // It is gone already where the network is.
            let _ = client.remove_guest(guest.clone()).await;
        }
    }

    /// Keeps a change of a guest's for a network that has to be started again.
    pub(super) fn remember(&self, guest: &GuestName, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.state().guests.get_mut(guest) {
            change(member);
        }
    }

    pub(super) async fn capture(
        &self,
        guest: Option<GuestName>,
        path: &Path,
        most: u64,
    ) -> Result<()> {
        let client = self.client()?;
        let owned = path.to_owned();
        let file = tokio::task::spawn_blocking(move || File::create(owned))
            .await
            .map_err(|error| Error::io("cannot make a file", error.into()))?
            .map_err(|error| {
                Error::file(
                    "capture",
                    path,
                    format!("it cannot be made: {error}"),
                    "name a file in a directory that you may write to",
                )
            })?;
        let started = client.start_capture(guest, file.into(), most).await;
        started.map_err(|error| self.failed(&error))
    }
}

impl Inner {
    fn new(
        config: NetworkConfig,
        on_loss: OnLoss,
        access: Access,
    ) -> (Self, broadcast::Receiver<Event>) {
        let (events, _) = broadcast::channel(EVENTS);
        let told = access.client().events();
        let inner = Self {
            config,
            on_loss,
            #[cfg(target_os = "linux")]
            kept: false,
            events,
            state: Mutex::new(State {
                process: Some(access),
                guests: BTreeMap::new(),
                policy_events: false,
            }),
        };
        (inner, told)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guests as they are to be on a network that is started again.
    pub(super) fn members(&self) -> Vec<(GuestConfig, Option<(FrameFormat, OwnedFd)>)> {
        let state = self.state();
        let members = state.guests.values().map(|member| {
            let frames = member.frames.as_ref().and_then(|(format, socket)| {
                let socket = socket.as_fd().try_clone_to_owned().ok()?;
                Some((*format, socket))
            });
            (member.config.clone(), frames)
        });
        members.collect()
    }
}

/// An error for what a network is asked after its end.
pub(super) fn ended(network: &str) -> Error {
    error::network_error(
        network,
        NetworkErrorKind::Ended,
        "the network's process has ended",
    )
}
