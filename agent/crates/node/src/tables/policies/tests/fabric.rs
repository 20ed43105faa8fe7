//! Two nodes with all that a packet passes: both plugins as modules, configured as agents do, between pods
//! directly and through Services.

use ipnet::IpNet;
use weft_model::{
    Endpoint, POLICY_PLUGIN, PeerId, SERVICE_PLUGIN, Service, ServiceName, ServicePort, Timestamp,
    TrafficPolicy,
};
use weft_packet::{Headers, Meta};
use weft_pipeline::{Action, FlowTable, Pipeline, Routes, RoutesConfig};
use weft_policy_testing::{PacketBuilder, sctp, tcp, udp};
use weft_wasm_host::MEMORY_BYTES_MAX;

use super::*;
use crate::tables::PeerIds;
use crate::tables::services::Services;

const NOW: Timestamp = Timestamp(1_000_000_000);
const SYN: u8 = 2;
const ACK: u8 = 16;
const PORTS: [u16; 2] = [80, 81];

/// Subnets of a node: 10.0.N.0/24 and fd00:N::/64.
fn subnets(node: usize) -> Vec<IpNet> {
    vec![format!("10.0.{node}.0/24").parse().unwrap(), format!("fd00:{node}::/64").parse().unwrap()]
}

/// The Service of one pod.
fn service(number: usize, pod: &Pod) -> Service {
    let protocols = [ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
    let port = |port| {
        let one = move |protocol| ServicePort {
            name: format!("{protocol}-{port}"),
            protocol,
            port,
            node_port: None,
        };
        protocols.map(one)
    };
    let ports: Vec<_> = PORTS.into_iter().flat_map(port).collect();
    let endpoint = |address: &IpAddr| Endpoint {
        address: *address,
        node: pod.node.clone(),
        ready: true,
        serving: true,
        terminating: false,
        for_nodes: vec![],
        for_zones: vec![],
        targets: ports.iter().map(|p| p.port).collect(),
        hostname: None,
    };
    let endpoints = pod.addresses.iter().map(endpoint).collect();
    Service {
        name: ServiceName { namespace: pod.name.namespace.clone(), name: pod.name.name.clone() },
        cluster_ips: cluster_ips(number).into(),
        load_balancer_ips: vec![],
        announcers: BTreeMap::new(),
        external_ips: vec![],
        source_ranges: vec![],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_s: None,
        health_check_node_port: None,
        ports,
        endpoints,
    }
}

fn cluster_ips(number: usize) -> [IpAddr; 2] {
    let number = u8::try_from(number + 1).unwrap();
    let v6 = [0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)];
    [[10, 96, 0, number].into(), v6.into()]
}

/// As the hub would publish it, with a Service for each pod.
fn with_services(cluster: &plain::Cluster) -> Snapshot {
    let mut snapshot = snapshot(cluster);
    snapshot.cluster.service_cidrs =
        vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
    for (index, node) in (1..).zip(snapshot.nodes.values_mut()) {
        node.subnets = subnets(index);
    }
    for (number, pod) in snapshot.pods.values().enumerate() {
        let service = service(number, pod);
        snapshot.services.insert(service.name.clone(), service.into());
    }
    snapshot
}

/// One of the two nodes.
struct Node {
    /// From 1.
    index: usize,
    name: NodeName,
    pipeline: Pipeline<PluginInstance>,
    services: Services,
    policies: Policies,
    modules: [Arc<Module>; 2],
    revision: u64,
}

impl Node {
    fn compile(&self, cluster: &plain::Cluster) -> (Services, Policies, Vec<IpAddr>) {
        let snapshot = with_services(cluster);
        let policed = policed(cluster, &self.name);
        let addresses = snapshot.nodes[&self.name].addresses.iter().copied().collect();
        let mut ids = PeerIds::default();
        let others = snapshot.nodes.keys().filter(|name| **name != self.name);
        ids.assign(others.map(NodeName::as_str));
        let local = Local {
            node: &self.name,
            interface: "weft0",
            mtu: 1420,
            vtep_mac: weft_model::MacAddr([2; 6]),
            addresses: &addresses,
            keys: &[],
            pods: &BTreeMap::new(),
            policed: &policed,
            known: &BTreeMap::new(),
        };
        let services = Services::compile(&snapshot, &local, &ids, Some(&self.services));
        let policies = Policies::compile(&snapshot, &local, Some(&self.policies));
        (services, policies, policed.into_iter().flat_map(|(_, addresses)| addresses).collect())
    }

