//! The network of `capsa run`: whether there is one, its ports and its policy.

use std::net::{IpAddr, Ipv6Addr};

#[cfg(target_os = "linux")]
use capsa::network::Network;
use capsa::network::{Forward, Interface, Policy, Rule};
use clap::Args;

use crate::failure::Failure;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkFlags {
    /// What the network interface leads to: `none`; `nat`, a network of the guest's own with the way
    /// out of this computer; or a network of `capsa network` [default: none, or nat where another
    /// network option is given]
    #[arg(long, value_name = "none|nat|NAME", value_parser = parse_choice)]
    net: Option<NetworkChoice>,
    /// Lead a port of this computer to a port of the guest: [[ADDRESS:]PORT:]GUEST-PORT[/udp]; on
    /// 127.0.0.1 unless said otherwise, and the same port where only one is given
    #[arg(short = 'p', long, value_name = "PORTS", value_parser = parse_publish)]
    publish: Vec<Forward>,
    /// Allow nothing but this, and what further --allow name: a domain (*.example.com), an address
    /// range or `host`, with :PORTS behind it where wanted
    #[arg(long, value_name = "TARGET", value_parser = parse_allow)]
    allow: Vec<Rule>,
    /// Deny this, whatever is allowed
    #[arg(long, value_name = "TARGET", value_parser = parse_deny)]
    deny: Vec<Rule>,
}

/// What an interface leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkChoice {
    /// There is no interface.
    None,
    /// A network of the guest's own, with the way out of this computer.
    Nat,
    /// A kept network.
    Named(String),
}

impl NetworkFlags {
    /// The interface that is asked for, if any, of a guest that may have a name.
    ///
    /// # Errors
    /// There is no network of this name.
    pub(crate) async fn interface(
        &self,
        guest: Option<&str>,
    ) -> Result<Option<Interface>, Failure> {
        let interface = match self.choice() {
            NetworkChoice::None => return Ok(None),
            NetworkChoice::Nat => Interface::user_nat(),
            NetworkChoice::Named(name) => joined(&name, guest).await?,
        };
        let forwards = self.publish.iter().cloned();
        let interface = interface.policy(self.policy());
        Ok(Some(forwards.fold(interface, Interface::forward)))
    }

    fn choice(&self) -> NetworkChoice {
        let asked = !(self.publish.is_empty() && self.allow.is_empty() && self.deny.is_empty());
        match &self.net {
            Some(choice) => choice.clone(),
            None if asked => NetworkChoice::Nat,
            None => NetworkChoice::None,
        }
    }

    fn policy(&self) -> Policy {
        let mut policy = if self.allow.is_empty() {
            Policy::allow_all()
        } else {
            Policy::deny_all()
        };
        policy.rules = self.deny.iter().chain(&self.allow).cloned().collect();
        policy
    }
}

/// An interface to a kept network.
#[cfg(target_os = "linux")]
async fn joined(name: &str, guest: Option<&str>) -> Result<Interface, Failure> {
    let interface = Network::attach(name).await?.interface();
    Ok(match guest {
        Some(_) => interface,
        // Several guests without a name are on one network.
        None => interface.name(format!("vm-{}", std::process::id())),
    })
}

#[cfg(not(target_os = "linux"))]
async fn joined(name: &str, _guest: Option<&str>) -> Result<Interface, Failure> {
    Err(capsa::Error::invalid_setting(
        "--net",
        name,
        "there are networks with a name on Linux only",
        "use nat or none",
    )
    .into())
}

fn parse_choice(text: &str) -> Result<NetworkChoice, String> {
    match text {
        "" => Err("name a network, or write nat or none".to_owned()),
        "none" => Ok(NetworkChoice::None),
        "nat" => Ok(NetworkChoice::Nat),
        name => Ok(NetworkChoice::Named(name.to_owned())),
    }
}

fn parse_allow(text: &str) -> Result<Rule, String> {
    Rule::allow(text).map_err(|error| error.to_string())
}

fn parse_deny(text: &str) -> Result<Rule, String> {
    Rule::deny(text).map_err(|error| error.to_string())
}

