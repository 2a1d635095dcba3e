//! The network interface: an Ethernet frame a message, on a socket to the network's process.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use capsa_core::{MacAddress, NetworkSpec, VmSpec};
use capsa_virtio::net::frame_sockets;

use crate::arguments::Arguments;

/// The descriptor that QEMU is given: beyond those of disks, of which there are many.
const SOCKET: RawFd = 99;
/// A guest's hardware address where none is given: it is alone on its network then.
const DEFAULT_MAC: MacAddress = MacAddress([0x52, 0xca, 0, 0, 0, 0x02]);

/// Adds the interface, where there is one. `device` is QEMU's name of it: `virtio-net-device` or
/// `virtio-net-pci`.
pub(crate) fn add(list: &mut Arguments, spec: &VmSpec, device: &str) {
    let Some(network) = &spec.network else {
        return;
    };
    list.add(
        "-netdev",
        format!("dgram,id=network,local.type=fd,local.str={SOCKET}"),
    );
    list.add("-device", device_argument(network, device));
}

fn device_argument(network: &NetworkSpec, device: &str) -> String {
    let mac = network.mac.unwrap_or(DEFAULT_MAC);
    let mtu = network.mtu();
    format!("{device},netdev=network,mac={mac},host_mtu={mtu}")
}

/// The network's end of the interface's socket, and QEMU's with its number.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn sockets(spec: &VmSpec) -> io::Result<Option<(OwnedFd, (RawFd, OwnedFd))>> {
    if spec.network.is_none() {
        return Ok(None);
    }
    let (ours, theirs) = frame_sockets()?;
    Ok(Some((ours, (SOCKET, theirs))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_its_address_and_mtu() {
        let network = NetworkSpec {
            mac: Some("52:54:00:12:34:56".parse().unwrap()),
            mtu: Some(9000),
            ..NetworkSpec::default()
        };

        let argument = device_argument(&network, "virtio-net-device");

        assert_eq!(
            argument,
            "virtio-net-device,netdev=network,mac=52:54:00:12:34:56,host_mtu=9000"
        );
    }
}
