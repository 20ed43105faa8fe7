use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_model::{Namespace, Pod, PodName, ServiceProtocol};

use super::*;
use crate::tables::tests::{service, snapshot};

fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

pub(crate) fn dns() -> Dns {
    Dns {
        zones: vec!["cluster.local".into()],
        ttl_s: 5,
        service: ServiceName { namespace: "kube-system".into(), name: "kube-dns".into() },
        labels: BTreeMap::new(),
        port: 53,
        pod_names: PodNames::Verified,
        upstreams: vec![],
        stub_domains: BTreeMap::new(),
        hosts: BTreeMap::new(),
        autopath: false,
        client_rate: 0,
        endpoint_pod_names: false,
    }
}

fn with_dns() -> Snapshot {
    let mut snapshot = snapshot(1, &[1]);
    snapshot.cluster.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    snapshot.cluster.dns = Some(dns());
    snapshot
}

fn endpoint(address: &str, hostname: Option<&str>, ready: bool, targets: &[u16]) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        hostname: hostname.map(Into::into),
        node: None,
        ready,
        serving: ready,
        terminating: false,
        for_nodes: Vec::new(),
        for_zones: Vec::new(),
        targets: targets.to_vec(),
    }
}

fn port(name: &str, protocol: ServiceProtocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port: None }
}

fn headless(ports: Vec<ServicePort>, endpoints: Vec<Endpoint>) -> NamedService {
    NamedService { name: name("db"), kind: NamedKind::Headless, ports, endpoints }
}

fn dns_port(name: &str, protocol: u32, port: u32) -> DnsPort {
    DnsPort { name: name.into(), protocol, port }
}

fn add(snapshot: &mut Snapshot, service: NamedService) {
    snapshot.named_services.insert(service.name.clone(), service.into());
}

/// Nothing is told where names are not answered.
#[test]
fn names_are_compiled_only_if_they_are_answered() {
    let names = Names::compile(&snapshot(1, &[1]), None);
    assert!(names.is_empty());
    assert_eq!(names.complete(), DnsTables::default());
}

/// DNS-009, DNS-020, DNS-030: ready endpoints, those with the same ports together, ports by their names.
#[test]
fn endpoints_with_the_same_ports_stand_together() {
    let ports = vec![
        port("peer", ServiceProtocol::Tcp, 80),
        port("", ServiceProtocol::Tcp, 81),
        port("gossip", ServiceProtocol::Udp, 82),
    ];
    let endpoints = vec![
        endpoint("10.42.1.1", None, true, &[7000, 1, 7002]),
        endpoint("10.42.1.2", Some("db-0"), true, &[7000, 1, 7002]),
        endpoint("fd42::2", Some("db-0"), true, &[7000, 1, 7002]),
        endpoint("10.42.1.3", None, true, &[0, 1, 7002]),
        endpoint("10.42.1.4", None, false, &[7000, 1, 7002]),
    ];
    let mut snapshot = with_dns();
    add(&mut snapshot, headless(ports, endpoints));
    let tables = Names::compile(&snapshot, None).complete();
    let [service] = &tables.services[..] else { panic!("{tables:?}") };
    assert_eq!(service.name, "default/db");
    let [third, others] = &service.endpoints[..] else { panic!("{service:?}") };
    assert_eq!(third.addresses_v4, [10, 42, 1, 3]);
    assert_eq!(third.ports, [dns_port("gossip", 17, 7002)]);
    assert_eq!(others.addresses_v4, [10, 42, 1, 1]);
    assert_eq!(others.ports, [dns_port("peer", 6, 7000), dns_port("gossip", 17, 7002)]);
    let [host] = &others.hosts[..] else { panic!("{others:?}") };
    assert_eq!((host.name.as_str(), &host.addresses_v4[..]), ("db-0", &[10, 42, 1, 2][..]));
    assert_eq!(host.addresses_v6.len(), 16);
}

