use std::time::Duration;

use capsa_core::{
    BackendCapabilities, ConsoleSpec, DiskSpec, Error, Isolation, MemorySize, NetworkSpec, Result,
    ShareSpec, VmSpec, VsockSpec,
};

use crate::boot::{Bootable, LinuxBootConfig, ResolvedBoot};
use crate::choice::{BackendChoice, Candidate, candidates, choose};
use crate::console::ConsoleConfig;
use crate::handle::VmHandle;
use crate::network::Interface;

/// The smallest memory and CPU count that a builder starts from.
const DEFAULT_CPUS: u32 = 1;
const DEFAULT_MEMORY: MemorySize = MemorySize::mib(512);

/// Builds a VM. [`LinuxVmBuilder`](crate::LinuxVmBuilder) and
/// [`UefiVmBuilder`](crate::UefiVmBuilder) are its two kinds; [`Capsa::vm`](crate::Capsa::vm) makes
/// them.
///
/// Nothing is looked at before [`build`](Self::build), which refuses what no backend, or not the
/// chosen one, can honour.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct VmBuilder<B> {
    boot: B,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    name: Option<String>,
    cpus: u32,
    memory: MemorySize,
    console: ConsoleConfig,
    backend: Option<BackendChoice>,
    isolation: Isolation,
    start_timeout: Option<Duration>,
    disks: Vec<DiskSpec>,
    shares: Vec<ShareSpec>,
    /// The guest is told by its agent's boot message where to mount shares.
    mounted_by_agent: bool,
    network: Option<Interface>,
    vsock: Option<VsockSpec>,
    balloon: bool,
    nested_virtualization: bool,
    rosetta: bool,
}

impl<B> VmBuilder<B> {
    pub(crate) fn new(boot: B) -> Self {
        Self {
            boot,
            settings: Settings {
                name: None,
                cpus: DEFAULT_CPUS,
                memory: DEFAULT_MEMORY,
                console: ConsoleConfig::default(),
                backend: None,
                isolation: Isolation::default(),
                start_timeout: None,
                disks: Vec::new(),
                shares: Vec::new(),
                mounted_by_agent: false,
                network: None,
                vsock: None,
                balloon: false,
                nested_virtualization: false,
                rosetta: false,
            },
        }
    }

    /// A name for people: in logs and lists.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// The number of virtual CPUs, 1 to [`MAX_CPUS`](crate::MAX_CPUS); 1 by default.
    pub fn cpus(mut self, count: u32) -> Self {
        self.settings.cpus = count;
        self
    }

    /// The guest's memory, [`MIN_MEMORY`](crate::MIN_MEMORY) to
    /// [`MAX_MEMORY`](crate::MAX_MEMORY); 512 MiB by default.
    pub fn memory(mut self, size: impl Into<MemorySize>) -> Self {
        self.settings.memory = size.into();
        self
    }

    /// The guest's memory in MiB; see [`memory`](Self::memory).
    pub fn memory_mib(self, count: u64) -> Self {
        self.memory(MemorySize::mib(count))
    }

    /// The console.
    pub fn console(mut self, config: ConsoleConfig) -> Self {
        self.settings.console = config;
        self
    }

    /// Which backend runs it. Without a choice here the environment variable `CAPSA_BACKEND`
    /// decides, and without that [`BackendChoice::Auto`].
    pub fn backend(mut self, choice: impl Into<BackendChoice>) -> Self {
        self.settings.backend = Some(choice.into());
        self
    }

