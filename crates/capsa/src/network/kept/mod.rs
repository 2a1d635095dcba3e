//! Networks that outlive the process that made them, and that VMs of any process join.
//!
//! Each has a keeper, see [`keepers`](crate::keepers), which runs the network. A process that joins
//! has one connection to it; guests come by it, and go when it closes.

mod control;
mod keeper;
mod record;

use std::io;

use capsa_core::{Error, NetworkErrorKind, Result};
use capsa_net::{ControlClient, NetworkConfig};
use tokio::net::UnixStream;

pub use record::{NetworkInfo, NetworkState};

use super::error::network_error;
use super::shared::{Network, NetworkBuilder};
use crate::keepers::registry::Record;
use crate::keepers::{self, frames, name};
use control::{Reply, Request, Start};
use record::Registry;

/// What `--net` of the command line takes for something else.
const RESERVED_NAMES: [&str; 2] = ["none", "nat"];

impl NetworkBuilder {
    /// Has a process of its own look after the network, so that it lives on when this process ends,
    /// until [`Network::remove`], and is found by its name by [`Network::attach`] of any process of
    /// this user. Its name is one of a sandbox, and neither `none` nor `nat`.
    pub fn keep(mut self) -> Self {
        self.keep = true;
        self
    }
}

impl Network {
    /// The kept network of this name, whoever of this user has made it. VMs join it by its
    /// [`interface`](Self::interface), and leave it when they end, or with this process.
    ///
    /// # Errors
    /// [`Error::Network`]: there is none of this name, or the process that looked after it is gone.
    pub async fn attach(name: &str) -> Result<Self> {
        let info = Self::find(name).await?;
        if info.state == NetworkState::Crashed {
            return Err(crashed(name));
        }
        let (stream, reply) = ask(name, &Request::Join).await?;
        let facts = match reply {
            Reply::Joined(facts) => facts,
            other => return Err(unexpected(name, &other)),
        };
        let client = stream.into_std().and_then(ControlClient::new);
        let client = client.map_err(|error| cannot_talk(name, error))?;
        Ok(Self::reached(
            facts.config,
            client,
            Some(info.process),
            true,
        ))
    }

    /// Every kept network of this user, by name.
    ///
    /// # Errors
    /// Where the runtime directory cannot be read.
    pub async fn list() -> Result<Vec<NetworkInfo>> {
        in_registry(|registry| registry.list()).await
    }

    /// What is known of the kept network of this name.
    ///
    /// # Errors
    /// [`Error::Network`] where there is none.
    pub async fn find(name: &str) -> Result<NetworkInfo> {
        name::check(NetworkInfo::KIND, name)?;
        let owned = name.to_owned();
        in_registry(move |registry| registry.get(&owned))
            .await
            .map_err(|error| match error {
                Error::InvalidSetting { .. } => network_error(
                    name,
                    NetworkErrorKind::NotFound,
                    format!(
                        "there is no network of this name; make it with `capsa network create {name}`"
                    ),
                ),
                other => other,
            })
    }

    /// Ends a kept network that no guest is on, and removes what is left of one that crashed.
    ///
    /// # Errors
    /// [`Error::Network`]: it has guests, or there is none of this name.
    pub async fn remove(name: &str) -> Result<()> {
        remove(name, false).await
    }

    /// As [`remove`](Self::remove), whoever is on it: their links go down.
    ///
    /// # Errors
    /// [`Error::Network`] where there is none of this name.
    pub async fn remove_with_guests(name: &str) -> Result<()> {
        remove(name, true).await
    }

    /// Waits until the process that looks after a kept network is gone.
    ///
    /// # Errors
    /// Where its folder cannot be read. That there is none is none.
    pub async fn wait_until_gone(name: &str) -> Result<()> {
        let name = name.to_owned();
        in_registry(move |registry| registry.wait_for_owner(&name)).await
    }
}

/// Starts a keeper and waits until its network runs.
pub(super) async fn create(config: NetworkConfig) -> Result<Network> {
    let name = config.name.clone();
    name::check(NetworkInfo::KIND, &name)?;
    if RESERVED_NAMES.contains(&name.as_str()) {
        return Err(Error::invalid_setting(
            "name",
            &name,
            "`capsa run --net` means something else by it",
            "choose another",
        ));
    }
    let start = Start { config };
    let begun = keepers::begin::<_, ()>(&keeper::KEEPER, keeper::BEGINNING, &start).await;
    match begun {
        Ok(((), conversation)) => drop(conversation),
        Err(Error::Start { reason, .. }) => {
            return Err(network_error(&name, NetworkErrorKind::System, reason));
        }
        Err(error) => return Err(error),
    }
    Network::attach(&name).await
}

async fn remove(name: &str, force: bool) -> Result<()> {
    let info = Network::find(name).await?;
    if info.state != NetworkState::Crashed {
        match ask(name, &Request::End { force }).await {
            Ok((mut stream, Reply::Ended)) => {
                // It closes when the process is gone.
                let _gone: io::Result<Option<Reply>> = frames::receive(&mut stream).await;
                return Ok(());
            }
            Ok((_, Reply::HasGuests(guests))) => {
                return Err(network_error(
                    name,
                    NetworkErrorKind::HasGuests,
                    format!(
                        "{} {} on it: stop them first, or use force (`capsa network rm -f {name}`)",
                        guests.join(", "),
                        if guests.len() == 1 { "is" } else { "are" },
                    ),
                ));
            }
            Ok((_, other)) => return Err(unexpected(name, &other)),
            // It went meanwhile, and may have left its folder.
            Err(Error::Network {
                kind: NetworkErrorKind::Ended,
                ..
            }) => Network::wait_until_gone(name).await?,
            Err(error) => return Err(error),
        }
    }
    let owned = name.to_owned();
    match in_registry(move |registry| registry.remove(&owned)).await {
        Err(Error::InvalidSetting { .. }) => Ok(()),
        removed => removed,
    }
}

async fn in_registry<T: Send + 'static>(
    work: impl FnOnce(Registry) -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(|| Registry::open().and_then(work)).await;
    done.map_err(|error| Error::io("looking for networks", error.into()))?
}

/// Asks the keeper of a network something; the connection may go on.
async fn ask(name: &str, request: &Request) -> Result<(UnixStream, Reply)> {
    let socket = Registry::open()?.socket(name);
    let talk = async {
        let mut stream = UnixStream::connect(socket).await?;
        frames::send(&mut stream, request).await?;
        let reply = frames::receive(&mut stream).await?;
        Ok::<_, io::Error>((stream, reply))
    };
    match talk.await {
        Ok((_, Some(Reply::Failed(error)))) => Err(error.into()),
        Ok((stream, Some(reply))) => Ok((stream, reply)),
        Ok((_, None)) => Err(crashed(name)),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => crashed(name),
            _ => cannot_talk(name, error),
        }),
    }
}

fn crashed(name: &str) -> Error {
    network_error(
        name,
        NetworkErrorKind::Ended,
        format!(
            "the process that looked after it is gone: `capsa network rm {name}`, and create it again"
        ),
    )
}

fn cannot_talk(name: &str, error: io::Error) -> Error {
    Error::io(format!("cannot talk to the network {name}"), error)
}

fn unexpected(name: &str, reply: &Reply) -> Error {
    let reason = format!("it is of another version of capsa: {reply:?}");
    cannot_talk(name, io::Error::new(io::ErrorKind::InvalidData, reason))
}