    fn new(index: usize, cluster: &plain::Cluster, modules: &[Arc<Module>; 2]) -> Self {
        let flows = Arc::new(FlowTable::new(1 << 14, 42));
        let mut node = Self {
            index,
            name: NODES[index - 1].parse().unwrap(),
            pipeline: Pipeline::new(flows, Arc::default(), 1420),
            services: Services::default(),
            policies: Policies::default(),
            modules: modules.clone(),
            revision: 1,
        };
        let (services, policies, pods) = node.compile(cluster);
        node.install(&services, &policies);
        node.take(cluster, services, policies, &pods);
        node
    }

    /// The plugin for policies runs if there are any.
    fn install(&mut self, services: &Services, policies: &Policies) {
        let [service, policy] = &self.modules;
        let of_services = (SERVICE_PLUGIN, service, services.complete().encode_to_vec());
        let of_policies = (POLICY_PLUGIN, policy, policies.complete().encode_to_vec());
        let of_policies = (!policies.is_empty()).then_some(of_policies);
        let all = (0..).zip([Some(of_services), of_policies].into_iter().flatten());
        let plugins = all.map(|(priority, (name, module, config))| {
            let (memory_max, revision) = (MEMORY_BYTES_MAX, self.revision);
            let settings =
                Settings { config, priority, memory_max, revision, ..Settings::new(name) };
            PluginInstance::new(module, settings, SharedState::new(name)).unwrap()
        });
        self.pipeline.set_plugins(plugins.collect()).unwrap();
    }

    fn update(&mut self, cluster: &plain::Cluster) {
        let (services, policies, pods) = self.compile(cluster);
        self.revision += 1;
        if policies.is_empty() != self.policies.is_empty() {
            self.install(&services, &policies);
        } else {
            let revision = self.revision;
            let mut change = |name: &str, bytes: Option<Vec<u8>>| {
                let Some(bytes) = bytes else { return };
                self.pipeline.change_plugin(name, |plugin| {
                    plugin.configure(ConfigureKind::Delta, &bytes, revision).unwrap();
                });
            };
            let of_services = services.change_from(&self.services);
            let of_policies = policies.change_from(&self.policies);
            change(SERVICE_PLUGIN, of_services.map(|c| c.encode_to_vec()));
            change(POLICY_PLUGIN, of_policies.map(|c| c.encode_to_vec()));
        }
        self.take(cluster, services, policies, &pods);
    }

    fn take(
        &mut self,
        cluster: &plain::Cluster,
        services: Services,
        policies: Policies,
        pods: &[IpAddr],
    ) {
        let other = 3 - self.index;
        let addresses = |index: usize| cluster.nodes[NODES[index - 1]].addresses.clone();
        let of_other = addresses(other).into_iter().map(IpNet::from).chain(subnets(other));
        let routes = Routes::new(&RoutesConfig {
            host_addresses: addresses(self.index),
            local_subnets: subnets(self.index),
            local_pods: pods.to_vec(),
            peers: vec![(peer(other), of_other.collect())],
            pod_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()],
            host_sources: weft_model::HOST_SOURCES.to_vec(),
        });
        self.pipeline.apply(Arc::new(routes), 1420);
        (self.services, self.policies) = (services, policies);
    }
}

fn peer(node: usize) -> PeerId {
    PeerId(u32::try_from(node).unwrap())
}

/// Both.
struct Fabric([Node; 2]);

impl Fabric {
    /// Where a packet arrives that a pod of this node sends, and as what; `None` if it is dropped.
    fn send(&mut self, node: usize, mut packet: Vec<u8>) -> Option<(SocketAddr, SocketAddr)> {
        let [first, second] = &mut self.0;
        let (near, far) = if node == 1 { (first, second) } else { (second, first) };
        let meta = &mut Meta::default();
        match near.pipeline.handle_tun_input(&mut packet, meta, NOW) {
            Action::ToTun => {}
            Action::ToPeer(_) => {
                let from = peer(near.index);
                let arrived = far.pipeline.handle_network_input(from, &mut packet, meta, NOW);
                if arrived != Action::ToTun {
                    assert!(matches!(arrived, Action::Drop(_)), "{arrived:?}");
                    return None;
                }
            }
            Action::Drop(_) => return None,
            other => panic!("{other:?}"),
        }
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        let ends = (headers.source, headers.destination);
        let at = SocketAddr::new;
        Some((at(ends.0, headers.source_port), at(ends.1, headers.destination_port)))
    }

