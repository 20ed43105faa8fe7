//! Services and EndpointSlices of the source, made into what nodes have to know. Pure.
//!
//! [`mod@draft`] reads what one manifest asks for, [`allocate`] gives each Service what belongs to it
//! alone, [`endpoints`] finds who answers, and this module puts it together. There is no API server
//! and no controller behind a directory, so the hub does what they would: it gives out cluster IPs
//! and node ports, and makes endpoints of pods.

mod allocate;
mod draft;
mod endpoints;
mod named;
mod pools;
mod slots;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as kube;
use sha2::{Digest as _, Sha256};
use weft_model::{
    Cluster, Endpoint, NamedService, Node, NodeName, Pod, PodName, Service, ServiceName,
    ServicePort, SharedMap, TrafficPolicy,
};

pub(crate) use allocate::Allocation;
pub(super) use endpoints::service_of;

use self::allocate::Allocated;
use self::draft::{Draft, draft};
use self::endpoints::Endpoints;
use self::pools::Pools;
use super::inside;
use crate::range::Family;
use crate::source::Problem;
use crate::source::index::Defined;
use crate::source::object::{Key, Object};
use crate::source::objects::Objects;

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of nodes that attract no traffic for balancers.
const NO_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What Services depend on.
pub(super) struct Inputs<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) source: &'a Objects,
    /// With static peers.
    pub(super) nodes: &'a BTreeMap<NodeName, Node>,
    /// With those that agents reported.
    pub(super) pods: &'a SharedMap<PodName, Arc<Pod>>,
    /// Addresses of the hub's machine.
    pub(super) own_addresses: &'a BTreeSet<IpAddr>,
    /// What Services have now.
    pub(super) before: &'a BTreeMap<ServiceName, Allocation>,
    pub(super) allow_external_ips: bool,
    /// Nodes whose agents can be reached.
    pub(super) alive: &'a BTreeSet<NodeName>,
    /// Nodes that nothing has been heard of for long.
    pub(super) lost: &'a BTreeSet<NodeName>,
}

/// What comes of them.
#[derive(Default)]
pub(super) struct Outcome {
    /// Each that may be served.
    pub(super) made: BTreeMap<ServiceName, Made>,
    /// What Services have from now on; to be written down before anybody hears of it.
    pub(super) allocations: BTreeMap<ServiceName, Allocation>,
    /// Why Services that ask for an address of a pool have none.
    pub(super) pending: BTreeMap<ServiceName, String>,
    /// Of manifests and pools.
    pub(super) problems: Vec<Problem>,
}

/// A Service, if it is served, and what is wrong with it or its endpoints.
#[derive(Default)]
pub(super) struct Made {
    pub(super) service: Option<Service>,
    /// If it is not served: what its names are.
    pub(super) named: Option<NamedService>,
    pub(super) problems: Vec<Problem>,
}

/// Makes the Services of a snapshot. What is wrong with one of them does not touch another.
pub(super) fn build(inputs: &Inputs<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut drafts = Vec::new();
    let mut unreadable = BTreeSet::new();
    let available = families_of(inputs.cluster);
    for (key, defined) in &inputs.source.objects {
        let Object::Service(manifest) = &defined.object else { continue };
        let name = name_of(key);
        let mut notes = Vec::new();
        match draft(&name, defined, manifest, &available, &mut notes) {
            Ok(drafted) => drafts.extend(drafted),
            Err(reason) => {
                notes.push(reason);
                unreadable.insert(name.clone());
            }
        }
        outcome.problems.extend(notes.iter().map(|note| problem(defined, &name, note)));
    }
    let pools = Pools::new(inputs, &mut outcome.problems);
    let Allocated { allocations, refused, pending } =
        allocate::allocate(inputs, &pools, &drafts, &unreadable);
    let refusal = |(draft, note): &(&Draft<'_>, String)| problem(draft.defined, &draft.name, note);
    outcome.problems.extend(refused.iter().map(refusal));
    outcome.allocations = allocations;
    outcome.pending = pending;
    let endpoints = Endpoints::new(inputs, None);
    let finish = Finish::new(inputs, &outcome.allocations, &endpoints);
    let ours = drafts.iter().filter(|d| is_ours(d.manifest));
    outcome.made = ours.map(|draft| (draft.name.clone(), finish.make(draft))).collect();
    outcome.made.extend(named::build(inputs, &outcome.allocations, &endpoints, None));
    outcome
}

/// Makes some Services anew, when nothing has changed since [`build`] but endpoints; those that are not
/// to be served are left out.
pub(super) fn rebuild(
    inputs: &Inputs<'_>,
    names: &BTreeSet<ServiceName>,
) -> BTreeMap<ServiceName, Made> {
    let endpoints = Endpoints::new(inputs, Some(names));
    let finish = Finish::new(inputs, inputs.before, &endpoints);
    let available = families_of(inputs.cluster);
    let made = names.iter().filter_map(|name| {
        let defined = inputs.source.objects.get(&Key::service(name))?;
        let Object::Service(manifest) = &defined.object else { return None };
        // What its manifest lacks has been said.
        let draft = draft(name, defined, manifest, &available, &mut Vec::new()).ok()??;
        is_ours(manifest).then(|| (name.clone(), finish.make(&draft)))
    });
    let mut made: BTreeMap<_, _> = made.collect();
    made.extend(named::build(inputs, inputs.before, &endpoints, Some(names)));
    made
}

/// Services that pods with these labels are endpoints of.
pub(super) fn selecting<'a>(
    source: &'a Objects,
    namespace: &'a str,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = ServiceName> + 'a {
    source.objects.iter().filter_map(move |(key, defined)| {
        let Object::Service(manifest) = &defined.object else { return None };
        let selector = manifest.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())?;
        let matches = selector.iter().all(|(label, value)| labels.get(label) == Some(value));
        (key.namespace == namespace && matches).then(|| name_of(key))
    })
}

