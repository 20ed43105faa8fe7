//! Everything the hub knows, made into what a snapshot says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use weft_model::{
    BUILT_IN_PLUGINS, Cluster, Encapsulation, Node, NodeName, PluginSpec, Pod, PodName, Service,
    ServiceName, USER_PLUGINS_MAX,
};

use super::services::{self, Allocation, Inputs};
use super::state::{Joined, State};
use super::{FabricError, inside};
use crate::source::Problem;
use crate::source::files::Objects;
use crate::source::index::Defined;
use crate::source::object::{Object, PacketFilter};

/// The outcome.
#[derive(Default)]
pub(crate) struct Merged {
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) pods: BTreeMap<PodName, Pod>,
    pub(crate) plugins: BTreeMap<String, PluginSpec>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    /// What Services have from now on.
    pub(crate) allocations: BTreeMap<ServiceName, Allocation>,
    pub(crate) misfits: Vec<Problem>,
    pub(crate) static_peers: BTreeSet<NodeName>,
}

/// Merges the source, the reports and the plugins of the API.
pub(crate) fn merge(cluster: &Cluster, allow_external_ips: bool, state: &State) -> Merged {
    let mut merged = Merged::default();
    for (name, joined) in &state.nodes {
        merged.nodes.insert(name.clone(), node_of(name, joined));
    }
    merged.plugins.clone_from(&state.plugins);
    if let Some(trial) = &state.trial {
        merged.plugins.insert(trial.spec.name.clone(), trial.spec.clone());
    }
    for defined in state.source.objects.values() {
        merged.take(cluster, state, defined);
    }
    merged.take_reported_pods(state);
    merged.make_services(cluster, allow_external_ips, state);
    merged
}

/// Subnets that static peers lay claim to: never leased to a node.
pub(crate) fn reserved(source: &Objects) -> Vec<IpNet> {
    let peers = source.objects.values().filter_map(|d| match &d.object {
        Object::StaticPeer(peer) => Some(peer.subnets.iter().copied()),
        _ => None,
    });
    peers.flatten().collect()
}

fn node_of(name: &NodeName, joined: &Joined) -> Node {
    Node {
        name: name.clone(),
        uid: joined.record.uid.clone(),
        endpoint: joined.reported.endpoint,
        addresses: joined.reported.addresses.clone(),
        subnets: joined.subnets.clone(),
        keys: joined.reported.keys.clone(),
        vtep_mac: joined.reported.vtep_mac,
        labels: BTreeMap::new(),
    }
}

impl Merged {
    fn take(&mut self, cluster: &Cluster, state: &State, defined: &Defined) {
        match &defined.object {
            Object::Node { name, labels } => {
                if let Some(node) = self.nodes.get_mut(name) {
                    node.labels.clone_from(labels);
                }
            }
            Object::StaticPeer(peer) => {
                match self.check_peer(cluster, &state.own_addresses, peer) {
                    Ok(()) => {
                        self.static_peers.insert(peer.name.clone());
                        self.nodes.insert(peer.name.clone(), peer.clone());
                    }
                    Err(reason) => self.misfit(defined, reason),
                }
            }
            Object::Pod(pod) => {
                self.pods.insert(pod.pod.name.clone(), pod.pod.clone());
            }
            Object::PacketFilter(filter) => self.take_filter(state, defined, filter),
            // Taken up when everything else is known.
            Object::Service(_) | Object::EndpointSlice(_) | Object::AddressPool(_) => {}
            // Read and checked; nothing in the snapshot speaks of them.
            Object::Namespace(_) | Object::NetworkPolicy(_) => {}
        }
    }

