//! The network interfaces of the boot message.

use std::fs;
use std::io;
use std::path::Path;

use capsa_agent_protocol::boot::{InterfaceConfig, ResolverConfig};
use capsa_agent_protocol::{Failure, FailureKind};

use super::dhcp::{self, Lease};
use super::failed;
use crate::network::{self, Link};

/// Where the kernel lists the interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Gives what a DHCP server says about names.
pub(super) fn set_up(interfaces: &[InterfaceConfig]) -> Result<Option<ResolverConfig>, Failure> {
    let mut resolver = None;
    for (index, config) in interfaces.iter().enumerate() {
        let Some(interface) = find(config.mac) else {
            let text = match config.mac {
                Some(mac) => format!("the machine has no interface {}", mac_text(mac)),
                None => "the machine has no network interface".to_owned(),
            };
            return Err(Failure::new(FailureKind::Invalid, text));
        };
        let lease = one(&interface, config)
            .map_err(failed(format!("cannot set up network interface {index}")))?;
        resolver = resolver.or(lease.filter(|lease| !lease.servers.is_empty()));
    }
    Ok(resolver.map(|lease| ResolverConfig {
        servers: lease.servers,
        search: lease.domain.into_iter().collect(),
        options: Vec::new(),
    }))
}

fn one(interface: &Interface, config: &InterfaceConfig) -> io::Result<Option<Lease>> {
    let mut link = Link::open(interface.number)?;
    link.bring_up(config.mtu)?;
    for (address, prefix) in &config.addresses {
        link.add_address(*address, *prefix)?;
    }
    for gateway in &config.gateways {
        link.add_gateway(*gateway)?;
    }
    if !config.dhcp {
        return Ok(None);
    }
    let lease = dhcp::ask(&interface.name, interface.mac)?;
    link.add_address(lease.address.into(), lease.prefix)?;
    if let Some(gateway) = lease.gateway {
        link.add_gateway(gateway.into())?;
    }
    Ok(Some(lease))
}

struct Interface {
    number: u32,
    name: String,
    mac: [u8; 6],
}

/// The one with this address, or the first that is not the loopback interface.
fn find(wanted: Option<[u8; 6]>) -> Option<Interface> {
    let interfaces = fs::read_dir(INTERFACES).ok()?.flatten();
    interfaces
        .filter_map(|entry| {
            let path = entry.path();
            Some(Interface {
                number: read(&path, "ifindex")?.parse().ok()?,
                name: entry.file_name().into_string().ok()?,
                mac: parse_mac(&read(&path, "address")?)?,
            })
        })
        .filter(|interface| match wanted {
            Some(mac) => interface.mac == mac,
            None => interface.number != network::LOOPBACK,
        })
        .min_by_key(|interface| interface.number)
}

fn read(interface: &Path, name: &str) -> Option<String> {
    let content = fs::read_to_string(interface.join(name)).ok()?;
    Some(content.trim().to_owned())
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_address_is_read_as_the_kernel_writes_it() {
        let mac = [2, 0, 0xab, 1, 2, 0xff];
        assert_eq!(parse_mac(&mac_text(mac)), Some(mac));
        for other in ["", "02:00", "02:00:ab:01:02:ff:00", "02:00:ab:01:02:xx"] {
            assert_eq!(parse_mac(other), None);
        }
    }
}
