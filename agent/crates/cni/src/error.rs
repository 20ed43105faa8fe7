//! Error objects of the CNI specification, section 5.

use std::fmt;

use serde_json::{Value, json};

/// Codes that the specification or its reference library gives a meaning.
pub(crate) mod code {
    pub(crate) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(crate) const INVALID_ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const INVALID_CONFIG: u32 = 7;
    pub(crate) const INVALID_NETNS: u32 = 8;
    pub(crate) const TRY_AGAIN: u32 = 11;
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
    /// A delegate's own error object, passed on as it is.
    verbatim: Option<Value>,
}

impl CniError {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        let version = FALLBACK_VERSION.to_owned();
        Self { version, code, message: message.into(), details: None, verbatim: None }
    }

    pub(crate) fn of_delegate(object: Value) -> Self {
        let text =
            |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = object.get("code").and_then(Value::as_u64).and_then(|c| u32::try_from(c).ok());
        let error = Self::new(code.unwrap_or(code::IO), text("msg"));
        Self { verbatim: Some(object), ..error }
    }

    pub(crate) fn details(self, details: impl Into<String>) -> Self {
        Self { details: Some(details.into()), ..self }
    }

    /// Answers in the version of the request.
    pub(crate) fn in_version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// The object as the runtime reads it from stdout.
    #[must_use]
    pub fn to_json(&self) -> String {
        if let Some(object) = &self.verbatim {
            return object.to_string();
        }
        let mut object =
            json!({ "cniVersion": self.version, "code": self.code, "msg": self.message });
        if let Some(details) = &self.details {
            object["details"] = json!(details);
        }
        object.to_string()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}
