//! From what an operator writes to what is read: NP-114.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_model::{
    Cluster, Encapsulation, Endpoint, NamedPort, Node, NodeName, Pod, PodName, Service,
    ServiceName, ServicePort, ServiceProtocol, Snapshot, TrafficPolicy, Vni,
};
use weft_proto::v1::decision::Reason;
use weft_proto::v1::{
    DecidingRule, Decision, EndAnswer, EndAnswers, EndPorts, EndQuestion, ExplainRequest,
    PolicyName, Ports, Verdict,
};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(n: u8) -> Node {
    Node {
        name: format!("node-{n}").parse().unwrap(),
        uid: String::new(),
        endpoint: None,
        addresses: vec![ip(&format!("192.0.2.{n}")), ip(&format!("2001:db8::{n}"))],
        subnets: vec![
            format!("10.0.{n}.0/24").parse().unwrap(),
            format!("fd00:{n}::/64").parse().unwrap(),
        ],
        keys: vec![],
        vtep_mac: None,
        labels: BTreeMap::new(),
    }
}

fn pod(name: &str, addresses: &[&str]) -> Pod {
    let port = |protocol| NamedPort { name: "http".into(), protocol, number: 8080 };
    Pod {
        name: PodName { namespace: "default".into(), name: name.into() },
        node: None,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        labels: BTreeMap::new(),
        ports: vec![port(ServiceProtocol::Tcp), port(ServiceProtocol::Udp)],
        finished: false,
        own_search: false,
    }
}

fn endpoint(address: &str, node: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: ip(address),
        hostname: None,
        node: Some(node.parse().unwrap()),
        ready,
        serving: true,
        terminating: !ready,
        for_nodes: vec![],
        for_zones: vec![],
        targets: vec![8080],
    }
}

fn service() -> Service {
    Service {
        name: ServiceName { namespace: "default".into(), name: "web".into() },
        cluster_ips: vec![ip("10.96.0.10")],
        load_balancer_ips: vec![ip("198.51.100.1")],
        announcers: BTreeMap::from([(ip("198.51.100.1"), "node-1".parse().unwrap())]),
        external_ips: vec![],
        source_ranges: vec![],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_s: None,
        health_check_node_port: None,
        ports: vec![ServicePort {
            name: "web".into(),
            protocol: ServiceProtocol::Tcp,
            port: 80,
            node_port: Some(30_080),
        }],
        endpoints: vec![endpoint("10.0.1.7", "node-1", true), endpoint("10.0.2.7", "node-2", true)],
    }
}

/// Two nodes; pods `client` and `web1` on the first, `web2` and `both`, also a node's name, on others.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::empty(Cluster {
        pod_cidrs: vec![],
        encapsulation: Encapsulation::Vxlan,
        port: 1,
        vni: Vni::DEFAULT,
        mtu: None,
        service_cidrs: vec![],
        node_port_cidrs: vec![],
        dns: None,
    });
    for n in [1, 2] {
        snapshot.nodes.insert(node(n).name, node(n));
    }
    let pods = [
        pod("client", &["10.0.1.5", "fd00:1::5"]),
        pod("web1", &["10.0.1.7"]),
        pod("web2", &["10.0.2.7", "fd00:2::7"]),
        pod("node-2", &["10.0.2.9"]),
        pod("waiting", &[]),
    ];
    snapshot.pods.extend(pods.map(|pod| (pod.name.clone(), Arc::new(pod))));
    snapshot.services.insert(service().name, Arc::new(service()));
    snapshot
}

fn ask(from: &str, to: &str, port: &str) -> ExplainRequest {
    ExplainRequest { from: from.into(), to: to.into(), port: port.into() }
}

