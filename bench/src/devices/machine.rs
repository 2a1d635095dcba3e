//! A monitor with its guest, from boot to end.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::Console;
use crate::process::Process;

/// How long a guest and its monitor may take to end.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) struct Machine {
    console: Console,
    // Ends before its helpers do.
    _monitor: Process,
    _helpers: Vec<Process>,
}

impl Machine {
    /// Boots it. `helpers` end with it.
    pub(crate) fn start(
        command: &[OsString],
        helpers: Vec<Process>,
        limit: Duration,
    ) -> Result<Self> {
        let mut monitor = Process::start(command, Stdio::piped(), Stdio::piped())?;
        let input = monitor.child().stdin.take().context("no input")?;
        let output = monitor.child().stdout.take().context("no output")?;
        let mut machine = Self {
            console: Console::new(input, output, limit),
            _monitor: monitor,
            _helpers: helpers,
        };
        machine
            .console
            .wait_for_guest()
            .context("it did not boot")?;
        Ok(machine)
    }

    /// Runs a command in the guest. Gives what it wrote.
    pub(crate) fn run(&mut self, command: &str) -> Result<String> {
        self.console.run(command)
    }

    /// Runs a command that measures itself. Gives the seconds.
    pub(crate) fn time(&mut self, command: &str) -> Result<f64> {
        let began = Instant::now();
        let output = self.run(command)?;
        let outside = began.elapsed().as_secs_f64();
        let seconds = output
            .lines()
            .find_map(|line| line.strip_prefix("seconds=")?.parse::<f64>().ok())
            .with_context(|| format!("{command} did not say how long it took:\n{output}"))?;
        // A guest whose clock goes wrong would make the monitor look good or bad.
        if seconds > outside * 1.02 {
            bail!("the guest says that {command} took {seconds:.3} s; here {outside:.3} s passed");
        }
        Ok(seconds)
    }

    /// Ends it by the guest's `command`; nothing of it is left after that.
    pub(crate) fn end(mut self, command: &str) -> Result<()> {
        self.console.send(command)?;
        if !self.console.wait_for_end(GRACE) {
            eprintln!("the monitor did not end by itself, and was killed");
        }
        Ok(())
    }
}
