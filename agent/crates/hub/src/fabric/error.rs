//! What can be wrong with what a node or an operator asks.

use std::path::PathBuf;

use ipnet::IpNet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;
use weft_control::ConvertError;
use weft_explain::AskError;
use weft_model::{NodeName, USER_PLUGINS_MAX};

use crate::ca::RequestError;
use crate::lease::LeaseError;
use crate::module::ModuleError;
use crate::store::StoreError;

/// A request that was not done; each text is one line for an operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FabricError {
    #[error("the join token is wrong: pass the line that `weft token show` prints on this hub")]
    WrongToken,
    #[error("this token was issued on node {1}, not on {0}")]
    OtherNode(NodeName, NodeName),
    #[error(
        "node {0} has no Node object of the uid that the token was issued for, or the hub has not heard of it yet"
    )]
    NoNodeObject(NodeName),
    #[error(
        "{0} is a node of the cluster: its agent shows a token of its ServiceAccount (--service-account-token)"
    )]
    OfCluster(NodeName),
    #[error(
        "the node's clock says {}, the hub's {}: set the one that is wrong (more than 5 minutes apart)",
        rfc3339(*.node), rfc3339(*.hub)
    )]
    ClockSkew { node: i64, hub: i64 },
    #[error(
        "node name {0} belongs to another machine: give this one another name, or remove the old one (`weft node remove {0}`)"
    )]
    NameTaken(NodeName),
    #[error("node name {0} belongs to a static peer in the manifests: choose another")]
    NameOfStaticPeer(NodeName),
    #[error(
        "this machine's identity is already node {0}: if it is a copy of that machine, remove its /var/lib/weft and start again"
    )]
    UidTaken(NodeName),
    #[error(
        "this machine was removed from the fabric: run `weft uninstall` on it, then it can join as a new node"
    )]
    RemovedUid,
    #[error("the uid of a node has 1 to 128 printable ASCII characters")]
    Uid,
    #[error(
        "node {0} is not part of the fabric any more: run `weft uninstall` on it, then it can join as a new node"
    )]
    NotMember(NodeName),
    #[error("there is no node {0}: see `weft status`")]
    NoNode(String),
    #[error("node {0} is a static peer: take its manifest away instead")]
    StaticPeer(NodeName),
    #[error("address {address} belongs to node {owner} already: two nodes cannot have one address")]
    AddressTaken { address: std::net::IpAddr, owner: NodeName },
    #[error(
        "address {address} of this node is in {kind} CIDR {cidr}: start the hub with another --{kind}-cidr"
    )]
    AddressInside { kind: &'static str, address: std::net::IpAddr, cidr: IpNet },
    #[error("address {0} is not one that other nodes can reach: report another")]
    AddressUnusable(std::net::IpAddr),
    #[error("WireGuard key belongs to node {0} already: every node needs its own")]
    KeyTaken(NodeName),
    #[error("there is no plugin {0}: see `weft plugin list`")]
    NoPlugin(String),
    #[error("plugin {0} is loaded already: use `weft plugin replace`")]
    PluginExists(String),
    #[error(
        "{USER_PLUGINS_MAX} plugins are there already, more cannot run: unload one first (`weft plugin list`)"
    )]
    TooManyPlugins,
    #[error("{node} refused it: {reason}; everything is as before")]
    PluginRefused { node: NodeName, reason: String },
    #[error("plugin {name} is declared in {}: change it there", .file.display())]
    PluginDeclared { name: String, file: PathBuf },
    #[error("`{0}` is the name of a plugin that every node has: choose another one")]
    PluginBuiltIn(String),
    #[error("`{0}` is no plugin name: use up to 63 lower-case letters, digits and `-`")]
    PluginName(String),
    #[error("the module cannot be used: {0}")]
    Module(#[from] ModuleError),
    #[error("the configuration has {0} bytes, 1 MiB at most are taken")]
    ConfigTooLarge(usize),
    #[error("the hub failed on this request; see its log")]
    Broken,
    #[error("no plugin has a module of this digest")]
    NoModule,
    #[error("nodes of this fabric answer no names: the hub was started with --no-dns")]
    NoNames,
    #[error("there is no node yet")]
    NoNodes,
    #[error("node {node} cannot be asked: {reason}")]
    Unanswered { node: NodeName, reason: String },
    #[error("{0}")]
    NameQuestion(String),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn rfc3339(unix: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix).ok();
    time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix} s since 1970"))
}

impl From<FabricError> for Status {
    fn from(error: FabricError) -> Self {
        use FabricError as E;
        let text = error.to_string();
        match error {
            E::WrongToken | E::OtherNode(..) | E::OfCluster(_) => Self::unauthenticated(text),
            E::ClockSkew { .. }
            | E::StaticPeer(_)
            | E::PluginDeclared { .. }
            | E::NoNames
            | E::NoNodes
            | E::Lease(LeaseError::Outside(_)) => Self::failed_precondition(text),
            E::NameTaken(_)
            | E::NameOfStaticPeer(_)
            | E::UidTaken(_)
            | E::AddressTaken { .. }
            | E::KeyTaken(_)
            | E::PluginExists(_) => Self::already_exists(text),
            E::RemovedUid | E::NotMember(_) => Self::permission_denied(text),
            E::Ask(ask) if ask.is_absence() => Self::not_found(text),
            E::NoNode(_) | E::NoPlugin(_) | E::NoModule => Self::not_found(text),
            E::Uid
            | E::AddressUnusable(_)
            | E::AddressInside { .. }
            | E::PluginName(_)
            | E::PluginBuiltIn(_)
            | E::PluginRefused { .. }
            | E::Module(_)
            | E::ConfigTooLarge(_)
            | E::Ask(_)
            | E::NameQuestion(_)
            | E::Convert(_)
            | E::Request(_) => Self::invalid_argument(text),
            E::TooManyPlugins | E::Lease(LeaseError::Exhausted { .. }) => {
                Self::resource_exhausted(text)
            }
            // Waiting helps.
            E::Lease(LeaseError::Resting { .. } | LeaseError::Taken { .. })
            | E::NoNodeObject(_)
            | E::Unanswered { .. } => Self::unavailable(text),
            E::Broken | E::Lease(LeaseError::Store(_)) | E::Store(_) => Self::internal(text),
        }
    }
}
