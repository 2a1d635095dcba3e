use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use capsa_apple_plan::{Architecture, check_files};
use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BootSpec, Error, HypervisorBackend, LaunchedVm,
    Result, VmSpec,
};
use capsa_process::Program;

use crate::capabilities::capabilities;
use crate::find::find;
use crate::launch::launch;
use crate::plan::{Surroundings, VfkitPlan};

const INSTALL: &str = "on a Mac, install it: brew install vfkit";
/// How long `vfkit --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(1);

/// Runs VMs by the `vfkit` command, a process for each.
#[derive(Clone, Debug)]
pub struct VfkitBackend {
    program: Option<PathBuf>,
    architecture: Architecture,
}

impl Default for VfkitBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl VfkitBackend {
    /// With the `vfkit` of `CAPSA_VFKIT`, of `PATH` or of Homebrew.
    pub fn new() -> Self {
        Self {
            program: None,
            architecture: Architecture::of_this_program(),
        }
    }

    /// With the program at `path`.
    pub fn with_program(path: impl Into<PathBuf>) -> Self {
        Self {
            program: Some(path.into()),
            ..Self::new()
        }
    }

    fn program(&self) -> Result<PathBuf> {
        find(self.program.as_deref()).ok_or_else(|| {
            let reason = match &self.program {
                Some(path) => format!("there is no vfkit at {}", path.display()),
                None => "vfkit is not installed".to_owned(),
            };
            Error::unavailable(BackendKind::Vfkit, reason, INSTALL)
        })
    }

    /// A plan for a run directory that does not exist yet and the checks of every file.
    async fn check_spec(&self, spec: &VmSpec) -> Result<()> {
        let spec = spec.clone();
        let architecture = self.architecture;
        let check = move || {
            VfkitPlan::new(&spec, &surroundings(&spec, Path::new("/tmp/capsa-vfkit")))?;
            check_files(&spec, BackendKind::Vfkit, architecture)
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|error| Error::io("the check was interrupted", std::io::Error::other(error)))?
    }
}

/// What the plan depends on, with `run_directory` as the place of the sockets.
pub(crate) fn surroundings(spec: &VmSpec, run_directory: &Path) -> Surroundings {
    let store = match &spec.boot {
        BootSpec::Uefi(boot) => boot.variable_store.as_deref(),
        _ => None,
    };
    Surroundings {
        run_directory: run_directory.to_owned(),
        variable_store_exists: store.is_some_and(Path::exists),
    }
}

#[async_trait]
impl HypervisorBackend for VfkitBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Vfkit
    }

    fn capabilities(&self) -> BackendCapabilities {
        capabilities()
    }

    async fn probe(&self) -> Availability {
        let Ok(program) = self.program() else {
            return Availability::absent("vfkit is not installed", INSTALL);
        };
        match version(&program).await {
            Ok(version) => {
                let mut found = Availability::usable(format!("vfkit at {}", program.display()));
                found.version = Some(version);
                found
            }
            Err(reason) => Availability::unusable(reason, INSTALL),
        }
    }

    async fn check(&self, spec: &VmSpec) -> Result<()> {
        self.program()?;
        self.check_spec(spec).await
    }

    async fn launch(&self, spec: &VmSpec) -> Result<LaunchedVm> {
        let program = self.program()?;
        self.check_spec(spec).await?;
        launch(Program::new(program), spec).await
    }
}

/// What `vfkit --version` tells, such as `0.6.1`.
async fn version(program: &Path) -> std::result::Result<String, String> {
    let shown = program.display();
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_LIMIT, output)
        .await
        .map_err(|_| format!("{shown} --version did not end within {VERSION_LIMIT:?}"))?
        .map_err(|error| format!("{shown} cannot be started: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
        .ok_or_else(|| format!("{shown} --version gave no version"))
}
