//! The network configuration on stdin.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};
use weft_model::cni::Attachment;

use crate::CniError;
use crate::error::code::{DECODE, INCOMPATIBLE_VERSION, INVALID_CONFIG};

/// Versions of the specification that are served.
pub(crate) const SUPPORTED_VERSIONS: [&str; 7] =
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", LATEST];
/// The only one with STATUS and GC.
pub(crate) const LATEST: &str = "1.1.0";
/// What delegates are spoken to in instead of that: those of Debian 12 know no later one, and it has all
/// that is asked of them.
const DELEGATE_LATEST: &str = "1.0.0";
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
    /// Of GC: the attachments that there are.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same, as the reference library misspelt it first.
    #[serde(default, rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

/// An attachment as the specification's GC names it.
#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
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

    /// Version that delegates are spoken to in.
    pub(crate) fn delegate_version(&self) -> &str {
        if self.cni_version == LATEST { DELEGATE_LATEST } else { &self.cni_version }
    }

    /// Refuses a verb that the version of the configuration does not have.
    ///
    /// # Errors
    /// Code 1.
    pub(crate) fn require_latest(&self, verb: &str) -> Result<(), CniError> {
        if self.cni_version == LATEST {
            return Ok(());
        }
        let message = format!("{verb} needs cniVersion {LATEST}, not {}", self.cni_version);
        Err(CniError::new(INCOMPATIBLE_VERSION, message))
    }

    /// Attachments of this network that GC leaves.
    ///
    /// # Errors
    /// Code 7 if the configuration does not say: everything would be taken away.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        let given = self.valid_attachments.as_ref().or(self.attachments.as_ref());
        let given = given.ok_or_else(|| {
            CniError::new(
                INVALID_CONFIG,
                "GC needs `cni.dev/valid-attachments`, if only an empty list",
            )
        })?;
        let attachment = |ValidAttachment { container_id, ifname }: &ValidAttachment| Attachment {
            network: self.name.clone(),
            container_id: container_id.clone(),
            ifname: ifname.clone(),
        };
        Ok(given.iter().map(attachment).collect())
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

    /// CNI-074: what is not said is not an empty list.
    #[test]
    fn attachments_that_stay_are_named_by_either_key() {
        let with = |rest: &str| {
            let stdin = format!(r#"{{"cniVersion":"1.1.0","name":"weft"{rest}}}"#);
            NetworkConfig::parse(stdin.as_bytes()).unwrap().valid_attachments()
        };
        let list = r#"[{"containerID":"c1","ifname":"eth0"}]"#;
        for keys in [
            format!(r#","cni.dev/valid-attachments":{list}"#),
            format!(r#","cni.dev/attachments":{list}"#),
            format!(r#","cni.dev/valid-attachments":{list},"cni.dev/attachments":{list}"#),
        ] {
            let valid = with(&keys).unwrap();
            assert_eq!((valid.len(), valid[0].container_id.as_str()), (1, "c1"), "{keys}");
        }
        assert!(with(r#","cni.dev/valid-attachments":[]"#).unwrap().is_empty());
        assert!(with("").unwrap_err().to_string().contains("code 7"));
    }

    /// CNI-027
    #[test]
    fn unknown_keys_are_ignored() {
        let stdin = br#"{"cniVersion":"1.0.0","name":"weft","cni.dev/x":1,"args":{},"new":[]}"#;
        let config = NetworkConfig::parse(stdin).unwrap();
        assert_eq!(config.delegate_type(), "ptp");
    }
}
