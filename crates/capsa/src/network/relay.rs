//! Lets other processes steer a network that this one looks after, by the same requests with which
//! this one steers it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use capsa_net::{ControlError, ControlServer, Event, Forward, GuestName, Refusal, Reply, Request};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;

use super::events::NetworkEvent;
use super::shared::Network;

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything but the network's end: guests come by this connection, and go with it.
    Whole,
    /// What changes neither the network nor who is on it.
    Guests,
}

/// Carries out what comes over a connection, until the other side closes it or the network ends.
///
/// # Errors
/// Those of the connection.
pub(crate) async fn relay(stream: UnixStream, network: &Network, scope: Scope) -> io::Result<()> {
    let mut relay = Relay {
        network,
        scope,
        guests: BTreeSet::new(),
        policy_events: false,
    };
    let carried = relay.carry(ControlServer::new(stream.into_std()?)?).await;
    relay.leave().await;
    carried
}

struct Relay<'a> {
    network: &'a Network,
    scope: Scope,
    /// Those that came by this connection.
    guests: BTreeSet<GuestName>,
    policy_events: bool,
}

impl Relay<'_> {
    async fn carry(&mut self, mut server: ControlServer) -> io::Result<()> {
        let mut events = self.network.events();
        loop {
            tokio::select! {
                asked = server.next() => match asked? {
                    Some(asked) => {
                        // Where there is no network any more, the other side sees that by the end.
                        let Some(reply) = self.answer(asked.request, asked.descriptor).await else {
                            return Ok(());
                        };
                        server.reply(asked.id, reply).await?;
                    }
                    None => return Ok(()),
                },
                told = events.next() => match told {
                    Some(NetworkEvent::Policy(event)) if self.policy_events => {
                        server.event(Event::Policy(event)).await?;
                    }
                    Some(NetworkEvent::Policy(_) | NetworkEvent::Restored) => {}
                    Some(NetworkEvent::Notice(notice)) => {
                        server.event(Event::Notice(notice)).await?;
                    }
                    Some(NetworkEvent::LinkClosed(guest)) => {
                        server.event(Event::LinkClosed(guest)).await?;
                    }
                    Some(NetworkEvent::Missed(count)) => {
                        server.event(Event::Lost(count)).await?;
                    }
                    // The other side takes it for the network's end, which it is.
                    Some(NetworkEvent::Lost { .. }) | None => return Ok(()),
                },
            }
        }
    }

    /// The answer; `None` where the network has ended.
    async fn answer(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Option<Reply> {
        match self.try_answer(request, descriptor).await {
            Ok(reply) => Some(reply),
            Err(ControlError::Refused(refusal)) => Some(Reply::Refused(refusal)),
            Err(ControlError::Ended) => None,
            Err(error) => Some(Reply::Refused(Refusal::System(error.to_string()))),
        }
    }

    async fn try_answer(
        &mut self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<Reply, ControlError> {
        self.check(&request, descriptor.is_some())?;
        let client = self.network.client().map_err(|_| ControlError::Ended)?;
        if let Request::SubscribePolicy(on) = request {
            self.policy_events = on;
            if on {
                // Others may want to hear of them when this connection does not any more.
                client.subscribe_policy(true).await?;
                self.network.state().policy_events = true;
            }
            return Ok(Reply::Done);
        }
        let removed = match request {
            Request::RemoveForward(id) => {
                let mut open = client.forwards().await?.into_iter();
                open.find(|info| info.id == id)
                    .map(|info| (info.guest, info.forward))
            }
            _ => None,
        };
        let reply = client.request(request.clone(), descriptor).await?;
        self.remember(request, &reply, removed);
        Ok(reply)
    }

    /// Refuses what is not for this connection.
    fn check(&self, request: &Request, with_descriptor: bool) -> Result<(), Refusal> {
        let setting = |text: &str| Err(Refusal::Setting(text.to_owned()));
        match (request, self.scope) {
            (Request::Shutdown | Request::SetResolver(_), _) => setting(
                "the network is not this process's own: only whoever looks after it changes it",
            ),
            (
                Request::AddGuest(_) | Request::ConnectGuest(..) | Request::RemoveGuest(_),
                Scope::Guests,
            ) => setting("guests do not join by this connection: attach the network by its name"),
            // It could take the place of a guest that another process has reserved.
            (Request::AddGuest(_), Scope::Whole) if with_descriptor => {
                setting("a guest is connected once it has its place")
            }
            (Request::ConnectGuest(guest, _) | Request::RemoveGuest(guest), Scope::Whole)
                if !self.guests.contains(guest) =>
            {
                Err(Refusal::NoGuest(guest.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what was changed: whose guests go with the connection, and what a network that is started
    /// again has to be told.
    fn remember(&mut self, request: Request, reply: &Reply, removed: Option<(GuestName, Forward)>) {
        match (request, reply) {
            (Request::AddGuest(config), Reply::Guest(_)) => {
                self.guests.insert(config.name);
            }
            (Request::RemoveGuest(guest), Reply::Done) => {
                self.guests.remove(&guest);
            }
            (Request::SetPolicy(guest, policy), Reply::Done) => {
                self.network
                    .remember(&guest, |member| member.config.policy = policy);
            }
            (Request::SetLink(guest, link), Reply::Done) => {
                self.network
                    .remember(&guest, |member| member.config.link = link);
            }
            (Request::AddForward(guest, _), Reply::Forward(info)) => {
                let forward = info.forward.clone();
                self.network
                    .remember(&guest, |member| member.config.forwards.push(forward));
            }
            (Request::RemoveForward(_), Reply::Done) => {
                if let Some((guest, closed)) = removed {
                    self.network.remember(&guest, |member| {
                        member.config.forwards.retain(|forward| *forward != closed);
                    });
                }
            }
            _ => {}
        }
    }

    async fn leave(&mut self) {
        for guest in std::mem::take(&mut self.guests) {
            self.network.remove_guest(&guest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use capsa_net::{ControlClient, Forward, GuestConfig, NetworkConfig, Policy};
    use capsa_network::Place;
    use tokio::task::JoinHandle;

    use super::super::shared::OnLoss;
    use super::*;

    async fn network() -> Network {
        let config = NetworkConfig::new("lab");
        Network::start_in(Place::CallersProcess, config, OnLoss::StayDown)
            .await
            .unwrap()
    }

    /// A client, and the relay that serves it.
    fn connect(network: &Network, scope: Scope) -> (ControlClient, JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let network = network.clone();
        let relayed = tokio::spawn(async move { relay(theirs, &network, scope).await });
        (
            ControlClient::new(ours.into_std().unwrap()).unwrap(),
            relayed,
        )
    }

    fn guest(name: &str) -> GuestConfig {
        GuestConfig::new(name.parse().unwrap())
    }

    async fn names(network: &Network) -> Vec<String> {
        let guests = network.guests().await.unwrap().into_iter();
        guests.map(|info| info.counters.guest.to_string()).collect()
    }

    fn is_refused<T>(result: Result<T, ControlError>) -> bool {
        matches!(result, Err(ControlError::Refused(_)))
    }

    #[tokio::test]
    async fn guests_go_with_the_connection_by_which_they_came() {
        let network = network().await;
        let (first, relayed) = connect(&network, Scope::Whole);
        let (second, _still) = connect(&network, Scope::Whole);
        first.reserve_guest(guest("one")).await.unwrap();
        second.reserve_guest(guest("two")).await.unwrap();
        let before = names(&network).await;

        drop(first);
        relayed.await.unwrap().unwrap();

        assert_eq!(before, ["one", "two"]);
        assert_eq!(names(&network).await, ["two"]);
    }

    #[tokio::test]
    async fn guest_of_another_connection_cannot_be_taken_over_and_the_network_not_ended() {
        let network = network().await;
        let (first, _still) = connect(&network, Scope::Whole);
        let (second, _too) = connect(&network, Scope::Whole);
        first.reserve_guest(guest("one")).await.unwrap();
        let frames = || OwnedFd::from(std::os::unix::net::UnixDatagram::unbound().unwrap());

        let name = guest("one").name;
        let format = capsa_net::FrameFormat::Datagram;
        assert!(is_refused(second.remove_guest(name.clone()).await));
        assert!(is_refused(
            second.connect_guest(name, format, frames()).await
        ));
        assert!(is_refused(second.add_guest(guest("one"), frames()).await));
        assert!(is_refused(second.reserve_guest(guest("one")).await));
        assert!(is_refused(second.shutdown().await));
        assert_eq!(names(&network).await, ["one"]);
    }

    #[tokio::test]
    async fn network_that_has_ended_is_told_as_such() {
        let network = network().await;
        let (before, closed) = connect(&network, Scope::Guests);
        network.shutdown().await;
        let (after, closed_too) = connect(&network, Scope::Guests);

        for client in [before, after] {
            let asked = client.forwards().await;
            assert!(matches!(asked, Err(ControlError::Ended)), "{asked:?}");
        }
        closed.await.unwrap().unwrap();
        closed_too.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn changes_by_others_are_kept_for_a_network_that_is_started_again() {
        // Arrange
        let network = network().await;
        network.reserve(guest("one")).await.unwrap();
        let (client, _still) = connect(&network, Scope::Guests);
        let name = guest("one").name;

        // Act
        let first = Forward::tcp(0, 80);
        let second = Forward::tcp(0, 81);
        let closed = client.add_forward(name.clone(), first).await.unwrap();
        let open = client.add_forward(name.clone(), second).await.unwrap();
        client.remove_forward(closed.id).await.unwrap();
        client.set_policy(name, Policy::deny_all()).await.unwrap();

        // Assert
        let (kept, _) = network.0.members().remove(0);
        assert_eq!(kept.forwards, [open.forward]);
        assert_eq!(kept.policy, Policy::deny_all());
        assert!(is_refused(client.reserve_guest(guest("two")).await));
    }
}
