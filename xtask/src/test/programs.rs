//! Which test programs there are, and on which backends each is to run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::FEATURES;
use crate::workspace::cargo;

/// Where a virtual machine's tests run; the value of `CAPSA_TEST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    Kvm,
    Qemu,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Kvm => "kvm",
            Backend::Qemu => "qemu",
        }
    }
}

/// One run of one test program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    /// What people call it: `capsa-core`, `capsa boot [kvm]`.
    pub(crate) label: String,
    pub(crate) executable: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// The package's folder, in which Cargo too runs its tests.
    pub(crate) directory: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) backend: Option<Backend>,
    /// Ended, and counted as a failure, after so many seconds.
    pub(crate) limit_seconds: u64,
}

const UNIT_LIMIT_SECONDS: u64 = 900;
const VM_LIMIT_SECONDS: u64 = 900;

/// What `cargo metadata` tells of a package.
#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    manifest_path: PathBuf,
    metadata: Option<PackageMetadata>,
}

#[derive(Deserialize)]
struct PackageMetadata {
    /// `[package.metadata.vm-tests]`: the backends of each integration test that starts machines.
    #[serde(rename = "vm-tests", default)]
    vm_tests: BTreeMap<String, Vec<Backend>>,
}

/// The message that Cargo writes for each thing it built; others lack the executable.
#[derive(Deserialize)]
struct Artifact {
    package_id: String,
    target: Target,
    profile: Profile,
    executable: PathBuf,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// What was built.
pub(crate) struct Built {
    pub(crate) programs: Vec<Program>,
    /// The program `capsa`, which its package's tests start.
    pub(crate) command_line: PathBuf,
}

/// Builds all test programs, and the command line that some of them start.
pub(crate) fn build(root: &Path) -> Result<Built> {
    let packages = packages(root)?;
    let artifacts = artifacts(root)?;
    let libraries = library_path()?;
    let command_line = artifacts
        .iter()
        .find(|artifact| !artifact.profile.test && artifact.target.name == "capsa")
        .map(|artifact| artifact.executable.clone())
        .context("Cargo did not build the program capsa along with its tests")?;
    let mut programs = Vec::new();
    for artifact in artifacts
        .into_iter()
        .filter(|artifact| artifact.profile.test)
    {
        let package = packages
            .iter()
            .find(|package| package.id == artifact.package_id)
            .with_context(|| {
                format!(
                    "Cargo built a test of {}, which is no package of this workspace",
                    artifact.package_id
                )
            })?;
        programs.extend(runs(package, &artifact, &libraries)?);
    }
    Ok(Built {
        programs,
        command_line,
    })
}

fn runs(package: &Package, artifact: &Artifact, libraries: &str) -> Result<Vec<Program>> {
    let directory = package
        .manifest_path
        .parent()
        .context("a manifest lies in no folder")?;
    let integration = artifact.target.kind.iter().any(|kind| kind == "test");
    let backends = match &package.metadata {
        Some(metadata) if integration => backends(&metadata.vm_tests, &artifact.target.name),
        _ => &[],
    };
    let name = if integration {
        format!("{} {}", package.name, artifact.target.name)
    } else if artifact.target.kind.iter().any(|kind| kind == "bin") {
        format!("{} (bin {})", package.name, artifact.target.name)
    } else {
        package.name.clone()
    };
    let program = |backend: Option<Backend>| {
        let mut environment = vec![
            (
                "CARGO_MANIFEST_DIR".to_owned(),
                directory.to_string_lossy().into_owned(),
            ),
            ("CARGO_PKG_NAME".to_owned(), package.name.clone()),
            ("CARGO_PKG_VERSION".to_owned(), package.version.clone()),
            ("LD_LIBRARY_PATH".to_owned(), libraries.to_owned()),
        ];
        environment.extend(
            backend.map(|backend| ("CAPSA_TEST_BACKEND".to_owned(), backend.name().to_owned())),
        );
        Program {
            label: backend.map_or_else(
                || name.clone(),
                |backend| format!("{name} [{}]", backend.name()),
            ),
            executable: artifact.executable.clone(),
            // Machines of one test would take the processors from those of another.
            arguments: backend
                .map(|_| "--test-threads=1".to_owned())
                .into_iter()
                .collect(),
            directory: directory.to_owned(),
            environment,
            backend,
            limit_seconds: if backend.is_some() {
                VM_LIMIT_SECONDS
            } else {
                UNIT_LIMIT_SECONDS
            },
        }
    };
    if backends.is_empty() {
        return Ok(vec![program(None)]);
    }
    Ok(backends
        .iter()
        .map(|&backend| program(Some(backend)))
        .collect())
}

/// The entry of the test's own name, else the one for all of the package's integration tests.
fn backends<'a>(table: &'a BTreeMap<String, Vec<Backend>>, test: &str) -> &'a [Backend] {
    table
        .get(test)
        .or_else(|| table.get("all"))
        .map_or(&[], Vec::as_slice)
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Workspace {
        packages: Vec<Package>,
    }
    let output = cargo(root)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata ended with {}", output.status);
    }
    let workspace: Workspace =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")?;
    Ok(workspace.packages)
}

fn artifacts(root: &Path) -> Result<Vec<Artifact>> {
    let mut child = cargo(root)
        .args([
            "test",
            "--workspace",
            "--no-run",
            "--features",
            FEATURES,
            "--message-format=json-render-diagnostics",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let messages = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut artifacts = Vec::new();
    for message in BufReader::new(messages).lines() {
        // Most messages are about something without an executable.
        if let Ok(artifact) = serde_json::from_str::<Artifact>(&message?) {
            artifacts.push(artifact);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the tests do not build: cargo ended with {status}");
    }
    Ok(artifacts)
}

/// Tests of procedural macros are linked to the compiler's own libraries.
fn library_path() -> Result<String> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    Ok(format!(
        "{}/lib",
        String::from_utf8_lossy(&output.stdout).trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integration_test_runs_on_the_backends_of_its_own_entry_before_the_common_one() {
        let table = BTreeMap::from([
            ("all".to_owned(), vec![Backend::Kvm, Backend::Qemu]),
            ("bad_input".to_owned(), vec![]),
        ]);

        assert_eq!(backends(&table, "boot"), [Backend::Kvm, Backend::Qemu]);
        assert_eq!(backends(&table, "bad_input"), []);
    }

    #[test]
    fn unknown_backend_in_a_manifest_is_an_error() {
        let metadata = serde_json::from_str::<PackageMetadata>(r#"{"vm-tests": {"all": ["xen"]}}"#);

        assert!(metadata.is_err());
    }
}