    /// Whether a connection is made: there, and back.
    fn connects(
        &mut self,
        cell: &plain::Cell<'_>,
        nodes: [usize; 2],
        to: IpAddr,
        port: u16,
    ) -> bool {
        let packet = |from: SocketAddr, to: SocketAddr, flags| -> PacketBuilder {
            let (from, to) = (from.to_string(), to.to_string());
            match cell.protocol {
                plain::Protocol::Tcp => tcp(&from, &to).flags(flags),
                plain::Protocol::Udp => udp(&from, &to).payload(b"?"),
                plain::Protocol::Sctp | plain::Protocol::Other(_) => sctp(&from, &to),
            }
        };
        let client = SocketAddr::new(cell.addresses.0, port);
        let asked = SocketAddr::new(to, cell.port);
        let Some((seen, server)) = self.send(nodes[0], packet(client, asked, SYN).build()) else {
            return false;
        };
        assert_eq!(server, SocketAddr::new(cell.addresses.1, cell.port), "{cell:?}");
        // NP-060: the answer comes without a rule of its own.
        let back = self.send(nodes[1], packet(server, seen, SYN | ACK).build());
        assert_eq!(back, Some((asked, client)), "the answer for {cell:?}");
        true
    }
}

/// NP-007, NP-060, NP-070, NP-072, NP-090, NP-121, NP-122: every case, to the pod's address and to its
/// Service's, in both families, pods with themselves included; through the steps of a case by what changed.
#[test]
fn nodes_do_what_generated_cases_expect() {
    let engine = Engine::with_instances(8).unwrap();
    let modules = [weft_builtin::SERVICE.module, weft_builtin::POLICY.module]
        .map(|module| Module::load(&engine, module).unwrap());
    let (mut allowed, mut denied) = (0, 0);
    for case in plain::generated_cases() {
        let first = &case.steps[0];
        let mut fabric = Fabric([1, 2].map(|index| Node::new(index, first, &modules)));
        // So that each connection is a new one.
        let mut client_port = 10_000;
        for (step, cluster) in case.steps.iter().enumerate() {
            fabric.0.iter_mut().for_each(|node| node.update(cluster));
            for cell in plain::Cell::all(cluster) {
                let expected = plain::allowed(
                    cluster,
                    cell.addresses.0,
                    cell.addresses.1,
                    cell.protocol,
                    cell.port,
                );
                let node = |pod| if cluster.pods[pod].node == NODES[0] { 1 } else { 2 };
                let nodes = [node(cell.from), node(cell.to)];
                let number = cluster.pods.keys().position(|pod| pod == cell.to).unwrap();
                let service = cluster_ips(number)[usize::from(cell.addresses.1.is_ipv6())];
                for to in [cell.addresses.1, service] {
                    client_port += 1;
                    let connects = fabric.connects(&cell, nodes, to, client_port);
                    assert_eq!(connects, expected, "{} step {step} to {to}: {cell:?}", case.name);
                    allowed += usize::from(connects);
                    denied += usize::from(!connects);
                }
            }
        }
    }
    eprintln!("{} cells: {allowed} allowed, {denied} denied", allowed + denied);
    assert!(allowed > 100_000 && denied > 20_000, "{allowed} {denied}");
}

/// NP-145: every connection that the conformance suite for ClusterNetworkPolicies tries, in both families;
/// through the sub-tests of each test by what changed.
#[test]
fn nodes_do_what_the_conformance_suite_expects() {
    let engine = Engine::with_instances(8).unwrap();
    let modules = [weft_builtin::SERVICE.module, weft_builtin::POLICY.module]
        .map(|module| Module::load(&engine, module).unwrap());
    let cases = plain::conformance_cases();
    let mut cells = 0;
    for test in cases.chunk_by(|a, b| a.test == b.test) {
        let first = &test[0].cluster;
        let mut fabric = Fabric([1, 2].map(|index| Node::new(index, first, &modules)));
        // So that each connection is a new one.
        let mut client_port = 10_000;
        for case in test {
            fabric.0.iter_mut().for_each(|node| node.update(&case.cluster));
            for probe in &case.probes {
                let plain::Connection { from, to, protocol, port } = probe.connection;
                let addresses = case.addresses(from).into_iter().zip(case.addresses(to));
                let [from, to] =
                    [from, to].map(|(namespace, name)| (namespace.into(), name.into()));
                let node = |pod| if case.cluster.pods[pod].node == NODES[0] { 1 } else { 2 };
                let nodes = [node(&from), node(&to)];
                for addresses in addresses {
                    client_port += 1;
                    let cell = plain::Cell { from: &from, to: &to, addresses, protocol, port };
                    let connects = fabric.connects(&cell, nodes, addresses.1, client_port);
                    let name = (&case.test, case.sub_test);
                    assert_eq!(connects, probe.allowed, "{name:?}: {cell:?}");
                    cells += 1;
                }
            }
        }
    }
    assert_eq!(cells, 2 * 298);
}
