//! Domain names in rules: exact, or everything below one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a domain pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainPatternError {
    /// A wildcard elsewhere than as the whole first label.
    #[error("{0:?}: a wildcard stands alone in front, as in *.example.com")]
    Wildcard(String),
    /// A label is empty, too long, or has a character that no host name has.
    #[error(
        "{0:?} is not a domain name: labels of 1 to 63 letters, digits, - and _, with dots between; \
         write an international name in its xn-- form"
    )]
    Name(String),
}

/// A domain name, or, as `*.NAME`, every name below one at any depth but not that name itself.
/// Letters are compared without case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern {
    name: String,
    below: bool,
}

impl DomainPattern {
    /// Just this name.
    ///
    /// # Errors
    /// When it is not a domain name.
    pub fn exact(name: &str) -> Result<Self, DomainPatternError> {
        Ok(Self {
            name: normalized(name, name)?,
            below: false,
        })
    }

    /// Whether `name`, in lower case and without a dot at its end, is meant.
    pub fn matches(&self, name: &str) -> bool {
        if self.below {
            name.strip_suffix(self.name.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty())
        } else {
            name == self.name
        }
    }

    /// Whether every name that `other` means is meant here, too.
    pub fn covers(&self, other: &Self) -> bool {
        if other.below {
            self.below && (self.name == other.name || self.matches(&other.name))
        } else {
            self.matches(&other.name)
        }
    }
}

/// `name` in lower case without its closing dot, if it is a domain name.
fn normalized(name: &str, whole: &str) -> Result<String, DomainPatternError> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.contains('*') {
        return Err(DomainPatternError::Wildcard(whole.to_owned()));
    }
    if name.len() > 253 || !name.split('.').all(label_fits) {
        return Err(DomainPatternError::Name(whole.to_owned()));
    }
    Ok(name)
}

impl FromStr for DomainPattern {
    type Err = DomainPatternError;

    fn from_str(text: &str) -> Result<Self, DomainPatternError> {
        let (rest, below) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        Ok(Self {
            name: normalized(rest, text)?,
            below,
        })
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = DomainPatternError;

    fn try_from(text: String) -> Result<Self, DomainPatternError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.below { "*." } else { "" };
        write!(f, "{prefix}{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_means_names_below_only() {
        let pattern: DomainPattern = "*.Example.com".parse().unwrap();
        assert!(pattern.matches("a.example.com"));
        assert!(pattern.matches("a.b.example.com"));
        for other in [
            "example.com",
            "badexample.com",
            ".example.com",
            "example.com.evil.org",
        ] {
            assert!(!pattern.matches(other), "{other}");
        }
    }

    #[test]
    fn invalid_names_are_refused() {
        let wildcard = ["*", "*.", "a.*.com", "*a.com", "*.*.com"];
        for text in wildcard
            .iter()
            .chain(&["", ".", "a..b", "-a.com", "a b.com", "ä.de", "a/b"])
        {
            assert!(text.parse::<DomainPattern>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<DomainPattern>().is_err());
        assert!(matches!(
            "a.*.com".parse::<DomainPattern>(),
            Err(DomainPatternError::Wildcard(_))
        ));
    }

    #[test]
    fn covering_follows_the_names() {
        let pattern = |text: &str| text.parse::<DomainPattern>().unwrap();
        assert!(pattern("*.com").covers(&pattern("*.example.com")));
        assert!(pattern("*.example.com").covers(&pattern("a.example.com")));
        assert!(!pattern("*.example.com").covers(&pattern("example.com")));
        assert!(!pattern("example.com").covers(&pattern("*.example.com")));
    }
}
