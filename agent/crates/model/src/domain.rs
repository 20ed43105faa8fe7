//! Names of hosts as policies give them.

use std::fmt;
use std::str::FromStr;

/// Longest name in characters, without a dot at its end.
const NAME_MAX: usize = 253;
/// Longest label.
const LABEL_MAX: usize = 63;
/// Begins a name that stands for all below it.
const WILDCARD: &str = "*.";

/// A name, or with `*.` before it all names below: of one label more or of several. Letters are lower case,
/// and there is no dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern(String);

/// What is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name such as api.example.com or *.example.com")]
pub struct DomainError(String);

impl DomainPattern {
    /// True for a name that is meant. It is compared as it is: in lower case, without a dot at its end.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix(WILDCARD) {
            None => name == self.0,
            Some(parent) => {
                let below = name.strip_suffix(parent).and_then(|rest| rest.strip_suffix('.'));
                below.is_some_and(|labels| !labels.is_empty())
            }
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainPattern {
    type Err = DomainError;

    /// Upper case and a dot at the end make no difference.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let pattern = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = pattern.strip_prefix(WILDCARD).unwrap_or(&pattern);
        if name.len() <= NAME_MAX && name.split('.').all(is_label) {
            return Ok(Self(pattern));
        }
        Err(DomainError(text.to_owned()))
    }
}

fn is_label(label: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(legal)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> DomainPattern {
        text.parse().unwrap()
    }

    /// NP-151.
    #[test]
    fn name_matches_itself_in_any_case_and_with_a_dot_at_its_end() {
        for text in ["api.example.com", "API.Example.com", "api.example.com."] {
            let pattern = pattern(text);
            assert_eq!(pattern.as_str(), "api.example.com");
            assert!(pattern.matches("api.example.com"));
            for other in ["example.com", "a.api.example.com", "xapi.example.com", ""] {
                assert!(!pattern.matches(other), "{other}");
            }
        }
    }

    /// NP-152.
    #[test]
    fn wildcard_matches_one_or_more_labels() {
        let pattern = pattern("*.Example.org.");
        assert!(pattern.matches("a.example.org") && pattern.matches("a.b.example.org"));
        for other in ["example.org", ".example.org", "xexample.org", "a.example.org.evil"] {
            assert!(!pattern.matches(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = ["a"; 128].join(".");
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            "*a.example",
            "a.*.example",
            "**.a",
            "-a.b",
            &long,
            &longer,
        ] {
            assert!(text.parse::<DomainPattern>().is_err(), "{text}");
        }
        for text in ["localhost", "_srv.a-b.example", "*.internal"] {
            assert_eq!(pattern(text).to_string(), text);
        }
    }
}
