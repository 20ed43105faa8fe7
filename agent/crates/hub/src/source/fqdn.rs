//! `FqdnPolicy` of `weft.dev/v1alpha1`: what pods may send to hosts by their names.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

use super::object::{Key, Object, ObjectError, Parse, key};
use super::policy::manifest;

pub(super) const KIND: &str = "FqdnPolicy";

/// `spec`. Whatever has to be there is optional, so that what lacks it is not refused as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FqdnPolicySpec {
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) egress: Option<Vec<FqdnRule>>,
}

/// Names and ports must both match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FqdnRule {
    pub(crate) names: Option<Vec<String>>,
    /// Every protocol and port, if there is none.
    pub(crate) ports: Option<Vec<NetworkPolicyPort>>,
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
