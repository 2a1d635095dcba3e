use std::path::PathBuf;
use std::time::Duration;

use capsa_core::{Isolation, MemorySize, ShareAccess, ShareSpec};

use super::config::SandboxConfig;
use super::{Result, Rootfs, Sandbox, start};
use crate::BackendChoice;
use crate::network::Interface;

/// Builds a [`Sandbox`]; [`Capsa::sandbox`](crate::Capsa::sandbox) makes it. Nothing is looked at
/// before [`create`](Self::create).
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until it creates a sandbox"]
pub struct SandboxBuilder {
    pub(super) config: SandboxConfig,
    pub(super) network: Option<Interface>,
    #[cfg(target_os = "linux")]
    pub(super) detached: super::detached::Options,
}

impl SandboxBuilder {
    /// What its commands see as `/`; [`Rootfs::Minimal`] by default. A path stands for
    /// [`Rootfs::directory`].
    pub fn rootfs(mut self, rootfs: impl Into<Rootfs>) -> Self {
        self.config.rootfs = rootfs.into();
        self
    }

    /// The number of virtual CPUs, 1 to [`MAX_CPUS`](crate::MAX_CPUS); 1 by default.
    pub fn cpus(mut self, count: u32) -> Self {
        self.config.cpus = count;
        self
    }

    /// Its memory, [`MIN_MEMORY`](crate::MIN_MEMORY) to [`MAX_MEMORY`](crate::MAX_MEMORY); 512 MiB
    /// by default. A layer that is thrown away takes up to half of it.
    pub fn memory(mut self, size: impl Into<MemorySize>) -> Self {
        self.config.memory = size.into();
        self
    }

    /// Its memory in MiB; see [`memory`](Self::memory).
    pub fn memory_mib(self, count: u64) -> Self {
        self.memory(MemorySize::mib(count))
    }

    /// Mounts a directory of the host at a path of the sandbox.
    pub fn share(
        self,
        host_path: impl Into<PathBuf>,
        guest_path: impl Into<PathBuf>,
        access: ShareAccess,
    ) -> Self {
        let mut share = ShareSpec::new(host_path, guest_path);
        share.access = access;
        self.share_spec(share)
    }

    /// Mounts a directory of the host, with all that can be said of it.
    pub fn share_spec(mut self, share: ShareSpec) -> Self {
        self.config.shares.push(share);
        self
    }

    /// Sets an environment variable of every command.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.environment.push((name.into(), value.into()));
        self
    }

    /// A name: its host name and, where it is [detachable](Self::detachable), what others find it
    /// by.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// Gives it a network interface; none by default. One that is
    /// [detachable](Self::detachable) can have one to a network of its own or to a
    /// [kept](crate::network::NetworkBuilder::keep) one.
    pub fn network(mut self, interface: impl Into<Interface>) -> Self {
        self.network = Some(interface.into());
        self
    }

    /// Ends it when this time is over, counted from [`create`](Self::create). No limit by default.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.config.timeout = Some(limit);
        self
    }

    /// How strictly the process that runs the guest is confined.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.config.isolation = isolation;
        self
    }

    /// Which backend runs it; see [`LinuxVmBuilder::backend`](crate::LinuxVmBuilder::backend).
    pub fn backend(mut self, choice: impl Into<BackendChoice>) -> Self {
        self.config.backend = Some(choice.into());
        self
    }

    /// The directory in which commands start that name none; else the user's home.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.config.working_directory = Some(path.into());
        self
    }

    /// The user of commands that name none: `USER`, `UID`, `USER:GROUP` or `UID:GID`; else root.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.config.user = Some(user.into());
        self
    }

    /// Boots this kernel instead of the default one; see
    /// [`LinuxBootConfig::kernel`](crate::LinuxBootConfig::kernel).
    pub fn kernel(mut self, kernel: impl Into<PathBuf>) -> Self {
        self.config.kernel = Some(kernel.into());
        self
    }

    /// Boots this initramfs instead of the default one. Its init must be Capsa's agent.
    pub fn initramfs(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.initramfs = Some(file.into());
        self
    }

    /// Starts it. On return it takes commands; dropping the future ends what was started.
    ///
    /// # Errors
    /// Those of [`LinuxVmBuilder::build`](crate::LinuxVmBuilder::build);
    /// [`Error::Start`](crate::Error::Start) with the phase that failed, the end of the console and a
    /// hint; [`Error::Timeout`](crate::Error::Timeout).
    pub async fn create(self) -> Result<Sandbox> {
        #[cfg(target_os = "linux")]
        if self.detached.wanted {
            return super::detached::create(self).await;
        }
        let started = start::start(&self.config, self.network).await?;
        Ok(Sandbox::own(started, self.config))
    }
}
