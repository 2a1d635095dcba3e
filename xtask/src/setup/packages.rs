//! Debian packages: which are needed, for what, and how they get here.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{progress, tools};

/// A package, and what shows that what it is for is there, from wherever it came.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    present: Presence,
}

enum Presence {
    Program(&'static str),
    Virtiofsd,
    StaticBusybox,
    File(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package {
        name,
        present: Presence::Program(program),
    }
}

/// What machines run on where KVM is of no use.
pub(crate) const FALLBACK: &[Package] = &[program("qemu-system-x86", "qemu-system-x86_64")];

/// What goes into the default initramfs. What building the kernel needs is the build's own affair.
pub(crate) const GUEST: &[Package] = &[Package {
    name: "busybox-static",
    present: Presence::StaticBusybox,
}];

/// What the lab runs on.
pub(crate) const LAB: &[Package] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    // With QEMU before 8.0 the server is part of `qemu-system-common`, which the line above brings.
    Package {
        name: "virtiofsd",
        present: Presence::Virtiofsd,
    },
];

/// What the lab needs in addition where the user is not root: the right to more than one user number.
pub(crate) const LAB_OF_USER: &[Package] = &[program("uidmap", "newuidmap")];

/// libFuzzer is C++.
pub(crate) const FUZZ: &[Package] = &[program("g++", "g++")];

/// What tests compare results with, what the tests of the network talk with, and what the tests of UEFI
/// boot by and are made of.
pub(crate) const TESTS: &[Package] = &[
    program("qemu-utils", "qemu-img"),
    program("e2fsprogs", "mkfs.ext4"),
    program("iproute2", "ip"),
    program("iputils-ping", "ping"),
    program("curl", "curl"),
    program("iperf3", "iperf3"),
    program("bind9-dnsutils", "dig"),
    program("dnsmasq-base", "dnsmasq"),
    program("isc-dhcp-client", "dhclient"),
    program("ndisc6", "rdisc6"),
    program("nginx-light", "nginx"),
    program("netcat-openbsd", "nc"),
    program("openssl", "openssl"),
    program("tshark", "tshark"),
    Package {
        name: "ovmf",
        present: Presence::File("/usr/share/OVMF/OVMF_CODE_4M.fd"),
    },
    Package {
        name: "systemd-boot-efi",
        present: Presence::File(super::BOOT_LOADER),
    },
    program("mtools", "mcopy"),
    program("e2fsprogs", "mkfs.ext4"),
];

/// Real programs for the soak tests: checkers of disks and shares, servers, and what loads them.
#[cfg(target_os = "linux")]
pub(crate) const SOAK: &[Package] = &[
    program("fio", "fio"),
    program("git", "git"),
    program("stress-ng", "stress-ng"),
    // Where guests find it: not one of the user's own.
    Package {
        name: "python3",
        present: Presence::File("/usr/bin/python3"),
    },
    program("wrk", "wrk"),
    Package {
        name: "postgresql",
        present: Presence::File("/usr/lib/postgresql/15/bin/postgres"),
    },
];

impl Package {
    fn is_present(&self) -> bool {
        match self.present {
            Presence::Program(program) => tools::find(program).is_some(),
            Presence::Virtiofsd => tools::virtiofsd().is_some(),
            Presence::File(path) => Path::new(path).exists(),
            Presence::StaticBusybox => Path::new(capsa_guest::initramfs::BUSYBOX).exists(),
        }
    }
}

/// The names of those that are not there.
pub(crate) fn missing<'a>(wanted: impl Iterator<Item = &'a Package>) -> Vec<String> {
    wanted
        .filter(|package| !package.is_present())
        .map(|package| package.name.to_owned())
        .collect()
}

