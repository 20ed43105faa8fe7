//! Where a Service may send a connection: as the plugin for Services does, for every backend that it
//! could choose.

use std::net::IpAddr;

use weft_model::{Endpoint, NodeName, Service, ServicePort, Snapshot, TrafficPolicy};

use crate::AskError;
use crate::party::{Party, Place};
use crate::port::Wanted;

/// Backends of one port that are told of.
const BACKENDS_MAX: usize = 100;

/// A connection as it leaves the Service.
pub(crate) struct Translated {
    /// As `80/TCP`.
    pub(crate) service_port: String,
    pub(crate) port: weft_proto::v1::Ports,
    /// What the other end sees.
    pub(crate) source: IpAddr,
    pub(crate) to: IpAddr,
}

/// A Service and how it is reached.
pub(crate) struct Reached<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) service: &'a Service,
    pub(crate) from: &'a Party,
    /// The address that was named, or a node's.
    pub(crate) address: Option<IpAddr>,
    /// At a node port of this node.
    pub(crate) at_node: Option<NodeName>,
}

/// The Service that has this node port at an address of a node.
pub(crate) fn of_node_port<'a>(
    snapshot: &'a Snapshot,
    wanted: &Wanted,
    address: IpAddr,
) -> Option<(&'a Service, &'a ServicePort)> {
    let Wanted::Number(protocol, number) = wanted else { return None };
    let cidrs = &snapshot.cluster.node_port_cidrs;
    if !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(&address)) {
        return None;
    }
    let mut all = snapshot.services.values().flat_map(|s| s.ports.iter().map(move |p| (&**s, p)));
    all.find(|(_, port)| port.protocol == *protocol && port.node_port == Some(*number))
}

impl Reached<'_> {
    /// Ports of the Service that are meant.
    pub(crate) fn ports(&self, wanted: &Wanted) -> Result<Vec<(usize, &ServicePort)>, AskError> {
        let name = self.service.name.to_string();
        let all = self.service.ports.iter().enumerate();
        let meant: Vec<_> = match wanted {
            Wanted::Every => all.collect(),
            Wanted::WithoutPorts => return Err(AskError::NoPorts(name)),
            Wanted::Number(protocol, number) => {
                all.filter(|(_, p)| p.protocol == *protocol && p.port == *number).collect()
            }
            Wanted::Named(protocol, name) => all
                .filter(|(_, p)| p.name == *name && protocol.is_none_or(|of| of == p.protocol))
                .collect(),
        };
        if meant.is_empty() {
            let text = |p: &ServicePort| format!("{}/{}", p.port, p.protocol);
            let ports = self.service.ports.iter().map(text).collect::<Vec<_>>().join(", ");
            return Err(AskError::NoServicePort { service: name, port: wanted.to_string(), ports });
        }
        Ok(meant)
    }

    /// Whether it can be reached in the family of an address.
    pub(crate) fn has_family(&self, like: &IpAddr) -> bool {
        let same = |a: &IpAddr| a.is_ipv4() == like.is_ipv4();
        match &self.address {
            Some(address) => same(address),
            None => self.service.cluster_ips.iter().any(same),
        }
    }

    /// Every connection that may come of one from `source` to a port of the Service.
    pub(crate) fn translated(
        &self,
        (index, port): (usize, &ServicePort),
        source: IpAddr,
        notes: &mut Vec<String>,
    ) -> Vec<Translated> {
        let service_port = format!("{}/{}", port.port, port.protocol);
        let target = |e: &Endpoint| e.targets.get(index).copied().unwrap_or(0);
        let served: Vec<_> = self
            .service
            .endpoints
            .iter()
            .filter(|e| e.address.is_ipv4() == source.is_ipv4() && target(e) != 0)
            .collect();
        let entry = self.entry();
        let local = self.stays_local(entry.as_ref());
        let near = |e: &&&Endpoint| !local || entry.is_none() || e.node == entry;
        let near: Vec<_> = served.iter().filter(near).copied().collect();
        let ready: Vec<_> = near.iter().copied().filter(|e| e.ready).collect();
        let leaving = near.iter().copied().filter(|e| e.serving && e.terminating);
        let chosen = if ready.is_empty() { leaving.collect() } else { ready };
        let name = &self.service.name;
        let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        if chosen.is_empty() {
            let there = if local && !served.is_empty() { " on that node" } else { "" };
            notes.push(format!(
                "Service {name} has no backend for {service_port} over {family}{there}: nothing gets through"
            ));
        }
        if chosen.iter().any(|e| !e.for_nodes.is_empty() || !e.for_zones.is_empty()) {
            note(
                notes,
                format!("Service {name} has hints: a node may choose fewer of its backends"),
            );
        }
        if chosen.len() > BACKENDS_MAX {
            let more = chosen.len() - BACKENDS_MAX;
            notes.push(format!(
                "{more} more backends of Service {name}, {service_port}, are left out"
            ));
        }
        let backends = chosen.into_iter().take(BACKENDS_MAX);
        let one = |e: &Endpoint| Translated {
            service_port: service_port.clone(),
            port: crate::port::one(port.protocol, target(e)),
            source: self.seen(source, entry.as_ref(), e, notes),
            to: e.address,
        };
        backends.map(one).collect()
    }

    /// The node that translates, if that is certain.
    fn entry(&self) -> Option<NodeName> {
        if let Some(node) = &self.at_node
            && !self.is_own_node(node)
            && !matches!(self.from.place, Place::Pod { .. })
        {
            return Some(node.clone());
        }
        match &self.from.place {
            Place::Pod { node, .. } => node.clone(),
            Place::Node(node) => Some(node.clone()),
            Place::Outside => {
                self.address.and_then(|address| self.service.announcers.get(&address).cloned())
            }
        }
    }

    fn is_own_node(&self, node: &NodeName) -> bool {
        matches!(&self.from.place, Place::Node(own) if own == node)
    }

    /// True if only backends of the node where the connection enters are chosen.
    fn stays_local(&self, entry: Option<&NodeName>) -> bool {
        let external = self.at_node.is_some()
            || self.address.is_some_and(|a| !self.service.cluster_ips.contains(&a));
        if !external {
            return self.service.internal_policy == TrafficPolicy::Local;
        }
        let inside = match &self.from.place {
            Place::Pod { .. } => true,
            Place::Node(node) => Some(node) == entry,
            Place::Outside => false,
        };
        !inside && self.service.external_policy == TrafficPolicy::Local
    }

    /// The source that the backend sees.
    fn seen(
        &self,
        source: IpAddr,
        entry: Option<&NodeName>,
        backend: &Endpoint,
        notes: &mut Vec<String>,
    ) -> IpAddr {
        let from_entry = match &self.from.place {
            Place::Pod { .. } => true,
            Place::Node(node) => Some(node) == entry,
            Place::Outside => false,
        };
        if from_entry || (entry.is_some() && backend.node.as_ref() == entry) {
            return source;
        }
        let Some(node) = entry.and_then(|name| self.snapshot.nodes.get(name)) else {
            if backend.node.is_some() {
                note(notes, "it is told for connections that enter at the backend's own node: of others the pod sees that node's address".to_owned());
            }
            return source;
        };
        let same = |a: &&IpAddr| a.is_ipv4() == source.is_ipv4();
        node.addresses.iter().find(same).copied().unwrap_or(source)
    }
}

fn note(notes: &mut Vec<String>, line: String) {
    if !notes.contains(&line) {
        notes.push(line);
    }
}
