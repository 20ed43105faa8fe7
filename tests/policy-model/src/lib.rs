//! What network policies allow, read plainly and slowly, for tests to compare with.
//!
//! [`Cluster`] has plain types of its own for pods, nodes and policies; [`allowed`] is the reading of
//! the checklist of policies (`NP-nnn`), with nothing resolved beforehand and nothing remembered.
//! [`Generator`] makes small clusters in which everything gets into each other's way, and changes
//! them.
//!
//! Where the checklist leaves something open, what is generated keeps clear of it: two
//! ClusterNetworkPolicies never have one priority, a protocol that is not known is alone in its rule,
//! and named ports of ClusterNetworkPolicies do not stand beside addresses.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![allow(clippy::expect_used, reason = "used by tests only")]

mod cluster;
mod conformance;
mod cyclonus;
mod generate;
mod judge;
mod policy;
mod selector;
#[cfg(test)]
mod tests;
mod upstream;

pub use cluster::{Cluster, NamedPort, Namespace, Node, Pod, Protocol};
pub use conformance::{ConformanceCase, Probe, conformance_cases};
pub use cyclonus::{Cell, Expected, GeneratedCase, generated_cases};
pub use generate::Generator;
pub use judge::{allowed, egress_allowed, ingress_allowed};
pub use policy::{
    Action, Block, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Direction, NetworkPolicy,
    Peer, Port, PortNumber, Rule, Subject, Tier,
};
pub use selector::{Labels, Operator, Requirement, Selector};
pub use upstream::{Case, Connection, upstream_cases};
