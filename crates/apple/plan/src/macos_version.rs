use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of macOS, such as 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacosVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl MacosVersion {
    /// Version `major`.`minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for MacosVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why a text is not a [`MacosVersion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseMacosVersionError(String);

impl fmt::Display for ParseMacosVersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a version of macOS such as 13.0", self.0)
    }
}

impl std::error::Error for ParseMacosVersionError {}

impl FromStr for MacosVersion {
    type Err = ParseMacosVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.').map(str::parse::<u16>);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self::new(major, minor)),
            (Some(Ok(major)), None) => Ok(Self::new(major, 0)),
            _ => Err(ParseMacosVersionError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_and_are_ordered() {
        let parse = |text: &str| text.parse::<MacosVersion>();
        assert_eq!(parse("15"), Ok(MacosVersion::new(15, 0)));
        assert_eq!(parse("14.6.1"), Ok(MacosVersion::new(14, 6)));
        assert!(parse("12.10").unwrap() > parse("12.3").unwrap());
        assert!(parse("ventura").is_err() && parse("").is_err());
    }
}
