use std::collections::BTreeMap;

use weft_model::{
    Cluster, Delta, Encapsulation, Endpoint, Generation, HookPosition, Node, OnFault, PluginSpec,
    Pod, PodName, PublicKey, Service, ServiceName, ServicePort, ServiceProtocol, Snapshot,
    TrafficPolicy, Vni,
};
use weft_proto::v1;

use super::*;

fn node() -> Node {
    Node {
        name: "node-a".parse().unwrap(),
        uid: "uid".into(),
        endpoint: Some("[fd00::1]:51820".parse().unwrap()),
        addresses: vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        subnets: vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
        keys: vec![PublicKey([3; 32]), PublicKey([4; 32])],
        vtep_mac: Some("02:00:00:00:00:01".parse().unwrap()),
        labels: BTreeMap::from([("a".into(), "b".into())]),
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::empty(Cluster {
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        encapsulation: Encapsulation::Vxlan,
        port: 4789,
        vni: Vni::DEFAULT,
        mtu: Some(1400),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_port_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
    });
    snapshot.generation = Generation(7);
    snapshot.nodes.insert(node().name, node());
    let name = PodName { namespace: "default".into(), name: "web".into() };
    let pod = Pod {
        name: name.clone(),
        node: Some(node().name),
        addresses: vec!["10.1.0.5".parse().unwrap()],
        labels: BTreeMap::new(),
    };
    snapshot.pods.insert(name, pod.into());
    let plugin = PluginSpec {
        name: "block".into(),
        digest: [9; 32],
        config: b"ports=80".to_vec(),
        priority: -3,
        position: Some(HookPosition::Both),
        on_fault: Some(OnFault::Skip),
        deadline_us: Some(500),
    };
    snapshot.plugins.insert("block".into(), plugin);
    snapshot.services.insert(service().name, service().into());
    snapshot
}

fn service() -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    };
    let endpoint = Endpoint {
        address: "10.1.0.5".parse().unwrap(),
        node: Some(node().name),
        ready: true,
        serving: true,
        terminating: false,
        for_nodes: vec![node().name],
        for_zones: vec!["a".into()],
        targets: vec![8080, 0, 9000],
    };
    let elsewhere = Endpoint {
        address: "fd01::9".parse().unwrap(),
        node: None,
        ready: false,
        terminating: true,
        ..endpoint.clone()
    };
    Service {
        announcers: [(
            "198.51.100.1".parse().unwrap(),
            weft_model::NodeName::try_new("node-1").unwrap(),
        )]
        .into(),
        name: ServiceName { namespace: "default".into(), name: "web".into() },
        cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00:10:96::7".parse().unwrap()],
        load_balancer_ips: vec!["198.51.100.1".parse().unwrap()],
        external_ips: vec!["203.0.113.1".parse().unwrap()],
        source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        affinity_s: Some(10_800),
        health_check_node_port: Some(32_000),
        ports: vec![
            port("http", ServiceProtocol::Tcp, 80, Some(30_080)),
            port("dns", ServiceProtocol::Udp, 53, None),
            port("sctp", ServiceProtocol::Sctp, 132, None),
        ],
        endpoints: vec![endpoint, elsewhere],
    }
}

fn round_trip(body: UpdateBody) {
    let update = Update { resume: vec![1, 2], key_epoch: 4, body };
    assert_eq!(Update::from_proto(update.to_proto()), Ok(update));
}

#[test]
fn snapshot_survives_the_wire() {
    round_trip(UpdateBody::Snapshot(snapshot()));
}

#[test]
fn delta_survives_the_wire() {
    let mut empty = Snapshot::empty(snapshot().cluster);
    empty.cluster.mtu = None;
    round_trip(UpdateBody::Delta(empty.delta_to(&snapshot())));
    round_trip(UpdateBody::Delta(Delta { from: Generation(7), ..snapshot().delta_to(&empty) }));
}

fn error_of(change: impl FnOnce(&mut v1::Snapshot)) -> String {
    let mut message = snapshot().to_proto();
    change(&mut message);
    let body = Some(v1::update::Body::Snapshot(message));
    let update = v1::Update { body, ..v1::Update::default() };
    Update::from_proto(update).unwrap_err().to_string()
}

#[test]
fn error_names_the_field() {
    let endpoint = error_of(|s| s.nodes[0].endpoint = "x".into());
    assert_eq!(endpoint, "field `snapshot.nodes[0].endpoint`: `x` is no ADDRESS:PORT");
    let key = error_of(|s| s.nodes[0].keys[1].truncate(5));
    assert_eq!(key, "field `snapshot.nodes[0].keys[1]`: has 5 bytes, 32 are needed");
    let cluster = error_of(|s| s.cluster = None);
    assert_eq!(cluster, "field `snapshot.cluster`: is missing");
    let port = error_of(|s| s.cluster.as_mut().unwrap().port = 70_000);
    assert_eq!(port, "field `snapshot.cluster.port`: 70000 is outside the range of this field");
    let pod = error_of(|s| s.pods[0].name.as_mut().unwrap().namespace.clear());
    assert_eq!(pod, "field `snapshot.pods[0].name.namespace`: is missing");
    let subnet = error_of(|s| s.nodes[0].subnets[0] = "10.1.0.1/24".into());
    assert!(subnet.contains("nodes[0].subnets[0]"), "{subnet}");
    let twice = error_of(|s| s.nodes.push(s.nodes[0].clone()));
    assert_eq!(twice, "field `snapshot.nodes`: `node-a` occurs twice");
    let enumeration = error_of(|s| s.plugins[0].position = 99);
    assert!(enumeration.contains("plugins[0].position"), "{enumeration}");
    let deadline = error_of(|s| s.plugins[0].deadline_us = Some(1));
    assert!(deadline.contains("plugins[0].deadline_us"), "{deadline}");
}

#[test]
fn error_names_the_field_of_a_service() {
    let name = error_of(|s| s.services[0].name = None);
    assert_eq!(name, "field `snapshot.services[0].name`: is missing");
    let address = error_of(|s| s.services[0].cluster_ips[1] = "x".into());
    assert_eq!(address, "field `snapshot.services[0].cluster_ips[1]`: `x` is no IP address");
    let protocol = error_of(|s| s.services[0].ports[1].protocol = 1);
    let outside = "1 is outside the range of this field";
    assert_eq!(protocol, format!("field `snapshot.services[0].ports[1].protocol`: {outside}"));
    let port = error_of(|s| s.services[0].ports[0].port = 0);
    assert!(port.contains("services[0].ports[0].port"), "{port}");
    let node = error_of(|s| s.services[0].endpoints[0].node = "A B".into());
    assert!(node.contains("services[0].endpoints[0].node"), "{node}");
    let targets = error_of(|s| s.services[0].endpoints[1].targets.truncate(2));
    assert!(targets.contains("services[0].endpoints[1].targets"), "{targets}");
    let hint = error_of(|s| s.services[0].endpoints[0].for_nodes.push(String::new()));
    assert!(hint.contains("services[0].endpoints[0].for_nodes[1]"), "{hint}");
    let twice = error_of(|s| s.services.push(s.services[0].clone()));
    assert_eq!(twice, "field `snapshot.services`: `default/web` occurs twice");
    let cidr = error_of(|s| s.cluster.as_mut().unwrap().service_cidrs.push("10.96.0.1/16".into()));
    assert!(cidr.contains("cluster.service_cidrs[1]"), "{cidr}");
}

#[test]
fn update_without_body_is_refused() {
    let error = Update::from_proto(v1::Update::default()).unwrap_err();
    assert_eq!(error, ConvertError::new("body", Reason::Missing));
}