/// What is asked of whom: `node-1 egress 10.0.1.5 10.0.2.7 6/80`.
fn asked(snapshot: &Snapshot, from: &str, to: &str, port: &str) -> Vec<String> {
    let plan = Plan::new(snapshot, &ask(from, to, port)).unwrap();
    let text = |node: &NodeName, q: &EndQuestion| {
        let way = if q.egress { "egress" } else { "ingress" };
        let port = q.ports.map_or("every".to_owned(), |p| format!("{}/{}", p.protocol, p.first));
        format!("{node} {way} {} {} {port}", q.pod, q.peer)
    };
    let all =
        plan.questions().iter().flat_map(|(node, all)| all.iter().map(move |q| text(node, q)));
    all.collect()
}

#[test]
fn both_ends_are_asked_in_each_family_that_they_share() {
    let snapshot = snapshot();
    let expected = [
        "node-1 egress 10.0.1.5 10.0.2.7 6/80",
        "node-1 egress fd00:1::5 fd00:2::7 6/80",
        "node-2 ingress 10.0.2.7 10.0.1.5 6/80",
        "node-2 ingress fd00:2::7 fd00:1::5 6/80",
    ];
    for (from, to) in [("client", "web2"), ("default/client", "pod/default/web2")] {
        assert_eq!(asked(&snapshot, from, to, "80"), expected);
        assert_eq!(asked(&snapshot, from, to, "80/tcp"), expected);
    }
    assert_eq!(asked(&snapshot, "client", "web1", "53/UDP").len(), 2);
    let named = asked(&snapshot, "10.0.1.5", "web2", "http");
    let [tcp, udp] = ["6/8080", "17/8080"];
    assert!(named.len() == 4 && named[0].ends_with(tcp) && named[1].ends_with(udp), "{named:?}");
    assert_eq!(asked(&snapshot, "10.0.1.5", "web2", "http/UDP").len(), 2);
    let every = asked(&snapshot, "10.0.1.5", "10.0.2.7", "");
    assert_eq!(every[0], "node-1 egress 10.0.1.5 10.0.2.7 every");
    assert!(asked(&snapshot, "10.0.1.5", "web1", "icmp")[0].ends_with(" 0/0"));
}

#[test]
fn nodes_and_the_world_are_asked_about_at_the_pods_end_only() {
    let snapshot = snapshot();
    let at_pod = "node-2 ingress 10.0.2.7 203.0.113.9 6/80";
    assert_eq!(asked(&snapshot, "203.0.113.9", "web2", "80"), [at_pod]);
    let of_node =
        ["node-2 ingress 10.0.2.7 192.0.2.1 6/80", "node-2 ingress fd00:2::7 2001:db8::1 6/80"];
    assert_eq!(asked(&snapshot, "node-1", "web2", "80"), of_node);
    let out = ["node-1 egress 10.0.1.5 203.0.113.9 17/53"];
    assert_eq!(asked(&snapshot, "client", "203.0.113.9", "53/UDP"), out);
    assert!(asked(&snapshot, "node-1", "node/node-2", "22").is_empty());
    // Nobody has it, but it is a pod's if anybody's.
    assert_eq!(asked(&snapshot, "10.0.2.99", "203.0.113.9", "80").len(), 1);
}

