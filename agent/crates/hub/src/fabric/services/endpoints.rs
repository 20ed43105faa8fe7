//! Who answers for a Service: what its EndpointSlices say and the pods that its selector matches.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::discovery::v1 as kube;
use weft_model::{Endpoint, NodeName, Pod, PodName, ServiceName, ServiceProtocol};

use super::draft::{Draft, DraftPort, Target};
use super::{HEADLESS, Inputs, is_unusable, text};
use crate::range::Family;
use crate::source::Problem;
use crate::source::index::Defined;
use crate::source::object::{Key, Object, is_label};
use crate::source::pod::{PodManifest, protocol};

/// The Service that a slice is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Where a node's zone stands in its labels.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Everything that can be an endpoint, by what Services look for.
pub(super) struct Endpoints<'a> {
    /// By namespace and Service.
    slices: BTreeMap<(&'a str, &'a str), Vec<(&'a Defined, &'a kube::EndpointSlice)>>,
    pods: Vec<Candidate<'a>>,
    /// Places in `pods` by namespace, label and its value.
    by_label: BTreeMap<(&'a str, &'a str, &'a str), Vec<usize>>,
    service_cidrs: &'a [IpNet],
    /// An endpoint without a name of its own has its pod's.
    pod_names: bool,
}

/// A pod that has an address.
struct Candidate<'a> {
    pod: &'a Pod,
    /// If it has one.
    manifest: Option<&'a PodManifest>,
    addresses: Vec<IpAddr>,
    /// Of its node.
    zone: Option<&'a String>,
    /// Nothing is heard of its node.
    lost: bool,
}

impl<'a> Endpoints<'a> {
    /// Of these Services only, if `names` are given.
    pub(super) fn new(inputs: &'a Inputs<'_>, names: Option<&BTreeSet<ServiceName>>) -> Self {
        let only = names.map(|names| Only::new(inputs, names));
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut manifests: BTreeMap<&PodName, &PodManifest> = BTreeMap::new();
        for (key, defined) in &inputs.source.objects {
            match &defined.object {
                Object::EndpointSlice(slice) => {
                    let Some(service) = service_of(slice) else { continue };
                    let name = (key.namespace.as_str(), service);
                    if only.as_ref().is_some_and(|only| !only.names.contains(&name)) {
                        continue;
                    }
                    slices.entry(name).or_default().push((&**defined, &**slice));
                }
                Object::Pod(pod) => drop(manifests.insert(&pod.pod.name, pod)),
                _ => {}
            }
        }
        let (by_label, service_cidrs) = (BTreeMap::new(), inputs.cluster.service_cidrs.as_slice());
        let pod_names = inputs.cluster.dns.as_ref().is_some_and(|dns| dns.endpoint_pod_names);
        let mut endpoints = Self { slices, pods: Vec::new(), by_label, service_cidrs, pod_names };
        let concerns = |pod: &&Arc<Pod>| only.as_ref().is_none_or(|only| only.selects(pod));
        for pod in inputs.pods.values().filter(concerns) {
            let manifest = manifests.get(&pod.name).copied();
            // A pod without a document may be there still, and is nobody's endpoint.
            let addresses = addresses_of(pod, manifest, inputs);
            if addresses.is_empty() || manifest.is_none_or(|m| m.pod.finished) {
                continue;
            }
            for (label, value) in &pod.labels {
                let key = (pod.name.namespace.as_str(), label.as_str(), value.as_str());
                endpoints.by_label.entry(key).or_default().push(endpoints.pods.len());
            }
            let lost = pod.node.as_ref().is_some_and(|node| inputs.lost.contains(node));
            let node = pod.node.as_ref().and_then(|node| inputs.nodes.get(node));
            let zone = node.and_then(|node| node.labels.get(ZONE));
            endpoints.pods.push(Candidate { pod, manifest, addresses, zone, lost });
        }
        endpoints
    }

