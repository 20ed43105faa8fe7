use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft_model::{
    Cluster, Delta, Dns, Encapsulation, Endpoint, Generation, HookPosition, NamedKind, NamedPort,
    NamedService, Namespace, NamespaceSelector, Node, OnFault, Operator, PluginSpec, Pod, PodName,
    PodNames, PodSelector, Policy, PolicyAction, PolicyKind, PolicyName, PolicyPeer, PolicyPort,
    PolicyRule, PolicyTier, PublicKey, Requirement, Selector, Service, ServiceName, ServicePort,
    ServiceProtocol, Snapshot, TrafficPolicy, Vni,
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
        dns: Some(dns()),
    });
    snapshot.generation = Generation(7);
    snapshot.nodes.insert(node().name, node());
    let name = PodName { namespace: "default".into(), name: "web".into() };
    let pod = Pod {
        name: name.clone(),
        node: Some(node().name),
        addresses: vec!["10.1.0.5".parse().unwrap()],
        labels: BTreeMap::new(),
        ports: vec![NamedPort {
            name: "http".into(),
            protocol: ServiceProtocol::Tcp,
            number: 8080,
        }],
        finished: true,
        own_search: true,
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
    for (name, kind) in [
        ("headless", NamedKind::Headless),
        ("alias", NamedKind::Alias("example.com".into())),
        ("foreign", NamedKind::Foreign(vec!["10.96.0.8".parse().unwrap()])),
    ] {
        let name = ServiceName { namespace: "default".into(), name: name.into() };
        let Service { ports, endpoints, .. } = service();
        let named = NamedService { name: name.clone(), kind, ports, endpoints };
        snapshot.named_services.insert(name, named.into());
    }
    snapshot.namespaces.insert("default".into(), namespace().into());
    for policy in [network_policy(), cluster_policy()] {
        snapshot.policies.insert(policy.name.clone(), policy.into());
    }
    snapshot
}

fn dns() -> Dns {
    Dns {
        zones: vec!["cluster.local".into(), "example.com".into()],
        ttl_s: 30,
        service: ServiceName { namespace: "kube-system".into(), name: "kube-dns".into() },
        port: 5353,
        labels: BTreeMap::from([("k8s-app".into(), "kube-dns".into())]),
        pod_names: PodNames::Insecure,
        upstreams: vec!["192.0.2.53:53".parse().unwrap()],
        stub_domains: BTreeMap::from([(
            "corp.example".into(),
            vec!["tls://[2001:db8::53]:5353#dns.example".parse().unwrap()],
        )]),
        hosts: BTreeMap::from([("git.example".into(), vec!["192.0.2.9".parse().unwrap()])]),
        autopath: true,
        endpoint_pod_names: true,
        client_rate: 100,
    }
}

fn namespace() -> Namespace {
    let labels = BTreeMap::from([("kubernetes.io/metadata.name".into(), "default".into())]);
    Namespace { name: "default".into(), labels }
}

fn selector(operator: Operator) -> Selector {
    Selector(vec![Requirement { key: "app".into(), operator }])
}

/// Every kind of peer and port.
fn network_policy() -> Policy {
    let pods = PodSelector {
        namespaces: NamespaceSelector::Labels(selector(Operator::Exists)),
        pods: selector(Operator::NotIn(BTreeSet::from(["a".into(), String::new()]))),
    };
    let block = PolicyPeer::Block {
        range: "10.0.0.0/8".parse().unwrap(),
        except: vec!["10.1.0.0/16".parse().unwrap()],
    };
    let tcp = ServiceProtocol::Tcp;
    let rule = PolicyRule {
        name: "ingress[0]".into(),
        action: PolicyAction::Accept,
        peers: Some(vec![
            PolicyPeer::Pods(pods.clone()),
            block,
            PolicyPeer::Nodes(selector(Operator::DoesNotExist)),
            PolicyPeer::Domain("*.example.org".parse().unwrap()),
        ]),
        ports: Some(vec![
            PolicyPort::Range { protocol: tcp, first: 0, last: 65535 },
            PolicyPort::Named { protocol: ServiceProtocol::Sctp, name: "http".into() },
        ]),
    };
    let namespaces = NamespaceSelector::Named("default".into());
    Policy {
        name: PolicyName {
            namespace: "default".into(),
            name: "web".into(),
            ..PolicyName::default()
        },
        tier: PolicyTier::Namespace,
        watched: true,
        subject: PodSelector { namespaces, ..pods },
        ingress: Some(vec![rule]),
        egress: None,
    }
}

