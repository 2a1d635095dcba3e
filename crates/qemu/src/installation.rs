//! Finding QEMU and what it can do.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use capsa_process::{Program, Supervised};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError, Version};

/// The program that is looked for in `PATH`.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The environment variable that names the program instead.
pub const VARIABLE: &str = "CAPSA_QEMU";
/// The oldest version, major and minor, that has what is needed: `x-query-virtio` tells whether a balloon has its driver.
pub const MINIMUM_VERSION: (u32, u32) = (7, 2);

/// A QEMU that can be used.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The program.
    pub program: PathBuf,
    /// Its version, such as `7.2.18`.
    pub version: Version,
    /// Whether it was built with its system call filter.
    pub sandbox: bool,
}

/// Why there is no QEMU that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallationError {
    /// It is not installed.
    #[error("{PROGRAM} is not installed: it is in no directory of PATH")]
    Missing,
    /// The variable names something that is not a program.
    #[error("{VARIABLE} names {}, which is no program that you may execute", .0.display())]
    NotAProgram(PathBuf),
    /// It did not answer.
    #[error("{} cannot be used: {reason}", program.display())]
    Unusable {
        /// The program.
        program: PathBuf,
        /// What happened, with the end of its error output.
        reason: String,
    },
    /// It is too old.
    #[error(
        "{} is QEMU {version}, and {}.{} or newer is needed",
        program.display(), MINIMUM_VERSION.0, MINIMUM_VERSION.1
    )]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: Version,
    },
    /// It was built without the machine that VMs run on.
    #[error("{} has no microvm machine", .0.display())]
    NoMachine(PathBuf),
}

impl InstallationError {
    /// What to do, as one sentence without an end.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Missing => {
                "install it (Debian and Ubuntu: `apt-get install qemu-system-x86`; Fedora: \
                 `dnf install qemu-system-x86-core`), or name the program in CAPSA_QEMU"
            }
            Self::NotAProgram(_) => {
                "let CAPSA_QEMU name a qemu-system-x86_64 program, or unset it to have it found \
                 in PATH"
            }
            Self::Unusable { .. } => "install it again, or name another one in CAPSA_QEMU",
            Self::TooOld { .. } => "install a newer one, or name another one in CAPSA_QEMU",
            Self::NoMachine(_) => {
                "install your distribution's complete package, or name another one in CAPSA_QEMU"
            }
        }
    }

    /// Whether there is something at all.
    pub fn is_present(&self) -> bool {
        !matches!(self, Self::Missing | Self::NotAProgram(_))
    }
}

/// Where QEMU is looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct SearchPath {
    /// The program that the user named.
    pub(crate) named: Option<PathBuf>,
    /// The directories to look through.
    pub(crate) path: Option<OsString>,
}

impl SearchPath {
    pub(crate) fn from_environment() -> Self {
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        Self {
            named: named.map(PathBuf::from),
            path: std::env::var_os("PATH"),
        }
    }

