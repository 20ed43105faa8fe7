//! Everything the hub knows, made into what a snapshot says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use weft_model::{
    BUILT_IN_PLUGINS, Cluster, Dns, Encapsulation, NamedService, Namespace, Node, NodeName,
    PluginSpec, Pod, PodName, Policy, PolicyName, Service, ServiceName, SharedMap, Snapshot,
    USER_PLUGINS_MAX,
};

use super::extent::ChangedEndpoints;
use super::policies;
use super::services::{self, Allocation, Inputs, Made};
use super::state::{Joined, State};
use super::{FabricError, inside};
use crate::source::Problem;
use crate::source::index::Defined;
use crate::source::object::{Object, PacketFilter};
use crate::source::objects::Objects;

/// The outcome.
#[derive(Default)]
pub(crate) struct Merged {
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) pods: SharedMap<PodName, Arc<Pod>>,
    pub(crate) plugins: BTreeMap<String, PluginSpec>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) named_services: BTreeMap<ServiceName, NamedService>,
    pub(crate) namespaces: SharedMap<String, Arc<Namespace>>,
    pub(crate) policies: SharedMap<PolicyName, Arc<Policy>>,
    /// Those of them that stand in for what cannot be read.
    pub(crate) unread_policies: BTreeSet<PolicyName>,
    /// What Services have from now on.
    pub(crate) allocations: BTreeMap<ServiceName, Allocation>,
    /// What does not fit, but for Services and their endpoints.
    pub(crate) misfits: Vec<Problem>,
    pub(crate) service_problems: BTreeMap<ServiceName, Vec<Problem>>,
    /// Why Services that ask for an address of a pool have none.
    pub(crate) pending: BTreeMap<ServiceName, String>,
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
    merged.make_policies(cluster.dns.as_ref(), state);
    merged.make_services(cluster, allow_external_ips, state);
    merged
}

/// What became of some pods and of the Services that they, or some EndpointSlices, are endpoints of.
#[derive(Default)]
pub(crate) struct Endpoints {
    /// `None`: gone.
    pub(crate) pods: BTreeMap<PodName, Option<Arc<Pod>>>,
    /// `None`: not served.
    pub(crate) services: BTreeMap<ServiceName, Option<Service>>,
    /// `None`: has no names but as a Service that is served.
    pub(crate) named_services: BTreeMap<ServiceName, Option<NamedService>>,
    /// Those of these pods; `None`: gone.
    pub(crate) namespaces: BTreeMap<String, Option<Arc<Namespace>>>,
    /// Of each of those Services.
    pub(crate) problems: BTreeMap<ServiceName, Vec<Problem>>,
}

/// As [`merge`], when nothing has changed but these pods and slices. What it costs depends little on how
/// much else there is.
pub(crate) fn merge_endpoints(
    cluster: &Cluster,
    allow_external_ips: bool,
    state: &State,
    before: &Snapshot,
    changed: &ChangedEndpoints,
) -> Endpoints {
    let mut pods = before.pods.clone();
    let mut merged = Endpoints::default();
    let mut affected = changed.services.clone();
    for name in &changed.pods {
        let pod = pod_of(state, name);
        let labels = [pods.get(name), pod.as_ref()].into_iter().flatten().map(|p| &p.labels);
        for labels in labels {
            affected.extend(services::selecting(&state.source, &name.namespace, labels));
        }
        match &pod {
            Some(pod) => drop(pods.insert(name.clone(), Arc::clone(pod))),
            None => drop(pods.remove(name)),
        }
        merged.pods.insert(name.clone(), pod);
    }
    for PodName { namespace: name, .. } in &changed.pods {
        if !merged.namespaces.contains_key(name) {
            let namespace = policies::namespace(&state.source, &pods, cluster.dns.as_ref(), name);
            merged.namespaces.insert(name.clone(), namespace);
        }
    }
    let made = services::rebuild(
        &Inputs {
            cluster,
            source: &state.source,
            nodes: &before.nodes,
            pods: &pods,
            own_addresses: &state.own_addresses,
            before: &state.allocations,
            alive: &state.alive,
            lost: &state.lost(),
            allow_external_ips,
        },
        &affected,
    );
    merged.services.extend(affected.iter().map(|name| (name.clone(), None)));
    merged.named_services.extend(affected.into_iter().map(|name| (name, None)));
    for (name, Made { service, named, problems }) in made {
        merged.problems.insert(name.clone(), problems);
        merged.named_services.insert(name.clone(), named);
        merged.services.insert(name, service);
    }
    merged
}

