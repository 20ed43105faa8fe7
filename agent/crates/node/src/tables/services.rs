//! Services as the plugin on this node is told of them: who may be chosen is settled here, so that the
//! plugin only chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_model::{
    DNS_PORT, Endpoint, HOST_SOURCES, Node, NodeName, RESOLVERS, Service, ServiceName, ServicePort,
    ServiceProtocol, Snapshot, TrafficPolicy,
};
use weft_proto::tables::v1::frontend::Kind;
use weft_proto::tables::v1::{
    Frontend, NodePortAddresses, Range, ServicePortTable, ServiceSettings, ServiceTable,
    ServiceTables, backend,
};

use super::{Local, PeerIds};

/// This node among the nodes of backends; others have the index they have as peers.
const OWN_NODE: u16 = u16::MAX;
/// Where a node's zone stands in its labels.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Everything the plugin is configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Services {
    settings: Option<ServiceSettings>,
    /// What the tables were made with, and each of: of what did not change, they are used again.
    view: Option<View>,
    by_name: BTreeMap<ServiceName, Compiled>,
}

#[derive(Clone, Debug, PartialEq)]
struct Compiled {
    from: Arc<Service>,
    table: Arc<ServiceTable>,
}

impl Services {
    /// `before`: what was compiled last.
    pub(crate) fn compile(
        snapshot: &Snapshot,
        local: &Local<'_>,
        ids: &PeerIds,
        before: Option<&Self>,
    ) -> Self {
        if snapshot.services.is_empty() {
            return Self::default();
        }
        let view = View::new(snapshot, local, ids);
        let before = before.filter(|b| b.view.as_ref() == Some(&view)).map(|b| &b.by_name);
        let one = |(name, service): (&ServiceName, &Arc<Service>)| {
            let known = before.and_then(|b| b.get(name));
            let compiled = known.filter(|k| Arc::ptr_eq(&k.from, service)).cloned();
            let make = || Compiled { from: Arc::clone(service), table: view.table(service).into() };
            (name.clone(), compiled.unwrap_or_else(make))
        };
        let by_name = snapshot.services.iter().map(one).collect();
        Self { settings: Some(view.settings(snapshot)), by_name, view: Some(view) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(crate) fn complete(&self) -> ServiceTables {
        ServiceTables {
            settings: self.settings.clone(),
            services: self.by_name.values().map(|c| (*c.table).clone()).collect(),
            removed: Vec::new(),
        }
    }

    /// `None` if nothing changed.
    pub(crate) fn change_from(&self, old: &Self) -> Option<ServiceTables> {
        // A Service may change in what is nothing to this node.
        let differs = |(name, new): &(&ServiceName, &Compiled)| match old.by_name.get(*name) {
            Some(old) => !Arc::ptr_eq(&old.table, &new.table) && old.table != new.table,
            None => true,
        };
        let services: Vec<_> =
            self.by_name.iter().filter(differs).map(|(_, c)| (*c.table).clone()).collect();
        let gone = old.by_name.keys().filter(|name| !self.by_name.contains_key(*name));
        let removed: Vec<_> = gone.map(ToString::to_string).collect();
        let settings = self.settings.clone().filter(|_| self.settings != old.settings);
        let nothing = services.is_empty() && removed.is_empty() && settings.is_none();
        (!nothing).then_some(ServiceTables { settings, services, removed })
    }
}

/// What is where, seen from this node.
#[derive(Clone, Debug, PartialEq)]
struct View {
    own: NodeName,
    zone: Option<String>,
    addresses: BTreeSet<IpAddr>,
    own_subnets: Vec<IpNet>,
    nodes: BTreeMap<NodeName, Place>,
    /// The Service that clients ask for names.
    dns: Option<ServiceName>,
}

/// A node as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    index: u16,
    addresses: Vec<IpAddr>,
    subnets: Vec<IpNet>,
}

impl View {
    fn new(snapshot: &Snapshot, local: &Local<'_>, ids: &PeerIds) -> Self {
        let index = |name: &NodeName| match ids.by_name.get(name.as_str()) {
            _ if name == local.node => OWN_NODE,
            // Below this node's, and never 0, which is nobody's.
            Some(id) => u16::try_from(id % u32::from(OWN_NODE - 1)).unwrap_or(0) + 1,
            None => 0,
        };
        let own = snapshot.nodes.get(local.node);
        let place = |node: &Node| Place {
            index: index(&node.name),
            addresses: node.addresses.clone(),
            subnets: node.subnets.clone(),
        };
        Self {
            own: local.node.clone(),
            zone: own.and_then(|n| n.labels.get(ZONE)).cloned(),
            addresses: local.addresses.clone(),
            own_subnets: own.map(|n| n.subnets.clone()).unwrap_or_default(),
            nodes: snapshot.nodes.iter().map(|(name, node)| (name.clone(), place(node))).collect(),
            dns: snapshot.cluster.dns.as_ref().map(|d| d.service.clone()),
        }
    }

