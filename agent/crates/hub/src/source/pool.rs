//! `AddressPool` of `weft.dev/v1alpha1`: addresses for Services of type LoadBalancer.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::object::{Key, Object, ObjectError, cluster_key};
use crate::range::AddressRange;

const EXPECTED: &str = "CIDR such as 192.0.2.16/28 or range such as 192.0.2.16-192.0.2.31";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressPool {
    pub(crate) name: String,
    pub(crate) ranges: Vec<AddressRange>,
    /// Services that ask for no address in particular get one of these.
    pub(crate) auto_assign: bool,
}

#[derive(Deserialize)]
pub(super) struct Manifest {
    metadata: ObjectMeta,
    spec: PoolSpec,
}

/// Addresses for Services of type LoadBalancer.
#[derive(Clone, Debug, Deserialize, Serialize, CustomResource, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    root = "AddressPoolResource",
    doc = "Addresses for Services of type LoadBalancer.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses")
)]
pub(crate) struct PoolSpec {
    /// Whole subnets, as 192.0.2.16/28, and ranges, as 192.0.2.16-192.0.2.31; their first and last addresses
    /// too.
    #[schemars(
        length(min = 1),
        inner(regex(pattern = r"^\s*[0-9a-fA-F:.]+\s*([-/]\s*[0-9a-fA-F:.]+\s*)?$"))
    )]
    addresses: Vec<String>,
    /// Services that ask for no address in particular get one of these; true unless set.
    auto_assign: Option<bool>,
}

/// Reads a pool.
pub(super) fn address_pool(manifest: Manifest) -> Result<(Key, Object), ObjectError> {
    let key = cluster_key("AddressPool", &manifest.metadata)?;
    let ranges = manifest.spec.addresses.iter().map(|text| range(text));
    let pool = AddressPool {
        name: key.name.clone(),
        ranges: ranges.collect::<Result<_, _>>()?,
        auto_assign: manifest.spec.auto_assign.unwrap_or(true),
    };
    if pool.ranges.is_empty() {
        return Err(ObjectError::Missing("spec.addresses"));
    }
    Ok((key, Object::AddressPool(pool)))
}

/// All addresses of a CIDR, its first and last too, or those from one to another.
fn range(text: &str) -> Result<AddressRange, ObjectError> {
    let parsed = match text.split_once('-') {
        Some((first, last)) => ends(first, last).and_then(|(a, b)| AddressRange::new(a, b)),
        None => text.trim().parse::<IpNet>().ok().map(AddressRange::of),
    };
    parsed.ok_or_else(|| ObjectError::Value {
        field: "spec.addresses",
        value: text.to_owned(),
        expected: EXPECTED,
    })
}

fn ends(first: &str, last: &str) -> Option<(IpAddr, IpAddr)> {
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::{Read, read};

    fn pool(spec: &str) -> Result<AddressPool, String> {
        let head = "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: lan}\n";
        let text = format!("{head}spec: {spec}");
        let Read::Object(_, object) = read(text.as_str()).map_err(|e| e.to_string())? else {
            panic!("no object")
        };
        let Object::AddressPool(pool) = *object else { panic!("no pool") };
        Ok(pool)
    }

    #[test]
    fn cidrs_and_ranges_of_both_families_are_read() {
        let pool =
            pool("{addresses: [192.0.2.16/28, 198.51.100.3 - 198.51.100.7, \"fd00::/120\"]}");
        let pool = pool.unwrap();
        assert!(pool.auto_assign);
        let text: Vec<_> = pool.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["192.0.2.16-192.0.2.31", "198.51.100.3-198.51.100.7", "fd00::-fd00::ff"]);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in ["[x]", "[192.0.2.9-192.0.2.3]", "[192.0.2.1-fd00::1]", "[192.0.2.1]"] {
            let error = pool(&format!("{{addresses: {bad}}}")).unwrap_err();
            assert!(error.contains("spec.addresses"), "{error}");
        }
        assert!(pool("{addresses: []}").is_err());
        assert!(pool("{addresses: [192.0.2.0/28], autoassign: true}").is_err());
    }
}