fn families_of(cluster: &Cluster) -> Vec<Family> {
    cluster.service_cidrs.iter().map(|c| Family::of(c.addr())).collect()
}

/// Who has which address of a pool, of one that is gone too.
type Given = BTreeMap<IpAddr, ServiceName>;

fn balancers(
    (name, allocation): (&ServiceName, &Allocation),
) -> impl Iterator<Item = (IpAddr, ServiceName)> {
    allocation.balancers().map(|address| (address, name.clone()))
}

fn name_of(key: &Key) -> ServiceName {
    ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }
}

/// Not left to another proxy, and not only a name for DNS.
fn is_ours(manifest: &kube::Service) -> bool {
    let labels = manifest.metadata.labels.as_ref();
    !labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS))
}

/// Addresses that nobody can be reached at from another machine.
fn is_unusable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local
}

fn problem(defined: &Defined, name: &ServiceName, note: &str) -> Problem {
    let (file, line) = (defined.file.clone(), defined.line);
    Problem { file, line, reason: format!("Service {name}: {note}") }
}

/// What is needed to make a Service of a draft that has what belongs to it.
struct Finish<'a> {
    inputs: &'a Inputs<'a>,
    allocations: &'a BTreeMap<ServiceName, Allocation>,
    given: Given,
    endpoints: &'a Endpoints<'a>,
}

impl<'a> Finish<'a> {
    fn new(
        inputs: &'a Inputs<'a>,
        allocations: &'a BTreeMap<ServiceName, Allocation>,
        endpoints: &'a Endpoints<'a>,
    ) -> Self {
        let given = allocations.iter().flat_map(balancers).collect();
        Self { inputs, allocations, given, endpoints }
    }

    fn make(&self, draft: &Draft<'_>) -> Made {
        let Self { inputs, given, .. } = self;
        let mut made = Made::default();
        let Some(allocation) = self.allocations.get(&draft.name).cloned() else { return made };
        // Nothing of a Service works in a family that it has no cluster IP of.
        let families: Vec<_> = allocation.cluster_ips.iter().map(|a| Family::of(*a)).collect();
        if families.is_empty() {
            return made;
        }
        let mut notes = Vec::new();
        let wanted = |a: &IpAddr| families.contains(&Family::of(*a));
        let mut load_balancer_ips = draft.status_addresses(&mut notes);
        leave_to_owners(&mut load_balancer_ips, draft, given, &mut notes);
        leave_to_the_fabric(inputs, "balancer address", &mut load_balancer_ips, &mut notes);
        load_balancer_ips.extend(allocation.load_balancer_ips.iter().copied());
        load_balancer_ips.retain(wanted);
        let source_ranges = match draft.source_ranges(&load_balancer_ips, &mut notes) {
            Ok(ranges) => ranges,
            // Without its ranges a balancer would let everybody in.
            Err(reason) => {
                notes.push(reason);
                load_balancer_ips.clear();
                Vec::new()
            }
        };
        let mut external_ips = external_ips(inputs, draft, &mut notes);
        external_ips.retain(wanted);
        leave_to_owners(&mut external_ips, draft, given, &mut notes);
        let ports = draft.ports.iter().map(|port| ServicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
            node_port: allocation.node_port(&port.key()),
        });
        let endpoints = self.endpoints.of(draft, &families, &mut made.problems);
        made.service = Some(Service {
            name: draft.name.clone(),
            announcers: announcers(inputs, draft, &allocation, &endpoints),
            load_balancer_ips,
            external_ips,
            source_ranges,
            internal_policy: draft.internal_policy(),
            external_policy: draft.external_policy(),
            affinity_s: draft.affinity_s(&mut notes),
            health_check_node_port: allocation.node_port(draft::HEALTH_CHECK),
            ports: ports.collect(),
            endpoints,
            cluster_ips: allocation.cluster_ips,
        });
        made.problems.extend(notes.iter().map(|n| problem(draft.defined, &draft.name, n)));
        made
    }
}