    fn settings(&self, snapshot: &Snapshot) -> ServiceSettings {
        let cluster = &snapshot.cluster;
        let serves = |address: &&IpAddr| {
            let cidrs = &cluster.node_port_cidrs;
            let inside = cidrs.is_empty() || cidrs.iter().any(|c| c.contains(*address));
            let gateway = cluster.pod_cidrs.iter().any(|c| c.contains(*address));
            inside && !address.is_loopback() && !gateway
        };
        let of_node = |node: &Place| {
            let addresses: Vec<_> = if node.index == OWN_NODE {
                self.addresses.iter().filter(serves).map(bytes).collect()
            } else {
                node.addresses.iter().filter(serves).map(bytes).collect()
            };
            NodePortAddresses { node: u32::from(node.index), addresses }
        };
        let own = self.nodes.get(&self.own).map(|node| node.addresses.as_slice());
        let own = own.unwrap_or_default();
        // What peers take from this node: its own addresses, and those of its subnets.
        let gateways =
            self.addresses.iter().filter(|a| self.own_subnets.iter().any(|s| s.contains(*a)));
        let mut sources: Vec<IpAddr> = Vec::new();
        for address in own.iter().chain(gateways) {
            if sources.iter().all(|s| s.is_ipv4() != address.is_ipv4()) {
                sources.push(*address);
            }
        }
        ServiceSettings {
            nodes: self.nodes.values().map(of_node).collect(),
            own_node: u32::from(OWN_NODE),
            node_sources: sources.iter().map(bytes).collect(),
            host_sources: HOST_SOURCES.iter().map(bytes).collect(),
            service_cidrs: cluster.service_cidrs.iter().map(range).collect(),
        }
    }

    fn table(&self, service: &Service) -> ServiceTable {
        let frontends = |kind: Kind, addresses: &[IpAddr]| {
            let one = |a: &IpAddr| Frontend { kind: kind.into(), address: bytes(a) };
            addresses.iter().map(one).collect::<Vec<_>>()
        };
        let frontends = [
            frontends(Kind::ClusterIp, &service.cluster_ips),
            frontends(Kind::LoadBalancer, &service.load_balancer_ips),
            frontends(Kind::ExternalIp, &service.external_ips),
        ];
        let port = |(index, port)| self.port(service, index, port);
        let of_endpoints = service.ports.iter().enumerate().map(port).collect();
        let (ports, ports_without_resolver) = match &self.dns {
            Some(name) if *name == service.name => through_resolver(service, of_endpoints),
            _ => (of_endpoints, Vec::new()),
        };
        ServiceTable {
            name: service.name.to_string(),
            frontends: frontends.concat(),
            ports,
            affinity_s: service.affinity_s.unwrap_or(0),
            internal_local: service.internal_policy == TrafficPolicy::Local,
            external_local: service.external_policy == TrafficPolicy::Local,
            source_ranges: service.source_ranges.iter().map(range).collect(),
            ports_without_resolver,
        }
    }

    fn port(&self, service: &Service, index: usize, port: &ServicePort) -> ServicePortTable {
        let backends = |ipv4: bool| {
            let target = |e: &Endpoint| e.targets.get(index).copied().unwrap_or(0);
            let all: Vec<_> = service
                .endpoints
                .iter()
                .filter(|e| e.address.is_ipv4() == ipv4 && target(e) != 0)
                .collect();
            let chosen = self.chosen(&all);
            let mut records = Vec::new();
            for (endpoint, bits) in all.iter().zip(chosen).filter(|(e, _)| e.ready || e.serving) {
                records.extend(bytes(&endpoint.address));
                records.extend(target(endpoint).to_be_bytes());
                records.extend(self.index_of(endpoint).to_be_bytes());
                records.push(bits | self.place(endpoint.address));
            }
            records
        };
        ServicePortTable {
            protocol: u32::from(port.protocol.number()),
            port: u32::from(port.port),
            node_port: port.node_port.map_or(0, u32::from),
            backends_v4: backends(true),
            backends_v6: backends(false),
        }
    }

