//! Everything that decides what a build gives, and its hash.

use std::process::Command;

use sha2::{Digest, Sha256};

use super::BuildError;
use super::source::Source;
use super::tools;
use crate::Arch;
use crate::fingerprint::hex;

/// To be raised with every change of how a kernel is built that shows in nothing else.
const RECIPE: &str = "1";

const COMMON: &str = include_str!("../../../../kernel/common.config");
const X86_64: &str = include_str!("../../../../kernel/x86_64.config");
const AARCH64: &str = include_str!("../../../../kernel/aarch64.config");

/// A configuration, and the hash of everything that goes into a kernel.
pub(super) struct Recipe {
    /// The fragments, in the order in which they are laid over each other.
    pub(super) fragments: [(&'static str, &'static str); 2],
    /// SHA-256, in hexadecimal.
    pub(super) key: String,
}

/// The fragments for `arch`: a name and the text.
pub(super) fn fragments(arch: Arch) -> [(&'static str, &'static str); 2] {
    let own = match arch {
        Arch::X86_64 => ("x86_64.config", X86_64),
        Arch::Aarch64 => ("aarch64.config", AARCH64),
    };
    [("common.config", COMMON), own]
}

impl Recipe {
    pub(super) fn new(arch: Arch, source: &Source) -> Result<Self, BuildError> {
        let fragments = fragments(arch);
        let mut hash = Sha256::new();
        let [common, own] = fragments.map(|(_, text)| options(text));
        let compiler = tools::compiler(arch);
        for part in [
            RECIPE,
            arch.name(),
            &common,
            &own,
            &source.fingerprint()?,
            &version_of(&compiler),
            &version_of("ld"),
        ] {
            // The length keeps the parts apart.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(Self {
            fragments,
            key: hex(&hash.finalize()),
        })
    }
}

/// The lines of a fragment that have an effect: a better comment is no reason to build again.
fn options(fragment: &str) -> String {
    fragment
        .lines()
        .filter(|line| super::config::option(line).is_some())
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The first line of `--version`; empty where the program does not run, which the build will tell.
fn version_of(program: &str) -> String {
    Command::new(program)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .map(str::to_owned)
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_do_not_count() {
        let fragment = "# Words.\n\nCONFIG_A=y\n# CONFIG_B is not set\n";

        assert_eq!(options(fragment), "CONFIG_A=y\n# CONFIG_B is not set\n");
    }
}