fn cluster_policy() -> Policy {
    let rule = |action, peers, ports| PolicyRule { name: "r".into(), action, peers, ports };
    Policy {
        name: PolicyName { name: "web".into(), ..PolicyName::default() },
        tier: PolicyTier::Admin(1000),
        watched: false,
        ingress: Some(vec![]),
        egress: Some(vec![
            rule(PolicyAction::Pass, None, Some(vec![])),
            rule(PolicyAction::Deny, Some(vec![]), None),
        ]),
        ..network_policy()
    }
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
        hostname: Some("web-0".into()),
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
        hostname: None,
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
fn error_names_the_field_of_a_policy() {
    // By name, so that the cluster's comes first.
    let of = |change: &dyn Fn(&mut v1::Policy)| error_of(|s| change(&mut s.policies[1]));
    let rule = |change: &dyn Fn(&mut v1::PolicyRule)| {
        of(&|p| change(&mut p.ingress.as_mut().unwrap().rules[0]))
    };
    let outside = |field: &str, value: &str| {
        format!("field `snapshot.policies[{field}`: {value} is outside the range of this field")
    };
    let missing = |field: &str| format!("field `snapshot.policies[1].{field}`: is missing");
    assert_eq!(of(&|p| p.name = None), missing("name"));
    assert_eq!(of(&|p| p.name.as_mut().unwrap().name.clear()), missing("name.name"));
    assert_eq!(of(&|p| p.subject = None), missing("subject"));
    assert_eq!(of(&|p| p.subject.as_mut().unwrap().pods = None), missing("subject.pods"));
    assert_eq!(of(&|p| p.tier = 0), missing("tier"));
    assert!(of(&|p| p.tier = 9).contains("policies[1].tier"));
    assert!(of(&|p| p.tier = 1).contains("policies[1].tier"));
    assert!(of(&|p| p.name.as_mut().unwrap().namespace.clear()).contains("policies[1].tier"));
    let priority = error_of(|s| s.policies[0].priority = 1001);
    assert_eq!(priority, outside("0].priority", "1001"));
    let path = |field: &str| format!("ingress.rules[0].{field}");
    assert_eq!(rule(&|r| r.action = 0), missing(&path("action")));
    assert!(rule(&|r| r.action = 2).contains(&path("action")));
    let peers = |change: &dyn Fn(&mut Vec<v1::PolicyPeer>)| {
        rule(&|r| change(&mut r.peers.as_mut().unwrap().peers))
    };
    assert_eq!(peers(&|p| p[1].peer = None), missing(&path("peers.peers[1].peer")));
    let block = |range: &str, except: &str| {
        let (range, except) = (range.to_owned(), vec![except.to_owned()]);
        let block = v1::policy_peer::Peer::Block(v1::AddressBlock { range, except });
        peers(&|p| p[1].peer = Some(block.clone()))
    };
    assert!(block("10.0.0.1/8", "10.0.0.0/9").contains("peers.peers[1].block.range"));
    assert!(block("10.0.0.0/8", "x").contains("peers.peers[1].block.except[0]"));
    let nodes = v1::Requirement { key: "a".into(), operator: 7, values: vec![] };
    let nodes = v1::Selector { requirements: vec![nodes] };
    let nodes = v1::policy_peer::Peer::Nodes(nodes);
    let error = peers(&|p| p[2].peer = Some(nodes.clone()));
    assert!(error.contains("peers.peers[2].nodes.requirements[0].operator"), "{error}");
    let ports = |change: &dyn Fn(&mut Vec<v1::PolicyPort>)| {
        rule(&|r| change(&mut r.ports.as_mut().unwrap().ports))
    };
    assert_eq!(ports(&|p| p[1].port = None), missing(&path("ports.ports[1].port")));
    assert!(ports(&|p| p[0].protocol = 1).contains("ports.ports[0].protocol"));
    let range = v1::policy_port::Port::Range(v1::PortRange { first: 9, last: 8 });
    let error = ports(&|p| p[0].port = Some(range.clone()));
    assert_eq!(error, outside(&format!("1].{}", path("ports.ports[0].range.last")), "8"));
    let twice = error_of(|s| s.policies.push(s.policies[1].clone()));
    let said = "field `snapshot.policies`: `NetworkPolicy default/web` occurs twice";
    assert_eq!(twice, said);
    let namespace = error_of(|s| s.namespaces[0].name.clear());
    assert_eq!(namespace, "field `snapshot.namespaces[0].name`: is missing");
    let number = error_of(|s| s.pods[0].ports[0].number = 0);
    assert!(number.contains("pods[0].ports[0].number"), "{number}");
}

fn selectors() -> impl Strategy<Value = Selector> {
    let operator = (0..4, prop::collection::btree_set("[a-b]{0,2}", 0..3));
    let operator = operator.prop_map(|(kind, values)| match kind {
        0 => Operator::In(values),
        1 => Operator::NotIn(values),
        2 => Operator::Exists,
        _ => Operator::DoesNotExist,
    });
    let requirement = ("[a-c]", operator).prop_map(|(key, operator)| Requirement { key, operator });
    prop::collection::vec(requirement, 0..3).prop_map(Selector)
}

fn pod_selectors() -> impl Strategy<Value = PodSelector> {
    let namespaces = prop_oneof![
        "[a-c]{1,3}".prop_map(NamespaceSelector::Named),
        selectors().prop_map(NamespaceSelector::Labels),
    ];
    (namespaces, selectors()).prop_map(|(namespaces, pods)| PodSelector { namespaces, pods })
}

fn policies() -> impl Strategy<Value = Policy> {
    let block = |address: IpAddr, prefix: u8| {
        let length = if address.is_ipv4() { prefix % 33 } else { prefix % 129 };
        IpNet::new(address, length).unwrap().trunc()
    };
    let blocks = (any::<IpAddr>(), any::<u8>()).prop_map(move |(a, p)| block(a, p));
    let peer = prop_oneof![
        pod_selectors().prop_map(PolicyPeer::Pods),
        (blocks.clone(), prop::collection::vec(blocks, 0..2))
            .prop_map(|(range, except)| PolicyPeer::Block { range, except }),
        selectors().prop_map(PolicyPeer::Nodes),
        r"(\*\.)?[a-z]{1,3}(\.[a-z]{1,3})?".prop_map(|d| PolicyPeer::Domain(d.parse().unwrap())),
    ];
    let protocols = prop::sample::select(vec![
        ServiceProtocol::Tcp,
        ServiceProtocol::Udp,
        ServiceProtocol::Sctp,
    ]);
    let port = prop_oneof![
        (protocols.clone(), any::<u16>(), any::<u16>()).prop_map(|(protocol, a, b)| {
            PolicyPort::Range { protocol, first: a.min(b), last: a.max(b) }
        }),
        (protocols, "[a-z]{1,4}").prop_map(|(protocol, name)| PolicyPort::Named { protocol, name }),
    ];
    let actions = vec![PolicyAction::Accept, PolicyAction::Deny, PolicyAction::Pass];
    let rule = (
        "[a-z]{0,3}",
        prop::sample::select(actions),
        prop::option::of(prop::collection::vec(peer, 0..3)),
        prop::option::of(prop::collection::vec(port, 0..3)),
    );
    let rule =
        rule.prop_map(|(name, action, peers, ports)| PolicyRule { name, action, peers, ports });
    let rules = prop::option::of(prop::collection::vec(rule, 0..3));
    let tier = prop_oneof![
        Just(PolicyTier::Namespace),
        (0..=1000_u16).prop_map(PolicyTier::Admin),
        (0..=1000_u16).prop_map(PolicyTier::Baseline),
    ];
    (tier, any::<[bool; 2]>(), pod_selectors(), rules.clone(), rules).prop_map(
        |(tier, [watched, fqdn], subject, mut ingress, mut egress)| {
            let of_namespace = tier == PolicyTier::Namespace;
            if of_namespace {
                let rules = [&mut ingress, &mut egress].into_iter().flatten().flatten();
                rules.for_each(|rule| rule.action = PolicyAction::Accept);
            }
            let namespace = if of_namespace { "default" } else { "" };
            let kind = if fqdn && of_namespace { PolicyKind::Fqdn } else { PolicyKind::Kubernetes };
            let name = PolicyName { namespace: namespace.into(), name: "p".into(), kind };
            Policy { name, tier, watched, subject, ingress, egress }
        },
    )
}

proptest! {
    #[test]
    fn any_policy_survives_the_wire(policy in policies()) {
        prop_assert_eq!(Policy::from_proto(policy.to_proto()), Ok(policy));
    }
}

#[test]
fn update_without_body_is_refused() {
    let error = Update::from_proto(v1::Update::default()).unwrap_err();
    assert_eq!(error, ConvertError::new("body", Reason::Missing));
}
