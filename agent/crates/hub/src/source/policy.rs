//! Manifests of network policies: `NetworkPolicy`, `ClusterNetworkPolicy` of
//! `policy.networking.k8s.io/v1alpha2`, and what all kinds have in common. Only what is no such manifest at
//! all is refused here; what is wrong inside of one is judged where rules are made of it, since a policy that
//! vanished would let everything pass.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;

use super::fields;
use super::fqdn::{self, FqdnPolicySpec};
use super::object::{Key, Object, ObjectError, Parse, WEFT, cluster_key, key};

const MODE: &str = "weft.dev/policy-mode";
/// Versions of the two kinds.
pub(super) const NETWORK_POLICY: &str = "networking.k8s.io/v1";
pub(super) const CLUSTER_NETWORK_POLICY: &str = "policy.networking.k8s.io/v1alpha2";

/// What a policy of one kind says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyManifest<S> {
    /// Annotation `weft.dev/policy-mode`.
    pub(crate) mode: Option<String>,
    pub(crate) spec: S,
    pub(crate) unknown: Vec<UnknownField>,
    /// It stands in for one that cannot be read, see [`stand_in`].
    pub(crate) unread: bool,
}

/// A field that nobody here reads: of a later version, or misspelt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownField {
    /// Path of what it is in, as `spec.ingress[0]`; empty beside the `spec`.
    pub(crate) inside: String,
    pub(crate) name: String,
}

impl std::fmt::Display for UnknownField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { inside, name } = self;
        let dot = if inside.is_empty() { "" } else { "." };
        write!(f, "`{inside}{dot}{name}` is no known field, and ignored")
    }
}

/// `spec` of a `ClusterNetworkPolicy`. Whatever has to be there is optional, so that what lacks it is
/// not refused as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterPolicySpec {
    pub(crate) tier: Option<String>,
    pub(crate) priority: Option<i64>,
    pub(crate) subject: Option<ClusterSubject>,
    pub(crate) ingress: Option<Vec<ClusterRule>>,
    pub(crate) egress: Option<Vec<ClusterRule>>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterSubject {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPods>,
}

/// Both must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamespacedPods {
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) pod_selector: Option<LabelSelector>,
}

