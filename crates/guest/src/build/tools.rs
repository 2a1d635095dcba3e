//! The programs that a kernel build needs, and the Debian packages that have them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::source::{oldest_package, packaged, usable_version};
use super::{BuildError, Progress, SourceChoice};
use crate::Arch;

/// A program or header, and the package that has it.
const NEEDED: &[(&str, &str)] = &[
    ("make", "make"),
    ("gcc", "gcc"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("/usr/include/gelf.h", "libelf-dev"),
    ("/usr/include/stdio.h", "libc6-dev"),
];

/// What the names of the compiler and its companions begin with; nothing for the host's own.
pub(super) fn prefix(arch: Arch) -> &'static str {
    match arch {
        _ if Some(arch) == Arch::host() => "",
        Arch::X86_64 => "x86_64-linux-gnu-",
        Arch::Aarch64 => "aarch64-linux-gnu-",
    }
}

/// The C compiler for `arch`.
pub(super) fn compiler(arch: Arch) -> String {
    format!("{}gcc", prefix(arch))
}

/// Checks that everything is there; installs what is missing where we are root.
pub(super) fn ensure(
    arch: Arch,
    source: &SourceChoice,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), BuildError> {
    let compiler = compiler(arch);
    if !prefix(arch).is_empty() && !is_there(&compiler) {
        return Err(BuildError::NoCompiler {
            arch,
            compiler,
            package: match arch {
                Arch::X86_64 => "gcc-x86-64-linux-gnu",
                Arch::Aarch64 => "gcc-aarch64-linux-gnu",
            },
        });
    }
    let missing = missing(source);
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !is_there("apt-get") {
        return Err(BuildError::PackagesMissing {
            command: format!(
                "sudo apt-get install --no-install-recommends {}",
                missing.join(" ")
            ),
        });
    }
    install(&missing, progress)
}

/// The packages that a build from `source` lacks.
pub(super) fn missing(source: &SourceChoice) -> Vec<String> {
    let mut packages: Vec<String> = NEEDED
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| (*package).to_owned())
        .collect();
    if *source == SourceChoice::Package && packaged().is_none() {
        packages.push(source_package().unwrap_or_else(oldest_package));
    }
    packages
}

/// The newest package of sources that apt can install, of those that are new enough. Lists that were
/// not fetched for long may know old ones only.
fn source_package() -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", "^linux-source-[0-9]+[.][0-9]+$"])
        .output()
        .ok()?;
    newest(&String::from_utf8_lossy(&output.stdout))
}

/// The newest usable package of those that `apt-cache search` found, one a line.
fn newest(found: &str) -> Option<String> {
    found
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter_map(|package| usable_version(package).map(|version| (version, package.to_owned())))
        .max()
        .map(|(_, package)| package)
}

fn install(packages: &[String], progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), BuildError> {
    progress(Progress::Step("installing packages"));
    progress(Progress::Line(&packages.join(" ")));
    if apt_install(packages).is_err() {
        // The lists may be missing, or name versions that the servers no longer have.
        apt(&["update".to_owned()])?;
        apt_install(packages)?;
    }
    Ok(())
}

fn apt_install(packages: &[String]) -> Result<(), BuildError> {
    let mut arguments = ["install", "--yes", "--no-install-recommends"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend_from_slice(packages);
    apt(&arguments)
}

fn apt(arguments: &[String]) -> Result<(), BuildError> {
    let failed = |reason: String, output: String| BuildError::Program {
        program: "apt-get".to_owned(),
        reason,
        output,
        tree: "/".into(),
    };
    let output = Command::new("apt-get")
        // Another apt at work is waited for.
        .args(["--quiet=2", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        output.status.to_string(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

/// Whether a program is on the search path, or a file is where its absolute path says.
fn is_there(name: &str) -> bool {
    if name.starts_with('/') {
        return Path::new(name).exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_sources_are_taken_and_old_ones_are_not() {
        let old = "linux-source-6.1 - Linux kernel source for version 6.1 with Debian patches\n";
        let both = format!("{old}linux-source-6.12 - Linux kernel source\n");

        assert_eq!(newest(old), None);
        assert_eq!(newest(&both).as_deref(), Some("linux-source-6.12"));
    }
}
