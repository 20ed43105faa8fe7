//! Who is meant by what an operator wrote.

use std::net::IpAddr;
use std::sync::Arc;

use weft_model::{Node, NodeName, Pod, PodName, Service, ServiceName, Snapshot};

use crate::AskError;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Party {
    /// In words.
    pub(crate) name: String,
    pub(crate) place: Place,
    /// Of each family at most one.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a pod's network, or at an address that only pods have.
    Pod {
        node: Option<NodeName>,
        pod: Option<Arc<Pod>>,
    },
    Node(NodeName),
    Outside,
}

/// Whom a connection is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Party(Party),
    Service {
        service: Arc<Service>,
        /// The one that was named; `None`: the Service was.
        address: Option<IpAddr>,
    },
}

impl Party {
    pub(crate) fn address(&self, like: &IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4())
    }

    pub(crate) fn pod(&self) -> Option<&Pod> {
        match &self.place {
            Place::Pod { pod, .. } => pod.as_deref(),
            Place::Node(_) | Place::Outside => None,
        }
    }

    /// Who begins a connection.
    pub(crate) fn source(snapshot: &Snapshot, text: &str) -> Result<Self, AskError> {
        match Target::read(snapshot, text)? {
            Target::Party(party) => Ok(party),
            Target::Service { .. } => Err(AskError::FromService(text.trim().to_owned())),
        }
    }

    /// Whoever has an address.
    pub(crate) fn at(snapshot: &Snapshot, address: IpAddr) -> Self {
        let party = |name, place| Self { name, place, addresses: vec![address] };
        let has = |pod: &&Arc<Pod>| !pod.finished && pod.addresses.contains(&address);
        let owner = snapshot.pods.values().find(has);
        if let Some(pod) = owner {
            return Self { addresses: vec![address], ..Self::of_pod(snapshot, pod) };
        }
        let of_node = |node: &&Node| node.addresses.contains(&address);
        if let Some(node) = snapshot.nodes.values().find(of_node) {
            return party(format!("node {}", node.name), Place::Node(node.name.clone()));
        }
        match node_of(snapshot, address) {
            Some(node) => {
                let place = Place::Pod { node: Some(node), pod: None };
                party("an address that no pod is known to have".to_owned(), place)
            }
            None => party("an address outside of the fabric".to_owned(), Place::Outside),
        }
    }

    fn of_pod(snapshot: &Snapshot, pod: &Arc<Pod>) -> Self {
        let at = |address: &IpAddr| node_of(snapshot, *address);
        let node = pod.addresses.iter().find_map(at).or_else(|| pod.node.clone());
        let addresses = one_of_each_family(&pod.addresses);
        let place = Place::Pod { node, pod: Some(Arc::clone(pod)) };
        Self { name: pod.name.to_string(), place, addresses }
    }

    fn pod_named(snapshot: &Snapshot, namespace: &str, name: &str) -> Result<Self, AskError> {
        let name = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
        let pod = snapshot.pods.get(&name);
        let pod = pod.ok_or_else(|| AskError::NoPod(name.to_string()))?;
        if pod.finished {
            return Err(AskError::Finished(name.to_string()));
        }
        if pod.addresses.is_empty() {
            return Err(AskError::NoAddress(name.to_string()));
        }
        Ok(Self::of_pod(snapshot, pod))
    }

    fn node_named(snapshot: &Snapshot, name: &str) -> Result<Self, AskError> {
        let node = snapshot.nodes.values().find(|n| n.name.as_str() == name);
        let node = node.ok_or_else(|| AskError::NoNode(name.to_owned()))?;
        let addresses = one_of_each_family(&node.addresses);
        if addresses.is_empty() {
            return Err(AskError::NoNodeAddress(name.to_owned()));
        }
        let place = Place::Node(node.name.clone());
        Ok(Self { name: format!("node {name}"), place, addresses })
    }
}

impl Target {
    pub(crate) fn read(snapshot: &Snapshot, text: &str) -> Result<Self, AskError> {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::at(snapshot, address.to_canonical()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
            return Err(AskError::Name(text.to_owned()));
        }
        let party = match parts.as_slice() {
            ["svc" | "service", name] => return service_named(snapshot, "default", name),
            ["svc" | "service", namespace, name] => {
                return service_named(snapshot, namespace, name);
            }
            ["node", name] => Party::node_named(snapshot, name),
            ["pod", namespace, name] | [namespace, name] => {
                Party::pod_named(snapshot, namespace, name)
            }
            [name] => named(snapshot, name),
            _ => Err(AskError::Kind(text.to_owned())),
        };
        party.map(Self::Party)
    }

    fn at(snapshot: &Snapshot, address: IpAddr) -> Self {
        let has = |s: &&Arc<Service>| {
            let all = [&s.cluster_ips, &s.load_balancer_ips, &s.external_ips];
            all.into_iter().any(|addresses| addresses.contains(&address))
        };
        match snapshot.services.values().find(has) {
            Some(service) => Self::Service { service: Arc::clone(service), address: Some(address) },
            None => Self::Party(Party::at(snapshot, address)),
        }
    }
}

fn service_named(snapshot: &Snapshot, namespace: &str, name: &str) -> Result<Target, AskError> {
    let name = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
    match snapshot.services.get(&name) {
        Some(service) => Ok(Target::Service { service: Arc::clone(service), address: None }),
        None => Err(AskError::NoService(name.to_string())),
    }
}

fn named(snapshot: &Snapshot, name: &str) -> Result<Party, AskError> {
    match (Party::pod_named(snapshot, "default", name), Party::node_named(snapshot, name)) {
        (Ok(_), Ok(_)) => Err(AskError::Ambiguous(name.to_owned())),
        (Err(AskError::NoPod(_)), Err(AskError::NoNode(_))) => {
            Err(AskError::Nobody(name.to_owned()))
        }
        (Err(AskError::NoPod(_)), node) => node,
        (pod, _) => pod,
    }
}

/// The node whose pods have such addresses.
fn node_of(snapshot: &Snapshot, address: IpAddr) -> Option<NodeName> {
    let mut nodes = snapshot.nodes.values();
    let holds = |n: &&Node| n.subnets.iter().any(|s| s.contains(&address));
    nodes.find(holds).map(|n| n.name.clone())
}

fn one_of_each_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let v4 = addresses.iter().find(|a| a.is_ipv4());
    let v6 = addresses.iter().find(|a| a.is_ipv6());
    v4.into_iter().chain(v6).copied().collect()
}