/// Installs what `missing` names where we are root; else the error has the line to type.
pub(crate) fn install(missing: &dyn Fn() -> Vec<String>) -> Result<()> {
    let names = missing();
    if names.is_empty() {
        return Ok(());
    }
    let list = names.join(" ");
    if tools::find("apt-get").is_none() {
        bail!("these are missing, and there is no apt-get to install them with: {list}");
    }
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {list}");
    if !is_root() {
        bail!("packages are missing; type:\n  sudo sh -c '{by_hand}'");
    }
    let all_known = names.iter().all(|name| candidate(name).is_some());
    let mut installed = if all_known {
        install_known(&names)
    } else {
        Ok(())
    };
    if !all_known || installed.is_err() {
        // Lists may be missing, or name versions that the servers no longer have.
        update_lists()?;
        installed = install_known(&missing());
    }
    installed.with_context(|| format!("cannot install packages; to try it by hand: {by_hand}"))?;
    let mut still = missing();
    if !still.is_empty() {
        // One that was there can have been removed for the sake of another: a `qemu-utils` from another
        // archive than `qemu-system-x86`, for one. Asked for by name it comes from the same.
        install_known(&still)
            .with_context(|| format!("cannot install packages; to try it by hand: {by_hand}"))?;
        still = missing();
    }
    if !still.is_empty() {
        bail!(
            "apt-get found nothing to complain of, but what these packages bring is not there: {}",
            still.join(" ")
        );
    }
    Ok(())
}

/// Installs those of the packages that apt knows: the virtio-fs server has a package of its own only where QEMU does not
/// bring one.
fn install_known(names: &[String]) -> Result<()> {
    let known: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| candidate(name).is_some())
        .collect();
    let step = progress::step(format!("installing packages: {}", known.join(" ")));
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&known);
    apt(&arguments)?;
    step.finish();
    Ok(())
}

/// The version that apt would install.
pub(crate) fn candidate(name: &str) -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["policy", name])
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

pub(crate) fn update_lists() -> Result<()> {
    let step = progress::step("fetching the lists of packages");
    apt(&["update"]).context("cannot fetch the lists of packages")?;
    step.finish();
    Ok(())
}

/// Runs `apt-get`; what it says is part of the error where it fails.
pub(crate) fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Another apt at work is waited for; a server that does not answer is tried again.
    command.args([
        "--quiet=2",
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Acquire::Retries=3",
    ]);
    run(command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Runs a command to its end; what it says is part of the error where it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let program = command.get_program().to_string_lossy();
    bail!(
        "{program} ended with {}; it said:\n{}{}",
        output.status,
        said.trim_end(),
        hint(&said)
    );
}

/// The cause in plain words, for those that people meet.
fn hint(said: &str) -> &'static str {
    const CAUSES: &[(&[&str], &str)] = &[
        (
            &[
                "Could not resolve",
                "Temporary failure resolving",
                "Could not connect",
                "Network is unreachable",
            ],
            "this machine cannot reach Debian's package servers: is it on line, does it need a proxy (http_proxy)?",
        ),
        (&["No space left on device"], "the disk is full"),
        (
            &[
                "Could not get lock",
                "Unable to acquire the dpkg frontend lock",
            ],
            "another apt or dpkg is at work: try again when it has ended",
        ),
        (
            &["Unable to locate package", "has no installation candidate"],
            "apt's sources do not have it: Debian 12's main and security archives do",
        ),
    ];
    CAUSES
        .iter()
        .find(|(signs, _)| signs.iter().any(|sign| said.contains(sign)))
        .map_or("", |(_, cause)| cause)
}

pub(crate) fn is_root() -> bool {
    #[cfg(target_os = "linux")]
    return rustix::process::geteuid().is_root();
    #[cfg(not(target_os = "linux"))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_without_network_says_so() {
        let said = "E: Failed to fetch http://… Temporary failure resolving 'deb.debian.org'";

        assert!(hint(said).contains("cannot reach"));
    }

    #[test]
    fn package_that_is_there_is_not_missing() {
        const THERE: &[Package] = &[program("dash", "sh")];

        assert!(missing(THERE.iter()).is_empty());
    }
}
