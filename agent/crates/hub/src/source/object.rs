//! One document: which kind it is and what of it the fabric needs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;
use weft_model::{HookPosition, MacAddr, NodeName, OnFault, PodName, PublicKey, ServiceName};

use super::check;
use super::fqdn::{self, FqdnPolicySpec};
use super::pod::{self, PodManifest};
use super::policy::{self, ClusterPolicySpec, PolicyManifest};
use super::pool::{self, AddressPool};

const STATIC_PEER: &str = "weft.dev/static-peer";
const ENDPOINT: &str = "weft.dev/endpoint";
const PUBLIC_KEY: &str = "weft.dev/public-key";
const VTEP_MAC: &str = "weft.dev/vtep-mac";

/// What tells an object from every other: kind, namespace (empty if it has none), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    /// Of a node's manifest.
    pub(crate) fn node(name: &NodeName) -> Self {
        Self { kind: "Node".to_owned(), namespace: String::new(), name: name.to_string() }
    }

    /// Of a pod's manifest.
    pub(crate) fn pod(PodName { namespace, name }: &PodName) -> Self {
        Self { kind: "Pod".to_owned(), namespace: namespace.clone(), name: name.clone() }
    }

    /// Of a Service's.
    pub(crate) fn service(ServiceName { namespace, name }: &ServiceName) -> Self {
        Self { kind: "Service".to_owned(), namespace: namespace.clone(), name: name.clone() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// A good object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    /// A node that runs an agent.
    Node(NodeManifest),
    /// A node that somebody else's VXLAN or WireGuard implementation serves.
    StaticPeer(weft_model::Node),
    Pod(Box<PodManifest>),
    PacketFilter(PacketFilter),
    AddressPool(AddressPool),
    Namespace(Box<Namespace>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    NetworkPolicy(Box<PolicyManifest<NetworkPolicySpec>>),
    ClusterNetworkPolicy(Box<PolicyManifest<ClusterPolicySpec>>),
    FqdnPolicy(Box<PolicyManifest<FqdnPolicySpec>>),
    /// A policy of a kind that is not enforced.
    OldPolicy,
}

impl Object {
    /// A policy that is enforced.
    pub(crate) fn is_policy(&self) -> bool {
        matches!(self, Self::NetworkPolicy(_) | Self::ClusterNetworkPolicy(_) | Self::FqdnPolicy(_))
    }
}

/// What is taken of the manifest of a node that runs an agent; the rest is the agent's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeManifest {
    pub(crate) name: NodeName,
    pub(crate) labels: BTreeMap<String, String>,
    /// Of an API server's object.
    pub(crate) uid: Option<String>,
    /// `spec.podCIDRs`: what Kubernetes has assigned to it, nothing if it assigns none.
    pub(crate) subnets: Vec<IpNet>,
}

/// `PacketFilter` of `weft.dev/v1alpha1`: a plugin for every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PacketFilter {
    pub(crate) name: String,
    /// Path of the module, relative to the manifest.
    pub(crate) module: String,
    pub(crate) config: String,
    pub(crate) priority: i32,
    pub(crate) position: Option<HookPosition>,
    pub(crate) on_fault: Option<OnFault>,
    pub(crate) deadline_us: Option<u32>,
}

/// Version of kinds of our own.
pub(super) const WEFT: &str = "weft.dev/v1alpha1";
/// What `ClusterNetworkPolicy` has replaced.
const OLD_POLICIES: &str = "policy.networking.k8s.io/v1alpha1";

/// What a document turned out to be.
#[derive(Debug)]
pub(crate) enum Read {
    Object(Key, Box<Object>),
    /// A kind that Weft has no use for.
    Unknown(String),
    /// `kind: List`, or any other `...List`: its items.
    List(Vec<Value>),
}