/// Who answers for each address that a pool gave: of the nodes that may, the one that a hash of both
/// names puts first, so that the loss of one moves nothing of the others'.
fn announcers(
    inputs: &Inputs<'_>,
    draft: &Draft<'_>,
    allocation: &Allocation,
    endpoints: &[Endpoint],
) -> BTreeMap<IpAddr, NodeName> {
    let local = draft.external_policy() == TrafficPolicy::Local;
    let serves = |node: &Node, family: Family| {
        let mut of_family = endpoints.iter().filter(|e| Family::of(e.address) == family);
        of_family.any(|e| e.ready && e.node.as_ref() == Some(&node.name))
    };
    let may = |node: &&Node, family: Family| {
        inputs.alive.contains(&node.name)
            && !node.labels.contains_key(NO_BALANCERS)
            && (!local || serves(node, family))
    };
    let weight = |node: &&Node| {
        let mut hasher = Sha256::new();
        hasher.update(format!("{}\n{}", draft.name, node.name));
        <[u8; 32]>::from(hasher.finalize())
    };
    let announced = allocation.load_balancer_ips.iter().filter_map(|address| {
        let nodes = inputs.nodes.values().filter(|node| may(node, Family::of(*address)));
        nodes.max_by_key(weight).map(|node| (*address, node.name.clone()))
    });
    announced.collect()
}

/// Takes out what a pool has given to another Service: whoever writes it into a manifest does not get
/// that one's traffic.
fn leave_to_owners(
    addresses: &mut Vec<IpAddr>,
    draft: &Draft<'_>,
    given: &Given,
    notes: &mut Vec<String>,
) {
    addresses.retain(|address| {
        let owner = given.get(address).filter(|owner| **owner != draft.name);
        notes.extend(owner.map(|o| format!("{address} is not served: it is Service {o}'s")));
        owner.is_none()
    });
}

/// `spec.externalIPs` that the operator allows, and that are nobody's in the fabric.
fn external_ips(inputs: &Inputs<'_>, draft: &Draft<'_>, notes: &mut Vec<String>) -> Vec<IpAddr> {
    let given = draft.external_ips(notes);
    if !given.is_empty() && !inputs.allow_external_ips {
        let reason = "`spec.externalIPs` are not served: the hub runs without --allow-external-ips";
        notes.push(reason.to_owned());
        return Vec::new();
    }
    let mut addresses = given;
    leave_to_the_fabric(inputs, "external IP", &mut addresses, notes);
    addresses
}

/// Takes out what is a node's, a pod's or the hub's: a Service must not cut them off.
fn leave_to_the_fabric(
    inputs: &Inputs<'_>,
    what: &str,
    addresses: &mut Vec<IpAddr>,
    notes: &mut Vec<String>,
) {
    addresses.retain(|address| {
        let owner = whose(inputs, *address);
        let note = |owner| format!("{what} {address} is not served: it is {owner}");
        notes.extend(owner.iter().map(note));
        owner.is_none()
    });
}

/// Whose address this is, if it is one of the fabric's.
fn whose(inputs: &Inputs<'_>, address: IpAddr) -> Option<String> {
    if let Some((kind, cidr)) = inside(inputs.cluster, address) {
        return Some(format!("in {kind} CIDR {cidr}"));
    }
    if let Some(node) = inputs.nodes.values().find(|n| n.addresses.contains(&address)) {
        return Some(format!("node {}'s", node.name));
    }
    inputs.own_addresses.contains(&address).then(|| "the hub's own".to_owned())
}
