//! The inner end of a lab run: the first process of the emulated machine. It brings the machine up, runs the command, and
//! says how it ended; the outer end then takes the machine away.

mod command;
mod mounts;
mod network;
mod port;
mod steady_kvm;

use std::convert::Infallible;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::system::RebootCommand;

use super::initramfs;

/// Where programs inside make their temporary files (`TMPDIR`): `/tmp` is the host's.
pub(crate) const TEMPORARY: &str = mounts::TEMPORARY;

pub(crate) fn run() -> Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("lab-init is the first process of the lab's machine, and of use nowhere else");
    }
    let Err(error) = bring_up_and_serve();
    // The console is shown to the user where the machine ends without having told an exit status.
    eprintln!("lab-init: {error:#}");
    power_off()
}

fn bring_up_and_serve() -> Result<Infallible> {
    let ports = port::Arrival::watch().context("cannot watch for the port")?;
    load_modules()?;
    mounts::enter_host_root()?;
    network::bring_up_loopback().context("cannot bring the loopback interface up")?;
    set_up_kernel();
    let _steady = steady_kvm::SteadyMachine::make()?;
    let port = ports.open()?;
    command::serve(port)
}

fn load_modules() -> Result<()> {
    let mut modules: Vec<_> = fs::read_dir(initramfs::MODULES)
        .context("cannot list the modules")?
        .collect::<std::io::Result<_>>()?;
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        let path = module.path();
        let file =
            fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        rustix::system::finit_module(&file, c"", 0)
            .with_context(|| format!("the kernel refused the module {}", path.display()))?;
        // Its memory is of more use to the command.
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// What udev would have done on an ordinary machine. A setting that the kernel does not have is none to miss.
fn set_up_kernel() {
    use std::os::unix::fs::PermissionsExt;
    for device in [
        "/dev/kvm",
        "/dev/net/tun",
        "/dev/fuse",
        "/dev/vhost-vsock",
        "/dev/vhost-net",
    ] {
        let _ = fs::set_permissions(device, fs::Permissions::from_mode(0o666));
    }
    let _ = rustix::system::sethostname(b"capsa-lab");
    let _ = fs::write("/proc/sys/kernel/printk", "1");
}

fn power_off() -> ! {
    rustix::fs::sync();
    // Without power-off support the kernel panics when this process ends, and QEMU ends with it: just as well.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}
