//! What a sandbox does not see of the host's own root file system.
//!
//! Two rules, both kept by the host, so that the guest's root cannot undo them: what not every user
//! of the host may read is not there (password hashes, private keys, sudo's rules …), and neither
//! are the places below, whatever their modes.

use std::path::PathBuf;

/// People's files, other programs' data, and what the host's kernel tells.
const HIDDEN: &[&str] = &[
    // People.
    "/home",
    "/root",
    "/var/mail",
    "/var/spool",
    // Secrets whose modes are not always what they should be.
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/pki/tls/private",
    "/etc/letsencrypt",
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/etc/krb5.keytab",
    "/etc/NetworkManager/system-connections",
    "/etc/netplan",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/ipsec.secrets",
    "/etc/wpa_supplicant",
    "/etc/docker",
    "/etc/containers/auth.json",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/cron.d",
    "/etc/machine-id",
    "/etc/netrc",
    // Other programs' data.
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/lib/libvirt",
    "/var/lib/mysql",
    "/var/lib/postgresql",
    "/var/lib/systemd",
    "/var/log",
    "/var/backups",
    "/srv",
    "/mnt",
    "/media",
    "/boot",
    "/lost+found",
    // Sockets, running programs, devices: the guest has its own.
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/tmp",
];

/// The places of the host that [`Rootfs::Host`](crate::Rootfs::Host) hides, with all that is below
/// them, besides everything that not every user of the host may read.
pub fn host_rootfs_hidden_paths() -> impl Iterator<Item = &'static str> {
    HIDDEN.iter().copied()
}

/// The same, and the caller's own home, wherever it is.
pub(crate) fn hidden_paths() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute() && home.parent().is_some());
    HIDDEN.iter().map(PathBuf::from).chain(home).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_places_are_absolute_and_listed_once() {
        let all = hidden_paths();
        for (index, path) in all.iter().enumerate().take(HIDDEN.len()) {
            assert!(path.is_absolute(), "{}", path.display());
            assert!(!all[..index].contains(path), "{}", path.display());
        }
    }
}
