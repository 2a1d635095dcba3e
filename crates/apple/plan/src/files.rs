//! Looks at the files that a specification names, so that a mistake is found before anything starts
//! and named in the user's words instead of the framework's.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use capsa_core::{
    BackendKind, BootSpec, DiskAccess, DiskSpec, Error, LinuxBoot, Result, UefiBoot, VmSpec,
};

/// The processor whose code guests run: that of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Apple's own.
    Aarch64,
    /// Intel's.
    X86_64,
}

impl Architecture {
    /// The one that this program was compiled for.
    pub const fn of_this_program() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }
}

/// Checks the kernel, the initramfs, the disks, the shares and the variable store. Blocks for as long
/// as the file system does.
///
/// # Errors
/// [`Error::File`] naming the first that cannot be used; [`Error::Unsupported`] for a disk image in a
/// format that is not raw.
pub fn check_files(spec: &VmSpec, backend: BackendKind, architecture: Architecture) -> Result<()> {
    match &spec.boot {
        BootSpec::Linux(boot) => check_linux(boot, architecture)?,
        BootSpec::Uefi(boot) => check_variable_store(boot)?,
        _ => {}
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        check_disk(&format!("disk {index}"), disk, backend)?;
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let setting = format!("share {index}");
        if !metadata(&setting, &share.host_path)?.is_dir() {
            let fix = "share a directory";
            return Err(Error::file(
                setting,
                &share.host_path,
                "it is not a directory",
                fix,
            ));
        }
    }
    Ok(())
}

fn check_linux(boot: &LinuxBoot, architecture: Architecture) -> Result<()> {
    let refuse = |reason: &str, fix: &str| Err(Error::file("kernel", &boot.kernel, reason, fix));
    let start = start_of("kernel", &boot.kernel)?;
    let compressed = [
        (&b"\x1f\x8b"[..], "gzip -d"),
        (b"\x28\xb5\x2f\xfd", "zstd -d"),
        (b"\xfd7zXZ", "xz -d"),
        (b"\x02\x21\x4c\x18", "lz4 -d"),
    ];
    if let Some((_, program)) = (compressed.iter()).find(|(magic, _)| start.starts_with(magic)) {
        return refuse(
            "the kernel is compressed",
            &format!("unpack it with {program}"),
        );
    }
    let has = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
    // Documentation/arch/arm64/booting.rst and Documentation/arch/x86/boot.rst of the kernel.
    let arm64 = has(56, b"ARM\x64");
    let x86 = has(0x202, b"HdrS");
    match architecture {
        Architecture::Aarch64 if x86 => refuse(
            "this is a kernel for x86-64, and this Mac has an Apple processor",
            "give it an arm64 kernel",
        ),
        Architecture::X86_64 if arm64 => refuse(
            "this is a kernel for arm64, and this Mac has an Intel processor",
            "give it an x86-64 kernel",
        ),
        Architecture::Aarch64 if !arm64 => refuse(
            "this is not an arm64 kernel",
            "give it the uncompressed arch/arm64/boot/Image",
        ),
        Architecture::X86_64 if !x86 => refuse(
            "this is not an x86-64 bzImage",
            "give it arch/x86/boot/bzImage",
        ),
        _ => Ok(()),
    }?;
    match &boot.initramfs {
        Some(initramfs) => start_of("initramfs", initramfs).map(drop),
        None => Ok(()),
    }
}

fn check_variable_store(boot: &UefiBoot) -> Result<()> {
    let Some(store) = &boot.variable_store else {
        return Ok(());
    };
    if store.exists() {
        return start_of("variable_store", store).map(drop);
    }
    let directory = match store.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(Error::file(
            "variable_store",
            store,
            "its directory does not exist",
            "make the directory, or give another path",
        ));
    }
    Ok(())
}

fn check_disk(setting: &str, disk: &DiskSpec, backend: BackendKind) -> Result<()> {
    let start = start_of(setting, &disk.path)?;
    if let Some((_, name)) = [
        (&b"QFI\xfb"[..], "qcow2"),
        (b"KDMV", "VMDK"),
        (b"conectix", "VHD"),
        (b"vhdxfile", "VHDX"),
    ]
    .iter()
    .find(|(magic, _)| start.starts_with(magic))
    {
        return Err(Error::unsupported(
            format!(
                "the disk format {name} ({setting}: {})",
                disk.path.display()
            ),
            backend,
            "convert the image with qemu-img convert -O raw",
        ));
    }
    let length = metadata(setting, &disk.path)?.len();
    if !length.is_multiple_of(512) {
        return Err(Error::file(
            setting,
            &disk.path,
            format!("its size of {length} bytes is not made of whole sectors of 512"),
            "extend it with truncate -s %512",
        ));
    }
    if disk.access == DiskAccess::ReadWrite {
        let opened = File::options().write(true).open(&disk.path);
        opened.map_err(|error| unreadable(setting, &disk.path, &error, "written"))?;
    }
    Ok(())
}

/// The first bytes of a regular file that is not empty.
fn start_of(setting: &str, path: &Path) -> Result<Vec<u8>> {
    if !metadata(setting, path)?.is_file() {
        return Err(Error::file(
            setting,
            path,
            "it is not a regular file",
            "give a file",
        ));
    }
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut start))
        .map_err(|error| unreadable(setting, path, &error, "read"))?;
    if start.is_empty() {
        return Err(Error::file(
            setting,
            path,
            "it is empty",
            "give one with content",
        ));
    }
    Ok(start)
}

fn metadata(setting: &str, path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|error| unreadable(setting, path, &error, "found"))
}

fn unreadable(setting: &str, path: &Path, error: &io::Error, verb: &str) -> Error {
    let fix = match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "give yourself permission to it",
        _ => "check the file and the disk that it is on",
    };
    Error::file(setting, path, format!("it cannot be {verb}: {error}"), fix)
}
