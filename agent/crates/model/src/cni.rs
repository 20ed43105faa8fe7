//! What `weft-cni` and the agent say to each other on the CNI socket.
//!
//! One connection carries one [`Request`] and one [`Response`], each a JSON document ended by a
//! newline, so that the tiny binary needs no gRPC.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::MacAddr;

/// File name of the socket in the agent's run directory.
pub const SOCKET: &str = "cni.sock";

/// Directory beside the attachments where the delegate `host-local` keeps the addresses that it gave: one
/// directory for each network, one file for each address, named after it.
pub const RESERVATIONS: &str = "addresses";

/// The attachment a call is about: (network, CONTAINERID, IFNAME) of the CNI specification.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// The pod as the runtime names it; absent outside Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; older runtimes send none.
    pub uid: Option<String>,
}

/// What the delegate made, read from its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wiring {
    /// Host end of the veth pair.
    pub host_interface: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// Addresses of the pod with the prefix length of its interface.
    pub addresses: Vec<IpNet>,
    /// Ethernet address of the pod's end, if the delegate told.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// The host end's addresses as the pod sees them, one for each family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The bridge that the host end is a port of; none if it is routed.
    #[serde(default)]
    pub bridge: Option<String>,
}

impl Wiring {
    /// The gateway for a pod's address, if the delegate told.
    #[must_use]
    pub fn gateway(&self, address: &IpAddr) -> Option<IpAddr> {
        self.gateways.iter().find(|g| g.is_ipv4() == address.is_ipv4()).copied()
    }
}

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// Before the delegate runs: what should it be told?
    Prepare {
        /// Which attachment.
        attachment: Attachment,
    },
    /// The delegate has run: redirect the pod's packets, tell the datapath, wait until it knows.
    Attach {
        /// Which attachment.
        attachment: Attachment,
        /// Who the pod is, if the runtime said.
        pod: Option<PodIdentity>,
        /// What the delegate made.
        wiring: Wiring,
    },
    /// Forget the attachment. Never fails for one that is not known.
    Detach {
        /// Which attachment.
        attachment: Attachment,
    },
    /// Is everything of the attachment in place? Changes nothing.
    Check {
        /// Which attachment.
        attachment: Attachment,
        /// What `prevResult` says it should be.
        wiring: Wiring,
    },
    /// Could a pod be attached now?
    Status {
        /// To which network.
        network: String,
    },
    /// Forget every attachment of a network but some, and take away the node's ends of their interfaces.
    Collect {
        /// Which network.
        network: String,
        /// Those that stay.
        valid: Vec<Attachment>,
    },
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::Prepare`].
    Prepared(Delegation),
    /// To the others: done, or for `Check` and `Status`: all is well.
    Done,
    /// Not done.
    Failed {
        /// Error code of the CNI specification.
        code: u32,
        /// One line for the operator.
        message: String,
    },
}

/// What the delegate is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delegation {
    /// MTU of the pod's interface in bytes.
    pub mtu: u16,
    /// Most segments of a super-packet that the pod's interface makes; `None` from an agent that
    /// knows of no limit.
    #[serde(default)]
    pub segments_max: Option<u16>,
    /// Subnets to allocate from, IPv4 first, each with its gateway (the first host address).
    pub ranges: Vec<Range>,
}

/// One family's part of [`Delegation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The node's leased subnet.
    pub subnet: IpNet,
    /// Address of the host end as pods see it.
    pub gateway: IpAddr,
}
