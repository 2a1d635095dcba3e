//! `capsa run` with a root file system or a command: a sandbox.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::{Capsa, Rootfs, Sandbox, SandboxBuilder, ShareAccess};
use clap::Args;

use super::CommandArguments;
use super::stdio::{Carried, carry};
use crate::commands::run::RunArguments;
use crate::commands::run::devices::ShareArgument;
use crate::commands::run::vsock_port;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

/// How long a sandbox may take to write its files when the command has ended.
const GRACE: Duration = Duration::from_secs(10);
/// What runs where there is a terminal and no command.
const SHELL: &str = "/bin/sh";

#[derive(Args)]
pub(crate) struct SandboxArguments {
    /// What the command sees as `/`: a directory, a disk image, `host` or `minimal` [default:
    /// minimal]
    ///
    /// `host` is this machine's own `/`, without what is not for everybody. Changes are thrown away
    /// but for --writable.
    #[arg(value_name = "ROOTFS")]
    rootfs: Option<PathBuf>,
    /// Let changes reach the root directory or disk image itself
    #[arg(long)]
    writable: bool,
    #[command(flatten)]
    how: CommandArguments,
    /// Let it run on in the background; its name is printed
    #[arg(short, long)]
    detach: bool,
    /// Keep nothing of a detached sandbox when it has ended
    #[arg(long)]
    rm: bool,
    /// The command and its arguments, behind `--`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl SandboxArguments {
    /// Whether it is a sandbox that is asked for, and not a machine's console.
    pub(crate) fn is_wanted(&self) -> bool {
        self.rootfs.is_some() || !self.command.is_empty() || self.detach || self.how.tty
    }

    /// Refuses what has no meaning for a machine's console.
    pub(crate) fn check_unused(&self) -> Result<(), Failure> {
        let how = &self.how;
        let given = [
            ("--writable", self.writable),
            ("--interactive", how.interactive),
            ("--env", !how.env.is_empty()),
            ("--workdir", how.workdir.is_some()),
            ("--user", how.user.is_some()),
            ("--rm", self.rm),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(capsa::Error::invalid_setting(
                *option,
                "without a command",
                "it is for sandboxes",
                "add a command, such as `capsa run … -- uname -a`",
            )
            .into()),
            None => Ok(()),
        }
    }

    fn rootfs(&self) -> Rootfs {
        let rootfs = match self.rootfs.as_deref() {
            None => Rootfs::Minimal,
            Some(name) if name == OsStr::new("minimal") => Rootfs::Minimal,
            Some(name) if name == OsStr::new("host") => Rootfs::Host,
            Some(path) if is_image(path) => Rootfs::disk(path),
            Some(path) => Rootfs::directory(path),
        };
        if self.writable {
            rootfs.writable()
        } else {
            rootfs
        }
    }
}

/// Whether something of this machine may have been written to, and must be whole at the end.
fn writes(arguments: &RunArguments) -> bool {
    let mut shares = arguments.shares.iter();
    arguments.sandbox.writable
        || shares.any(|ShareArgument(share)| share.access == ShareAccess::ReadWrite)
}

fn is_image(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() || metadata.file_type().is_block_device())
}

async fn builder(arguments: &RunArguments) -> Result<SandboxBuilder, Failure> {
    let mut builder = Capsa::sandbox()
        .rootfs(arguments.sandbox.rootfs())
        .cpus(arguments.cpus)
        .memory(arguments.memory);
    if let Some(kernel) = &arguments.kernel {
        builder = builder.kernel(kernel);
    }
    match arguments.initrd.as_deref() {
        None => {}
        Some(name) if name == OsStr::new("default") => {}
        Some(file) => builder = builder.initramfs(file),
    }
    if let Some(backend) = arguments.backend {
        builder = builder.backend(backend);
    }
    if let Some(name) = &arguments.name {
        builder = builder.name(name);
    }
    // One in the background is given a name where it has none.
    let name = match arguments.sandbox.detach {
        true => Some(arguments.name.as_deref().unwrap_or_default()),
        false => arguments.name.as_deref(),
    };
    if let Some(interface) = arguments.network.interface(name).await? {
        builder = builder.network(interface);
    }
    for ShareArgument(share) in &arguments.shares {
        builder = builder.share_spec(share.clone());
    }
    Ok(builder)
}

