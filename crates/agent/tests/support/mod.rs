//! An agent that serves over Unix sockets, as a process of this test.
#![allow(dead_code)] // each test program uses a part of it

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use capsa_agent_client::{AGENT_PORT, AgentClient, CONTROL_PORT, Command, Control, Output};
use capsa_core::ByteStream;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;

/// Ends a test that hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Agent {
    pub(crate) client: AgentClient,
    pub(crate) control: Control,
    pub(crate) process: Child,
    pub(crate) directory: tempfile::TempDir,
}

impl Agent {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = |port: u32| directory.path().join(port.to_string());
        let listener = UnixListener::bind(port(CONTROL_PORT)).unwrap();
        let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_capsa-agent"))
            .args(["serve", "--directory"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stream, _) = within(listener.accept()).await.unwrap();
        let control = within(Control::accept(Box::new(stream))).await.unwrap();
        let path = port(AGENT_PORT);
        let client = AgentClient::new(move || connect(path.clone()));
        Self {
            client,
            control,
            process,
            directory,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(AGENT_PORT.to_string())
    }

    /// A place for files of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn output(&self, command: Command) -> Output {
        within(self.client.output(command)).await.unwrap()
    }

    /// Resident memory of the agent in KiB, at its most.
    pub(crate) fn peak_memory(&self) -> u64 {
        memory(self.process.id().unwrap(), "VmHWM:")
    }
}

pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn connect(path: PathBuf) -> io::Result<Box<dyn ByteStream>> {
    Ok(Box::new(UnixStream::connect(path).await?))
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it hangs")
}

pub(crate) fn sh(script: &str) -> Command {
    Command::new("sh").argument("-c").argument(script)
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
