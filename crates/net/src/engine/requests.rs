//! Requests from the caller, and replies and events to it.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::guest::Guest;
use super::{Engine, Source};
use crate::capture::Capture;
use crate::config::check_link;
use crate::control::codec::{Decoder, encode};
use crate::control::{Event, FromNetwork, GuestInfo, Notice, Refusal, Reply, Request, ToNetwork};
use crate::link::Link;
use crate::policy::Protocol;
use crate::{
    Forward, FrameFormat, GuestAddresses, GuestConfig, GuestName, LinkConditions, Policy, Resolver,
};

/// Bytes that wait for the caller to read them; events beyond are left out.
const MOST_UNSENT: usize = 4 << 20;

pub(crate) struct Control {
    stream: UnixStream,
    decoder: Decoder,
    unsent: VecDeque<u8>,
    lost: u64,
    policy_events: bool,
}

impl Control {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            unsent: VecDeque::new(),
            lost: 0,
            policy_events: false,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub(crate) const fn wants_policy(&self) -> bool {
        self.policy_events
    }

    fn queue(&mut self, message: &FromNetwork) {
        if let Ok(bytes) = encode(message) {
            self.unsent.extend(bytes);
        }
    }

    /// Sends what is waiting; false when the caller is gone.
    fn flush(&mut self) -> bool {
        loop {
            let (first, _) = self.unsent.as_slices();
            if first.is_empty() {
                return true;
            }
            match self.stream.write(first) {
                Ok(0) => return false,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

fn new_link(fd: OwnedFd, format: FrameFormat) -> Result<Link, Refusal> {
    Link::new(fd, format).map_err(|error| Refusal::System(error.to_string()))
}

impl Engine {
    /// Tells the caller something that it did not ask for.
    pub(crate) fn event_out(&mut self, event: Event) {
        let control = &mut self.control;
        if control.unsent.len() > MOST_UNSENT {
            control.lost += 1;
            return;
        }
        if control.lost > 0 {
            let lost = std::mem::take(&mut control.lost);
            control.queue(&FromNetwork::Event(Event::Lost(lost)));
        }
        control.queue(&FromNetwork::Event(event));
        if !control.flush() {
            self.ended = true;
        }
    }

    /// The control socket has news.
    pub(crate) fn control_event(&mut self) {
        loop {
            match self.control.decoder.read(self.control.stream.as_fd()) {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.ended = true;
                    return;
                }
            }
            loop {
                match self.control.decoder.next::<ToNetwork>() {
                    Ok(Some(message)) => {
                        let fd = match message.descriptor {
                            true => self.control.decoder.take_fd(),
                            false => None,
                        };
                        let reply = self
                            .request(message.request, fd)
                            .unwrap_or_else(Reply::Refused);
                        self.control
                            .queue(&FromNetwork::Reply(message.id, Box::new(reply)));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!("the control socket is out of step: {error}");
                        self.ended = true;
                        return;
                    }
                }
            }
        }
        if !self.control.flush() {
            self.ended = true;
        }
    }

    fn find(&self, name: &GuestName) -> Result<usize, Refusal> {
        let found = self
            .guests
            .iter()
            .find(|(_, guest)| guest.config.name == *name);
        found
            .map(|(index, _)| index)
            .ok_or_else(|| Refusal::NoGuest(name.clone()))
    }

    fn request(&mut self, request: Request, fd: Option<OwnedFd>) -> Result<Reply, Refusal> {
        match request {
            Request::Ping => {}
            Request::AddGuest(config) => return self.add_guest(*config, fd).map(Reply::Guest),
            Request::ConnectGuest(name, format) => {
                let index = self.find(&name)?;
                let link = fd.map(|fd| new_link(fd, format)).transpose()?;
                return self.connect_guest(index, link).map(Reply::Guest);
            }
            Request::RemoveGuest(name) => {
                let index = self.find(&name)?;
                self.remove_guest(index);
            }
            Request::SetPolicy(name, policy) => self.set_policy(&name, policy)?,
            Request::SetLink(name, link) => self.set_link(&name, link)?,
            Request::AddForward(name, forward) => return self.add_forward(&name, forward),
            Request::RemoveForward(id) => self.forward_close(id)?,
            Request::Forwards => return Ok(Reply::Forwards(self.forward_infos())),
            Request::Guests => return Ok(Reply::Guests(self.guest_infos())),
            Request::Flows(name) => {
                let index = self.find(&name)?;
                let mut flows = self.tcp_flow_infos(index);
                flows.extend(self.datagram_flow_infos(index));
                return Ok(Reply::Flows(flows));
            }
            Request::Learned(name) => {
                let index = self.find(&name)?;
                let learned = self.guests.get(index).map(|guest| &guest.learned);
                let learned = learned.ok_or(Refusal::NoGuest(name))?;
                return Ok(Reply::Learned(
                    learned.allow_list(),
                    learned.is_incomplete(),
                ));
            }
            Request::StartCapture(name, most) => self.start_capture(name.as_ref(), most, fd)?,
            Request::StopCapture => {
                if let Some(mut capture) = self.capture.take() {
                    capture
                        .flush()
                        .map_err(|error| Refusal::System(error.to_string()))?;
                }
            }
            Request::SubscribePolicy(on) => self.control.policy_events = on,
            Request::SetResolver(resolver) => self.set_resolver(resolver)?,
            Request::Shutdown => self.ended = true,
        }
        Ok(Reply::Done)
    }

    fn add_guest(
        &mut self,
        config: GuestConfig,
        fd: Option<OwnedFd>,
    ) -> Result<GuestAddresses, Refusal> {
        let link = match fd {
            Some(fd) => Some(new_link(fd, config.frames)?),
            None => None,
        };
        if let (Ok(index), Some(_)) = (self.find(&config.name), &link) {
            let connected = self
                .guests
                .get(index)
                .is_some_and(|guest| guest.link.is_some());
            if connected {
                return Err(Refusal::Setting(format!(
                    "guest {} is connected: remove it first",
                    config.name
                )));
            }
            return self.connect_guest(index, link);
        }
        let mut network = self.config.clone();
        network.guests = self
            .guests
            .iter()
            .map(|(_, guest)| guest.pinned_config())
            .collect();
        network.guests.push(config.clone());
        network.check()?;
        let mut taken: BTreeSet<_> = self
            .guests
            .iter()
            .filter_map(|(_, guest)| guest.addresses.ipv4)
            .collect();
        let addresses = self.config.addresses_of(&config, &mut taken)?;
        self.insert_guest(config, addresses.clone(), link)?;
        Ok(addresses)
    }

    /// Gives a guest another link; everything else about it stays.
    fn connect_guest(
        &mut self,
        index: usize,
        link: Option<Link>,
    ) -> Result<GuestAddresses, Refusal> {
        let link = link.ok_or(Refusal::NoDescriptor)?;
        if let Some(old) = self.link_fd(index) {
            self.deregister(old);
        }
        let fd = link.raw_fd();
        let Some(guest) = self.guests.get_mut(index) else {
            return Err(Refusal::System("the guest is gone".to_owned()));
        };
        guest.link = Some(link);
        let addresses = guest.addresses.clone();
        self.register(fd, Source::Link(index))
            .map_err(|error| Refusal::System(error.to_string()))?;
        self.list_incoming(index);
        self.mark_guest(index);
        self.advertise(index, None);
        Ok(addresses)
    }

    /// Adds a guest and opens its forwards. On an error nothing of it is left.
    pub(crate) fn insert_guest(
        &mut self,
        config: GuestConfig,
        addresses: GuestAddresses,
        link: Option<Link>,
    ) -> Result<(), Refusal> {
        let fd = link.as_ref().map(Link::raw_fd);
        let forwards = config.forwards.clone();
        let name = config.name.clone();
        let index = self
            .guests
            .insert(Guest::new(config, addresses, link, &self.config.limits));
        let system = |error: io::Error| Refusal::System(error.to_string());
        let registered = fd
            .map_or(Ok(()), |fd| self.register(fd, Source::Link(index)))
            .map_err(system);
        let opened = registered.and_then(|()| {
            forwards
                .into_iter()
                .try_for_each(|forward| self.forward_open(index, forward).map(|_| ()))
        });
        if let Err(refusal) = opened {
            self.remove_guest(index);
            return Err(refusal);
        }
        if let Some(capture) = &mut self.capture {
            capture.add_guest(index, &name);
        }
        self.list_incoming(index);
        self.advertise(index, None);
        Ok(())
    }

    fn remove_guest(&mut self, index: usize) {
        self.forward_close_all(index);
        self.end_flows(index);
        if let Some(fd) = self.link_fd(index) {
            self.deregister(fd);
        }
        self.guests.try_remove(index);
    }

    fn set_policy(&mut self, name: &GuestName, policy: Policy) -> Result<(), Refusal> {
        let index = self.find(name)?;
        policy
            .check()
            .map_err(|error| Refusal::Setting(error.to_string()))?;
        if let Some(guest) = self.guests.get_mut(index) {
            guest.config.policy = policy;
        }
        for flow in self.tcp_flows_of(index) {
            let Some(state) = self.tcp.slab.get(flow) else {
                continue;
            };
            let (key, direction) = (state.key, state.direction);
            let own_dns = self.is_gateway(key.remote.ip()) && key.remote.port() == 53;
            if !own_dns
                && !self.still_allowed(index, direction, Protocol::Tcp, key.local, key.remote)
            {
                self.tcp_break(flow);
                self.mark_guest(index);
            }
        }
        for flow in self.datagram_flow_infos(index) {
            if !self.still_allowed(
                index,
                flow.direction,
                flow.protocol,
                flow.guest,
                flow.remote,
            ) {
                self.datagram_remove_by(index, &flow);
            }
        }
        self.forward_forget_clients(index);
        Ok(())
    }

    fn set_link(&mut self, name: &GuestName, link: LinkConditions) -> Result<(), Refusal> {
        let index = self.find(name)?;
        check_link(name, &link)?;
        let now = self.now;
        if let Some(guest) = self.guests.get_mut(index) {
            guest.set_conditions(link, now);
        }
        self.list_incoming(index);
        self.mark_guest(index);
        Ok(())
    }

    fn add_forward(&mut self, name: &GuestName, forward: Forward) -> Result<Reply, Refusal> {
        let index = self.find(name)?;
        crate::config::check_forward(name, &forward)?;
        self.forward_open(index, forward).map(Reply::Forward)
    }

    fn guest_infos(&self) -> Vec<GuestInfo> {
        let guests = self.guests.iter().map(|(_, guest)| GuestInfo {
            mac: guest.addresses.mac,
            addresses: guest.addresses.clone(),
            connected: guest.link.is_some(),
            flows: (
                guest.tcp_flows,
                u32::try_from(guest.datagram_flows.len()).unwrap_or(u32::MAX),
            ),
            tcp_buffers: guest.tcp_buffers,
            counters: guest.counters.clone(),
        });
        guests.collect()
    }

    fn start_capture(
        &mut self,
        name: Option<&GuestName>,
        most: u64,
        file: Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        let file = file.ok_or(Refusal::NoDescriptor)?;
        let only = name.map(|name| self.find(name)).transpose()?;
        let capture = Capture::new(file, only, most);
        let mut capture = capture.map_err(|error| Refusal::System(error.to_string()))?;
        for (index, guest) in &self.guests {
            capture.add_guest(index, &guest.config.name);
        }
        self.capture = Some(capture);
        Ok(())
    }

    /// The capture cannot go on.
    pub(crate) fn end_capture(&mut self, reason: &str) {
        self.capture = None;
        self.notify(Notice::CaptureEnded(reason.to_owned()));
    }

    fn set_resolver(&mut self, resolver: Resolver) -> Result<(), Refusal> {
        let mut config = self.config.clone();
        config.resolver = resolver.clone();
        config.guests.clear();
        config.check()?;
        self.config.resolver = resolver.clone();
        self.dns.servers = crate::dns::servers::ServerSource::new(resolver);
        self.dns.cache.clear();
        Ok(())
    }
}