    pub(crate) fn find(&self) -> Result<PathBuf, InstallationError> {
        if let Some(named) = &self.named {
            let absolute = std::path::absolute(named).unwrap_or_else(|_| named.clone());
            return match is_program(&absolute) {
                true => Ok(absolute),
                false => Err(InstallationError::NotAProgram(named.clone())),
            };
        }
        let path = self.path.clone().unwrap_or_default();
        std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(PROGRAM))
            .find(|program| is_program(program))
            .ok_or(InstallationError::Missing)
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl Installation {
    /// Starts the program without a machine and asks it what it is. About 50 ms.
    pub(crate) async fn inspect(program: PathBuf) -> Result<Self, InstallationError> {
        let unusable = |reason: String| InstallationError::Unusable {
            program: program.clone(),
            reason,
        };
        let (child, mut qmp) =
            start_without_machine(&program).map_err(|error| unusable(error.to_string()))?;
        let answers = match ask(&mut qmp).await {
            Ok(answers) => answers,
            Err(error) => {
                child.kill();
                let end = child.ended().await;
                let words = end.last_words.trim();
                return Err(unusable(match words.is_empty() {
                    true => error.to_string(),
                    false => words.to_owned(),
                }));
            }
        };
        drop(qmp);
        child.kill();
        child.ended().await;
        let Answers {
            version,
            machine,
            sandbox,
        } = answers;
        if (version.major, version.minor) < MINIMUM_VERSION {
            return Err(InstallationError::TooOld { program, version });
        }
        if !machine {
            return Err(InstallationError::NoMachine(program));
        }
        Ok(Self {
            program,
            version,
            sandbox,
        })
    }
}

fn start_without_machine(program: &Path) -> io::Result<(Supervised, Qmp)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let (errors, error_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut program = Program::new(program);
    program
        .arguments("-machine none -nodefaults -no-user-config -display none".split(' '))
        .arguments("-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control".split(' '))
        .descriptor(2, error_output)
        .descriptor(3, theirs);
    let child = program.spawn().map_err(|error| error.source)?;
    Ok((Supervised::new(child, Some(errors))?, Qmp::new(ours)?))
}

struct Answers {
    version: Version,
    machine: bool,
    sandbox: bool,
}

async fn ask(qmp: &mut Qmp) -> Result<Answers, QmpError> {
    let version = qmp.negotiate().await?;
    let machines = qmp.execute("query-machines", Value::Null).await?;
    let machine = machines.as_array().is_some_and(|machines| {
        machines
            .iter()
            .any(|machine| machine.get("name").and_then(Value::as_str) == Some("microvm"))
    });
    let option = json!({ "option": "sandbox" });
    let sandbox = match qmp.execute("query-command-line-options", option).await {
        Ok(_) => true,
        Err(QmpError::Refused { .. }) => false,
        Err(error) => return Err(error),
    };
    Ok(Answers {
        version,
        machine,
        sandbox,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join(PROGRAM);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_named_program_wins_and_must_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = program(folder.path(), "#!/bin/sh\n");
        let mut search = SearchPath {
            named: Some(path.clone()),
            path: None,
        };
        assert_eq!(search.find().unwrap(), path);

        search.named = Some(folder.path().to_owned());

        let error = search.find().unwrap_err();
        assert!(matches!(error, InstallationError::NotAProgram(_)));
    }

    #[test]
    fn an_empty_path_has_no_qemu() {
        let folder = tempfile::tempdir().unwrap();
        for path in [None, Some(folder.path().as_os_str().to_owned())] {
            let search = SearchPath { named: None, path };
            assert!(matches!(search.find(), Err(InstallationError::Missing)));
        }
    }

    #[test]
    fn the_first_program_in_the_path_is_taken() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(first.path().join(PROGRAM), "not executable").unwrap();
        let found = program(second.path(), "#!/bin/sh\n");
        let path = std::env::join_paths([first.path(), second.path()]).unwrap();
        let search = SearchPath {
            named: None,
            path: Some(path),
        };
        assert_eq!(search.find().unwrap(), found);
    }

    #[tokio::test]
    async fn a_program_that_is_not_qemu_is_unusable_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = program(
            folder.path(),
            "#!/bin/sh\necho no such option >&2\nexit 1\n",
        );

        let error = Installation::inspect(path).await.unwrap_err();

        assert!(error.to_string().contains("no such option"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_too_old_is_refused_with_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"#!/bin/sh
            echo '{"QMP": {"version": {"qemu": {"major": 6, "minor": 2, "micro": 0}}}}' >&3
            while read line <&3; do
                echo '{"return": []}' >&3
            done"#;
        let path = program(folder.path(), script);

        let error = Installation::inspect(path).await.unwrap_err();

        assert!(
            error
                .to_string()
                .contains("is QEMU 6.2.0, and 7.2 or newer"),
            "{error}"
        );
    }
}
