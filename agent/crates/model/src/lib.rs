//! Ids and plain data that every part of Weft shares. No I/O, no clock, no async.
//!
//! [`Snapshot`] is what the hub publishes; [`Delta`] takes one snapshot to the next. [`Timestamp`]
//! is the only notion of time in the sans-IO core: it comes in as an argument and is never read.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod cni;
mod dns;
mod domain;
mod drop_reason;
mod ids;
mod mtu;
mod policy;
mod service;
mod shared_map;
mod snapshot;
mod time;

pub use dns::{
    DNS_PLUGIN, DNS_PORT, Dns, NamedKind, NamedService, NoUpstream, PodNames, RESOLVERS, Upstream,
};
pub use domain::{DomainError, DomainPattern};
pub use drop_reason::DropReason;
pub use ids::{Generation, IdError, MacAddr, NodeName, PeerId, PodName, PublicKey, Vni};
pub use mtu::{Encapsulation, Mtu, MtuError, overhead};
pub use policy::{
    NamedPort, Namespace, NamespaceSelector, Operator, POLICY_PLUGIN, PodSelector, Policy,
    PolicyAction, PolicyKind, PolicyName, PolicyPeer, PolicyPort, PolicyRule, PolicyTier,
    Requirement, Selector,
};
pub use service::{
    Endpoint, HOST_SOURCES, SERVICE_PLUGIN, Service, ServiceName, ServicePort, ServiceProtocol,
    TrafficPolicy,
};
pub use shared_map::{Difference, SharedMap};
pub use snapshot::{
    BUILT_IN_PLUGINS, Cluster, Delta, DeltaError, HookPosition, Node, OnFault, PLUGINS_MAX,
    PluginMode, PluginSpec, Pod, Snapshot, USER_PLUGINS_MAX, changed,
};
pub use time::Timestamp;