    fn check_peer(
        &self,
        cluster: &Cluster,
        own: &BTreeSet<IpAddr>,
        peer: &Node,
    ) -> Result<(), String> {
        if self.nodes.contains_key(&peer.name) {
            return Err(format!("a node named {} has joined: rename this static peer", peer.name));
        }
        let needs = match cluster.encapsulation {
            Encapsulation::WireGuard if peer.keys.is_empty() => Some("weft.dev/public-key"),
            Encapsulation::Vxlan if peer.vtep_mac.is_none() => Some("weft.dev/vtep-mac"),
            Encapsulation::Vxlan if peer.endpoint.is_none() => Some("weft.dev/endpoint"),
            Encapsulation::WireGuard | Encapsulation::Vxlan => None,
        };
        if let Some(annotation) = needs {
            let mode = cluster.encapsulation;
            return Err(format!(
                "a static peer of a {mode:?} fabric needs annotation `{annotation}`"
            ));
        }
        for subnet in &peer.subnets {
            if !cluster.pod_cidrs.iter().any(|c| c.contains(subnet)) {
                return Err(format!("{subnet} is in none of the fabric's pod CIDRs"));
            }
            let holder = self
                .nodes
                .values()
                .find(|n| n.subnets.iter().any(|s| s.contains(subnet) || subnet.contains(s)));
            if let Some(holder) = holder {
                return Err(format!("{subnet} is held by node {} already", holder.name));
            }
        }
        self.check_peer_addresses(cluster, own, peer)?;
        let keys = |n: &&Node| n.keys.iter().any(|k| peer.keys.contains(k));
        match self.nodes.values().find(keys) {
            Some(owner) => Err(format!("its public key is node {}'s already", owner.name)),
            None => Ok(()),
        }
    }

    /// What is sent to one of its addresses goes to the peer: it cannot be somebody else's.
    fn check_peer_addresses(
        &self,
        cluster: &Cluster,
        own: &BTreeSet<IpAddr>,
        peer: &Node,
    ) -> Result<(), String> {
        for address in &peer.addresses {
            if let Some(owner) = self.nodes.values().find(|n| n.addresses.contains(address)) {
                return Err(format!("address {address} is node {}'s already", owner.name));
            }
            if own.contains(address) {
                return Err(format!("address {address} is the hub's own"));
            }
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                return Err(format!("address {address} is not one that nodes can reach"));
            }
            if let Some((kind, cidr)) = inside(cluster, *address) {
                return Err(format!("address {address} is in {kind} CIDR {cidr}"));
            }
        }
        Ok(())
    }

    fn take_filter(&mut self, state: &State, defined: &Defined, filter: &PacketFilter) {
        if state.plugins.contains_key(&filter.name) {
            let reason = format!(
                "plugin {0} was loaded by command: unload it (`weft plugin unload {0}`) first",
                filter.name
            );
            return self.misfit(defined, reason);
        }
        if BUILT_IN_PLUGINS.contains(&filter.name.as_str()) {
            let reason = FabricError::PluginBuiltIn(filter.name.clone()).to_string();
            return self.misfit(defined, reason);
        }
        if self.plugins.len() >= USER_PLUGINS_MAX {
            let reason = format!("{USER_PLUGINS_MAX} plugins are there already, more cannot run");
            return self.misfit(defined, reason);
        }
        // A module that cannot be read has been reported by the source.
        let path = Objects::module_path(&defined.file, filter);
        let Some(module) = state.source.modules.get::<Path>(path.as_ref()) else { return };
        let spec = PluginSpec {
            name: filter.name.clone(),
            digest: module.digest,
            config: filter.config.clone().into_bytes(),
            priority: filter.priority,
            position: filter.position,
            on_fault: filter.on_fault,
            deadline_us: filter.deadline_us,
        };
        self.plugins.insert(spec.name.clone(), spec);
    }

    /// A pod that CNI made is where CNI made it; its labels are the manifest's.
    fn take_reported_pods(&mut self, state: &State) {
        let mut by_age: Vec<_> = state.nodes.iter().collect();
        by_age.sort_by_key(|(_, joined)| joined.last_report_unix);
        for (node, joined) in by_age {
            for reported in &joined.reported.pods {
                let pod =
                    self.pods.entry(reported.name.clone()).or_insert_with(|| reported.clone());
                pod.node = Some(node.clone());
                pod.addresses.clone_from(&reported.addresses);
            }
        }
    }

    fn make_services(&mut self, cluster: &Cluster, allow_external_ips: bool, state: &State) {
        let outcome = services::build(&Inputs {
            cluster,
            source: &state.source,
            nodes: &self.nodes,
            pods: &self.pods,
            own_addresses: &state.own_addresses,
            before: &state.allocations,
            alive: &state.alive,
            allow_external_ips,
        });
        self.services = outcome.services;
        self.allocations = outcome.allocations;
        self.misfits.extend(outcome.problems);
    }

    fn misfit(&mut self, defined: &Defined, reason: String) {
        self.misfits.push(Problem { file: defined.file.clone(), line: defined.line, reason });
    }
}
