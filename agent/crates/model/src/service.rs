//! Services as the hub publishes them: what of a Kubernetes Service and its EndpointSlices a node needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::NodeName;

/// Name of the built-in plugin that translates what is sent to Services.
pub const SERVICE_PLUGIN: &str = "service";

/// Addresses that stand for a node inside the fabric, where an answer to its own address would miss
/// the fabric on its way back: link-local and unique local ones, the same on every node, that never
/// leave it.
pub const HOST_SOURCES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 88, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd57, 0x6566, 0x7400, 0, 0, 0, 0, 1)),
];

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name inside the namespace.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which endpoints may be chosen for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of every node.
    #[default]
    Cluster,
    /// Those of the node where the connection enters.
    Local,
}

/// What a Service's port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one address at each end.
    Sctp,
}

impl ServiceProtocol {
    /// The IANA protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with that IANA number, if it is one of these.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if there is only this one.
    pub name: String,
    /// What it carries.
    pub protocol: ServiceProtocol,
    /// At the Service's addresses.
    pub port: u16,
    /// At the nodes' addresses.
    pub node_port: Option<u16>,
}

/// An endpoint of a Service, from all of its slices; an address occurs once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its name below that of the Service, a DNS label, if it has one of its own.
    pub hostname: Option<String>,
    /// The node it is on. One without is on none.
    pub node: Option<NodeName>,
    /// Gets new connections.
    pub ready: bool,
    /// Can answer.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// Hints: nodes it is meant for.
    pub for_nodes: Vec<NodeName>,
    /// Hints: zones it is meant for.
    pub for_zones: Vec<String>,
    /// Its port for each of [`Service::ports`], in their order; 0 where it has none.
    pub targets: Vec<u16>,
}

/// A Service that has addresses, with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// Addresses inside the cluster, at most one for each family.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of its load balancer that nodes serve themselves.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Of `load_balancer_ips` those that the fabric gave out, and the node that answers for each in its
    /// network segment.
    pub announcers: BTreeMap<IpAddr, NodeName>,
    /// `spec.externalIPs`, if the operator allows them.
    pub external_ips: Vec<IpAddr>,
    /// Who may reach `load_balancer_ips`. A family without a range is not restricted.
    pub source_ranges: Vec<IpNet>,
    /// For the cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// For everything else.
    pub external_policy: TrafficPolicy,
    /// Seconds for which a client keeps its endpoint; `None` without session affinity.
    pub affinity_s: Option<u32>,
    /// Where nodes say whether they have a ready endpoint.
    pub health_check_node_port: Option<u16>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// By address.
    pub endpoints: Vec<Endpoint>,
}