    /// For each endpoint of a port and family, whether it gets new connections, and from where.
    fn chosen(&self, all: &[&Endpoint]) -> Vec<u8> {
        let leaving = |e: &Endpoint| e.serving && e.terminating;
        let none_ready = !all.iter().any(|e| e.ready);
        let hinted = self.hinted(all);
        let ready_nodes: BTreeSet<_> =
            all.iter().filter(|e| e.ready).filter_map(|e| e.node.as_ref()).collect();
        let bits = |e: &&Endpoint| {
            let mut bits = 0;
            if (e.ready && hinted(e)) || (none_ready && leaving(e)) {
                bits |= backend::CLUSTER;
            }
            let alone = e.node.as_ref().is_some_and(|node| !ready_nodes.contains(node));
            if e.node.is_some() && (e.ready || (alone && leaving(e))) {
                bits |= backend::LOCAL;
            }
            if e.ready || leaving(e) {
                bits |= backend::COUNTS;
            }
            bits
        };
        all.iter().map(bits).collect()
    }

    /// Which ready endpoints are meant for this node: by node if each says for which, else by zone,
    /// else all.
    fn hinted<'e>(&'e self, all: &[&Endpoint]) -> Box<dyn Fn(&Endpoint) -> bool + 'e> {
        let ready = || all.iter().filter(|e| e.ready);
        let here = |e: &Endpoint| e.for_nodes.contains(&self.own);
        if ready().all(|e| !e.for_nodes.is_empty()) && ready().any(|e| here(e)) {
            return Box::new(here);
        }
        let Some(zone) = &self.zone else { return Box::new(|_| true) };
        let near = move |e: &Endpoint| e.for_zones.iter().any(|z| z == zone);
        if ready().all(|e| !e.for_zones.is_empty()) && ready().any(|e| near(e)) {
            return Box::new(near);
        }
        Box::new(|_| true)
    }

    fn index_of(&self, endpoint: &Endpoint) -> u16 {
        let node = endpoint.node.as_ref().and_then(|name| self.nodes.get(name));
        node.map_or(0, |node| node.index)
    }

    fn place(&self, address: IpAddr) -> u8 {
        let contains = |subnets: &[IpNet]| subnets.iter().any(|s| s.contains(&address));
        if self.addresses.contains(&address) {
            backend::HOST
        } else if contains(&self.own_subnets) {
            backend::LOCAL_POD
        } else if self.nodes.values().any(|node| contains(&node.subnets)) {
            backend::REMOTE_POD
        } else {
            backend::ELSEWHERE
        }
    }
}

/// Bytes of a backend: address, port, node and bits.
const RECORD_V4: usize = 4 + 5;
const RECORD_V6: usize = 16 + 5;

fn is_dns(port: &ServicePort) -> bool {
    port.port == DNS_PORT && matches!(port.protocol, ServiceProtocol::Tcp | ServiceProtocol::Udp)
}

/// Ports of the Service that clients ask for names: those for names lead to this node's resolver, whatever
/// endpoints there are and whatever is said of them. Then what holds without the resolver, if others can be
/// asked.
fn through_resolver(
    service: &Service,
    of_endpoints: Vec<ServicePortTable>,
) -> (Vec<ServicePortTable>, Vec<ServicePortTable>) {
    let ports = || service.ports.iter().zip(&of_endpoints);
    let chosen = |record: &[u8]| record.last().is_some_and(|bits| bits & backend::CLUSTER != 0);
    let others = ports().any(|(port, table)| {
        is_dns(port)
            && (table.backends_v4.chunks_exact(RECORD_V4).any(chosen)
                || table.backends_v6.chunks_exact(RECORD_V6).any(chosen))
    });
    let replaced = |(port, table): (&ServicePort, &ServicePortTable)| match is_dns(port) {
        true => resolver(table),
        false => table.clone(),
    };
    (ports().map(replaced).collect(), if others { of_endpoints } else { Vec::new() })
}

fn resolver(of_endpoints: &ServicePortTable) -> ServicePortTable {
    let backend = |address: &IpAddr| {
        let mut record = bytes(address);
        record.extend(DNS_PORT.to_be_bytes());
        record.extend(OWN_NODE.to_be_bytes());
        record.push(backend::CLUSTER | backend::LOCAL | backend::COUNTS | backend::HOST);
        record
    };
    let [backends_v4, backends_v6] = RESOLVERS.each_ref().map(backend);
    ServicePortTable { backends_v4, backends_v6, ..of_endpoints.clone() }
}

pub(super) fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn range(net: &IpNet) -> Range {
    Range { address: bytes(&net.network()), prefix: u32::from(net.prefix_len()) }
}

#[cfg(test)]
mod tests;
