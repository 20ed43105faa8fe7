use weft_model::{Generation, PodName};

use super::*;
use crate::tables::tests::{node, service, snapshot};

fn name(id: u8) -> NodeName {
    node(id).name
}

fn web() -> ServiceName {
    ServiceName { namespace: "default".into(), name: "web".into() }
}

/// On node `id` at its address number `last`.
fn endpoint(id: u8, last: u8, state: &str) -> Endpoint {
    Endpoint {
        address: IpAddr::from([10, 42, id, last]),
        node: Some(name(id)),
        ready: state == "ready",
        serving: state == "ready" || state == "leaving",
        terminating: state == "leaving" || state == "dying",
        for_nodes: Vec::new(),
        for_zones: Vec::new(),
        hostname: None,
        targets: vec![8080],
    }
}

/// What node 1, in zone `a`, is told: last byte of the address, index of the node, bits.
fn records(service: Service) -> Vec<(u8, u16, u8)> {
    let mut snapshot = snapshot(1, &[1, 2, 3]);
    let own = snapshot.nodes.get_mut(&name(1)).unwrap();
    own.labels.insert(ZONE.into(), "a".into());
    let tables = compile(&mut snapshot, service);
    let ports = &tables.by_name[&web()].table.ports;
    let bytes = ports[0].backends_v4.chunks_exact(9);
    bytes.map(|r| (r[3], u16::from_be_bytes([r[6], r[7]]), r[8])).collect()
}

fn compile(snapshot: &mut Snapshot, service: Service) -> Services {
    snapshot.services.insert(service.name.clone(), service.into());
    let mut ids = PeerIds::default();
    let own = name(1);
    ids.assign(snapshot.nodes.keys().filter(|n| **n != own).map(NodeName::as_str));
    let addresses = BTreeSet::from([IpAddr::from([192, 0, 2, 1]), IpAddr::from([10, 42, 1, 1])]);
    let local = Local {
        node: &own,
        interface: "weft0",
        mtu: 1420,
        vtep_mac: weft_model::MacAddr([2; 6]),
        addresses: &addresses,
        keys: &[],
        pods: &BTreeMap::new(),
        policed: &[],
        known: &BTreeMap::new(),
    };
    Services::compile(snapshot, &local, &ids, None)
}

/// Who gets new connections: last bytes of addresses in the set of the cluster, and of each node.
fn chosen(service: Service) -> (Vec<u8>, Vec<u8>) {
    let records = records(service);
    let with = |bit| records.iter().filter(move |r| r.2 & bit != 0).map(|r| r.0).collect();
    (with(backend::CLUSTER), with(backend::LOCAL))
}

/// SVC-045, SVC-142: one that is not ready is none, and no fallback.
#[test]
fn not_ready_endpoint_gets_nothing() {
    let endpoints = vec![endpoint(1, 5, "ready"), endpoint(2, 6, "not ready")];
    assert_eq!(chosen(service(endpoints)), (vec![5], vec![5]));
    let alone = records(service(vec![endpoint(2, 6, "not ready")]));
    assert_eq!(alone, [], "not even listed: it cannot answer");
}

/// SVC-140, SVC-141: both scopes fall back to endpoints that are leaving, each for itself.
#[test]
fn leaving_endpoints_serve_where_no_other_is_ready() {
    let endpoints =
        vec![endpoint(1, 5, "leaving"), endpoint(2, 6, "ready"), endpoint(2, 7, "leaving")];
    assert_eq!(chosen(service(endpoints)), (vec![6], vec![5, 6]));
    let endpoints = vec![endpoint(1, 5, "leaving"), endpoint(2, 6, "dying")];
    assert_eq!(chosen(service(endpoints)), (vec![5], vec![5]));
}

/// SVC-151, SVC-152, SVC-153, SVC-154: hints of ready endpoints count, all of them or none.
#[test]
fn hints_are_followed_if_every_ready_endpoint_has_one() {
    let hinted = |nodes: [&[u8]; 2], zones: [&[&str]; 2]| {
        let mut endpoints = vec![endpoint(1, 5, "ready"), endpoint(2, 6, "ready")];
        for ((e, nodes), zones) in endpoints.iter_mut().zip(nodes).zip(zones) {
            e.for_nodes = nodes.iter().map(|id| name(*id)).collect();
            e.for_zones = zones.iter().map(|z| (*z).to_owned()).collect();
        }
        endpoints.push(endpoint(3, 7, "not ready"));
        chosen(service(endpoints)).0
    };
    let none: [&[&str]; 2] = [&[], &[]];
    assert_eq!(hinted([&[1], &[2]], none), [5]);
    assert_eq!(hinted([&[2], &[1]], none), [6]);
    assert_eq!(hinted([&[1], &[]], none), [5, 6]);
    assert_eq!(hinted([&[2], &[3]], none), [5, 6], "nobody for this node");
    assert_eq!(hinted([&[], &[]], [&["b"], &["a", "b"]]), [6]);
    assert_eq!(hinted([&[2], &[3]], [&["a"], &["b"]]), [5], "node, then zone");
    assert_eq!(hinted([&[], &[]], [&["a"], &[]]), [5, 6]);
}

