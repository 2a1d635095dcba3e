//! What the kernel's command line tells init.
//!
//! | parameter | meaning |
//! |---|---|
//! | `capsa.console=raw` | the console carries bytes, not a person: no echo, no prompt, nothing changed |
//! | `capsa.winsize=ROWSxCOLS` | size of the terminal on the console |
//! | `capsa.term=NAME` | `TERM` of the shell on the console |
//! | `capsa.ready=MARK` | written to the console, with a line feed, once its modes are set and the shell \
//! is about to read it: what is sent earlier may be echoed or lost |
//! | `capsa.hostname=NAME` | the host name, else `capsa` |
//! | `capsa.mac=ADDRESS` | the hardware address of the network interface that is set up |
//! | `capsa.ipv4=ADDRESS/BITS,GATEWAY` | its IPv4 address, and the gateway, which is the DNS server, too |
//! | `capsa.ipv6=ADDRESS/BITS,GATEWAY` | the same for IPv6 |
//! | `capsa.domain=NAME` | the domain that short names are looked up in |
//! | `capsa.agent=wait` | no shell runs on the console: the guest is what the host's boot message and \
//! its commands make of it |
//! | `capsa.mount=TAG:PATH[:ro]` | mount the share TAG on PATH; may come several times; in both, `%` and two \
//! hexadecimal digits are a byte |

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use capsa_agent_protocol::boot::{InterfaceConfig, ResolverConfig};
use rustix::termios::Winsize;

/// The kernel's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The console carries bytes, not a person.
    pub(crate) raw_console: bool,
    /// Rows and columns of the terminal on the console.
    pub(crate) window: Option<(u16, u16)>,
    /// Kind of the terminal on the console.
    pub(crate) terminal: Option<String>,
    /// What is written to the console once it can be used.
    pub(crate) ready_mark: Option<String>,
    /// The host name.
    pub(crate) host_name: Option<String>,
    /// The host sets the guest up: no shell runs on the console.
    pub(crate) wait_for_host: bool,
    /// The network interface that the kernel's command line tells of.
    pub(crate) interface: Option<InterfaceConfig>,
    /// The domain of short names.
    pub(crate) domain: Option<String>,
    /// Shares to mount, in order.
    pub(crate) mounts: Vec<ShareMount>,
}

/// A share of the host and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShareMount {
    pub(crate) tag: OsString,
    pub(crate) place: PathBuf,
    pub(crate) read_only: bool,
}

impl Parameters {
    /// Those of the running kernel; `/proc` must be mounted.
    pub(crate) fn of_this_boot() -> io::Result<Self> {
        fs::read_to_string("/proc/cmdline").map(|line| Self::parse(&line))
    }

    /// The last one of a name counts, as for the kernel's own.
    fn parse(line: &str) -> Self {
        let mut parameters = Self::default();
        for (name, value) in line
            .split_ascii_whitespace()
            .filter_map(|parameter| parameter.split_once('='))
        {
            let value = value.trim_matches('"');
            match name {
                "capsa.console" => parameters.raw_console = value == "raw",
                "capsa.winsize" => parameters.window = window(value),
                "capsa.term" => parameters.terminal = text(value),
                "capsa.ready" => parameters.ready_mark = text(value),
                "capsa.hostname" => parameters.host_name = text(value),
                "capsa.mac" => parameters.interface().mac = mac(value),
                "capsa.ipv4" | "capsa.ipv6" => {
                    if let Some((address, prefix, gateway)) = address(value) {
                        let interface = parameters.interface();
                        interface.addresses.push((address, prefix));
                        interface.gateways.push(gateway);
                    }
                }
                "capsa.domain" => parameters.domain = text(value),
                "capsa.agent" => parameters.wait_for_host = value == "wait",
                "capsa.mount" => parameters.mounts.extend(share_mount(value)),
                _ => {}
            }
        }
        parameters
    }

    fn interface(&mut self) -> &mut InterfaceConfig {
        self.interface.get_or_insert_with(|| InterfaceConfig {
            mac: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            dhcp: false,
        })
    }

    /// Where names are looked up, if the command line tells of a network: the gateways are the servers.
    pub(crate) fn resolver(&self) -> Option<ResolverConfig> {
        let interface = self.interface.as_ref()?;
        Some(ResolverConfig {
            servers: interface.gateways.clone(),
            search: self.domain.iter().cloned().collect(),
            options: Vec::new(),
        })
    }

    /// The size in the form that the terminal takes it.
    pub(crate) fn window_size(&self) -> Option<Winsize> {
        self.window.map(|(rows, columns)| Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        })
    }
}

fn window(value: &str) -> Option<(u16, u16)> {
    let (rows, columns) = value.split_once('x')?;
    let size = (rows.parse().ok()?, columns.parse().ok()?);
    (size.0 > 0 && size.1 > 0).then_some(size)
}

