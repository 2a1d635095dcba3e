//! A program that ends with its value here.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A running program, killed and waited for when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it. Should this benchmark be killed, the kernel kills the program, too.
    pub(crate) fn start(command: &[OsString], input: Stdio, output: Stdio) -> Result<Self> {
        let program = command.first().context("an empty command")?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            // Cargo's, which has the dynamic linker look through folders that users have not.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(input)
            .stdout(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self(child))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where the program has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
