use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An amount of memory or storage in bytes.
///
/// Text such as `512M`, `2G`, `1.5G`, `64MiB` or `1073741824` parses; suffixes are binary
/// (`K` is 1,024 bytes) and their case does not matter.
///
/// ```
/// use capsa_core::MemorySize;
/// let size: MemorySize = "1.5G".parse()?;
/// assert_eq!(size, MemorySize::mib(1536));
/// assert_eq!(size.to_string(), "1536 MiB");
/// # Ok::<(), capsa_core::ParseMemorySizeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemorySize(u64);

impl MemorySize {
    /// `count` bytes.
    pub const fn bytes(count: u64) -> Self {
        Self(count)
    }

    /// `count` MiB (1,048,576 bytes each); stays at the largest value where that does not fit.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(MIB))
    }

    /// `count` GiB (1,073,741,824 bytes each); stays at the largest value where that does not fit.
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(GIB))
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The number of whole MiB, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 / MIB
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{} {name}", self.0 / unit);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// Why a text is not a [`MemorySize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: write a number with K, M, G or T behind it, such as 512M or 2G")]
pub struct ParseMemorySizeError {
    text: String,
}

impl FromStr for MemorySize {
    type Err = ParseMemorySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).ok_or_else(|| ParseMemorySizeError {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let unit = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => TIB,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return if number.ends_with('.') {
            None
        } else {
            Some(whole)
        };
    }
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(fraction.len() as u32);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / u128::from(scale);
    whole.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes_are_binary_and_case_does_not_matter() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", KIB),
            ("512M", 512 * MIB),
            ("512MiB", 512 * MIB),
            ("2g", 2 * GIB),
            ("1.5 G", 3 * GIB / 2),
            ("1T", TIB),
        ] {
            assert_eq!(
                text.parse::<MemorySize>().map(MemorySize::as_bytes),
                Ok(bytes),
                "{text}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for text in [
            "",
            "M",
            "-1M",
            "1.M",
            "1.2.3M",
            "12X",
            "1e9",
            "99999999999T",
            ".5G",
            "１M",
        ] {
            let error = text.parse::<MemorySize>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_panic(text in ".{0,24}") {
            let _ = text.parse::<MemorySize>();
        }

        #[test]
        fn what_is_shown_parses_back(bytes in any::<u64>()) {
            let size = MemorySize::bytes(bytes);
            let shown = size.to_string().replace("bytes", "");
            prop_assert_eq!(shown.parse::<MemorySize>(), Ok(size));
        }
    }
}
