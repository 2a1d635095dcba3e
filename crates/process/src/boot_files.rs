use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use capsa_core::{BackendKind, BootSpec, Error, LinuxBoot, MemorySize, Result, VmSpec};
use capsa_guest::Arch;
use capsa_guest::inspect::{Detail, KernelImage, inspect_reader};

/// The files of a direct Linux boot, opened and checked: what was checked is what boots.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel, at its start.
    pub kernel: File,
    /// What the kernel file is.
    pub image: KernelImage,
    /// The initramfs, if any, at its start.
    pub initramfs: Option<File>,
}

impl BootFiles {
    /// Opens and checks the files that `spec` names, for guests of the architecture `arch`. Blocks
    /// on the file system.
    ///
    /// # Errors
    /// [`Error::File`] naming the setting, [`Error::InvalidSetting`] for a memory in which they do
    /// not fit, [`Error::Unsupported`] for a boot that is not a direct Linux boot.
    pub fn open(spec: &VmSpec, backend: BackendKind, arch: Arch) -> Result<Self> {
        let BootSpec::Linux(boot) = &spec.boot else {
            return Err(Error::unsupported(
                "a boot other than a direct Linux boot",
                backend,
                "boot a Linux kernel directly, with LinuxBootConfig",
            ));
        };
        let files = Self::open_linux(boot, arch)?;
        files.check_fit(spec.memory)?;
        Ok(files)
    }

    fn open_linux(boot: &LinuxBoot, arch: Arch) -> Result<Self> {
        let path = &boot.kernel;
        let mut kernel = open_regular("kernel", path)?;
        let image = inspect_reader(&mut kernel, path, Detail::Headers)
            .and_then(|image| image.require_arch(path, arch).map(|()| image))
            .map_err(|error| {
                let fix = error.kind.fix();
                Error::file("kernel", path, error.kind.to_string(), fix)
            })?;
        kernel
            .rewind()
            .map_err(|error| unreadable("kernel", path, &error))?;
        let initramfs = match &boot.initramfs {
            Some(path) => {
                let file = open_regular("initrd", path)?;
                if length("initrd", &file, path)? == 0 {
                    return Err(Error::file(
                        "initrd",
                        path,
                        "it is empty",
                        "copy or build it again",
                    ));
                }
                Some(file)
            }
            None => None,
        };
        Ok(Self {
            kernel,
            image,
            initramfs,
        })
    }

    fn check_fit(&self, memory: MemorySize) -> Result<()> {
        let initramfs = match &self.initramfs {
            Some(file) => length("initrd", file, Path::new("initrd"))?,
            None => 0,
        };
        let needed = self.image.memory_end.saturating_add(initramfs);
        if needed > memory.as_bytes() {
            let mib = needed.div_ceil(1 << 20);
            return Err(Error::invalid_setting(
                "memory",
                memory,
                format!("the kernel and the initramfs alone take {mib} MiB"),
                format!("ask for more than {mib}M, better twice as much"),
            ));
        }
        Ok(())
    }
}

/// Checks that this host has the memory that a guest may come to use.
///
/// # Errors
/// [`Error::InvalidSetting`] where it has less.
#[cfg(target_os = "linux")]
pub fn check_host_memory(memory: MemorySize) -> Result<()> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit).max(1);
    #[allow(clippy::useless_conversion, reason = "32 bits on some targets")]
    let host = u64::from(info.totalram).saturating_mul(unit);
    if memory.as_bytes() > host {
        let host = MemorySize::mib(host >> 20);
        return Err(Error::invalid_setting(
            "memory",
            memory,
            format!("this host has only {host}"),
            format!("ask for less than {host}"),
        ));
    }
    Ok(())
}

/// Opens a file that must be a regular one, without waiting for the other side of a named pipe.
fn open_regular(setting: &str, path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| unreadable(setting, path, &error))?;
    let kind = file
        .metadata()
        .map_err(|error| unreadable(setting, path, &error))?
        .file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "it is a directory, not a file"
        } else {
            "it is a device, pipe or socket, not a file"
        };
        return Err(Error::file(setting, path, what, "give the path of a file"));
    }
    Ok(file)
}

fn length(setting: &str, file: &File, path: &Path) -> Result<u64> {
    file.metadata()
        .map(|metadata| metadata.len())
        .map_err(|error| unreadable(setting, path, &error))
}

fn unreadable(setting: &str, path: &Path, error: &io::Error) -> Error {
    let (reason, fix) = match error.kind() {
        io::ErrorKind::NotFound => ("there is no such file".to_owned(), "check the path"),
        io::ErrorKind::PermissionDenied => (
            "you are not permitted to read it".to_owned(),
            "make it readable for you, for example with `chmod a+r`, or use a copy",
        ),
        _ => (
            format!("it cannot be read: {error}"),
            "check the file and the disk it lies on",
        ),
    };
    Error::file(setting, path, reason, fix)
}

#[cfg(all(test, target_os = "linux"))] // the tests make a named pipe by a call of Linux
#[allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use std::fs;

    use super::*;

    /// The smallest thing that passes for a kernel: this test binary's own headers do not, so a
    /// refusal is tested for what comes before and instead.
    fn boot(kernel: &Path) -> LinuxBoot {
        LinuxBoot {
            kernel: kernel.to_owned(),
            initramfs: None,
            command_line: String::new(),
        }
    }

    fn refusal(kernel: &Path) -> String {
        match BootFiles::open_linux(&boot(kernel), Arch::X86_64) {
            Err(error @ Error::File { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kernels_that_are_no_files_are_refused_by_setting_and_reason() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, "").unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for (path, reason) in [
            (folder.path().join("missing"), "there is no such file"),
            (folder.path().to_owned(), "it is a directory"),
            (pipe, "pipe"),
            (empty, "it is empty"),
        ] {
            let text = refusal(&path);
            assert!(text.starts_with("kernel: "), "{text}");
            assert!(text.contains(reason), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        assert!(check_host_memory(MemorySize::mib(64)).is_ok());
        let error = check_host_memory(MemorySize::gib(1 << 20)).unwrap_err();
        assert!(error.to_string().starts_with("memory: "), "{error}");
    }
}
