//! A compiler that has the standard library for the macOS targets.
//!
//! Debian packages one version of rustc, cargo and clippy together with the library source that
//! belongs to it, so the library can be built for any target. It goes into a sysroot of its own in
//! the cache directory; nothing under `/usr` is changed but by the package manager.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::variable_name;
use crate::cache;

const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];
const NEEDED_FILES: [&str; 4] = [
    "/usr/bin/rustc",
    "/usr/bin/cargo",
    "/usr/bin/clippy-driver",
    "/usr/lib/rustlib/src/rust/library/Cargo.lock",
];

pub(super) struct Toolchain {
    /// Where everything of it is cached.
    pub(super) cache: PathBuf,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Installs what is missing and builds the standard library once for each version of rustc.
    pub(super) fn set_up(targets: &[&str]) -> Result<Self> {
        let _lock = cache::lock("darwin")?;
        install_packages()?;
        let cache = cache::directory()?.join("darwin");
        let toolchain = Self {
            sysroot: cache.join(format!("sysroot-{}", compiler_version()?)),
            cache,
        };
        for target in targets {
            toolchain.build_std(target)?;
        }
        Ok(toolchain)
    }

    /// Debian's cargo, told to use Debian's compiler and the cached library for `target`.
    pub(super) fn cargo(&self, target: &str) -> Command {
        let mut command = debian_cargo();
        command
            .env(
                format!("CARGO_TARGET_{}_RUSTFLAGS", variable_name(target)),
                format!("--sysroot={}", self.sysroot.display()),
            )
            // Debian's compiler is another version: in one folder each would undo the other's work.
            .env("CARGO_TARGET_DIR", target_directory());
        command
    }

    /// The `rust-lld` of the Rust that runs this: it reads and writes Mach-O.
    pub(super) fn linker(&self) -> Result<PathBuf> {
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
        let linker = Path::new(sysroot.trim())
            .join("lib/rustlib")
            .join(host.trim())
            .join("bin/rust-lld");
        if !linker.is_file() {
            bail!(
                "{} is missing: use a Rust toolchain installed by rustup, which brings it",
                linker.display()
            );
        }
        Ok(linker)
    }

    fn build_std(&self, target: &str) -> Result<()> {
        let library = self.sysroot.join("lib/rustlib").join(target).join("lib");
        if library.is_dir() {
            return Ok(());
        }
        println!("darwin: building the standard library for {target} (once, about a minute)");
        let work = tempfile::tempdir().context("cannot make a temporary folder")?;
        let target_dir = work.path().join("target");
        fs::create_dir(work.path().join("src"))?;
        fs::write(work.path().join("src/lib.rs"), "#![no_std]\n")?;
        fs::write(
            work.path().join("Cargo.toml"),
            "[package]\nname = \"mkstd\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
             [profile.release]\nopt-level = 0\ndebug = 0\nincremental = false\ncodegen-units = 16\n",
        )?;
        let status = debian_cargo()
            .current_dir(work.path())
            // -Zbuild-std is reserved for nightly; this compiler and its library belong together.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", &target_dir)
            .args(["build", "--quiet", "--release", "--target", target])
            .arg("-Zbuild-std=std,panic_unwind,panic_abort,proc_macro,test")
            .status()
            .context("cannot start /usr/bin/cargo")?;
        if !status.success() {
            bail!("building the standard library for {target} failed: its messages stand above");
        }
        let finished = self.sysroot.join(format!("{target}.partial"));
        if finished.exists() {
            fs::remove_dir_all(&finished)?;
        }
        fs::create_dir_all(&finished)?;
        for entry in fs::read_dir(target_dir.join(target).join("release/deps"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".rlib") && !name.starts_with("libmkstd-") {
                fs::copy(&path, finished.join(name.as_ref()))?;
            }
        }
        fs::create_dir_all(library.parent().unwrap_or(&self.sysroot))?;
        fs::rename(&finished, &library)?;
        Ok(())
    }
}

/// Where the macOS builds go: `target/darwin`, beside the others.
fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from("target"), PathBuf::from)
        .join("darwin")
}

fn debian_cargo() -> Command {
    let mut command = Command::new("/usr/bin/cargo");
    let mut path = OsString::from("/usr/bin:");
    path.push(env::var_os("PATH").unwrap_or_default());
    command.env("PATH", path).env("RUSTC", "/usr/bin/rustc");
    // What the outer cargo, rustup or the caller set is meant for the other compiler.
    for variable in [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CLIPPY_ARGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(variable);
    }
    command
}

fn install_packages() -> Result<()> {
    if NEEDED_FILES.iter().all(|file| Path::new(file).exists()) {
        return Ok(());
    }
    let line = format!(
        "apt-get install -y --no-install-recommends {}",
        PACKAGES.join(" ")
    );
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this needs Debian's packages {}", PACKAGES.join(", "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("packages are missing; run: sudo {line}");
    }
    println!("darwin: {line}");
    for arguments in [
        vec!["update", "-qq"],
        [
            vec!["install", "-y", "-qq", "--no-install-recommends"],
            PACKAGES.to_vec(),
        ]
        .concat(),
    ] {
        let status = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(&arguments)
            .status()
            .context("cannot start apt-get")?;
        if !status.success() {
            bail!("apt-get {} failed: {status}", arguments.join(" "));
        }
    }
    Ok(())
}

/// Such as `1.96.0`, the name of the sysroot's folder.
fn compiler_version() -> Result<String> {
    let text = output(Command::new("/usr/bin/rustc").arg("--version"))?;
    let version = text.split_whitespace().nth(1).unwrap_or("unknown");
    Ok(version.to_owned())
}

/// What a command printed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{:?} failed ({}): {}",
            command.get_program(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).context("the output is not UTF-8")
}