#[test]
fn service_is_every_backend_that_it_may_choose() {
    let mut snapshot = snapshot();
    let both = [
        "node-1 egress 10.0.1.5 10.0.1.7 6/8080",
        "node-1 ingress 10.0.1.7 10.0.1.5 6/8080",
        "node-1 egress 10.0.1.5 10.0.2.7 6/8080",
        "node-2 ingress 10.0.2.7 10.0.1.5 6/8080",
    ];
    for (to, port) in [
        ("svc/web", "80"),
        ("svc/default/web", ""),
        ("10.96.0.10", "web"),
        ("198.51.100.1", "80/TCP"),
        ("192.0.2.2", "30080"),
        ("192.0.2.1", "30080"),
    ] {
        assert_eq!(asked(&snapshot, "client", to, port), both, "{to} {port}");
    }
    // From outside a pod of another node sees the node that answers for the address.
    let seen =
        ["node-1 ingress 10.0.1.7 203.0.113.9 6/8080", "node-2 ingress 10.0.2.7 192.0.2.1 6/8080"];
    assert_eq!(asked(&snapshot, "203.0.113.9", "198.51.100.1", "80"), seen);
    assert_eq!(asked(&snapshot, "203.0.113.9", "192.0.2.1", "30080"), seen);
    let local = Service { external_policy: TrafficPolicy::Local, ..service() };
    snapshot.services.insert(local.name.clone(), local.into());
    assert_eq!(asked(&snapshot, "203.0.113.9", "198.51.100.1", "80"), seen[..1]);
    assert_eq!(asked(&snapshot, "client", "198.51.100.1", "80"), both);
    let local = Service { internal_policy: TrafficPolicy::Local, ..service() };
    snapshot.services.insert(local.name.clone(), local.into());
    assert_eq!(asked(&snapshot, "client", "svc/web", "80"), both[..2]);
    // What is leaving is chosen if nothing else is there.
    let endpoints =
        vec![endpoint("10.0.1.7", "node-1", false), endpoint("10.0.2.7", "node-2", true)];
    let leaving = Service { endpoints, ..service() };
    snapshot.services.insert(leaving.name.clone(), leaving.into());
    assert_eq!(asked(&snapshot, "client", "svc/web", "80"), both[2..]);
}

