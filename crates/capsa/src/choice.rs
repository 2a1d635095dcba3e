//! Which backend runs a VM.

use std::ffi::OsStr;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BackendReport, Error, HypervisorBackend,
    Result, VmSpec, Warning,
};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

/// The environment variable that names the backend where the program does not.
const VARIABLE: &str = "CAPSA_BACKEND";

/// Which backend is to run a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendChoice {
    /// The first that can be used: hardware virtualization, else software emulation with a warning.
    #[default]
    Auto,
    /// This one, or an error.
    Named(BackendKind),
}

impl From<BackendKind> for BackendChoice {
    fn from(kind: BackendKind) -> Self {
        Self::Named(kind)
    }
}

impl FromStr for BackendChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Named)
    }
}

impl BackendChoice {
    /// The caller's own choice, else the one of the environment, else [`Auto`](Self::Auto).
    pub(crate) fn resolve(explicit: Option<Self>) -> Result<Self> {
        Self::resolve_with(explicit, std::env::var_os(VARIABLE).as_deref())
    }

    fn resolve_with(explicit: Option<Self>, variable: Option<&OsStr>) -> Result<Self> {
        if let Some(choice) = explicit {
            return Ok(choice);
        }
        match variable {
            Some(value) if !value.is_empty() => {
                let value = value.to_string_lossy();
                value.parse().map_err(|error| match error {
                    Error::InvalidSetting {
                        value, reason, fix, ..
                    } => Error::invalid_setting(VARIABLE, value, reason, fix),
                    other => other,
                })
            }
            _ => Ok(Self::Auto),
        }
    }
}

/// A backend of this build, and what its probe found.
pub(crate) struct Candidate {
    backend: Arc<dyn HypervisorBackend>,
    availability: OnceCell<Availability>,
}

impl Candidate {
    #[allow(dead_code, reason = "there are builds without any backend")]
    pub(crate) fn new(backend: impl HypervisorBackend + 'static) -> Self {
        Self {
            backend: Arc::new(backend),
            availability: OnceCell::new(),
        }
    }

    /// Probes once a process: a probe runs a guest for a moment.
    async fn availability(&self) -> &Availability {
        self.availability.get_or_init(|| self.backend.probe()).await
    }

    pub(crate) async fn report(&self) -> BackendReport {
        BackendReport {
            backend: self.backend.kind(),
            availability: self.availability().await.clone(),
            capabilities: self.backend.capabilities(),
        }
    }
}

/// The backends of this build, in the order of preference.
pub(crate) fn candidates() -> &'static [Candidate] {
    static CANDIDATES: LazyLock<Vec<Candidate>> = LazyLock::new(|| {
        Vec::<Candidate>::from([
            #[cfg(all(feature = "linux-kvm", target_os = "linux", target_arch = "x86_64"))]
            Candidate::new(capsa_linux_kvm::KvmBackend::new()),
            #[cfg(all(feature = "macos-subprocess", target_os = "macos"))]
            Candidate::new(capsa_apple_vzd::subprocess_backend(None)),
            #[cfg(all(feature = "macos-native", target_os = "macos"))]
            Candidate::new(capsa_apple_vz::native_backend()),
            #[cfg(all(feature = "vfkit", target_os = "macos"))]
            Candidate::new(capsa_apple_vfkit::VfkitBackend::new()),
            #[cfg(all(feature = "qemu", target_os = "linux"))]
            Candidate::new(capsa_qemu::QemuBackend::new()),
        ])
    });
    &CANDIDATES
}

/// The backend that will run a VM.
pub(crate) struct Chosen {
    pub(crate) backend: Arc<dyn HypervisorBackend>,
    pub(crate) spec: VmSpec,
    pub(crate) warnings: Vec<Warning>,
}

/// Chooses a backend that can honour what `spec_for` makes for its capabilities, and has it check
/// that. Nothing is started.
pub(crate) async fn choose(
    candidates: &[Candidate],
    choice: BackendChoice,
    spec_for: impl Fn(&BackendCapabilities) -> Result<VmSpec>,
) -> Result<Chosen> {
    let fitting = |candidate: &Candidate| -> Result<VmSpec> {
        let capabilities = candidate.backend.capabilities();
        let spec = spec_for(&capabilities)?;
        spec.check()?;
        capabilities.check(candidate.backend.kind(), &spec)?;
        Ok(spec)
    };
    let (candidate, spec, warnings) = match choice {
        BackendChoice::Named(kind) => {
            let candidate = candidates
                .iter()
                .find(|candidate| candidate.backend.kind() == kind)
                .ok_or_else(|| not_in_this_build(kind))?;
            (candidate, fitting(candidate)?, Vec::new())
        }
        BackendChoice::Auto => first_usable(candidates, fitting).await?,
    };
    candidate.backend.check(&spec).await?;
    Ok(Chosen {
        backend: candidate.backend.clone(),
        spec,
        warnings,
    })
}

