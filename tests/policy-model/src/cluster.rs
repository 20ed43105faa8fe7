//! Who there is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{ClusterPolicy, Labels, NetworkPolicy};

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// By name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<(String, String), Pod>,
    /// By namespace and name.
    pub policies: BTreeMap<(String, String), NetworkPolicy>,
    /// By name.
    pub cluster_policies: BTreeMap<String, ClusterPolicy>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// With `kubernetes.io/metadata.name`.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// All of its own.
    pub addresses: Vec<IpAddr>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name of its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Of each family at most one.
    pub addresses: Vec<IpAddr>,
    /// Name of its node.
    pub node: String,
    /// It is in its node's network, and its addresses are the node's.
    pub host_network: bool,
    /// Phase Succeeded or Failed: its addresses may be another pod's by now.
    pub finished: bool,
    /// Ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// From 1.
    pub port: u16,
}

/// What comes after the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// One without ports, by its IANA number.
    Other(u8),
}

impl Protocol {
    /// The protocol of this name in a policy, if it is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// IANA number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Other(number) => number,
        }
    }

    /// False for protocols without ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        !matches!(self, Self::Other(_))
    }
}

impl Cluster {
    /// The pod that has an address of its own, if one has this.
    #[must_use]
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.is_selectable() && pod.addresses.contains(&address))
    }

    /// The node with this address.
    #[must_use]
    pub fn node_at(&self, address: IpAddr) -> Option<&Node> {
        self.nodes.values().find(|node| node.addresses.contains(&address))
    }

    /// Labels of a namespace; none if it is not there.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Labels {
        self.namespaces.get(name).map(|namespace| namespace.labels.clone()).unwrap_or_default()
    }

    /// The cluster as if the policies that are only watched were in force.
    #[must_use]
    pub fn with_watched(&self) -> Self {
        let mut cluster = self.clone();
        cluster.policies.values_mut().for_each(|policy| policy.watched = false);
        cluster.cluster_policies.values_mut().for_each(|policy| policy.watched = false);
        cluster
    }
}

impl Pod {
    /// True if policies can mean it, as subject or as peer (NP-080, NP-081, NP-095).
    #[must_use]
    pub fn is_selectable(&self) -> bool {
        !self.host_network && !self.finished
    }
}
