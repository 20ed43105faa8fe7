//! Names of servers, exact or by what they end in.

use std::collections::BTreeSet;

/// Host names and suffixes, in lower case.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    exact: BTreeSet<String>,
    /// Without the `*.`.
    below: BTreeSet<String>,
}

impl Patterns {
    /// Adds `name` or `*.name`.
    pub(crate) fn add(&mut self, pattern: &str) -> Result<(), String> {
        let lower = pattern.to_ascii_lowercase();
        let (set, name) = match lower.strip_prefix("*.") {
            Some(name) => (&mut self.below, name),
            None => (&mut self.exact, lower.as_str()),
        };
        if !is_name(name) {
            return Err(format!("allow `{pattern}`: expected a host name or `*.` and one"));
        }
        set.insert(name.to_owned());
        Ok(())
    }

    /// A name matches itself; `*.a.b` matches every name that ends in `.a.b`, at whatever depth.
    /// What is no name, such as one with a zero byte, matches nothing.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !is_name(&name) {
            return false;
        }
        let mut parents = name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..));
        self.exact.contains(&name) || parents.any(|parent| self.below.contains(parent))
    }
}

fn is_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(letter);
    name.len() <= 253 && name.split('.').all(label)
}
