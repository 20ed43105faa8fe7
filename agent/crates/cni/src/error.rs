//! Error objects of the CNI specification, section 5.

use std::fmt;

use serde_json::{Map, Value, json};

/// Codes that the specification or its reference library gives a meaning.
pub(crate) mod code {
    pub(crate) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(crate) const INVALID_ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const INVALID_CONFIG: u32 = 7;
    pub(crate) const INVALID_NETNS: u32 = 8;
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD would fail.
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    /// Plugin-specific: the attachment exists.
    pub(crate) const EXISTS: u32 = 100;
    /// Plugin-specific: CHECK found a difference.
    pub(crate) const CHECK_FAILED: u32 = 101;
}

/// Version in an error object when the request's own is not known.
pub(crate) const FALLBACK_VERSION: &str = "1.0.0";

/// A failed call.
#[derive(Debug, Clone, PartialEq)]
pub struct CniError {
    version: String,
    code: u32,
    message: String,
    details: Option<String>,
    /// What else a delegate put into its error object.
    of_delegate: Map<String, Value>,
}

impl CniError {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            version: FALLBACK_VERSION.to_owned(),
            code,
            message: message.into(),
            details: None,
            of_delegate: Map::new(),
        }
    }

    /// A delegate's own error, passed on with all that is in it. Some leave out what the
    /// specification requires.
    pub(crate) fn of_delegate(object: Map<String, Value>) -> Self {
        let text =
            |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = object.get("code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok());
        let error = Self::new(code.unwrap_or(code::IO), text("msg"));
        Self { of_delegate: object, ..error }
    }

    pub(crate) fn details(self, details: impl Into<String>) -> Self {
        Self { details: Some(details.into()), ..self }
    }

    pub(crate) fn code(&self) -> u32 {
        self.code
    }

    /// As another code says it.
    pub(crate) fn with_code(self, code: u32) -> Self {
        Self { code, ..self }
    }

    /// Several errors as one, which is told by the first.
    pub(crate) fn all(errors: Vec<Self>) -> Result<(), Self> {
        let message = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let first = errors.into_iter().next();
        first.map_or(Ok(()), |first| Err(Self { message, ..first }))
    }

    /// Answers in the version of the request.
    pub(crate) fn in_version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// The object as the runtime reads it from stdout.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut object = self.of_delegate.clone();
        object.insert("cniVersion".to_owned(), json!(self.version));
        object.insert("code".to_owned(), json!(self.code));
        object.insert("msg".to_owned(), json!(self.message));
        if let Some(details) = &self.details {
            object.insert("details".to_owned(), json!(details));
        }
        Value::Object(object).to_string()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_delegate_is_passed_on_and_made_whole() {
        let Value::Object(said) = json!({ "code": 117, "msg": "no", "details": "d", "x": 1 })
        else {
            return;
        };
        let answer = CniError::of_delegate(said).in_version("0.4.0").to_json();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let whole =
            json!({ "cniVersion": "0.4.0", "code": 117, "msg": "no", "details": "d", "x": 1 });
        assert_eq!(answer, whole);
    }
}
