//! What a VM's specification asks of this host, looked at before anything is started.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use capsa_core::{BackendKind, BootSpec, Error, LinuxBoot, MemorySize, Result, VmSpec};
use capsa_guest::inspect;

const KVM: &str = "/dev/kvm";

/// Opens `/dev/kvm`.
///
/// # Errors
/// Why KVM cannot be used here, with the fix.
pub(crate) fn open_kvm() -> Result<OwnedFd> {
    open_kvm_at(Path::new(KVM))
}

fn open_kvm_at(path: &Path) -> Result<OwnedFd> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map(OwnedFd::from).map_err(|error| {
        let path = path.display();
        let (reason, fix) = match error.kind() {
            io::ErrorKind::NotFound => (
                format!("{path} is not there: this kernel has no KVM, or its module is not loaded"),
                "load it with `modprobe kvm-intel` or `modprobe kvm-amd`, switch virtualization \
                 on in the firmware (or nested virtualization in the cloud), or use the qemu \
                 backend",
            ),
            io::ErrorKind::PermissionDenied => (
                format!("{path} may not be opened by this user"),
                "join its group with `sudo usermod -aG kvm $USER` and log in again, or use the \
                 qemu backend",
            ),
            _ => (
                format!("{path} cannot be opened: {error}"),
                "see `dmesg` for what the kernel says of KVM, or use the qemu backend",
            ),
        };
        Error::unavailable(BackendKind::Kvm, reason, fix)
    })
}

/// Checks kernel, initramfs and memory of `spec` against the file system and the host.
///
/// # Errors
/// Names the setting and the fix.
pub(crate) fn check(spec: &VmSpec) -> Result<()> {
    let boot = linux_boot(spec)?;
    let kernel = inspect::inspect_for_host(&boot.kernel)?;
    let initramfs = match &boot.initramfs {
        Some(path) => open_initramfs(path)?.1,
        None => 0,
    };
    let needed = kernel.memory_end.saturating_add(initramfs);
    if needed > spec.memory.as_bytes() {
        return Err(Error::invalid_setting(
            "memory",
            spec.memory,
            format!(
                "the kernel and the initramfs alone take {} MiB",
                needed.div_ceil(1 << 20)
            ),
            format!(
                "ask for at least {}",
                MemorySize::mib(needed.div_ceil(1 << 20) + 16)
            ),
        ));
    }
    check_memory(spec.memory, host_memory()?)
}

/// The Linux boot of `spec`; the backend's capabilities allow no other.
pub(crate) fn linux_boot(spec: &VmSpec) -> Result<&LinuxBoot> {
    match &spec.boot {
        BootSpec::Linux(boot) => Ok(boot),
        _ => Err(Error::unsupported(
            "UEFI boot",
            BackendKind::Kvm,
            "boot a Linux kernel directly, with LinuxBootConfig",
        )),
    }
}

/// Opens an initramfs and tells its length in bytes.
pub(crate) fn open_initramfs(path: &Path) -> Result<(File, u64)> {
    let refuse = |reason: String, fix: &str| Err(Error::file("initramfs", path, reason, fix));
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse("there is no such file".to_owned(), "check the path");
        }
        Err(error) => {
            return refuse(
                format!("it cannot be read: {error}"),
                "make it readable to this user",
            );
        }
    };
    if !metadata.is_file() {
        return refuse("it is not a file".to_owned(), "give a cpio archive");
    }
    if metadata.len() == 0 {
        return refuse(
            "it is empty".to_owned(),
            "give a cpio archive, or none at all",
        );
    }
    Ok((file, metadata.len()))
}

fn check_memory(memory: MemorySize, host: MemorySize) -> Result<()> {
    if memory > host {
        return Err(Error::invalid_setting(
            "memory",
            memory,
            format!("this host has {} MiB in all", host.as_mib()),
            "ask for less than that",
        ));
    }
    Ok(())
}

/// The host's memory, from `/proc/meminfo`.
fn host_memory() -> Result<MemorySize> {
    let mut text = String::new();
    fs::File::open("/proc/meminfo")
        .and_then(|file| file.take(64 << 10).read_to_string(&mut text))
        .map_err(|error| Error::io("cannot read /proc/meminfo", error))?;
    total_of(&text).ok_or_else(|| {
        let unknown = io::Error::other("there is no line MemTotal");
        Error::io("cannot tell this host's memory from /proc/meminfo", unknown)
    })
}

fn total_of(meminfo: &str) -> Option<MemorySize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(MemorySize::bytes(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<impl Sized>) -> String {
        result.map(drop).unwrap_err().to_string()
    }

    #[test]
    fn kvm_missing_names_the_module_and_the_fallback() {
        let text = text(open_kvm_at(Path::new("/nonexistent/kvm")));
        assert!(
            text.contains("modprobe") && text.contains("qemu backend"),
            "{text}"
        );
    }

    #[test]
    fn initramfs_missing_empty_or_a_directory_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, "").unwrap();
        for (path, reason) in [
            (folder.path().join("missing"), "no such file"),
            (empty, "empty"),
            (folder.path().to_owned(), "not a file"),
        ] {
            let text = text(open_initramfs(&path));
            assert!(
                text.starts_with("initramfs: ") && text.contains(reason),
                "{text}"
            );
        }
    }

    #[test]
    fn memory_beyond_the_host_is_refused_with_the_host_s() {
        let text = text(check_memory(MemorySize::gib(9), MemorySize::gib(8)));
        assert!(
            text.contains("memory: 9 GiB") && text.contains("8192 MiB in all"),
            "{text}"
        );
        assert!(check_memory(MemorySize::gib(8), MemorySize::gib(8)).is_ok());
    }

    #[test]
    fn host_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(total_of(text), Some(MemorySize::mib(24)));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!(host_memory().unwrap() > MemorySize::mib(64));
    }
}