    /// Endpoints of a Service in these families that serve a port of it, by address.
    pub(super) fn of(
        &self,
        draft: &Draft<'_>,
        families: &[Family],
        problems: &mut Vec<Problem>,
    ) -> Vec<Endpoint> {
        let mut endpoints = self.find(draft, families, &|slice| !is_headless(slice), problems);
        endpoints.retain(|e| e.targets.iter().any(|t| *t != 0));
        endpoints
    }

    /// Name, protocol and number of each port that slices of a Service give a name to.
    pub(super) fn ports_of_slices(
        &self,
        name: &ServiceName,
    ) -> Vec<(&'a str, ServiceProtocol, u16)> {
        let key = (name.namespace.as_str(), name.name.as_str());
        let slices = self.slices.get(&key).into_iter().flatten();
        let named = |port: &'a kube::EndpointPort| {
            let name = port.name.as_deref().filter(|n| !n.is_empty())?;
            let number = port.port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)?;
            Some((name, protocol(port.protocol.as_deref())?, number))
        };
        slices.flat_map(|(_, slice)| slice.ports.iter().flatten()).filter_map(named).collect()
    }

    /// Endpoints of a Service in these families, whatever they serve, by address.
    pub(super) fn with_names(
        &self,
        draft: &Draft<'_>,
        families: &[Family],
        problems: &mut Vec<Problem>,
    ) -> Vec<Endpoint> {
        self.find(draft, families, &|_| true, problems)
    }

    fn find(
        &self,
        draft: &Draft<'_>,
        families: &[Family],
        counts: &dyn Fn(&kube::EndpointSlice) -> bool,
        problems: &mut Vec<Problem>,
    ) -> Vec<Endpoint> {
        let mut found = BTreeMap::new();
        let key = (draft.name.namespace.as_str(), draft.name.name.as_str());
        let slices = self.slices.get(&key).into_iter().flatten();
        for (defined, slice) in slices.filter(|(_, slice)| counts(slice)) {
            let slice_name = slice.metadata.name.as_deref().unwrap_or_default();
            let mut report = |what: String| {
                let (file, line) = (defined.file.clone(), defined.line);
                let reason = format!(
                    "EndpointSlice {}/{slice_name} of Service {}: {what}",
                    draft.name.namespace, draft.name.name
                );
                problems.push(Problem { file, line, reason });
            };
            for endpoint in
                of_slice(slice, &draft.ports, (self.service_cidrs, self.pod_names), &mut report)
            {
                join(&mut found, endpoint);
            }
        }
        for candidate in self.selected(draft) {
            for endpoint in of_pod(candidate, draft, self.pod_names) {
                join(&mut found, endpoint);
            }
        }
        let wanted = |e: &Endpoint| families.contains(&Family::of(e.address));
        found.into_values().filter(wanted).collect()
    }

    fn selected(&self, draft: &Draft<'_>) -> Vec<&Candidate<'a>> {
        let selector = draft.spec.selector.iter().flatten();
        let lists = selector.map(|(label, value)| {
            let key = (draft.name.namespace.as_str(), label.as_str(), value.as_str());
            self.by_label.get(&key).map(Vec::as_slice).unwrap_or_default()
        });
        // Without a selector there is no list, and no pod.
        let shortest = lists.min_by_key(|list| list.len()).unwrap_or_default();
        let candidates = shortest.iter().filter_map(|i| self.pods.get(*i));
        let matches = |c: &&Candidate<'_>| {
            let mut selector = draft.spec.selector.iter().flatten();
            selector.all(|(label, value)| c.pod.labels.get(label) == Some(value))
        };
        candidates.filter(matches).collect()
    }
}

/// Some Services.
struct Only<'a> {
    /// Namespaces and names.
    names: BTreeSet<(&'a str, &'a str)>,
    /// Namespaces and selectors of those that have one.
    selectors: Vec<(&'a str, &'a BTreeMap<String, String>)>,
}