async fn first_usable(
    candidates: &[Candidate],
    fitting: impl Fn(&Candidate) -> Result<VmSpec>,
) -> Result<(&Candidate, VmSpec, Vec<Warning>)> {
    let mut unusable = Vec::new();
    let mut refusal = None;
    for candidate in candidates {
        if !candidate.availability().await.usable {
            unusable.push(candidate.report().await);
            continue;
        }
        match fitting(candidate) {
            Ok(spec) => {
                let warning = warning(candidate.backend.kind(), &unusable, refusal.as_ref());
                return Ok((candidate, spec, warning.into_iter().collect()));
            }
            Err(error @ Error::Unsupported { .. }) => {
                refusal.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(refusal.unwrap_or(Error::NoBackend(unusable)))
}

/// What the user should know of a choice that is not the first.
fn warning(
    chosen: BackendKind,
    unusable: &[BackendReport],
    refusal: Option<&Error>,
) -> Option<Warning> {
    let reasons: Vec<String> = unusable
        .iter()
        .map(|report| {
            format!(
                "{} cannot be used: {}",
                report.backend, report.availability.reason
            )
        })
        .chain(refusal.map(ToString::to_string))
        .collect();
    if reasons.is_empty() {
        return None;
    }
    let how = match chosen {
        BackendKind::Qemu => {
            " by software emulation, 10 to 20 times slower than hardware virtualization"
        }
        _ => "",
    };
    Some(Warning(format!(
        "{chosen} runs this VM{how}, because {}",
        reasons.join("; ")
    )))
}

fn not_in_this_build(kind: BackendKind) -> Error {
    let (system, feature) = match kind {
        BackendKind::Kvm => ("Linux", "linux-kvm"),
        BackendKind::Qemu => ("Linux", "qemu"),
        BackendKind::Vfkit => ("macOS", "vfkit"),
        BackendKind::MacosNative => ("macOS", "macos-native"),
        _ => ("macOS", "macos-subprocess"),
    };
    Error::unavailable(
        kind,
        "this build of capsa does not have it",
        format!("build for {system} with the feature {feature}, or choose auto"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeBackend;
    use capsa_core::{BootSpec, UefiBoot};

    fn candidate(kind: BackendKind, availability: Availability) -> Candidate {
        Candidate::new(FakeBackend::new(kind).available(availability))
    }

    fn usable(kind: BackendKind) -> Candidate {
        candidate(kind, Availability::usable("it works"))
    }

    fn too_slow() -> Candidate {
        candidate(
            BackendKind::Kvm,
            Availability::unusable("it is emulated itself", "use a machine with hardware"),
        )
    }

    fn spec(_: &BackendCapabilities) -> Result<VmSpec> {
        Ok(VmSpec::new(BootSpec::Uefi(UefiBoot::default())))
    }

    async fn chosen(
        candidates: &[Candidate],
        choice: BackendChoice,
    ) -> Result<(BackendKind, Vec<Warning>)> {
        let chosen = choose(candidates, choice, spec).await?;
        Ok((chosen.backend.kind(), chosen.warnings))
    }

    #[tokio::test]
    async fn auto_takes_the_first_that_is_usable_without_a_warning() {
        let all = [usable(BackendKind::Kvm), usable(BackendKind::Qemu)];
        let found = chosen(&all, BackendChoice::Auto).await.unwrap();
        assert_eq!(found, (BackendKind::Kvm, vec![]));
    }

    #[tokio::test]
    async fn auto_falls_back_to_qemu_with_one_warning_that_says_why_and_how_slow() {
        let all = [too_slow(), usable(BackendKind::Qemu)];
        let (kind, warnings) = chosen(&all, BackendChoice::Auto).await.unwrap();
        assert_eq!((kind, warnings.len()), (BackendKind::Qemu, 1));
        for word in ["kvm", "emulated itself", "10 to 20 times slower"] {
            assert!(warnings[0].0.contains(word), "{warnings:?}");
        }
    }

    #[tokio::test]
    async fn auto_without_a_usable_one_lists_each_with_its_reason() {
        let error = chosen(&[too_slow()], BackendChoice::Auto)
            .await
            .unwrap_err();
        assert!(matches!(&error, Error::NoBackend(reports) if reports.len() == 1));
        assert!(error.to_string().contains("emulated itself"), "{error}");
    }

    #[tokio::test]
    async fn auto_passes_over_one_that_cannot_honour_a_setting() {
        let all = [
            Candidate::new(
                FakeBackend::new(BackendKind::Kvm)
                    .with(|capabilities| capabilities.boot.uefi = false),
            ),
            usable(BackendKind::Qemu),
        ];
        let (kind, warnings) = chosen(&all, BackendChoice::Auto).await.unwrap();
        assert_eq!(kind, BackendKind::Qemu);
        assert!(warnings[0].0.contains("UEFI"), "{warnings:?}");
    }

    #[tokio::test]
    async fn a_named_one_is_taken_without_its_probe() {
        let all = [too_slow(), usable(BackendKind::Qemu)];
        let (kind, _) = chosen(&all, BackendKind::Kvm.into()).await.unwrap();
        assert_eq!(kind, BackendKind::Kvm);
        assert!(!all[0].availability.initialized());
    }

    #[tokio::test]
    async fn a_named_one_that_is_not_built_in_is_refused_with_the_feature() {
        let error = chosen(&[], BackendKind::Vfkit.into()).await.unwrap_err();
        assert!(error.to_string().contains("feature vfkit"), "{error}");
    }

    #[test]
    fn the_variable_counts_only_without_an_explicit_choice() {
        let kvm = Some(OsStr::new("kvm"));
        let resolve = BackendChoice::resolve_with;
        assert_eq!(resolve(None, kvm).unwrap(), BackendKind::Kvm.into());
        assert_eq!(
            resolve(Some(BackendChoice::Auto), kvm).unwrap(),
            BackendChoice::Auto
        );
        assert_eq!(resolve(None, None).unwrap(), BackendChoice::Auto);
        let error = resolve(None, Some(OsStr::new("hyperv")))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("CAPSA_BACKEND: hyperv"), "{error}");
    }
}
