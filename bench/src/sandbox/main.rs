//! What users wait for: a whole `run` of `/bin/echo`, from nothing to its output, and a whole `exec`
//! of `/bin/true` in a machine that runs. Capsa beside microsandbox: the same root directory, in turn.
//!
//! Run it where KVM works: `cargo xtask lab -- target/release/bench-sandbox …`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Measures `run` and `exec` beside microsandbox.
#[derive(Parser)]
struct Arguments {
    /// The `capsa` command to measure.
    #[arg(long)]
    capsa: PathBuf,
    /// The `msb` command of microsandbox; without it Capsa is measured alone.
    #[arg(long)]
    msb: Option<PathBuf>,
    /// The root directory: with /bin/echo, /bin/true and /bin/sleep.
    #[arg(long)]
    rootfs: PathBuf,
    /// Rounds of `run`.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Rounds of `exec`.
    #[arg(long, default_value_t = 30)]
    execs: usize,
}

/// A command line that is measured.
enum Peer {
    Capsa(PathBuf),
    Microsandbox(PathBuf),
}

/// The name of the machine that `exec` is measured in.
const NAME: &str = "bench-sandbox";

impl Peer {
    fn name(&self) -> &'static str {
        match self {
            Self::Capsa(_) => "capsa",
            Self::Microsandbox(_) => "microsandbox",
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (Self::Capsa(program) | Self::Microsandbox(program)) = self;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, rootfs: &str) -> Result<f64> {
        let words: &[&str] = match self {
            Self::Capsa(_) => &["run", rootfs, "--", "/bin/echo", "HELLO"],
            Self::Microsandbox(_) => &["run", "--no-stdin", rootfs, "--", "/bin/echo", "HELLO"],
        };
        self.timed(words, "HELLO\n")
    }

    fn start(&self, rootfs: &str) -> Result<()> {
        let words: &[&str] = match self {
            Self::Capsa(_) => &["run", "-d", "--name", NAME, rootfs],
            Self::Microsandbox(_) => &["create", "--name", NAME, rootfs],
        };
        let status = self.command(words).stdout(Stdio::null()).status()?;
        if !status.success() {
            bail!("{} cannot start a machine: {status}", self.name());
        }
        Ok(())
    }

    fn exec(&self) -> Result<f64> {
        let words: &[&str] = match self {
            Self::Capsa(_) => &["exec", NAME, "/bin/true"],
            Self::Microsandbox(_) => &["exec", "--no-stdin", NAME, "--", "/bin/true"],
        };
        self.timed(words, "")
    }

    fn end(&self) -> Result<()> {
        let all: [&[&str]; 2] = match self {
            Self::Capsa(_) => [&["stop", NAME], &["rm", "-f", NAME]],
            Self::Microsandbox(_) => [&["stop", NAME], &["rm", NAME]],
        };
        for words in all {
            self.command(words)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
        }
        Ok(())
    }

    fn timed(&self, words: &[&str], expected: &str) -> Result<f64> {
        let began = Instant::now();
        let output = self
            .command(words)
            .output()
            .with_context(|| format!("cannot run {}", self.name()))?;
        let seconds = began.elapsed().as_secs_f64();
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || stdout != expected {
            bail!(
                "{} {}: {}, {stdout:?}, {}",
                self.name(),
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(seconds)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let rootfs = absolute(&arguments.rootfs)?;
    let mut peers = vec![Peer::Capsa(arguments.capsa)];
    peers.extend(arguments.msb.map(Peer::Microsandbox));
    let mut runs = vec![Vec::new(); peers.len()];
    for _ in 0..arguments.runs {
        for (peer, samples) in peers.iter().zip(&mut runs) {
            samples.push(peer.run(&rootfs)?);
        }
    }
    let mut execs = vec![Vec::new(); peers.len()];
    for (peer, samples) in peers.iter().zip(&mut execs) {
        peer.start(&rootfs)?;
        let measured: Result<()> = (0..arguments.execs).try_for_each(|_| {
            samples.push(peer.exec()?);
            Ok(())
        });
        peer.end()?;
        measured?;
    }
    println!("| command | | p50 | p95 | of microsandbox's p50 |");
    println!("|---|---|---|---|---|");
    for (what, samples) in [("run echo", &mut runs), ("exec true", &mut execs)] {
        samples
            .iter_mut()
            .for_each(|samples| samples.sort_by(f64::total_cmp));
        let peer = samples.get(1).map_or(f64::NAN, |samples| at(samples, 50));
        for (name, samples) in peers.iter().map(Peer::name).zip(samples.iter()) {
            let median = at(samples, 50);
            println!(
                "| {what} | {name} | {:.0} ms | {:.0} ms | {:.2} |",
                median * 1000.0,
                at(samples, 95) * 1000.0,
                median / peer
            );
        }
    }
    Ok(())
}

/// The sample below which `percent` of the sorted ones are.
fn at(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() * percent / 100).min(last);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn absolute(path: &Path) -> Result<String> {
    let path = path
        .canonicalize()
        .with_context(|| format!("no root directory at {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}