impl<'a> Only<'a> {
    fn new(inputs: &'a Inputs<'_>, names: &'a BTreeSet<ServiceName>) -> Self {
        let selector = |name: &'a ServiceName| {
            let Object::Service(manifest) = &inputs.source.objects.get(&Key::service(name))?.object
            else {
                return None;
            };
            Some((name.namespace.as_str(), manifest.spec.as_ref()?.selector.as_ref()?))
        };
        Self {
            names: names.iter().map(|n| (n.namespace.as_str(), n.name.as_str())).collect(),
            selectors: names.iter().filter_map(selector).collect(),
        }
    }

    fn selects(&self, pod: &Pod) -> bool {
        self.selectors.iter().any(|(namespace, selector)| {
            *namespace == pod.name.namespace
                && selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value))
        })
    }
}

/// Made for names only.
fn is_headless(slice: &kube::EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().is_some_and(|l| l.contains_key(HEADLESS))
}

/// The Service that a slice is of, whether it is headless or not.
pub(in crate::fabric) fn service_of(slice: &kube::EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME).map(String::as_str)
}

/// The first address of each family.
fn addresses_of(pod: &Pod, manifest: Option<&PodManifest>, inputs: &Inputs<'_>) -> Vec<IpAddr> {
    let own = match manifest.and_then(|m| m.host_addresses.as_deref()) {
        None => pod.addresses.as_slice(),
        Some([]) => {
            let node = pod.node.as_ref().and_then(|n| inputs.nodes.get(n));
            node.map(|n| n.addresses.as_slice()).unwrap_or_default()
        }
        Some(host) => host,
    };
    let first = |family| own.iter().copied().find(|a| Family::of(*a) == family && !is_unusable(*a));
    [Family::V4, Family::V6].into_iter().filter_map(first).collect()
}

/// As the controller of Kubernetes makes endpoints of pods.
fn of_pod<'e>(
    candidate: &'e Candidate<'_>,
    draft: &'e Draft<'_>,
    pod_names: bool,
) -> impl Iterator<Item = Endpoint> + 'e {
    let serving = !candidate.lost && candidate.manifest.is_none_or(|m| m.ready);
    let terminating = candidate.manifest.is_some_and(|m| m.terminating);
    let in_any_case = draft.spec.publish_not_ready_addresses == Some(true);
    let targets: Vec<_> = draft.ports.iter().map(|p| target(p, candidate.manifest)).collect();
    let subdomain = |m: &&PodManifest| m.subdomain.as_deref() == Some(draft.name.name.as_str());
    let hostname = candidate.manifest.filter(subdomain).and_then(|m| m.hostname.clone());
    let pod_name = Some(&candidate.pod.name.name).filter(|name| pod_names && is_label(name));
    let hostname = hostname.or_else(|| pod_name.cloned());
    let (near, nearest) = match draft.spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => (true, false),
        Some("PreferSameNode") => (true, true),
        _ => (false, false),
    };
    let for_zones: Vec<_> = candidate.zone.filter(|_| near).into_iter().cloned().collect();
    let for_nodes: Vec<_> = candidate.pod.node.iter().filter(|_| nearest).cloned().collect();
    candidate.addresses.iter().map(move |address| Endpoint {
        address: *address,
        hostname: hostname.clone(),
        node: candidate.pod.node.clone(),
        ready: in_any_case || (serving && !terminating),
        serving,
        terminating,
        for_nodes: for_nodes.clone(),
        for_zones: for_zones.clone(),
        targets: targets.clone(),
    })
}

fn target(port: &DraftPort, manifest: Option<&PodManifest>) -> u16 {
    match &port.target {
        Target::Number(number) => *number,
        Target::Name(name) => {
            let mut ports = manifest.iter().flat_map(|m| &m.pod.ports);
            let named = ports.find(|p| p.name == *name && p.protocol == port.protocol);
            named.map(|p| p.number).unwrap_or_default()
        }
    }
}

