//! The same without `async`: each sandbox has a small runtime of its own.
//!
//! ```no_run
//! # fn example() -> Result<(), capsa::SandboxError> {
//! use capsa::{Capsa, blocking::Blocking};
//!
//! let sandbox = Capsa::sandbox().create_blocking()?;
//! let output = sandbox.exec(["uname", "-r"])?;
//! sandbox.files().write("/tmp/kernel", &output.stdout)?;
//! assert_eq!(sandbox.files().read("/tmp/kernel")?, output.stdout);
//! # Ok(())
//! # }
//! ```
//!
//! None of it may be called within an async runtime: it would hold up the thread, and panics, as all
//! that blocks in tokio does.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use capsa_agent_client::{ExitStatus, ExtractOptions, Output, Terminal, TreeSummary};
use capsa_core::{Error, VmExit, VmStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{BootTimings, Forward, IntoCommand, Result, SandboxBuilder};
use crate::handle::StopReport;

/// Makes a [`Sandbox`] of this module.
pub trait Blocking {
    /// Starts it; see [`SandboxBuilder::create`].
    ///
    /// # Errors
    /// As there.
    fn create_blocking(self) -> Result<Sandbox>;
}

impl Blocking for SandboxBuilder {
    fn create_blocking(self) -> Result<Sandbox> {
        Sandbox::with(|| self.create())
    }
}

/// A [sandbox](crate::Sandbox) whose methods block.
#[derive(Debug)]
pub struct Sandbox {
    // Both are there up to the drop.
    inner: Option<super::Sandbox>,
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Sandbox {
    fn with<F>(start: impl FnOnce() -> F) -> Result<Self>
    where
        F: Future<Output = Result<super::Sandbox>>,
    {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("capsa-sandbox")
            .enable_all()
            .build()
            .map_err(|error| Error::io("starting a runtime for the sandbox", error))?;
        let inner = runtime.block_on(start())?;
        Ok(Self {
            inner: Some(inner),
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// See [`Sandbox::attach`](crate::Sandbox::attach).
    ///
    /// # Errors
    /// As there.
    #[cfg(target_os = "linux")]
    pub fn attach(name: &str) -> Result<Self> {
        Self::with(|| super::Sandbox::attach(name))
    }

    fn run<'a, T, F>(&'a self, work: impl FnOnce(&'a super::Sandbox) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'a,
    {
        match &self.inner {
            Some(inner) => self.handle.block_on(work(inner)),
            None => Err(Error::Ended(VmExit::Killed).into()),
        }
    }

    /// See [`Sandbox::exec`](crate::Sandbox::exec).
    ///
    /// # Errors
    /// As there.
    pub fn exec(&self, command: impl IntoCommand) -> Result<Output> {
        let command = command.into_command();
        self.run(|inner| inner.exec(command))
    }

    /// See [`Sandbox::shell`](crate::Sandbox::shell).
    ///
    /// # Errors
    /// As there.
    pub fn shell(&self, script: &str) -> Result<Output> {
        self.exec(["/bin/sh", "-c", script])
    }

    /// See [`Sandbox::spawn`](crate::Sandbox::spawn).
    ///
    /// # Errors
    /// As there.
    pub fn spawn(&self, command: impl IntoCommand) -> Result<Child> {
        let command = command.into_command();
        let child = self.run(|inner| inner.spawn(command))?;
        Ok(Child::new(child, self.handle.clone()))
    }

    /// See [`Sandbox::pty`](crate::Sandbox::pty).
    ///
    /// # Errors
    /// As there.
    pub fn pty(&self, command: impl IntoCommand, size: Terminal) -> Result<Child> {
        self.spawn(command.into_command().terminal(size))
    }

    /// The sandbox's files.
    pub fn files(&self) -> Files<'_> {
        Files(self)
    }

    /// See [`Sandbox::forward`](crate::Sandbox::forward).
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, host: SocketAddr, guest_port: u16) -> Result<Forward> {
        self.run(|inner| inner.forward(host, guest_port))
    }

    /// See [`Sandbox::pause`](crate::Sandbox::pause).
    ///
    /// # Errors
    /// As there.
    pub fn pause(&self) -> Result<()> {
        self.run(super::Sandbox::pause)
    }

    /// See [`Sandbox::resume`](crate::Sandbox::resume).
    ///
    /// # Errors
    /// As there.
    pub fn resume(&self) -> Result<()> {
        self.run(super::Sandbox::resume)
    }

    /// See [`Sandbox::stop`](crate::Sandbox::stop).
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self, grace: Duration) -> Result<StopReport> {
        self.run(|inner| inner.stop(grace))
    }

    /// See [`Sandbox::kill`](crate::Sandbox::kill).
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<()> {
        self.run(super::Sandbox::kill)
    }

    /// See [`Sandbox::wait`](crate::Sandbox::wait).
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<VmExit> {
        self.run(super::Sandbox::wait)
    }

    /// See [`Sandbox::status`](crate::Sandbox::status).
    ///
    /// # Errors
    /// None at present.
    pub fn status(&self) -> Result<VmStatus> {
        self.run(|inner| async { Ok(inner.status().await) })
    }

    /// See [`Sandbox::timings`](crate::Sandbox::timings).
    pub fn timings(&self) -> BootTimings {
        let inner = self.inner.as_ref();
        inner
            .map(|inner| inner.timings().clone())
            .unwrap_or_default()
    }

    /// See [`Sandbox::detach`](crate::Sandbox::detach).
    ///
    /// # Errors
    /// As there.
    #[cfg(target_os = "linux")]
    pub fn detach(mut self) -> Result<()> {
        match self.inner.take() {
            Some(inner) => self.handle.block_on(inner.detach()),
            None => Ok(()),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // What it holds is watched by the runtime, which ends what is left.
        self.inner = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The files of a sandbox; see [`Files`](crate::Files).
#[derive(Clone, Copy, Debug)]
pub struct Files<'a>(&'a Sandbox);

impl Files<'_> {
    /// The content of a file.
    ///
    /// # Errors
    /// [`SandboxError::Agent`](crate::SandboxError::Agent).
    pub fn read(&self, path: impl Into<OsString>) -> Result<Vec<u8>> {
        let path = path.into();
        self.0
            .run(|inner| async move { Ok(inner.files().read(path).await?) })
    }

    /// Makes a file, or replaces its content.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, path: impl Into<OsString>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.into();
        self.0
            .run(|inner| async move { Ok(inner.files().write(path, content).await?) })
    }

    /// See [`Files::copy_in`](crate::Files::copy_in).
    ///
    /// # Errors
    /// As there.
    pub fn copy_in(
        &self,
        from: impl AsRef<Path>,
        to: impl Into<OsString>,
        options: ExtractOptions,
    ) -> Result<TreeSummary> {
        let to = to.into();
        self.0
            .run(|inner| async move { Ok(inner.files().copy_in(from, to, options).await?) })
    }

    /// See [`Files::copy_out`](crate::Files::copy_out).
    ///
    /// # Errors
    /// As there.
    pub fn copy_out(
        &self,
        from: impl Into<OsString>,
        to: impl AsRef<Path>,
        options: ExtractOptions,
    ) -> Result<TreeSummary> {
        let from = from.into();
        self.0
            .run(|inner| async move { Ok(inner.files().copy_out(from, to, options).await?) })
    }
}

/// A [command](crate::Child) that runs. Dropping it ends the command.
#[derive(Debug)]
pub struct Child {
    /// What it reads, if it was piped. Dropping it is the end of its input.
    pub stdin: Option<Stream<capsa_agent_client::ChildStdin>>,
    /// What it writes to standard output.
    pub stdout: Option<Stream<capsa_agent_client::ChildStdout>>,
    /// What it writes to standard error.
    pub stderr: Option<Stream<capsa_agent_client::ChildStderr>>,
    child: capsa_agent_client::Child,
    handle: Handle,
}

impl Child {
    fn new(mut child: capsa_agent_client::Child, handle: Handle) -> Self {
        Self {
            stdin: Stream::new(child.stdin.take(), &handle),
            stdout: Stream::new(child.stdout.take(), &handle),
            stderr: Stream::new(child.stderr.take(), &handle),
            child,
            handle,
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// See [`Child::wait`](crate::Child::wait).
    pub fn wait(&self) -> Result<ExitStatus> {
        Ok(self.handle.block_on(self.child.wait())?)
    }

    /// See [`Child::signal`](crate::Child::signal).
    pub fn signal(&self, number: i32) {
        self.child.signal(number);
    }
}

/// A stream of a command that runs.
#[derive(Debug)]
pub struct Stream<S> {
    stream: S,
    handle: Handle,
}

impl<S> Stream<S> {
    fn new(stream: Option<S>, handle: &Handle) -> Option<Self> {
        stream.map(|stream| Self {
            stream,
            handle: handle.clone(),
        })
    }
}

impl<S: tokio::io::AsyncRead + Unpin> Read for Stream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.stream.read(buffer))
    }
}

impl<S: tokio::io::AsyncWrite + Unpin> Write for Stream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.block_on(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.handle.block_on(self.stream.flush())
    }
}
