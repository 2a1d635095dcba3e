//! The monitors' command lines, each as its users would type it, with the console at standard input and output.

use std::ffi::OsString;
use std::path::Path;

/// Kernel parameters that every monitor is given.
pub const PARAMETERS: &str = "console=ttyS0 quiet panic=-1";

/// What a monitor boots, on one CPU.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// An uncompressed vmlinux.
    pub kernel: &'a Path,
    /// Its initial file system.
    pub initramfs: &'a Path,
    /// Its memory in MiB.
    pub memory: u32,
}

/// Capsa on KVM.
pub fn capsa(capsa: &Path, guest: &Guest<'_>) -> Vec<OsString> {
    vec![
        capsa.into(),
        "run".into(),
        "--backend".into(),
        "kvm".into(),
        "--cpus".into(),
        "1".into(),
        "--memory".into(),
        format!("{}M", guest.memory).into(),
        "--kernel".into(),
        guest.kernel.into(),
        "--initrd".into(),
        guest.initramfs.into(),
        "--cmdline".into(),
        PARAMETERS.into(),
    ]
}

/// QEMU's microvm on KVM.
pub fn qemu_microvm(qemu: &Path, guest: &Guest<'_>) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![qemu.into()];
    command.extend(
        [
            "-M",
            "microvm",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-serial",
            "stdio",
            "-append",
        ]
        .map(OsString::from),
    );
    command.push(format!("{PARAMETERS} reboot=t").into());
    command.extend([OsString::from("-m"), format!("{}M", guest.memory).into()]);
    command.extend([OsString::from("-kernel"), guest.kernel.into()]);
    command.extend([OsString::from("-initrd"), guest.initramfs.into()]);
    command
}
