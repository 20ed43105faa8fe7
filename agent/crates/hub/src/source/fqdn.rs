//! `FqdnPolicy` of `weft.dev/v1alpha1`: what pods may send to hosts by their names.

use std::borrow::Cow;

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::object::{Key, Object, ObjectError, Parse, key};
use super::policy::manifest;

pub(super) const KIND: &str = "FqdnPolicy";

// Whatever has to be there is optional, so that what lacks it is not refused as a whole.
/// What pods may send to hosts by their names; they may send nothing else then but what other policies allow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "FqdnPolicy",
    root = "FqdnPolicyResource",
    namespaced,
    doc = "What pods of a namespace may send to hosts by their names.",
    validation = Rule::new("has(self.spec.podSelector)").message("spec.podSelector says whom the policy is for: {} for every pod")
)]
pub(crate) struct FqdnPolicySpec {
    /// Pods of the policy's namespace that it is for; an empty selector selects all.
    #[schemars(with = "Option<SelectorSchema>")]
    pub(crate) pod_selector: Option<LabelSelector>,
    /// What they may send. Nothing, if there is none.
    pub(crate) egress: Option<Vec<FqdnRule>>,
}

/// Names and ports must both match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.names) && size(self.names) > 0",
    "message": "names says which hosts: at least one",
}]))]
pub(crate) struct FqdnRule {
    /// Names of hosts; in the first place, `*.` stands for any number of labels.
    #[schemars(inner(length(max = 255)))]
    pub(crate) names: Option<Vec<String>>,
    /// Every protocol and port, if there is none.
    #[schemars(with = "Option<Vec<PortSchema>>")]
    pub(crate) ports: Option<Vec<NetworkPolicyPort>>,
}

/// Of a `LabelSelector`, as Kubernetes defines it.
struct SelectorSchema;

impl JsonSchema for SelectorSchema {
    fn schema_name() -> Cow<'static, str> {
        "LabelSelector".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = || json!({ "type": "string" });
        json_schema!({
            "type": "object",
            "properties": {
                "matchLabels": { "type": "object", "additionalProperties": text() },
                "matchExpressions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "key": text(),
                            "operator": {
                                "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            },
                            "values": { "type": "array", "items": text() },
                        },
                        "required": ["key", "operator"],
                    },
                },
            },
        })
    }
}

/// Of a port of a `NetworkPolicy`, by number.
struct PortSchema;

impl JsonSchema for PortSchema {
    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let port = || json!({ "type": "integer", "minimum": 1, "maximum": 65535 });
        json_schema!({
            "type": "object",
            "properties": {
                "protocol": { "type": "string", "enum": ["TCP", "UDP", "SCTP"] },
                "port": port(),
                "endPort": port(),
            },
            "x-kubernetes-validations": [{
                "rule": "!has(self.endPort) || (has(self.port) && self.port <= self.endPort)",
                "message": "endPort is the last of a range that port begins",
            }],
        })
    }
}

#[derive(Deserialize)]
struct Manifest {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: FqdnPolicySpec,
}

/// Reads an `FqdnPolicy`.
pub(super) fn fqdn_policy<D: Parse + ?Sized>(document: &D) -> Result<(Key, Object), ObjectError> {
    let Manifest { metadata, spec } = document.parse()?;
    let key = key(KIND, &metadata)?;
    let manifest = manifest(document, metadata, spec)?;
    Ok((key, Object::FqdnPolicy(Box::new(manifest))))
}
