//! The default initramfs: the agent as `/init`, and BusyBox for everything else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa_image::cpio::{Archive, CpioError, Device};

use crate::store::{KernelStore, StoreError, write_atomically};

/// Debian's statically linked BusyBox (package `busybox-static`).
pub const BUSYBOX: &str = "/bin/busybox";
/// Commands that the agent is, and not BusyBox.
const AGENT_COMMANDS: [&str; 4] = ["halt", "poweroff", "reboot", "vsock"];

/// Why no initramfs was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// A program that goes into it is missing or unreadable.
    #[error("cannot read {}: {source}; {fix}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
        /// What to do.
        fix: &'static str,
    },
    /// A program would need libraries that the initramfs has not.
    #[error("{} is not statically linked; {fix}", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// What to do.
        fix: &'static str,
    },
    /// BusyBox does not tell what it can do.
    #[error("{} does not list its commands: {reason}; apt-get install busybox-static", path.display())]
    Busybox {
        /// The program.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The archive cannot be made.
    #[error(transparent)]
    Archive(#[from] CpioError),
    /// The archive cannot be put into the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

const FIX_BUSYBOX: &str = "apt-get install busybox-static";
const FIX_AGENT: &str = "build it with `cargo xtask initramfs`";

/// Makes the default initramfs of `store` from the agent at `agent` and the BusyBox at `busybox`,
/// both statically linked. The same programs give the same bytes.
///
/// # Errors
/// [`InitramfsError`].
pub fn build(store: &KernelStore, agent: &Path, busybox: &Path) -> Result<PathBuf, InitramfsError> {
    let agent = static_program(agent, FIX_AGENT)?;
    let commands = busybox_commands(busybox)?;
    let busybox = static_program(busybox, FIX_BUSYBOX)?;
    let archive = assemble(&agent, &busybox, &commands)?;
    let path = store.default_initramfs();
    // Writing what is there already would only change its time.
    if fs::read(&path).is_ok_and(|present| present == archive) {
        return Ok(path);
    }
    write_atomically(&path, &archive)?;
    Ok(path)
}

fn assemble(agent: &[u8], busybox: &[u8], commands: &[String]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new(Vec::new());
    archive.file("init", 0o755, agent)?;
    // The kernel opens it for init's standard streams.
    archive.device(
        "dev/console",
        0o600,
        Device::Character { major: 5, minor: 1 },
    )?;
    archive.device("dev/null", 0o666, Device::Character { major: 1, minor: 3 })?;
    for (directory, mode) in [
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        archive.directory(directory, mode)?;
    }
    archive.symlink("var/run", "../run")?;
    archive.symlink("var/tmp", "../tmp")?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.symlink("sbin", "bin")?;
    archive.symlink("usr/bin", "../bin")?;
    archive.symlink("usr/sbin", "../bin")?;
    for command in AGENT_COMMANDS {
        archive.symlink(&format!("bin/{command}"), "../init")?;
    }
    for command in commands {
        archive.symlink(&format!("bin/{command}"), "busybox")?;
    }
    archive.finish()
}

/// What BusyBox can do, sorted, without what the agent is.
fn busybox_commands(busybox: &Path) -> Result<Vec<String>, InitramfsError> {
    let failed = |reason: String| InitramfsError::Busybox {
        path: busybox.to_owned(),
        reason,
    };
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("it ended with {}", output.status)));
    }
    let mut commands: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| *name != "busybox" && !AGENT_COMMANDS.contains(name))
        .map(str::to_owned)
        .collect();
    commands.sort();
    commands.dedup();
    if !commands.iter().any(|name| name == "sh") {
        return Err(failed("it has no shell".to_owned()));
    }
    Ok(commands)
}

fn static_program(path: &Path, fix: &'static str) -> Result<Vec<u8>, InitramfsError> {
    let bytes = fs::read(path).map_err(|source| InitramfsError::Program {
        path: path.to_owned(),
        source,
        fix,
    })?;
    if needs_interpreter(&bytes) {
        return Err(InitramfsError::NotStatic {
            path: path.to_owned(),
            fix,
        });
    }
    Ok(bytes)
}

/// Whether a 64-bit ELF program has a segment of type `PT_INTERP`, the name of its dynamic loader.
fn needs_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        elf.get(at..at.checked_add(bytes)?).map(|field| {
            field
                .iter()
                .rev()
                .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        })
    };
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2))
    else {
        return false;
    };
    (0..count).any(|index| {
        (size * index)
            .checked_add(offset)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| number(at, 4))
            == Some(3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busybox() -> &'static Path {
        assert!(
            Path::new(BUSYBOX).exists(),
            "{BUSYBOX} is needed: apt-get install busybox-static"
        );
        Path::new(BUSYBOX)
    }

    #[test]
    fn initramfs_of_the_same_programs_has_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let stores = ["a", "b"].map(|name| KernelStore::at(directory.path().join(name)));

        let paths = stores.map(|store| build(&store, busybox(), busybox()).unwrap());

        assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    }

    #[test]
    fn program_with_a_dynamic_loader_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::at(directory.path());
        let dynamic = std::env::current_exe().unwrap();

        let error = build(&store, &dynamic, busybox()).unwrap_err();

        assert!(matches!(error, InitramfsError::NotStatic { .. }), "{error}");
    }

    #[test]
    fn missing_busybox_names_the_package() {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::at(directory.path());

        let error = build(&store, busybox(), Path::new("/no/busybox")).unwrap_err();

        assert!(error.to_string().contains("busybox-static"), "{error}");
    }
}