/// A pod of the source, the reports, or both.
fn pod_of(state: &State, name: &PodName) -> Option<Arc<Pod>> {
    let of_manifest = state.source.pod(name);
    let declared = of_manifest.or_else(|| state.departed.get(name));
    let on = |(node, joined): (&'_ NodeName, &'_ Joined)| {
        let pod = joined.reported.pods.iter().find(|p| p.name == *name)?.clone();
        Some((node.clone(), joined.pods_from, pod))
    };
    // Of several nodes the last that spoke.
    let reported = state.nodes.iter().filter_map(on).max_by_key(|(_, at, _)| *at);
    match reported {
        Some((node, _, pod)) => Some(placed(declared.map_or(&pod, |p| p), &node, &pod)),
        None => of_manifest.cloned(),
    }
}

/// A pod that CNI made is where CNI made it; the rest is the manifest's.
fn placed(pod: &Pod, node: &NodeName, reported: &Pod) -> Arc<Pod> {
    let addresses = reported.addresses.clone();
    Arc::new(Pod { node: Some(node.clone()), addresses, ..pod.clone() })
}

/// Subnets that static peers lay claim to or that Kubernetes has assigned to other nodes: never leased to
/// `node`.
pub(crate) fn reserved(source: &Objects, node: &NodeName) -> Vec<IpNet> {
    let others = source.nodes().filter_map(|object| match object {
        Object::StaticPeer(peer) => Some(peer.subnets.iter().copied()),
        Object::Node(manifest) if manifest.name != *node => Some(manifest.subnets.iter().copied()),
        _ => None,
    });
    others.flatten().collect()
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
            Object::Node(manifest) => {
                if let Some(node) = self.nodes.get_mut(&manifest.name) {
                    node.labels.clone_from(&manifest.labels);
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
                self.pods.insert(pod.pod.name.clone(), Arc::clone(&pod.pod));
            }
            Object::PacketFilter(filter) => self.take_filter(state, defined, filter),
            // Taken up when everything else is known.
            Object::Service(_) | Object::EndpointSlice(_) | Object::AddressPool(_) => {}
            Object::Namespace(_)
            | Object::NetworkPolicy(_)
            | Object::ClusterNetworkPolicy(_)
            | Object::FqdnPolicy(_)
            | Object::OldPolicy => {}
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

    fn take_reported_pods(&mut self, state: &State) {
        let mut by_age: Vec<_> = state.nodes.iter().collect();
        by_age.sort_by_key(|(_, joined)| joined.pods_from);
        for (node, joined) in by_age {
            for reported in &joined.reported.pods {
                let declared = self.pods.get(&reported.name);
                let declared = declared.or_else(|| state.departed.get(&reported.name));
                let pod = placed(declared.map_or(reported, |p| p), node, reported);
                self.pods.insert(pod.name.clone(), pod);
            }
        }
    }

    fn make_policies(&mut self, dns: Option<&Dns>, state: &State) {
        let outcome = policies::build(&state.source);
        self.policies = outcome.policies;
        self.unread_policies = outcome.unread;
        self.misfits.extend(outcome.problems);
        if dns.is_none() {
            self.misfits.extend(outcome.without_dns);
        }
        self.namespaces = policies::namespaces(&state.source, &self.pods, dns);
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
            lost: &state.lost(),
            allow_external_ips,
        });
        self.take_services(outcome.made);
        self.allocations = outcome.allocations;
        self.pending = outcome.pending;
        self.misfits.extend(outcome.problems);
    }

    fn take_services(&mut self, made: BTreeMap<ServiceName, Made>) {
        for (name, Made { service, named, problems }) in made {
            self.named_services.extend(named.map(|named| (name.clone(), named)));
            if !problems.is_empty() {
                self.service_problems.insert(name.clone(), problems);
            }
            self.services.extend(service.map(|service| (name, service)));
        }
    }

    fn misfit(&mut self, defined: &Defined, reason: String) {
        self.misfits.push(Problem { file: defined.file.clone(), line: defined.line, reason });
    }
}