/// Six bytes in hexadecimal with colons between.
fn mac(value: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `ADDRESS/BITS,GATEWAY`.
fn address(value: &str) -> Option<(IpAddr, u8, IpAddr)> {
    let (own, gateway) = value.split_once(',')?;
    let (address, prefix) = own.split_once('/')?;
    let (address, gateway): (IpAddr, IpAddr) = (address.parse().ok()?, gateway.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most)?;
    (address.is_ipv4() == gateway.is_ipv4()).then_some((address, prefix, gateway))
}

fn share_mount(value: &str) -> Option<ShareMount> {
    let mut parts = value.split(':');
    let (tag, place) = (unescape(parts.next()?)?, unescape(parts.next()?)?);
    let read_only = match parts.next() {
        None => false,
        Some("ro") => true,
        Some(_) => return None,
    };
    let mount = ShareMount {
        tag,
        place: place.into(),
        read_only,
    };
    (parts.next().is_none() && mount.place.is_absolute() && !mount.tag.is_empty()).then_some(mount)
}

/// Puts the bytes for `%` and two hexadecimal digits each.
fn unescape(text: &str) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?), char::from(rest.next()?));
        let value = high.to_digit(16)? * 16 + low.to_digit(16)?;
        bytes.push(u8::try_from(value).ok().filter(|byte| *byte != 0)?);
    }
    Some(OsString::from_vec(bytes))
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_among_the_kernels_own_are_found() {
        let line = "console=ttyS0 capsa.console=raw capsa.winsize=24x80 capsa.term=xterm \
                    capsa.ready=GO capsa.hostname=box capsa.agent=wait quiet\n";

        let parameters = Parameters::parse(line);

        assert_eq!(
            parameters,
            Parameters {
                raw_console: true,
                window: Some((24, 80)),
                terminal: Some("xterm".into()),
                ready_mark: Some("GO".into()),
                host_name: Some("box".into()),
                wait_for_host: true,
                ..Parameters::default()
            }
        );
    }

    #[test]
    fn last_parameter_of_a_name_counts() {
        let parameters = Parameters::parse("capsa.console=raw capsa.console=tty");

        assert!(!parameters.raw_console);
    }

    #[test]
    fn mounts_are_kept_in_order_with_their_escapes_undone() {
        let line = "capsa.mount=share0:/mnt:ro capsa.mount=w:/my%20work%3a100%25";

        let mounts = Parameters::parse(line).mounts;

        let mount = |tag: &str, place: &str, read_only| ShareMount {
            tag: tag.into(),
            place: place.into(),
            read_only,
        };
        assert_eq!(
            mounts,
            [
                mount("share0", "/mnt", true),
                mount("w", "/my work:100%", false)
            ]
        );
    }

    #[test]
    fn senseless_mounts_are_passed_over() {
        for value in [
            "",
            "tag",
            "tag:mnt",
            ":/mnt",
            "tag:/mnt:rw",
            "tag:/%4",
            "tag:/%zz",
            "t:/%00",
        ] {
            let parameters = Parameters::parse(&format!("capsa.mount={value}"));
            assert_eq!(parameters.mounts, [], "{value:?}");
        }
    }

    #[test]
    fn senseless_window_sizes_are_passed_over() {
        for value in ["", "24", "x", "0x80", "24x0", "24x80x1", "-1x3", "99999x1"] {
            let parameters = Parameters::parse(&format!("capsa.winsize={value}"));
            assert_eq!(parameters.window, None, "{value:?}");
        }
    }

    #[test]
    fn interface_is_put_together_from_its_parameters() {
        let line = "capsa.mac=52:ca:01:02:03:04 capsa.ipv4=10.0.2.3/24,10.0.2.1 \
                    capsa.ipv6=fd00::3/64,fd00::1 capsa.domain=capsa.internal";

        let parameters = Parameters::parse(line);

        let interface = parameters.interface.as_ref().unwrap();
        assert_eq!(interface.mac, Some([0x52, 0xca, 1, 2, 3, 4]));
        assert_eq!(interface.addresses[0], ("10.0.2.3".parse().unwrap(), 24));
        assert_eq!(interface.addresses[1], ("fd00::3".parse().unwrap(), 64));
        let resolver = parameters.resolver().unwrap();
        assert_eq!(resolver.servers, interface.gateways);
        assert_eq!(resolver.search, ["capsa.internal"]);
    }

    #[test]
    fn addresses_that_make_no_sense_are_passed_over() {
        for value in [
            "",
            "10.0.0.1",
            "10.0.0.1/33,10.0.0.2",
            "10.0.0.1/8,fd00::1",
            "a/8,b",
        ] {
            let parameters = Parameters::parse(&format!("capsa.ipv4={value}"));
            assert_eq!(parameters.interface, None, "{value:?}");
        }
    }
}
