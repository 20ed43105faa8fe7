//! Configurations, and a reader for a simple text form of them.

/// A configuration as the operator or the fabric wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config<'a> {
    /// Replaces the one in force. Empty if there is none.
    Full(&'a [u8]),
    /// Changes the one in force.
    Delta(&'a [u8]),
}

impl<'a> Config<'a> {
    /// The text of a full configuration.
    ///
    /// # Errors
    /// A text for the operator if it is a delta or not UTF-8.
    pub fn text(self) -> Result<&'a str, String> {
        match self {
            Self::Full(bytes) => {
                std::str::from_utf8(bytes).map_err(|_| "the configuration is not UTF-8".to_owned())
            }
            Self::Delta(_) => Err("this plugin takes full configurations only".to_owned()),
        }
    }

    /// The lines `key = value` of a full configuration.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn lines(self) -> Result<Lines<'a>, String> {
        self.text().map(|text| Lines { lines: text.lines().enumerate() })
    }
}

/// Lines `key = value`. Empty lines and what follows a `#` at the start of a line are left out.
///
/// ```
/// use weft_policy_sdk::Config;
///
/// let config = Config::Full(b"# comment\nrate = 100\n");
/// for line in config.lines()? {
///     let (key, value) = line?;
///     assert_eq!((key, value), ("rate", "100"));
/// }
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
}

impl<'a> Iterator for Lines<'a> {
    /// Key and value without the space around them, or a text for the operator.
    type Item = Result<(&'a str, &'a str), String>;

    fn next(&mut self) -> Option<Self::Item> {
        let (number, line) = self
            .lines
            .by_ref()
            .map(|(n, l)| (n + 1, l.trim()))
            .find(|(_, l)| !l.is_empty() && !l.starts_with('#'))?;
        Some(match line.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok((key.trim(), value.trim())),
            _ => Err(format!("line {number}: `{line}`: expected `key = value`")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_without_a_key_is_named() {
        let config = Config::Full(b"a = 1\n\n  = 2\n");
        let lines: Vec<_> = config.lines().unwrap().collect();
        assert_eq!(lines[0], Ok(("a", "1")));
        assert_eq!(lines[1], Err("line 3: `= 2`: expected `key = value`".to_owned()));
    }

    #[test]
    fn configuration_that_is_no_text_is_refused() {
        assert!(Config::Full(b"\xff").lines().is_err());
        assert!(Config::Delta(b"").lines().is_err());
    }
}