/// SVC-155: a node without a zone follows no hints for zones.
#[test]
fn node_without_a_zone_takes_everybody() {
    let mut near = endpoint(2, 6, "ready");
    near.for_zones = vec!["a".into()];
    let mut far = endpoint(3, 7, "ready");
    far.for_zones = vec!["b".into()];
    let tables = compile(&mut snapshot(1, &[1, 2, 3]), service(vec![near, far]));
    let records = tables.by_name[&web()].table.ports[0].backends_v4.chunks_exact(9);
    assert!(records.into_iter().all(|r| r[8] & backend::CLUSTER != 0));
}

/// SVC-125: whoever asks for endpoints of this node gets those, for whomever they are meant.
#[test]
fn local_endpoints_follow_no_hints() {
    let mut endpoints = vec![endpoint(1, 5, "ready"), endpoint(2, 6, "ready")];
    endpoints[0].for_zones = vec!["b".into()];
    endpoints[1].for_zones = vec!["a".into()];
    assert_eq!(chosen(service(endpoints)), (vec![6], vec![5, 6]));
}

/// SVC-157: where nobody is ready, hints say nothing.
#[test]
fn fallback_ignores_hints() {
    let mut endpoints = vec![endpoint(1, 5, "leaving"), endpoint(2, 6, "leaving")];
    endpoints[0].for_nodes = vec![name(2)];
    endpoints[1].for_nodes = vec![name(2)];
    assert_eq!(chosen(service(endpoints)).0, [5, 6]);
}

/// SVC-163: an endpoint of no known node is local to none.
#[test]
fn endpoint_without_a_node_is_never_local() {
    let mut unknown = endpoint(2, 6, "ready");
    unknown.node = None;
    assert_eq!(chosen(service(vec![unknown])), (vec![6], vec![]));
}

/// SVC-160, SVC-161, SVC-162: where a backend is decides how it is reached.
#[test]
fn each_backend_has_its_place() {
    let at = |address: [u8; 4]| Endpoint { address: address.into(), ..endpoint(1, 0, "ready") };
    let endpoints =
        [[10, 42, 1, 5], [10, 42, 2, 5], [192, 0, 2, 1], [192, 0, 2, 2], [198, 51, 100, 1]];
    let records = records(service(endpoints.map(at).to_vec()));
    let places: Vec<_> = records.iter().map(|r| r.2 & backend::PLACE).collect();
    let elsewhere = backend::ELSEWHERE;
    let expected = [backend::LOCAL_POD, backend::REMOTE_POD, backend::HOST, elsewhere, elsewhere];
    assert_eq!(places, expected);
    assert_eq!(records[0].1, OWN_NODE);
}

/// SVC-212: families do not mix; SVC-200: nor do ports.
#[test]
fn each_port_and_family_has_its_own_backends() {
    let mut both = service(vec![endpoint(1, 5, "ready"), endpoint(2, 6, "ready")]);
    both.ports.push(ServicePort { name: "b".into(), port: 81, ..both.ports[0].clone() });
    both.endpoints[0].targets = vec![8080, 0];
    both.endpoints[1].targets = vec![0, 9090];
    both.endpoints[1].address = "fd42:0:0:2::6".parse().unwrap();
    let tables = compile(&mut snapshot(1, &[1, 2]), both);
    let ports = &tables.by_name[&web()].table.ports;
    let lengths: Vec<_> =
        ports.iter().map(|p| (p.backends_v4.len(), p.backends_v6.len())).collect();
    assert_eq!(lengths, [(9, 0), (0, 21)]);
}

/// SVC-064: only the addresses that the operator named serve node ports, on every node.
#[test]
fn node_ports_are_at_the_addresses_that_were_named() {
    let mut snapshot = snapshot(1, &[1, 2]);
    let all = compile(&mut snapshot, service(vec![])).settings.unwrap();
    // But for gateways of pods.
    assert_eq!(all.nodes.iter().map(|n| n.addresses.len()).collect::<Vec<_>>(), [1, 1]);
    snapshot.cluster.node_port_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
    let named = compile(&mut snapshot, service(vec![])).settings.unwrap();
    assert_eq!(named.nodes[0].addresses, [vec![192, 0, 2, 1]]);
    assert_eq!(named.node_sources, [vec![192, 0, 2, 1]]);
}

/// A change of one Service is that Service, whole, and nothing else.
#[test]
fn change_of_one_service_is_told_alone() {
    let mut before = snapshot(1, &[1, 2]);
    let mut other = service(vec![endpoint(1, 5, "ready")]);
    other.name.name = "other".into();
    before.services.insert(other.name.clone(), other.into());
    let old = compile(&mut before.clone(), service(vec![endpoint(1, 5, "ready")]));
    let mut after = before.clone();
    after.generation = Generation(2);
    let pod = PodName { namespace: "default".into(), name: "new".into() };
    assert!(!after.pods.contains_key(&pod));
    let new = compile(&mut after, service(vec![endpoint(2, 6, "ready")]));
    let change = new.change_from(&old).unwrap();
    assert_eq!((change.services.len(), change.removed.len(), change.settings), (1, 0, None));
    assert_eq!(change.services[0].name, "default/web");
    assert_eq!(new.change_from(&new), None);
    let gone = Services::default().change_from(&new).unwrap();
    assert_eq!(gone.removed, ["default/other", "default/web"]);
}
