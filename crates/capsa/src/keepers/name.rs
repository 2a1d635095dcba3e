//! The names by which others find what is kept.

use std::hash::{BuildHasher, RandomState};

use capsa_core::{Error, Result};

/// The longest name in bytes: it is a host name in the guest, too.
pub const MAX_NAME_BYTES: usize = 63;

/// Refuses what is no name of such a kind of thing: a name is also a folder and a host name.
pub(crate) fn check(kind: &str, name: &str) -> Result<()> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if starts_well && name.len() <= MAX_NAME_BYTES && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid_setting(
        "name",
        format!("{name:?}"),
        format!("it is not the name of a {kind}"),
        format!(
            "use 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` and `.`, the first a letter or a \
             digit"
        ),
    ))
}

/// A name for a sandbox that was given none.
pub(crate) fn random() -> String {
    let number = RandomState::new().hash_one(std::process::id());
    format!("sandbox-{:08x}", number & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_folders_and_host_names_pass() {
        for name in ["a", "build-7", "9", "A.b_c", &"x".repeat(63), &random()] {
            assert!(check("sandbox", name).is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(check("sandbox", name).is_err(), "{name}");
        }
    }
}