pub(crate) fn parse_publish(text: &str) -> Result<Forward, String> {
    let wrong = || {
        format!(
            "{text}: write [[ADDRESS:]PORT:]GUEST-PORT[/udp] with a guest port from 1 to 65535, such as \
             8080:80, 0:80 or [::1]:5353:53/udp"
        )
    };
    let (places, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (host, guest) = match places.rsplit_once(':') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, places),
    };
    let guest: u16 = guest
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(wrong)?;
    let (address, port) = match host {
        None => (None, guest),
        Some(host) => match host.rsplit_once(':') {
            None => (None, host.parse().map_err(|_| wrong())?),
            Some((address, port)) => {
                let address = parse_address(address).ok_or_else(wrong)?;
                (Some(address), port.parse().map_err(|_| wrong())?)
            }
        },
    };
    let forward = match protocol {
        "tcp" => Forward::tcp(port, guest),
        "udp" => Forward::udp(port, guest),
        _ => return Err(wrong()),
    };
    Ok(match address {
        Some(address) => forward.on(address),
        None => forward,
    })
}

/// An IPv6 address stands in brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(IpAddr::V6(
            rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?,
        )),
        None => text.parse::<IpAddr>().ok().filter(IpAddr::is_ipv4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::network::{Action, ForwardProtocol};

    #[test]
    fn ports_are_read_with_and_without_their_parts() {
        for (text, listen, guest, protocol) in [
            ("80", "127.0.0.1:80", 80, ForwardProtocol::Tcp),
            ("8080:80", "127.0.0.1:8080", 80, ForwardProtocol::Tcp),
            ("0:80/tcp", "127.0.0.1:0", 80, ForwardProtocol::Tcp),
            (
                "0.0.0.0:5353:53/udp",
                "0.0.0.0:5353",
                53,
                ForwardProtocol::Udp,
            ),
            ("[::1]:1:2", "[::1]:1", 2, ForwardProtocol::Tcp),
        ] {
            let forward = parse_publish(text).unwrap();

            assert_eq!(forward.listen.to_string(), listen, "{text}");
            assert_eq!(
                (forward.guest_port, forward.protocol),
                (guest, protocol),
                "{text}"
            );
        }
    }

    #[test]
    fn ports_that_make_no_sense_are_refused_with_an_example() {
        for text in [
            "", "0", "80:0", "a:80", "1:2:3", "::1:1:2", "80/sctp", "70000", "1:70000",
        ] {
            let error = parse_publish(text).unwrap_err();

            assert!(error.contains("8080:80"), "{text}: {error}");
        }
    }

    #[test]
    fn interface_is_there_only_where_it_is_asked_for() {
        let publish = vec![Forward::tcp(0, 80)];
        let choice = |net: Option<&str>, publish: &[Forward]| {
            let flags = NetworkFlags {
                net: net.map(|text| parse_choice(text).unwrap()),
                publish: publish.to_vec(),
                ..NetworkFlags::default()
            };
            flags.choice()
        };

        assert_eq!(choice(None, &[]), NetworkChoice::None);
        assert_eq!(choice(Some("none"), &publish), NetworkChoice::None);
        assert_eq!(choice(None, &publish), NetworkChoice::Nat);
        assert_eq!(choice(Some("nat"), &[]), NetworkChoice::Nat);
        assert_eq!(
            choice(Some("lab"), &publish),
            NetworkChoice::Named("lab".to_owned())
        );
    }

    #[test]
    fn what_is_denied_comes_before_what_is_allowed_and_the_rest_is_denied() {
        let flags = NetworkFlags {
            allow: vec![parse_allow("*.example.com").unwrap()],
            deny: vec![parse_deny("bad.example.com").unwrap()],
            ..NetworkFlags::default()
        };

        let policy = flags.policy();

        assert_eq!(policy.outgoing, Action::Deny);
        assert_eq!(policy.rules[0].action, Action::Deny);
        assert_eq!(policy.rules[1].action, Action::Allow);
    }
}
