//! What is asked for a guest on a network.

use std::net::{Ipv4Addr, Ipv6Addr};

use capsa_core::{MacAddress, Result};
use capsa_net::{Forward, FrameFormat, GuestConfig, GuestName, LinkConditions, Policy};

use serde::{Deserialize, Serialize};

use super::error;

/// A guest's place on a network, as it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GuestSettings {
    pub(crate) name: Option<String>,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) policy: Policy,
    pub(crate) forwards: Vec<Forward>,
    pub(crate) link: LinkConditions,
}

impl Default for GuestSettings {
    fn default() -> Self {
        Self {
            name: None,
            mac: None,
            ipv4: None,
            ipv6: None,
            policy: Policy::allow_all(),
            forwards: Vec::new(),
            link: LinkConditions::ideal(),
        }
    }
}

impl GuestSettings {
    /// The guest, by its own name, else its VM's with `-` for what no host name has, else `default`.
    ///
    /// # Errors
    /// The name cannot be one of a guest.
    pub(crate) fn config(
        &self,
        network: &str,
        vm: Option<&str>,
        default: &str,
    ) -> Result<GuestConfig> {
        let parse = |name: &str| {
            name.parse::<GuestName>()
                .map_err(|error| error::setting(network, &error))
        };
        let name = match (&self.name, vm.and_then(host_name)) {
            (Some(name), _) => parse(name)?,
            (None, Some(name)) => name,
            (None, None) => parse(default)?,
        };
        Ok(GuestConfig {
            name,
            mac: self.mac,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            policy: self.policy.clone(),
            forwards: self.forwards.clone(),
            link: self.link,
            // Said when it is connected.
            frames: FrameFormat::Datagram,
        })
    }
}

/// A VM's name as a host's; it may have blanks and the like.
fn host_name(vm: &str) -> Option<GuestName> {
    let dashed = vm.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    dashed.trim_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_named_as_it_was_asked_for_or_as_its_vm() {
        let named = GuestSettings {
            name: Some("own".to_owned()),
            ..GuestSettings::default()
        };
        let unnamed = GuestSettings::default();
        for (settings, vm, expected) in [
            (&named, Some("vm"), "own"),
            (&unnamed, Some("Build_box 7."), "build-box-7"),
            (&unnamed, Some("ä"), "default"),
            (&unnamed, Some("host"), "default"),
            (&unnamed, None, "default"),
        ] {
            let config = settings.config("lab", vm, "default").unwrap();

            assert_eq!(config.name.as_str(), expected, "{vm:?}");
        }
    }
}