pub(crate) async fn run(arguments: RunArguments) -> Result<ExitStatus, Failure> {
    let given = [
        ("--cmdline", arguments.cmdline.is_some()),
        ("--disk", !arguments.disks.is_empty()),
        ("--vsock", arguments.vsock),
    ];
    if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
        return Err(capsa::Error::invalid_setting(
            *option,
            "with a command",
            "it is for machines without one",
            "leave it away, or run without a command",
        )
        .into());
    }
    // The keeper of one with a name lives on without this process, and connects to nothing.
    let kept = arguments.sandbox.detach || arguments.name.is_some();
    if kept && !arguments.vsock_ports.is_empty() {
        return Err(capsa::Error::invalid_setting(
            "--vsock-port",
            "with --detach or --name",
            "it lasts as long as this command, and a sandbox with a name is another process's",
            "leave one of them away",
        )
        .into());
    }
    let builder = builder(&arguments).await?;
    if arguments.sandbox.detach {
        return detached(builder, &arguments).await;
    }
    let limit = arguments.timeout;
    let attached = attached(builder, &arguments);
    match limit {
        None => attached.await,
        Some(limit) => tokio::time::timeout(limit, attached)
            .await
            .unwrap_or_else(|_| {
                output::to_stderr("the time of --timeout was over, so the sandbox was ended");
                Ok(ExitStatus::TimedOut)
            }),
    }
}

#[cfg_attr(
    not(target_os = "linux"),
    allow(unused_mut, reason = "only Linux changes it")
)]
async fn attached(
    mut builder: SandboxBuilder,
    arguments: &RunArguments,
) -> Result<ExitStatus, Failure> {
    let how = &arguments.sandbox.how;
    #[cfg(target_os = "linux")]
    if arguments.name.is_some() {
        builder = builder.detachable().remove_at_end();
    }
    let sandbox = builder.create().await?;
    warn(&sandbox);
    tracing::info!("{}", sandbox.timings());
    let _forwards = match sandbox.vm() {
        Some(vm) => vsock_port::open(vm, &arguments.vsock_ports).await?,
        None => Vec::new(),
    };
    let shell = [OsString::from(SHELL)];
    let words = match arguments.sandbox.command.as_slice() {
        [] => &shell,
        words => words,
    };
    let child = sandbox.spawn(how.command(words)).await?;
    let status = match carry(child, how.streams()).await? {
        Carried::Ended(status) => status.into(),
        Carried::Broken(status) => status,
    };
    if writes(arguments) {
        let stopped = sandbox.stop(GRACE).await?;
        if stopped.killed {
            output::to_stderr("warning: the sandbox did not shut down in time and was ended");
        }
    } else {
        sandbox.kill().await?;
    }
    Ok(status)
}

#[cfg(not(target_os = "linux"))]
async fn detached(_: SandboxBuilder, _: &RunArguments) -> Result<ExitStatus, Failure> {
    Err(capsa::Error::invalid_setting(
        "--detach",
        "on this system",
        "sandboxes are detached on Linux only",
        "leave it away",
    )
    .into())
}

#[cfg(target_os = "linux")]
async fn detached(
    mut builder: SandboxBuilder,
    arguments: &RunArguments,
) -> Result<ExitStatus, Failure> {
    let options = &arguments.sandbox;
    builder = builder.detachable();
    if options.how.tty || options.how.interactive {
        return Err(capsa::Error::invalid_setting(
            "--detach",
            "with --tty or --interactive",
            "nobody is at the other end of a detached command",
            "detach it without a command, and use `capsa exec -it`",
        )
        .into());
    }
    if !options.command.is_empty() {
        builder = builder.command(options.how.command(&options.command));
    }
    if options.rm {
        builder = builder.remove_at_end();
    }
    if let Some(limit) = arguments.timeout {
        builder = builder.timeout(limit);
    }
    let sandbox = builder.create().await?;
    warn(&sandbox);
    let name = sandbox.name().unwrap_or_default().to_owned();
    sandbox.detach().await?;
    output::to_stdout(&name)?;
    Ok(ExitStatus::Success)
}

fn warn(sandbox: &Sandbox) {
    for warning in sandbox.warnings() {
        output::to_stderr(&format!("warning: {warning}"));
    }
}