fn of_slice(
    slice: &kube::EndpointSlice,
    ports: &[DraftPort],
    (service_cidrs, pod_names): (&[IpNet], bool),
    report: &mut impl FnMut(String),
) -> Vec<Endpoint> {
    // `FQDN`, or what a later Kubernetes has.
    let Some(family) = Family::from_kubernetes(&slice.address_type) else {
        if slice.address_type != "FQDN" {
            let given = &slice.address_type;
            report(format!("`addressType`: `{given}` is none of IPv4, IPv6, FQDN: it is ignored"));
        }
        return Vec::new();
    };
    let targets: Vec<_> = ports.iter().map(|port| slice_port(slice, port)).collect();
    let mut endpoints = Vec::new();
    for given in &slice.endpoints {
        // All of an endpoint's addresses are one pod's; only the first is used.
        let Some(first) = given.addresses.first() else {
            report("an endpoint without an address is ignored".to_owned());
            continue;
        };
        let address = match text::address(first) {
            None => Err("is no IP address"),
            Some(a) if Family::of(a) != family => Err("is not of the slice's address type"),
            Some(a) if is_unusable(a) => Err("is not one that others can reach"),
            Some(a) if service_cidrs.iter().any(|c| c.contains(&a)) => Err("is a Service's"),
            Some(a) => Ok(a),
        };
        match address {
            Ok(address) => endpoints.push(endpoint(given, address, targets.clone(), pod_names)),
            Err(reason) => report(format!("endpoint address `{first}` {reason}: it is ignored")),
        }
    }
    endpoints
}

fn endpoint(
    given: &kube::Endpoint,
    address: IpAddr,
    targets: Vec<u16>,
    pod_names: bool,
) -> Endpoint {
    let pod = given.target_ref.as_ref().filter(|r| pod_names && r.kind.as_deref() == Some("Pod"));
    let names = [given.hostname.as_ref(), pod.and_then(|p| p.name.as_ref())];
    let conditions = given.conditions.as_ref();
    let hints = given.hints.as_ref();
    let node = |name: &String| NodeName::try_new(name.as_str()).ok();
    let for_nodes = hints.iter().flat_map(|h| h.for_nodes.iter().flatten());
    let for_zones = hints.iter().flat_map(|h| h.for_zones.iter().flatten());
    Endpoint {
        address,
        hostname: names.into_iter().flatten().find(|name| is_label(name)).cloned(),
        node: given.node_name.as_ref().and_then(node),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        for_nodes: for_nodes.filter_map(|n| node(&n.name)).collect(),
        for_zones: for_zones.map(|z| z.name.clone()).collect(),
        targets,
    }
}

/// By name and protocol, never by number; 0 if the slice has none.
fn slice_port(slice: &kube::EndpointSlice, port: &DraftPort) -> u16 {
    let mut ports = slice.ports.iter().flatten();
    let named = ports.find(|p| {
        let name = p.name.as_deref().unwrap_or_default();
        name == port.name && protocol(p.protocol.as_deref()) == Some(port.protocol)
    });
    named.and_then(|p| p.port).and_then(|n| u16::try_from(n).ok()).unwrap_or_default()
}

/// An address counts once. Where it is in two places what is ready wins: it may be moving from one
/// slice to another. Its ports are those of both.
fn join(found: &mut BTreeMap<IpAddr, Endpoint>, mut endpoint: Endpoint) {
    match found.entry(endpoint.address) {
        Entry::Vacant(entry) => drop(entry.insert(endpoint)),
        Entry::Occupied(mut entry) => {
            let known = entry.get_mut();
            if endpoint.ready && !known.ready {
                std::mem::swap(known, &mut endpoint);
            }
            known.serving |= endpoint.serving;
            known.node = known.node.take().or(endpoint.node);
            known.hostname = known.hostname.take().or(endpoint.hostname);
            for (target, other) in known.targets.iter_mut().zip(endpoint.targets) {
                if *target == 0 {
                    *target = other;
                }
            }
        }
    }
}