    /// How strictly the process that runs the guest is confined.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.isolation = isolation;
        self
    }

    /// How long [`VmHandle::start`] may take; no limit by default.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.settings.start_timeout = Some(limit);
        self
    }

    /// Adds a disk; the guest sees disks in the order in which they are added.
    pub fn disk(mut self, disk: DiskSpec) -> Self {
        self.settings.disks.push(disk);
        self
    }

    /// Adds a shared directory. The default initramfs mounts it at its guest path; another init
    /// mounts it by its tag: `mount -t virtiofs share0 /mnt`.
    pub fn share(mut self, share: ShareSpec) -> Self {
        self.settings.shares.push(share);
        self
    }

    /// Tells the guest by its boot message where shares are mounted, not by kernel parameters.
    pub(crate) fn mounted_by_agent(mut self) -> Self {
        self.settings.mounted_by_agent = true;
        self
    }

    /// Gives the guest a network interface: to a network of its own
    /// ([`Interface::user_nat`](crate::network::Interface::user_nat)) or to one that it shares with
    /// others ([`Network::interface`](crate::network::Network::interface)). Without one it has none.
    pub fn network(mut self, interface: impl Into<Interface>) -> Self {
        self.settings.network = Some(interface.into());
        self
    }

    /// Gives the guest a socket device to the host.
    pub fn vsock(mut self, vsock: VsockSpec) -> Self {
        self.settings.vsock = Some(vsock);
        self
    }

    /// Whether the guest has a memory balloon, which also gives the host what the guest frees; see
    /// [`VmHandle::set_balloon_target`] and [`VmHandle::memory_report`].
    pub fn balloon(mut self, balloon: bool) -> Self {
        self.settings.balloon = balloon;
        self
    }

    /// Whether the guest may run virtual machines of its own.
    pub fn nested_virtualization(mut self, nested: bool) -> Self {
        self.settings.nested_virtualization = nested;
        self
    }

    /// Whether the guest gets Apple's translator for x86-64 Linux programs, as a directory share
    /// tagged `rosetta`.
    pub fn rosetta(mut self, rosetta: bool) -> Self {
        self.settings.rosetta = rosetta;
        self
    }
}

impl VmBuilder<LinuxBootConfig> {
    /// Adds kernel parameters, parted by blanks. They win over Capsa's defaults of the same name.
    pub fn cmdline(mut self, parameters: impl AsRef<str>) -> Self {
        let line = &mut self.boot.parameters;
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(parameters.as_ref());
        self
    }
}

impl<B: Bootable> VmBuilder<B> {
    /// Finds the files, chooses the backend and checks every setting, the files included. Starts
    /// nothing.
    ///
    /// # Errors
    /// Each names the setting and the fix: [`Error::InvalidSetting`], [`Error::CommandLine`],
    /// [`Error::File`], [`Error::Unsupported`], [`Error::BackendUnavailable`],
    /// [`Error::NoBackend`].
    pub async fn build(self) -> Result<VmHandle> {
        let choice = BackendChoice::resolve(self.settings.backend)?;
        self.build_from(candidates(), choice).await
    }

    /// [`build`](Self::build) and [`VmHandle::start`] in one.
    ///
    /// # Errors
    /// Of both.
    pub async fn start(self) -> Result<VmHandle> {
        let vm = self.build().await?;
        vm.start().await?;
        Ok(vm)
    }

    pub(crate) async fn build_from(
        self,
        candidates: &[Candidate],
        choice: BackendChoice,
    ) -> Result<VmHandle> {
        let Self { boot, settings } = self;
        settings.console.check()?;
        let boot = tokio::task::spawn_blocking(|| boot.resolve())
            .await
            .map_err(|error| Error::io("looking for the kernel", error.into()))??;
        let (network, oddities) = match &settings.network {
            Some(interface) => {
                let (spec, warnings) = interface.check(settings.name.as_deref())?;
                (Some(spec), warnings)
            }
            None => (None, Vec::new()),
        };
        let spec = |capabilities: &BackendCapabilities| {
            settings.spec(&boot, network.as_ref(), capabilities)
        };
        // What no backend could honour is refused before one is looked for.
        spec(&BackendCapabilities::default())?.check()?;
        let mut chosen = choose(candidates, choice, spec).await?;
        chosen.warnings.extend(oddities);
        Ok(VmHandle::new(
            chosen.spec,
            chosen.backend,
            &settings.console,
            settings.network,
            chosen.warnings,
        ))
    }
}

impl Settings {
    fn spec(
        &self,
        boot: &ResolvedBoot,
        network: Option<&NetworkSpec>,
        capabilities: &BackendCapabilities,
    ) -> Result<VmSpec> {
        let mounted = match self.mounted_by_agent {
            true => &[],
            false => self.shares.as_slice(),
        };
        let (boot, input) = boot.spec(capabilities, self.console.enabled, mounted)?;
        Ok(VmSpec {
            name: self.name.clone(),
            cpus: self.cpus,
            memory: self.memory,
            boot,
            console: ConsoleSpec {
                enabled: self.console.enabled,
                input,
                window_size: self.console.window_size,
            },
            disks: self.disks.clone(),
            shares: self.shares.clone(),
            network: network.cloned(),
            vsock: self.vsock.clone(),
            balloon: self.balloon,
            nested_virtualization: self.nested_virtualization,
            rosetta: self.rosetta,
            isolation: self.isolation,
            start_timeout: self.start_timeout,
        })
    }
}