/// A rule of either direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterRule {
    pub(crate) name: Option<String>,
    pub(crate) action: Option<String>,
    /// Of ingress rules.
    pub(crate) from: Option<Vec<ClusterPeer>>,
    /// Of egress rules.
    pub(crate) to: Option<Vec<ClusterPeer>>,
    pub(crate) protocols: Option<Vec<ClusterProtocol>>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterPeer {
    pub(crate) namespaces: Option<LabelSelector>,
    pub(crate) pods: Option<NamespacedPods>,
    pub(crate) networks: Option<Vec<String>>,
    pub(crate) nodes: Option<LabelSelector>,
    pub(crate) domain_names: Option<Vec<String>>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterProtocol {
    pub(crate) tcp: Option<ClusterPorts>,
    pub(crate) udp: Option<ClusterPorts>,
    pub(crate) sctp: Option<ClusterPorts>,
    pub(crate) destination_named_port: Option<String>,
}

/// Every port, if there is none in particular.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterPorts {
    pub(crate) destination_port: Option<ClusterPort>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterPort {
    pub(crate) number: Option<i64>,
    pub(crate) range: Option<ClusterPortRange>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterPortRange {
    pub(crate) start: Option<i64>,
    pub(crate) end: Option<i64>,
}

#[derive(Deserialize)]
struct ClusterManifest {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ClusterPolicySpec,
}

/// What stands in for a policy that cannot be read and that nobody knew before: it isolates all pods that it
/// may be for in both directions, or drops everything, and allows nothing. `None` if it does not even say
/// what it is.
pub(super) fn stand_in<D: Parse + ?Sized>(
    api_version: &str,
    kind: &str,
    document: &D,
) -> Option<(Key, Object)> {
    let whole: Value = document.parse().ok()?;
    let metadata = serde_yaml_ng::from_value(whole.get("metadata")?.clone()).ok()?;
    let spec = whole.get("spec");
    let mode = None;
    let pod_selector = || {
        let selector = spec.and_then(|s| s.get("podSelector")).cloned();
        selector.and_then(|s| serde_yaml_ng::from_value(s).ok())
    };
    match (api_version, kind) {
        (WEFT, fqdn::KIND) => {
            let key = key(kind, &metadata).ok()?;
            let spec = FqdnPolicySpec { pod_selector: pod_selector(), egress: None };
            let manifest = PolicyManifest { mode, spec, unknown: Vec::new(), unread: true };
            Some((key, Object::FqdnPolicy(Box::new(manifest))))
        }
        (NETWORK_POLICY, "NetworkPolicy") => {
            let key = key("NetworkPolicy", &metadata).ok()?;
            let pod_selector = pod_selector();
            let policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
            let spec = NetworkPolicySpec { pod_selector, policy_types, ..Default::default() };
            let manifest = PolicyManifest { mode, spec, unknown: Vec::new(), unread: true };
            Some((key, Object::NetworkPolicy(Box::new(manifest))))
        }
        (CLUSTER_NETWORK_POLICY, "ClusterNetworkPolicy") => {
            let key = cluster_key("ClusterNetworkPolicy", &metadata).ok()?;
            let part = |name: &str| spec.and_then(|s| s.get(name)).cloned();
            let subject = part("subject").and_then(|s| serde_yaml_ng::from_value(s).ok());
            let tier = part("tier").and_then(|t| t.as_str().map(ToOwned::to_owned));
            let priority = part("priority").and_then(|p| p.as_i64());
            let spec = ClusterPolicySpec { tier, priority, subject, ..Default::default() };
            let manifest = PolicyManifest { mode, spec, unknown: Vec::new(), unread: true };
            Some((key, Object::ClusterNetworkPolicy(Box::new(manifest))))
        }
        _ => None,
    }
}

/// Reads a `NetworkPolicy`.
pub(super) fn network_policy<D: Parse + ?Sized>(
    document: &D,
) -> Result<(Key, Object), ObjectError> {
    let NetworkPolicy { metadata, spec } = document.parse()?;
    let spec: NetworkPolicySpec = spec.unwrap_or_default();
    let key = key("NetworkPolicy", &metadata)?;
    let manifest = manifest(document, metadata, spec)?;
    Ok((key, Object::NetworkPolicy(Box::new(manifest))))
}

/// Reads a `ClusterNetworkPolicy`.
pub(super) fn cluster_policy<D: Parse + ?Sized>(
    document: &D,
) -> Result<(Key, Object), ObjectError> {
    let ClusterManifest { metadata, spec } = document.parse()?;
    let key = cluster_key("ClusterNetworkPolicy", &metadata)?;
    let manifest = manifest(document, metadata, spec)?;
    Ok((key, Object::ClusterNetworkPolicy(Box::new(manifest))))
}

pub(super) fn manifest<D: Parse + ?Sized, S: Serialize>(
    document: &D,
    metadata: ObjectMeta,
    spec: S,
) -> Result<PolicyManifest<S>, ObjectError> {
    let whole: Value = document.parse()?;
    let mut unknown = fields::unknown("", &whole);
    unknown.retain(|field| field.inside.is_empty());
    if let Some(given) = whole.get("spec") {
        // What was read, written again, has every field that is known.
        compare("spec", given, &serde_yaml_ng::to_value(&spec)?, &mut unknown);
    }
    let mode = metadata.annotations.and_then(|mut a| a.remove(MODE));
    Ok(PolicyManifest { mode, spec, unknown, unread: false })
}

fn compare(path: &str, given: &Value, read: &Value, unknown: &mut Vec<UnknownField>) {
    match (given, read) {
        (Value::Mapping(given), Value::Mapping(read)) => {
            // Kubernetes takes a field that is null for one that is not there.
            for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let name = key.as_str().unwrap_or("?");
                match read.get(key) {
                    Some(known) => compare(&format!("{path}.{name}"), value, known, unknown),
                    None => {
                        let (inside, name) = (path.to_owned(), name.to_owned());
                        unknown.push(UnknownField { inside, name });
                    }
                }
            }
        }
        (Value::Sequence(given), Value::Sequence(read)) => {
            for (i, (given, read)) in given.iter().zip(read).enumerate() {
                compare(&format!("{path}[{i}]"), given, read, unknown);
            }
        }
        _ => {}
    }
}