/// DNS-002, DNS-004, DNS-011, DNS-037: each kind of Service.
#[test]
fn each_kind_of_service_has_names() {
    let mut snapshot = with_dns();
    let mut web = service(vec![endpoint("10.42.1.1", None, true, &[8080])]);
    web.ports[0].name = "http".into();
    snapshot.services.insert(name("web"), web.into());
    let of_kind =
        |of: &str, kind| NamedService { name: name(of), kind, ..headless(vec![], vec![]) };
    add(&mut snapshot, of_kind("alias", NamedKind::Alias("example.com".into())));
    let ips = vec!["10.96.0.77".parse().unwrap()];
    let mut foreign = of_kind("foreign", NamedKind::Foreign(ips));
    foreign.ports = vec![port("x", ServiceProtocol::Sctp, 9)];
    add(&mut snapshot, foreign);
    let tables = Names::compile(&snapshot, None).complete();
    let [alias, foreign, web] = &tables.services[..] else { panic!("{tables:?}") };
    assert_eq!(alias.external_name, "example.com");
    assert_eq!(foreign.cluster_ips, [vec![10, 96, 0, 77]]);
    assert_eq!(foreign.ports, [dns_port("x", 132, 9)]);
    assert_eq!(web.cluster_ips, [vec![10, 96, 0, 10]]);
    assert_eq!(web.ports, [dns_port("http", 6, 80)]);
    assert_eq!(web.endpoints[0].addresses_v4, [10, 42, 1, 1]);
}

/// What the plugin keeps after a change, as the datapath keeps it.
#[derive(Default, Debug, PartialEq)]
struct Kept {
    settings: Option<DnsSettings>,
    services: BTreeMap<String, DnsService>,
    namespaces: BTreeMap<u32, String>,
    pods: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Kept {
    fn take(&mut self, change: DnsTables) {
        self.settings = change.settings.or(self.settings.take());
        change.removed_services.iter().for_each(|n| drop(self.services.remove(n)));
        self.services.extend(change.services.into_iter().map(|s| (s.name.clone(), s)));
        change.removed_namespaces.iter().for_each(|n| drop(self.namespaces.remove(n)));
        self.namespaces.extend(change.namespaces.into_iter().map(|n| (n.number, n.name)));
        for record in change.pods_v4.chunks_exact(8) {
            let (address, number) = (record[..4].to_vec(), record[4..].to_vec());
            if number == [0; 4] {
                self.pods.remove(&address);
            } else {
                self.pods.insert(address, number);
            }
        }
    }

    /// With namespaces by name.
    fn pods_by_name(&self) -> BTreeMap<Vec<u8>, String> {
        let number = |n: &[u8]| u32::from_be_bytes(n.try_into().unwrap()) & !super::ORDINARY_SEARCH;
        self.pods.iter().map(|(a, n)| (a.clone(), self.namespaces[&number(n)].clone())).collect()
    }
}

type World = (BTreeMap<u8, u8>, BTreeMap<u8, u8>, Vec<u8>);

fn world((services, pods, namespaces): &World) -> Snapshot {
    let mut snapshot = with_dns();
    for (id, address) in services {
        let address = format!("10.42.9.{address}");
        let mut service = headless(vec![], vec![endpoint(&address, None, true, &[])]);
        service.name = ServiceName { namespace: format!("ns{}", id % 3), name: format!("s{id}") };
        add(&mut snapshot, service);
    }
    for (id, namespace) in pods {
        let name = PodName { namespace: format!("ns{namespace}"), name: format!("p{id}") };
        let pod = Pod {
            name: name.clone(),
            node: None,
            addresses: vec![[10, 42, 1, *id].into()],
            labels: BTreeMap::new(),
            ports: vec![],
            finished: false,
            own_search: false,
        };
        snapshot.pods.insert(name, pod.into());
    }
    for name in pods.values().chain(namespaces).map(|n| format!("ns{n}")) {
        let namespace = Namespace { name: name.clone(), labels: BTreeMap::new() };
        snapshot.namespaces.insert(name, namespace.into());
    }
    snapshot
}

fn worlds() -> impl Strategy<Value = Vec<World>> {
    let map = || proptest::collection::btree_map(0u8..6, 0u8..5, 0..5);
    proptest::collection::vec((map(), map(), proptest::collection::vec(0u8..6, 0..4)), 1..6)
}

proptest! {
    /// DNS-109: changes lead to what making everything anew does.
    #[test]
    fn changes_add_up(worlds in worlds()) {
        let mut before = Names::default();
        let mut kept = Kept::default();
        for one in worlds {
            let snapshot = world(&one);
            let names = Names::compile(&snapshot, Some(&before));
            if let Some(change) = names.change_from(&before) {
                kept.take(change);
            }
            prop_assert!(names.change_from(&names).is_none());
            let (mut whole, mut anew) = (Kept::default(), Kept::default());
            whole.take(names.complete());
            prop_assert_eq!(&kept, &whole);
            anew.take(Names::compile(&snapshot, None).complete());
            prop_assert_eq!(kept.pods_by_name(), anew.pods_by_name());
            prop_assert_eq!(&kept.services, &anew.services);
            before = names;
        }
    }
}
