//! A sandbox's settings as plain data, so that they can be given to another process.

use std::path::PathBuf;
use std::time::Duration;

use capsa_core::{Error, Isolation, MemorySize, Result, ShareSpec};
use serde::{Deserialize, Serialize};

use super::Rootfs;
use crate::BackendChoice;

/// What the guest is, and what its commands are started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxConfig {
    pub(crate) name: Option<String>,
    pub(crate) rootfs: Rootfs,
    pub(crate) cpus: u32,
    pub(crate) memory: MemorySize,
    pub(crate) shares: Vec<ShareSpec>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) isolation: Isolation,
    pub(crate) backend: Option<BackendChoice>,
    pub(crate) working_directory: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initramfs: Option<PathBuf>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            name: None,
            rootfs: Rootfs::default(),
            cpus: 1,
            memory: MemorySize::mib(512),
            shares: Vec::new(),
            environment: Vec::new(),
            timeout: None,
            isolation: Isolation::default(),
            backend: None,
            working_directory: None,
            user: None,
            kernel: None,
            initramfs: None,
        }
    }
}

impl SandboxConfig {
    /// Checks what the machine's own builder does not.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(Error::invalid_setting(
                    "env",
                    format!("{name}={value}"),
                    "it is no environment variable",
                    "give a name without `=`, and neither name nor value with a NUL",
                ));
            }
        }
        for share in &self.shares {
            let path = &share.guest_path;
            if !path.is_absolute() || path.parent().is_none() {
                return Err(Error::invalid_setting(
                    "share",
                    path.display(),
                    "a share is mounted on an absolute path below `/`",
                    "write such as /work; for the root use rootfs",
                ));
            }
        }
        if self.timeout.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::invalid_setting(
                "timeout",
                "0 s",
                "nothing can happen in no time",
                "give more, or leave it away",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")] // where there is another process
    #[test]
    fn settings_survive_the_way_to_another_process() {
        let config = SandboxConfig {
            rootfs: Rootfs::disk("/images/root.ext4"),
            environment: vec![("A".into(), "b=c".into())],
            timeout: Some(Duration::from_millis(1500)),
            backend: Some(BackendChoice::Auto),
            ..SandboxConfig::default()
        };

        let text = serde_json::to_string(&config).unwrap();
        let read: SandboxConfig = serde_json::from_str(&text).unwrap();

        assert_eq!(read.rootfs, config.rootfs);
        assert_eq!(read.timeout, config.timeout);
        assert_eq!(read.environment, config.environment);
    }

    #[test]
    fn senseless_settings_are_refused_by_name() {
        let variable = |name: &str| SandboxConfig {
            environment: vec![(name.into(), String::new())],
            ..SandboxConfig::default()
        };
        let share = |path: &str| SandboxConfig {
            shares: vec![ShareSpec::new("/tmp", path)],
            ..SandboxConfig::default()
        };
        for (config, setting) in [
            (variable("A=B"), "env"),
            (variable(""), "env"),
            (share("work"), "share"),
            (share("/"), "share"),
            (
                SandboxConfig {
                    timeout: Some(Duration::ZERO),
                    ..SandboxConfig::default()
                },
                "timeout",
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(setting), "{error}");
        }
    }
}
