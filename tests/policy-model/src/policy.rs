//! Policies, as their objects say it.

use ipnet::IpNet;

use crate::{Protocol, Selector};

/// Which of a pod's directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What gets to the pod.
    Ingress,
    /// What the pod sends.
    Egress,
}

/// A NetworkPolicy (networking.k8s.io/v1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `spec.podSelector`
    pub pods: Selector,
    /// `spec.policyTypes`; `None` if absent.
    pub types: Option<Vec<Direction>>,
    /// `spec.ingress`; absent and empty are the same.
    pub ingress: Vec<Rule>,
    /// `spec.egress`; likewise.
    pub egress: Vec<Rule>,
    /// It is only watched: nothing is dropped for it.
    pub watched: bool,
}

/// An ingress or egress rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `from` or `to`; any peer if empty.
    pub peers: Vec<Peer>,
    /// `ports`; any port and protocol if empty.
    pub ports: Vec<Port>,
}

/// A peer of a [`Rule`]. One that has none of the three matches nothing (NP-027).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// `podSelector`
    pub pods: Option<Selector>,
    /// `namespaceSelector`
    pub namespaces: Option<Selector>,
    /// `ipBlock`; never with one of the others.
    pub block: Option<Block>,
}

/// An `ipBlock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// `cidr`, maybe with host bits set.
    pub cidr: IpNet,
    /// `except`
    pub except: Vec<IpNet>,
}

/// An entry of `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// `protocol`; TCP if absent. One that is not known makes its rule match nothing (NP-052).
    pub protocol: Option<String>,
    /// `port` and `endPort`.
    pub port: PortNumber,
}

/// Ports of a protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortNumber {
    /// Every port.
    #[default]
    Any,
    /// A range, both ends included.
    Range(u16, u16),
    /// A container's port by its name.
    Name(String),
}

/// A ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// `spec.tier`
    pub tier: Tier,
    /// `spec.priority`, 0 to 1000: lower ones first.
    pub priority: u32,
    /// `spec.subject`
    pub subject: Subject,
    /// `spec.ingress`
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress`
    pub egress: Vec<ClusterRule>,
    /// As in [`NetworkPolicy`].
    pub watched: bool,
}

/// Tiers of ClusterNetworkPolicies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them.
    Baseline,
}

/// Pods, or all pods of namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `namespaces`
    Namespaces(Selector),
    /// `pods`: `namespaceSelector` and `podSelector`.
    Pods(Selector, Selector),
}

/// A rule of a [`ClusterPolicy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRule {
    /// `action`
    pub action: Action,
    /// `from` or `to`: at least one.
    pub peers: Vec<ClusterPeer>,
    /// `protocols`; any if empty.
    pub ports: Vec<ClusterPort>,
}

/// Actions of a [`ClusterRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It passes.
    Accept,
    /// It is dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// A peer of a [`ClusterRule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPeer {
    /// `namespaces` or `pods`
    Pods(Subject),
    /// `networks`; of egress rules only.
    Networks(Vec<IpNet>),
    /// `nodes`; of egress rules only.
    Nodes(Selector),
    /// Of a later version of the API (NP-139).
    Unknown,
}

/// An entry of `protocols`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterPort {
    /// Ports of a protocol, both ends included; `None`: all of them.
    Ports(Protocol, Option<(u16, u16)>),
    /// `destinationNamedPort`, whatever its protocol.
    Named(String),
}

impl NetworkPolicy {
    /// True if it isolates the pods that it selects in this direction (NP-010).
    #[must_use]
    pub fn covers(&self, direction: Direction) -> bool {
        match (&self.types, direction) {
            (Some(types), _) => types.contains(&direction),
            (None, Direction::Ingress) => true,
            (None, Direction::Egress) => !self.egress.is_empty(),
        }
    }

    /// Rules of a direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl ClusterPolicy {
    /// Rules of a direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
