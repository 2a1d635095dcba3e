//! Which DNS servers the host uses (resolv.conf(5)), followed as they change.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::Resolver;

/// A configuration beyond this is none.
const MAX_FILE: u64 = 256 << 10;
/// As many as glibc uses.
const MAX_SERVERS: usize = 3;

/// What to ask, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Servers {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) attempts: usize,
}

impl Servers {
    fn parse(text: &str) -> Self {
        let mut servers = Self {
            addresses: Vec::new(),
            search: Vec::new(),
            timeout: Duration::from_secs(3),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(server_address);
                    servers.addresses.extend(address);
                }
                Some("search" | "domain") => {
                    let fits = |word: &&str| {
                        word.len() <= 253 && word.split('.').all(|l| (1..=63).contains(&l.len()))
                    };
                    servers.search = words.filter(fits).take(6).map(str::to_owned).collect();
                }
                Some("options") => {
                    for word in words {
                        let number = |value: &str| {
                            value.parse::<u64>().ok().filter(|n| (1..=30).contains(n))
                        };
                        match word.split_once(':') {
                            Some(("timeout", value)) => {
                                servers.timeout =
                                    number(value).map_or(servers.timeout, Duration::from_secs);
                            }
                            Some(("attempts", value)) => {
                                servers.attempts =
                                    number(value).map_or(servers.attempts, |n| n.min(5) as usize);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        servers.addresses.truncate(MAX_SERVERS);
        if servers.addresses.is_empty() {
            servers
                .addresses
                .push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
        }
        servers
    }
}

fn server_address(word: &str) -> Option<SocketAddr> {
    if let Some((address, zone)) = word.split_once('%') {
        let index = fs::read_to_string(Path::new("/sys/class/net").join(zone).join("ifindex")).ok();
        let index = zone.parse().ok().or_else(|| index?.trim().parse().ok())?;
        return Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into());
    }
    word.parse::<IpAddr>()
        .ok()
        .map(|address| SocketAddr::new(address, 53))
}

/// Follows where answers come from.
#[derive(Debug)]
pub(crate) struct ServerSource {
    resolver: Resolver,
    path: PathBuf,
    stamp: Option<(SystemTime, u64, PathBuf)>,
    current: Servers,
}

impl ServerSource {
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self::at(resolver, Path::new("/etc/resolv.conf"))
    }

    fn at(resolver: Resolver, path: &Path) -> Self {
        let mut source = Self {
            resolver,
            path: path.to_owned(),
            stamp: None,
            current: Servers::parse(""),
        };
        source.refresh();
        source
    }

    /// Looks whether the host's configuration has changed, which a lookup that is not answered from
    /// the cache can afford; whether it has. Where the file is out of reach, because the process was
    /// confined since, what was read last stays in force.
    pub(crate) fn refresh(&mut self) -> bool {
        match &self.resolver {
            Resolver::Servers(addresses) => {
                self.current.addresses = addresses.clone();
                false
            }
            Resolver::None => {
                self.current.addresses.clear();
                false
            }
            Resolver::Host => self.refresh_file().unwrap_or(false),
        }
    }

    fn refresh_file(&mut self) -> Option<bool> {
        let meta = fs::metadata(&self.path).ok()?;
        let target = fs::canonicalize(&self.path).ok()?;
        let stamp = (meta.modified().ok()?, meta.len(), target);
        if self.stamp.as_ref() == Some(&stamp) || meta.len() > MAX_FILE {
            return Some(false);
        }
        let mut servers = Servers::parse(&fs::read_to_string(&self.path).ok()?);
        // systemd-resolved lists its upstream servers there, of which each knows a part of the
        // names only; its own server asks the right one.
        let uplink = Path::new("/run/systemd/resolve/resolv.conf");
        if stamp.2 == uplink && Path::new("/run/systemd/resolve/stub-resolv.conf").exists() {
            servers.addresses = vec![SocketAddr::new(Ipv4Addr::new(127, 0, 0, 53).into(), 53)];
        }
        self.stamp = Some(stamp);
        let changed = servers != self.current;
        self.current = servers;
        Some(changed)
    }

    pub(crate) const fn current(&self) -> &Servers {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let servers = Servers::parse(
            "# made by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver bad\n\
             search corp.example example.com\noptions ndots:2 timeout:1 attempts:4\n",
        );
        assert_eq!(
            servers.addresses,
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse().unwrap()
            ]
        );
        assert_eq!(servers.search, ["corp.example", "example.com"]);
        assert_eq!(
            (servers.timeout, servers.attempts),
            (Duration::from_secs(1), 4)
        );
        assert_eq!(
            Servers::parse("").addresses,
            ["127.0.0.1:53".parse().unwrap()]
        );
    }

    #[test]
    fn changed_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let mut source = ServerSource::at(Resolver::Host, &path);
        assert_eq!(
            source.current().addresses,
            ["192.0.2.1:53".parse().unwrap()]
        );
        assert!(!source.refresh());
        fs::write(&path, "nameserver 192.0.2.22\n").unwrap();
        assert!(source.refresh());
        assert_eq!(
            source.current().addresses,
            ["192.0.2.22:53".parse().unwrap()]
        );
        fs::remove_file(&path).unwrap();
        assert!(!source.refresh());
        assert_eq!(
            source.current().addresses,
            ["192.0.2.22:53".parse().unwrap()]
        );
    }
}