/// Why a document is no object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// Not YAML, or a field of another type.
    #[error(transparent)]
    Yaml(#[from] serde_yaml_ng::Error),
    #[error("`{0}` is missing")]
    Missing(&'static str),
    #[error("`{field}`: `{value}` is no {expected}")]
    Value { field: &'static str, value: String, expected: &'static str },
    #[error(transparent)]
    Id(#[from] weft_model::IdError),
    /// What is wrong with which object.
    #[error("{0}: {1}")]
    Of(Key, #[source] Box<ObjectError>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct ListOf {
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FilterManifest {
    metadata: ObjectMeta,
    spec: FilterSpec,
}

/// A plugin that every node runs in its packet path.
#[derive(Clone, Debug, Deserialize, Serialize, CustomResource, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "PacketFilter",
    root = "PacketFilterResource",
    doc = "A plugin that every node runs in its packet path.",
    printcolumn(name = "Module", type_ = "string", json_path = ".spec.module"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority")
)]
pub(crate) struct FilterSpec {
    /// Path of the WebAssembly module: seen from the manifest, or from the hub's --plugin-dir.
    #[schemars(length(min = 1))]
    module: String,
    /// What the plugin is configured with: any text that it understands.
    #[serde(default)]
    config: String,
    /// Plugins of a lower number see a packet first.
    #[serde(default)]
    priority: i32,
    /// What of the pods' packets it sees; as its module says unless set.
    position: Option<FilterPosition>,
    /// What becomes of a packet on which it fails; as its module says unless set.
    on_fault: Option<FilterFault>,
    /// How long it may take for a packet, from 100us to 1000ms.
    #[schemars(regex(pattern = "^[0-9]{1,7}(us|ms)$"))]
    deadline: Option<String>,
}

/// What of the pods' packets a plugin sees.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
enum FilterPosition {
    Egress,
    Ingress,
    Both,
}

/// What becomes of a packet on which a plugin fails.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
enum FilterFault {
    Drop,
    Skip,
}

/// A document as text or as an item of a list.
pub(crate) trait Parse {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_yaml_ng::Error>;
}

impl Parse for str {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_yaml_ng::Error> {
        serde_yaml_ng::from_str(self)
    }
}

impl Parse for Value {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_yaml_ng::Error> {
        serde_yaml_ng::from_value(self.clone())
    }
}

/// Reads a document.
pub(crate) fn read<D: Parse + ?Sized>(document: &D) -> Result<Read, ObjectError> {
    let header: Header = document.parse()?;
    let (kind, name) = (header.kind.clone(), header.metadata.name.clone().unwrap_or_default());
    let namespace = header.metadata.namespace.clone().unwrap_or_default();
    read_body(document, header).map_err(|error| match name.as_str() {
        "" => error,
        _ => ObjectError::Of(Key { kind, namespace, name }, Box::new(error)),
    })
}

/// What stands in for a document that [`read`] refuses, where to leave it out would open something: a policy
/// keeps its pods closed, and a pod has the labels that policies select it by.
pub(crate) fn stand_in<D: Parse + ?Sized>(document: &D) -> Option<(Key, Object)> {
    // Nothing is known of what has a key twice.
    let _whole: Value = document.parse().ok()?;
    let header: Header = document.parse().ok()?;
    match (header.api_version.as_str(), header.kind.as_str()) {
        ("v1", "Pod") => {
            let metadata = header.metadata;
            pod::pod(Pod { metadata, ..Pod::default() }).ok()
        }
        (version, kind @ ("NetworkPolicy" | "ClusterNetworkPolicy" | fqdn::KIND)) => {
            policy::stand_in(version, kind, document)
        }
        _ => None,
    }
}

fn read_body<D: Parse + ?Sized>(document: &D, header: Header) -> Result<Read, ObjectError> {
    let Header { api_version, kind, metadata } = header;
    let (key, object) = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Node") => node(document.parse()?)?,
        ("v1", "Pod") => pod::pod(document.parse()?)?,
        ("v1", "Namespace") => {
            let o: Namespace = document.parse()?;
            (cluster_key(&kind, &o.metadata)?, Object::Namespace(Box::new(o)))
        }
        ("v1", "Service") => {
            let o: Service = document.parse()?;
            check::service(&o)?;
            (key(&kind, &o.metadata)?, Object::Service(Box::new(o)))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let o: EndpointSlice = document.parse()?;
            check::slice(&o)?;
            (key(&kind, &o.metadata)?, Object::EndpointSlice(Box::new(o)))
        }
        (policy::NETWORK_POLICY, "NetworkPolicy") => policy::network_policy(document)?,
        (policy::CLUSTER_NETWORK_POLICY, "ClusterNetworkPolicy") => {
            policy::cluster_policy(document)?
        }
        (OLD_POLICIES, "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy") => {
            (cluster_key(&kind, &metadata)?, Object::OldPolicy)
        }
        (WEFT, fqdn::KIND) => fqdn::fqdn_policy(document)?,
        (WEFT, "PacketFilter") => packet_filter(document.parse()?)?,
        (WEFT, "AddressPool") => pool::address_pool(document.parse()?)?,
        (_, list) if list.ends_with("List") => {
            let ListOf { items } = document.parse()?;
            return Ok(Read::List(items));
        }
        // Cut short at its kind it would pass for another one: without a name it is no object.
        _ => {
            name_of(&metadata)?;
            return Ok(Read::Unknown(format!("{kind} of {api_version}")));
        }
    };
    Ok(Read::Object(key, Box::new(object)))
}

fn name_of(metadata: &ObjectMeta) -> Result<String, ObjectError> {
    let name = metadata.name.clone().filter(|n| !n.is_empty());
    name.ok_or(ObjectError::Missing("metadata.name"))
}

/// The name, as Kubernetes would take it: a DNS subdomain, for some kinds a label.
fn legal_name(kind: &str, metadata: &ObjectMeta) -> Result<String, ObjectError> {
    let name = name_of(metadata)?;
    let label = matches!(kind, "Namespace" | "Service" | "PacketFilter" | "AddressPool");
    let legal = if label { is_label(&name) } else { NodeName::try_new(name.as_str()).is_ok() };
    let expected = if label {
        "name: up to 63 lower-case letters, digits and `-`"
    } else {
        "name: up to 253 lower-case letters, digits, `-` and `.`"
    };
    if legal {
        return Ok(name);
    }
    Err(ObjectError::Value { field: "metadata.name", value: name, expected })
}

/// Longest DNS-1123 label, in bytes.
const LABEL_MAX: usize = 63;

/// A DNS-1123 label.
pub(crate) fn is_label(name: &str) -> bool {
    name.len() <= LABEL_MAX && !name.contains('.') && NodeName::try_new(name).is_ok()
}

pub(super) fn key(kind: &str, metadata: &ObjectMeta) -> Result<Key, ObjectError> {
    let namespace = metadata.namespace.clone().filter(|n| !n.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    if !is_label(&namespace) {
        let expected = "namespace: up to 63 lower-case letters, digits and `-`";
        return Err(ObjectError::Value { field: "metadata.namespace", value: namespace, expected });
    }
    Ok(Key { kind: kind.to_owned(), namespace, name: legal_name(kind, metadata)? })
}

pub(super) fn cluster_key(kind: &str, metadata: &ObjectMeta) -> Result<Key, ObjectError> {
    let name = legal_name(kind, metadata)?;
    Ok(Key { kind: kind.to_owned(), namespace: String::new(), name })
}

pub(super) fn value<T: std::str::FromStr>(
    field: &'static str,
    text: &str,
    expected: &'static str,
) -> Result<T, ObjectError> {
    text.parse().map_err(|_| ObjectError::Value { field, value: text.to_owned(), expected })
}

fn node(manifest: Node) -> Result<(Key, Object), ObjectError> {
    let key = cluster_key("Node", &manifest.metadata)?;
    let name = NodeName::try_new(key.name.clone())?;
    let annotations = manifest.metadata.annotations.clone().unwrap_or_default();
    let labels = manifest.metadata.labels.clone().unwrap_or_default();
    let peer = annotations.get(STATIC_PEER).map(|v| value(STATIC_PEER, v, "true or false"));
    if !peer.transpose()?.unwrap_or(false) {
        let uid = manifest.metadata.uid.clone();
        let subnets = node_subnets(&manifest)?;
        return Ok((key, Object::Node(NodeManifest { name, labels, uid, subnets })));
    }
    let annotation = |name| annotations.get(name).map(String::as_str);
    let endpoint: Option<SocketAddr> =
        annotation(ENDPOINT).map(|e| value(ENDPOINT, e, "ADDRESS:PORT")).transpose()?;
    let keys = annotation(PUBLIC_KEY).map(|keys| {
        keys.split(',').map(|k| k.trim().parse::<PublicKey>()).collect::<Result<Vec<_>, _>>()
    });
    let vtep_mac = annotation(VTEP_MAC).map(str::parse::<MacAddr>).transpose()?;
    let uid = manifest.metadata.uid.clone().unwrap_or_else(|| format!("static-{name}"));
    let peer = weft_model::Node {
        uid,
        endpoint,
        addresses: node_addresses(&manifest)?,
        subnets: Some(node_subnets(&manifest)?)
            .filter(|subnets| !subnets.is_empty())
            .ok_or(ObjectError::Missing("spec.podCIDRs"))?,
        keys: keys.transpose()?.unwrap_or_default(),
        vtep_mac,
        labels,
        name,
    };
    Ok((key, Object::StaticPeer(peer)))
}

fn node_addresses(manifest: &Node) -> Result<Vec<IpAddr>, ObjectError> {
    let listed = manifest.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = listed.filter(|a| a.type_ == "InternalIP");
    internal.map(|a| value("status.addresses", &a.address, "IP address")).collect()
}

fn node_subnets(manifest: &Node) -> Result<Vec<IpNet>, ObjectError> {
    let spec = manifest.spec.clone().unwrap_or_default();
    let listed = spec.pod_cidrs.filter(|c| !c.is_empty());
    let listed = listed.or(spec.pod_cidr.map(|c| vec![c])).unwrap_or_default();
    let parse = |text: &String| {
        let net: IpNet = value("spec.podCIDRs", text, "subnet")?;
        if net.trunc() == net {
            return Ok(net);
        }
        let (value, expected) = (text.clone(), "subnet (bits behind its prefix are set)");
        Err(ObjectError::Value { field: "spec.podCIDRs", value, expected })
    };
    listed.iter().map(parse).collect()
}

fn packet_filter(manifest: FilterManifest) -> Result<(Key, Object), ObjectError> {
    let key = cluster_key("PacketFilter", &manifest.metadata)?;
    let FilterSpec { module, config, priority, position, on_fault, deadline } = manifest.spec;
    if module.is_empty() {
        return Err(ObjectError::Missing("spec.module"));
    }
    let filter = PacketFilter {
        name: key.name.clone(),
        module,
        config,
        priority,
        position: position.map(|p| match p {
            FilterPosition::Egress => HookPosition::Egress,
            FilterPosition::Ingress => HookPosition::Ingress,
            FilterPosition::Both => HookPosition::Both,
        }),
        on_fault: on_fault.map(|f| match f {
            FilterFault::Drop => OnFault::Drop,
            FilterFault::Skip => OnFault::Skip,
        }),
        deadline_us: deadline.as_deref().map(duration_us).transpose()?,
    };
    Ok((key, Object::PacketFilter(filter)))
}

/// Microseconds of `500us` or `2ms`, 100 us to 1 s.
fn duration_us(text: &str) -> Result<u32, ObjectError> {
    let bad = || ObjectError::Value {
        field: "spec.deadline",
        value: text.to_owned(),
        expected: "time from 100us to 1000ms",
    };
    let (digits, unit) = match text.strip_suffix("us") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix("ms").ok_or_else(bad)?, 1000),
    };
    let us = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)?;
    if (100..=1_000_000).contains(&us) { Ok(us) } else { Err(bad()) }
}
