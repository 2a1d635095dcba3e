//! `/etc/hosts` and `/etc/resolv.conf`.
//!
//! Files of a root file system that outlives the guest are not written: one of the guest's memory is
//! laid over each.

use std::fs;
use std::io;
use std::path::Path;

use capsa_agent_protocol::boot::{BootConfig, ResolverConfig, RootChanges};
use rustix::mount::mount_bind;

use super::Warnings;

/// Where files are that are laid over others.
const LAID_OVER: &str = "/run/capsa";
const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
/// Longer ones are not added to.
const MAX_HOSTS_BYTES: u64 = 4 << 20;

pub(super) fn set_up(
    config: &BootConfig,
    resolver: Option<&ResolverConfig>,
    warnings: &mut Warnings,
) {
    let outlives = config
        .root
        .as_ref()
        .is_some_and(|root| matches!(root.changes, RootChanges::Written | RootChanges::Refused));
    if config.host_name.is_some() || !config.hosts.is_empty() {
        let path = Path::new("/etc/hosts");
        let written = put(path, &hosts(config, &present(path)), outlives);
        warnings.check("cannot write /etc/hosts", written);
    }
    if let Some(resolver) = resolver {
        let path = Path::new("/etc/resolv.conf");
        let written = put(path, &resolv_conf(resolver), outlives);
        warnings.check("cannot write /etc/resolv.conf", written);
    }
}

fn present(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= MAX_HOSTS_BYTES => fs::read(path)
            .map(|content| String::from_utf8_lossy(&content).into_owned())
            .unwrap_or_default(),
        _ => String::new(),
    }
}

fn hosts(config: &BootConfig, present: &str) -> String {
    let mut text = present.to_owned();
    if text.trim().is_empty() {
        text = LOCALHOST.to_owned();
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if let Some(name) = &config.host_name {
        text.push_str(&format!("127.0.1.1 {name}\n"));
    }
    for line in &config.hosts {
        text.push_str(&format!("{} {}\n", line.address, line.names.join(" ")));
    }
    text
}

fn resolv_conf(config: &ResolverConfig) -> String {
    let mut text = String::new();
    if !config.search.is_empty() {
        text.push_str(&format!("search {}\n", config.search.join(" ")));
    }
    for server in &config.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !config.options.is_empty() {
        text.push_str(&format!("options {}\n", config.options.join(" ")));
    }
    text
}

fn put(path: &Path, content: &str, outlives: bool) -> io::Result<()> {
    if !outlives {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // A link, to a service that does not run here, say, is replaced.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return fs::write(path, content),
        }
    }
    let name = path.file_name().unwrap_or_default();
    let over = Path::new(LAID_OVER).join(name);
    fs::create_dir_all(LAID_OVER)?;
    fs::write(&over, content)?;
    if path.exists() {
        return Ok(mount_bind(&over, path)?);
    }
    if let Ok(target) = fs::read_link(path) {
        // A link into /run, which is the guest's memory, leads nowhere yet.
        let target = path.parent().unwrap_or(Path::new("/")).join(target);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
    }
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_agent_protocol::boot::HostsLine;

    fn config() -> BootConfig {
        BootConfig {
            host_name: Some("box".into()),
            hosts: vec![HostsLine {
                address: [10, 0, 0, 1].into(),
                names: vec!["a".into(), "b".into()],
            }],
            ..BootConfig::default()
        }
    }

    #[test]
    fn hosts_of_an_image_without_any_begin_with_localhost() {
        let text = hosts(&config(), "");
        assert_eq!(text, format!("{LOCALHOST}127.0.1.1 box\n10.0.0.1 a b\n"));
    }

    #[test]
    fn hosts_of_an_image_are_kept() {
        let text = hosts(&config(), "1.2.3.4 mine");
        assert!(text.starts_with("1.2.3.4 mine\n127.0.1.1 box\n"), "{text}");
    }

    #[test]
    fn resolver_lists_servers_and_domains() {
        let text = resolv_conf(&ResolverConfig {
            servers: vec![[10, 0, 0, 2].into()],
            search: vec!["one".into(), "two".into()],
            options: vec!["ndots:2".into()],
        });
        assert_eq!(
            text,
            "search one two\nnameserver 10.0.0.2\noptions ndots:2\n"
        );
    }
}