#[test]
fn what_is_not_understood_is_a_line_that_says_what_to_write() {
    let snapshot = snapshot();
    let says = |from, to, port, expected: &str| {
        let error = Plan::new(&snapshot, &ask(from, to, port)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    says("", "web1", "80", "names nothing");
    says("a/b/c/d", "web1", "80", "not understood");
    says("nobody", "web1", "80", "neither a pod default/nobody nor a node nobody");
    says("x/client", "web1", "80", "no pod x/client");
    says("node-2", "web1", "80", "is a pod and a node");
    says("client", "svc/x", "80", "no Service default/x");
    says("svc/web", "web1", "80", "begins no connections");
    says("client", "waiting", "80", "no address of its own");
    says("client", "web1", "0", "`0` is no port");
    says("client", "web1", "80/ICMP", "is no port");
    says("client", "web1", "70000", "is no port");
    says("client", "web1", "-1", "is no port");
    says("client", "web1", "grpc", "calls none of its ports `grpc`");
    says("client", "svc/web", "81", "has no port 81/TCP: it has 80/TCP");
    says("client", "svc/web", "icmp", "answers at its ports only");
    says("203.0.113.9", "2001:db8:9::1", "80", "no address of the same family");
    assert!(AskError::NoPod(String::new()).is_absence());
    assert!(!AskError::Port(String::new()).is_absence());
}

fn decision(reason: Reason, rules: &[(&str, &str, u32)]) -> Decision {
    let rule = |(policy, name, number): &(&str, &str, u32)| DecidingRule {
        policy: Some(PolicyName {
            namespace: "default".into(),
            name: (*policy).to_owned(),
            ..PolicyName::default()
        }),
        name: (*name).to_owned(),
        number: *number,
        ..DecidingRule::default()
    };
    let rules = rules.iter().map(rule).collect();
    Decision { reason: reason.into(), rules, ..Decision::default() }
}

fn told(ports: Ports, decision: Decision) -> EndPorts {
    EndPorts { ports: Some(ports), decision: Some(decision), audited: None }
}

fn tcp(first: u32, last: u32) -> Ports {
    Ports { protocol: 6, first, last }
}

/// The text for one port, of what each of the nodes says.
fn text(answers: [(&str, Result<EndPorts, String>); 2]) -> String {
    let plan = Plan::new(&snapshot(), &ask("10.0.1.5", "10.0.2.7", "80")).unwrap();
    let answers = answers.map(|(node, said)| {
        let answer = |ports| EndAnswers {
            answers: vec![EndAnswer { ports: vec![ports] }],
            ..EndAnswers::default()
        };
        (node.parse().unwrap(), said.map(answer))
    });
    words::explanation(&plan.answer(&answers.into()))
}

#[test]
fn answer_names_verdict_policy_and_rule_of_both_ends() {
    let free = || Ok(told(tcp(80, 80), decision(Reason::NotSelected, &[])));
    let rules = [("web", "ingress[0]", 1), ("more", "ingress[2]", 3)];
    let allowed = told(tcp(80, 80), decision(Reason::Allowed, &rules));
    assert_eq!(
        text([("node-1", free()), ("node-2", Ok(allowed.clone()))]),
        "default/client (10.0.1.5) to default/web2 (10.0.2.7), TCP 80: allowed\n\
         \x20 egress, at node node-1: allowed: no policy speaks of the pod's egress\n\
         \x20 ingress, at node node-2: allowed by rule 1 (ingress[0]) of NetworkPolicy default/web and rule 3 (ingress[2]) of NetworkPolicy default/more\n"
    );
    let isolated = told(tcp(80, 80), decision(Reason::Isolated, &[("web", "", 0), ("x", "", 0)]));
    let denied = text([("node-1", free()), ("node-2", Ok(isolated.clone()))]);
    assert!(denied.contains("TCP 80: denied\n"), "{denied}");
    let why = "denied: the pod is isolated by NetworkPolicy default/web and NetworkPolicy default/x, and no rule matches\n";
    assert!(denied.ends_with(why), "{denied}");
    let audited = EndPorts { audited: isolated.decision.clone(), ..free().unwrap() };
    let audited = text([("node-1", free()), ("node-2", Ok(audited))]);
    assert!(audited.contains("TCP 80: allowed in audit mode, it would be denied\n"), "{audited}");
    let away = || Err("its agent is away".to_owned());
    let half = text([("node-1", away()), ("node-2", Ok(allowed))]);
    assert!(half.contains("TCP 80: not known\n"), "{half}");
    assert!(half.contains("egress, at node node-1: not known: its agent is away\n"), "{half}");
    // What one denies, the other cannot allow.
    let half = text([("node-1", away()), ("node-2", Ok(isolated))]);
    assert!(half.contains("TCP 80: denied\n"), "{half}");
}

#[test]
fn tiers_and_what_passed_them_are_told() {
    let cluster = |name: &str| DecidingRule {
        policy: Some(PolicyName { name: name.into(), ..PolicyName::default() }),
        name: "to-db".into(),
        number: 2,
        ..DecidingRule::default()
    };
    let denied = Decision {
        reason: Reason::Baseline.into(),
        rules: vec![cluster("base")],
        passed_by: Some(cluster("top")),
        denies: true,
        ..Decision::default()
    };
    assert!(drops(&denied));
    assert_eq!(
        words::decision_text(&denied, "egress"),
        "denied in tier Baseline by rule 2 (to-db) of ClusterNetworkPolicy base, after rule 2 (to-db) of ClusterNetworkPolicy top passed it on"
    );
}

/// NP-061, NP-063
#[test]
fn own_node_is_told_by_direction() {
    let own = decision(Reason::OwnNode, &[]);
    assert_eq!(
        ["ingress", "egress"].map(|way| words::decision_text(&own, way)),
        [
            "allowed: a pod's own node always reaches it",
            "allowed: the pod is isolated, but not from its own node",
        ]
    );
    assert!(!drops(&own));
}

/// Names are told with what they let pass, and with what they would.
#[test]
fn names_are_told() {
    let mut allowed = decision(Reason::Allowed, &[("out", "egress[0]", 1)]);
    allowed.rules[0].policy.as_mut().unwrap().set_kind(weft_proto::v1::PolicyKind::Fqdn);
    allowed.rules[0].learned = vec!["api.example.com".into()];
    assert_eq!(
        words::decision_text(&allowed, "egress"),
        "allowed by rule 1 (egress[0]) of FqdnPolicy default/out (the pod was told this address as api.example.com)"
    );
    let mut isolated = decision(Reason::Isolated, &[("out", "", 0)]);
    isolated.names = vec!["api.example.com".into(), "*.example.org".into()];
    assert_eq!(
        words::decision_text(&isolated, "egress"),
        "denied: the pod is isolated by NetworkPolicy default/out, and no rule matches; what the pod is told when it asks for api.example.com and *.example.org passes at the ports of their rules"
    );
}

/// Without a port: ranges of both ends are laid over each other, and what says the same is one line.
#[test]
fn every_port_is_told_in_as_few_lines_as_say_it() {
    let plan = Plan::new(&snapshot(), &ask("10.0.1.5", "10.0.2.7", "")).unwrap();
    let free = || decision(Reason::NotSelected, &[]);
    let whole = |protocol, decision| {
        let last = if protocol == 0 { 0 } else { 65_535 };
        told(Ports { protocol, first: last.min(1), last }, decision)
    };
    let egress = vec![
        told(tcp(1, 442), free()),
        told(tcp(443, 443), decision(Reason::Isolated, &[("out", "", 0)])),
        told(tcp(444, 65_535), free()),
        whole(17, free()),
        whole(132, free()),
        whole(0, free()),
    ];
    let isolated = || decision(Reason::Isolated, &[("web", "", 0)]);
    let ingress = vec![
        told(tcp(1, 79), isolated()),
        told(tcp(80, 443), decision(Reason::Allowed, &[("web", "ingress[0]", 1)])),
        told(tcp(444, 65_535), isolated()),
        whole(17, isolated()),
        whole(132, isolated()),
        whole(0, isolated()),
    ];
    let answer =
        |ports| Ok(EndAnswers { answers: vec![EndAnswer { ports }], ..Default::default() });
    let answers = BTreeMap::from([
        ("node-1".parse().unwrap(), answer(egress)),
        ("node-2".parse().unwrap(), answer(ingress)),
    ]);
    let response = plan.answer(&answers);
    let verdicts = response.connections[0].ports.iter().map(|p| {
        let ports = p.ports.unwrap();
        (ports.protocol, ports.first, ports.last, p.verdict())
    });
    assert_eq!(
        verdicts.collect::<Vec<_>>(),
        [
            (6, 1, 79, Verdict::Denied),
            (6, 80, 442, Verdict::Allowed),
            (6, 443, 443, Verdict::Denied),
            (6, 444, 65_535, Verdict::Denied),
            (17, 1, 65_535, Verdict::Denied),
            (132, 1, 65_535, Verdict::Denied),
            (0, 0, 0, Verdict::Denied),
        ]
    );
    let text = words::explanation(&response);
    let heads: Vec<_> = text.lines().filter(|l| !l.starts_with(' ')).collect();
    let ends = "default/client (10.0.1.5) to default/web2 (10.0.2.7)";
    assert_eq!(
        heads,
        [
            format!("{ends}, TCP 80-442: allowed"),
            format!(
                "{ends}, TCP 1-79, 444-65535; UDP every port; SCTP every port; ICMP and others without ports: denied"
            ),
            format!("{ends}, TCP 443: denied"),
        ]
    );
}

#[test]
fn node_that_was_not_asked_and_pod_of_no_node_are_not_known() {
    let mut snapshot = snapshot();
    let lost = pod("lost", &["10.9.9.9"]);
    snapshot.pods.insert(lost.name.clone(), lost.into());
    let plan = Plan::new(&snapshot, &ask("lost", "web2", "80")).unwrap();
    let response = plan.answer(&BTreeMap::new());
    let ports = &response.connections[0].ports[0];
    assert_eq!(ports.verdict(), Verdict::Unspecified);
    let unknown = [&ports.egress, &ports.ingress].map(|e| e.as_ref().unwrap().unknown.as_str());
    assert_eq!(unknown, ["it is not known on which node the pod is", "it was not asked"]);
}
