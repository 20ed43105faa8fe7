//! The network configuration on stdin.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::CniError;
use crate::error::code::{DECODE, INCOMPATIBLE_VERSION, INVALID_CONFIG};

/// Versions of the specification that are served; the delegates of Debian 12 speak up to the last.
pub(crate) const SUPPORTED_VERSIONS: [&str; 6] =
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];
/// What a configuration without `cniVersion` means (specification section 1).
const IMPLIED_VERSION: &str = "0.1.0";

/// What stands in the configuration for this plugin. Unknown keys are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkConfig {
    #[serde(default = "implied_version")]
    pub(crate) cni_version: String,
    #[serde(default)]
    pub(crate) name: String,
    /// The agent's CNI socket.
    #[serde(default = "default_socket")]
    pub(crate) socket: PathBuf,
    /// Where records and address reservations are kept.
    #[serde(default = "default_state_dir")]
    pub(crate) state_dir: PathBuf,
    /// Configuration of the delegate; `type` is `ptp` unless set. Keys set here win.
    #[serde(default)]
    pub(crate) delegate: Map<String, Value>,
    #[serde(default)]
    pub(crate) prev_result: Option<Value>,
    /// Owned by the runtime, handed to the delegate.
    #[serde(default)]
    pub(crate) runtime_config: Option<Value>,
}

fn implied_version() -> String {
    IMPLIED_VERSION.to_owned()
}

fn default_socket() -> PathBuf {
    PathBuf::from("/run/weft/cni.sock")
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/weft/cni")
}

impl NetworkConfig {
    /// Parses and checks stdin.
    pub(crate) fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let decode = |e: serde_json::Error| {
            CniError::new(DECODE, "network configuration is not what it should be")
                .details(e.to_string())
        };
        let value: Value = serde_json::from_slice(stdin).map_err(decode)?;
        let config: Self = serde_json::from_value(value)
            .map_err(|e| CniError::new(INVALID_CONFIG, format!("network configuration: {e}")))?;
        if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
            let supported = SUPPORTED_VERSIONS.join(", ");
            let message = format!("cniVersion `{}`: supported are {supported}", config.cni_version);
            return Err(CniError::new(INCOMPATIBLE_VERSION, message));
        }
        if let Err(error) = config.check() {
            return Err(error.in_version(&config.cni_version));
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), CniError> {
        let name = &self.name;
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !starts || !rest {
            return Err(CniError::new(
                INVALID_CONFIG,
                format!("network name `{name}` is not legal"),
            ));
        }
        let kind = self.delegate_type();
        if !matches!(kind, "ptp" | "bridge") {
            let message = format!("delegate.type `{kind}`: `ptp` and `bridge` are supported");
            return Err(CniError::new(INVALID_CONFIG, message));
        }
        Ok(())
    }

    /// Executable that wires the pod.
    pub(crate) fn delegate_type(&self) -> &str {
        self.delegate.get("type").and_then(Value::as_str).unwrap_or("ptp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(stdin: &str) -> String {
        NetworkConfig::parse(stdin.as_bytes()).unwrap_err().to_string()
    }

    /// CNI-026, CNI-022
    #[test]
    fn bad_configurations_have_their_codes() {
        assert!(code("{").contains("code 6"));
        assert!(code(r#"{"cniVersion":"1.0.0"}"#).contains("code 7"));
        assert!(code(r#"{"cniVersion":"1.0.0","name":"a b"}"#).contains("code 7"));
        assert!(code(r#"{"cniVersion":"9.0.0","name":"a"}"#).contains("code 1"));
        assert!(
            code(r#"{"cniVersion":"1.0.0","name":"a","delegate":{"type":"macvlan"}}"#)
                .contains("code 7")
        );
        assert!(code(r#"{"cniVersion":"1.0.0","name":7}"#).contains("code 7"));
    }

    /// CNI-027
    #[test]
    fn unknown_keys_are_ignored() {
        let stdin = br#"{"cniVersion":"1.0.0","name":"weft","cni.dev/x":1,"args":{},"new":[]}"#;
        let config = NetworkConfig::parse(stdin).unwrap();
        assert_eq!(config.delegate_type(), "ptp");
    }
}
