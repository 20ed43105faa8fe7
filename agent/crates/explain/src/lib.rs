//! Explains which policy and rule decide about a connection: what hub, agents and the command line share
//! of it.
//!
//! [`Plan`] is made of what an operator asked and of a snapshot: which connections are meant, and what
//! has to be asked of which node. The answers make the whole; [`words`] is what people read. Pure:
//! who asks nodes, and how, is the caller's affair, and the judgement itself is the plugin's.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod combine;
mod party;
mod plan;
mod port;
mod sender;
mod service;
pub mod words;

pub use combine::drops;
pub use plan::Plan;
pub use sender::Sender;

/// What is wrong with a question; each text is one line for an operator.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AskError {
    /// No end was given, or no name at all.
    #[error("`{0}` names nothing: give NAMESPACE/NAME of a pod, the name of a node, or an address")]
    Name(String),
    /// A prefix that is none of ours.
    #[error(
        "`{0}` is not understood: NAMESPACE/NAME of a pod, svc/NAMESPACE/NAME, node/NAME, or an address"
    )]
    Kind(String),
    /// No such pod.
    #[error("there is no pod {0}")]
    NoPod(String),
    /// Neither pod nor node.
    #[error("there is neither a pod default/{0} nor a node {0}")]
    Nobody(String),
    /// No such node.
    #[error("there is no node {0}: see `weft status`")]
    NoNode(String),
    /// No such Service.
    #[error("there is no Service {0}: see `weft services`")]
    NoService(String),
    /// A pod and a node have the name.
    #[error("`{0}` is a pod and a node: write default/{0} or node/{0}")]
    Ambiguous(String),
    /// A Service cannot begin a connection.
    #[error("{0} is a Service, and begins no connections: ask about a pod of it")]
    FromService(String),
    /// A pod that does not run, or in the network of its node.
    #[error(
        "pod {0} has no address of its own: it is not running, or in its node's network (then ask about the node)"
    )]
    NoAddress(String),
    /// A pod that runs no more.
    #[error("pod {0} has finished: nothing of it runs, and it is closed")]
    Finished(String),
    /// No address at all.
    #[error("node {0} has not told its addresses yet")]
    NoNodeAddress(String),
    /// One has IPv4 only, the other IPv6 only.
    #[error("{from} and {to} have no address of the same family")]
    Families {
        /// Who begins.
        from: String,
        /// The other end.
        to: String,
    },
    /// Not a port.
    #[error("`{0}` is no port: for example 80, 80/TCP, 53/UDP, the name of a port, or icmp")]
    Port(String),
    /// The target calls none of its ports so.
    #[error("{to} calls none of its ports `{name}`")]
    NoNamedPort {
        /// The target.
        to: String,
        /// The name.
        name: String,
    },
    /// A Service has other ports.
    #[error("Service {service} has no port {port}: it has {ports}")]
    NoServicePort {
        /// The Service.
        service: String,
        /// What was asked for.
        port: String,
        /// What there is.
        ports: String,
    },
    /// Not of the fabric.
    #[error("{0} is on no node of the fabric")]
    Elsewhere(String),
    /// Services have ports only.
    #[error("Service {0} answers at its ports only: no other protocol leads to a backend")]
    NoPorts(String),
}

impl AskError {
    /// True if what is named is not there; else it is not understood.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoPod(_) | Self::Nobody(_) | Self::NoNode(_) | Self::NoService(_) => true,
            Self::NoAddress(_) | Self::Finished(_) | Self::NoNodeAddress(_) => true,
            Self::Elsewhere(_) => true,
            Self::Name(_)
            | Self::Kind(_)
            | Self::Ambiguous(_)
            | Self::FromService(_)
            | Self::Families { .. }
            | Self::Port(_)
            | Self::NoNamedPort { .. }
            | Self::NoServicePort { .. }
            | Self::NoPorts(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
