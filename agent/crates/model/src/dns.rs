//! DNS as nodes serve it: settings, and Services that nodes have nothing but names for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Endpoint, ServiceName, ServicePort};

/// Name of the built-in plugin that answers queries for names of the cluster.
pub const DNS_PLUGIN: &str = "dns";

/// Where a node's resolver listens, at port 53: link-local and unique local addresses, the same on every
/// node, that never leave it. Queries to the cluster's DNS Service are translated to them.
pub const RESOLVERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 88, 53)),
    IpAddr::V6(Ipv6Addr::new(0xfd57, 0x6566, 0x7400, 0, 0, 0, 0, 0x53)),
];

/// Settings of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Cluster domains without a dot at their end, at least one.
    pub zones: Vec<String>,
    /// Time to live of the cluster's records in seconds, 0..=3600.
    pub ttl_s: u32,
    /// The Service whose addresses clients ask.
    pub service: ServiceName,
    /// What selects the Service's pods. For policies a node's resolver is such a pod, in the Service's
    /// namespace.
    pub labels: BTreeMap<String, String>,
    /// Which pods have a name by their address.
    pub pod_names: PodNames,
    /// Who knows other names; those of the node's own configuration if there is none.
    pub upstreams: Vec<SocketAddr>,
    /// Who knows names below these.
    pub stub_domains: BTreeMap<String, Vec<SocketAddr>>,
    /// Names that the operator gave addresses, of at least two labels.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// A query that a pod's search list makes of a name, and that has no answer, is answered with what the
    /// pod would find in the end.
    pub autopath: bool,
    /// An endpoint that no manifest names is called as its pod is, if that is a DNS label; else by its
    /// address.
    pub endpoint_pod_names: bool,
}

/// Which pods have a name by their address, `10-0-0-1.NAMESPACE.pod.ZONE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Those that are there.
    #[default]
    Verified,
    /// Any address, whether a pod has it or not.
    Insecure,
}

/// A Service that nodes have names for and do not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    /// Namespace and name.
    pub name: ServiceName,
    /// Why it is not served.
    pub kind: NamedKind,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// By address.
    pub endpoints: Vec<Endpoint>,
}

/// Why a Service has nothing but names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedKind {
    /// It has no address of its own.
    Headless,
    /// It stands for this name.
    Alias(String),
    /// Another proxy serves these cluster IPs.
    Foreign(Vec<IpAddr>),
}
