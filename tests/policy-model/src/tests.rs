//! The model against what is written down elsewhere.

use std::net::IpAddr;

use crate::{
    Action, Case, Cell, ClusterPeer, ClusterPolicy, ClusterRule, Direction, Generator,
    NetworkPolicy, Protocol, Rule, Selector, Subject, Tier, allowed, conformance_cases,
    generated_cases, upstream_cases,
};

/// NP-120
#[test]
fn model_agrees_with_upstream() {
    let cases = upstream_cases();
    assert_eq!(cases.len(), 48);
    for case in cases {
        for connection in Case::connections() {
            let ends = [connection.from, connection.to].map(|pod| case.addresses(pod));
            let [[from4, from6], [to4, to6]] = ends;
            for (from, to) in [(from4, to4), (from6, to6)] {
                let found = allowed(&case.cluster, from, to, connection.protocol, connection.port);
                assert_eq!(found, (case.expected)(&connection), "{} {connection:?}", case.name);
            }
        }
    }
}

/// NP-121, NP-122
#[test]
fn model_agrees_with_what_is_written_of_generated_cases() {
    let cases = generated_cases();
    let of = |group: &str| cases.iter().filter(|case| case.name.starts_with(group)).count();
    let groups = [
        ("peers", 112),
        ("port/protocol", 70),
        ("conflict", 16),
        ("upstream-e2e", 13),
        ("target", 6),
        ("action", 6),
        ("rules", 4),
        ("namespace", 2),
        ("example", 1),
    ];
    assert_eq!(groups.map(|(group, _)| (group, of(&format!("{group}:")))), groups);
    assert_eq!(cases.len(), 230);
    let mut compared = 0;
    for case in &cases {
        let Some((cluster, expected)) = case.steps.last().zip(case.expected.as_ref()) else {
            continue;
        };
        for cell in Cell::all(cluster) {
            let (from, to) = cell.addresses;
            let found = allowed(cluster, from, to, cell.protocol, cell.port);
            assert_eq!(found, expected(&cell), "{} {cell:?}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 218 * 9 * 9 * 3 * 2 * 2);
}

/// NP-145: each test with its number of sub-tests.
#[test]
fn conformance_suite_is_complete() {
    let (mut tests, mut tried) = (Vec::<(String, usize)>::new(), 0);
    for case in conformance_cases() {
        tried += case.probes.len();
        match tests.last_mut() {
            Some((test, sub_tests)) if *test == case.test => *sub_tests += 1,
            _ => tests.push((case.test, 1)),
        }
    }
    tests.sort();
    let mut expected = [
        ("CNPAdminTierEgressTCP", 6),
        ("CNPAdminTierEgressUDP", 6),
        ("CNPAdminTierEgressSCTP", 6),
        ("CNPAdminTierIngressTCP", 6),
        ("CNPAdminTierIngressUDP", 6),
        ("CNPAdminTierIngressSCTP", 6),
        ("CNPAdminTierGress", 6),
        ("CNPAdminTierEgressInlineCIDRPeers", 2),
        ("CNPAdminTierPriorityField", 3),
        ("CNPAdminTierIntegration", 6),
        ("CNPAdminTierEgressNamedPort", 1),
        ("CNPAdminTierIngressNamedPort", 1),
        ("CNPAdminTierEgressNodePeers", 3),
        ("CNPBaselineTierEgressTCP", 4),
        ("CNPBaselineTierEgressUDP", 4),
        ("CNPBaselineTierEgressSCTP", 4),
        ("CNPBaselineTierIngressTCP", 4),
        ("CNPBaselineTierIngressUDP", 4),
        ("CNPBaselineTierIngressSCTP", 4),
        ("CNPBaselineTierGress", 4),
        ("CNPBaselineTierEgressInlineCIDRPeers", 2),
        ("CNPBaselineTierEgressNamedPort", 1),
        ("CNPBaselineTierIngressNamedPort", 1),
        ("CNPBaselineTierEgressNodePeers", 2),
    ]
    .map(|(test, sub_tests)| (test.to_owned(), sub_tests));
    expected.sort();
    assert_eq!(tests, expected);
    let sub_tests: usize = tests.iter().map(|(_, sub_tests)| sub_tests).sum();
    assert_eq!((tests.len(), sub_tests, tried), (24, 92, 298));
}

/// NP-145
#[test]
fn model_agrees_with_the_conformance_suite() {
    for case in conformance_cases() {
        for probe in &case.probes {
            let connection = &probe.connection;
            let ends = [connection.from, connection.to].map(|pod| case.addresses(pod));
            let [[from4, from6], [to4, to6]] = ends;
            for (from, to) in [(from4, to4), (from6, to6)] {
                let found = allowed(&case.cluster, from, to, connection.protocol, connection.port);
                let name = (&case.test, case.sub_test);
                assert_eq!(found, probe.allowed, "{name:?} {connection:?}");
            }
        }
    }
}

/// NP-010
#[test]
fn types_say_which_directions_are_isolated() {
    use Direction::{Egress, Ingress};
    let rules = [vec![], vec![Rule::default()]];
    for (types, egress_rules, isolates) in [
        (None, 0, (true, false)),
        (None, 1, (true, true)),
        (Some(vec![Ingress]), 1, (true, false)),
        (Some(vec![Egress]), 0, (false, true)),
        (Some(vec![Ingress, Egress]), 0, (true, true)),
    ] {
        let egress = rules[egress_rules].clone();
        let policy = NetworkPolicy { types, egress, ..NetworkPolicy::default() };
        assert_eq!((policy.covers(Ingress), policy.covers(Egress)), isolates, "{policy:?}");
    }
}

/// NP-061 to NP-064, NP-130 to NP-136, NP-139
#[test]
fn tiers_and_exemptions() {
    let mut cluster = upstream_cases().remove(0).cluster;
    let text = |text: &str| text.parse::<IpAddr>().unwrap();
    // x/a is 10.0.1.8, y/b is 10.0.1.12; the first case isolates x.
    let may =
        |cluster: &_, from: &str| allowed(cluster, text(from), text("10.0.1.8"), Protocol::Tcp, 80);
    let all = |cluster: &_| {
        ["10.0.1.12", "192.0.2.1", "192.0.2.2", "10.0.1.8", "203.0.113.9"].map(|a| may(cluster, a))
    };
    assert_eq!(all(&cluster), [false, true, false, true, false]);
    let rule = |action, peers: &[ClusterPeer]| ClusterRule {
        action,
        peers: peers.to_vec(),
        ports: Vec::new(),
    };
    let pods = [ClusterPeer::Pods(Subject::Namespaces(Selector::default()))];
    let policy = |tier, priority, ingress: Vec<ClusterRule>| ClusterPolicy {
        tier,
        priority,
        subject: Subject::Namespaces(Selector::default()),
        ingress,
        egress: Vec::new(),
        watched: false,
    };
    let mut set = |name: &str, policy: ClusterPolicy| {
        cluster.cluster_policies.insert(name.to_owned(), policy);
        all(&cluster)
    };
    let accept = policy(Tier::Admin, 10, vec![rule(Action::Accept, &pods)]);
    assert_eq!(set("a", accept), [true, true, false, true, false]);
    let deny = policy(Tier::Admin, 5, vec![rule(Action::Deny, &pods)]);
    assert_eq!(set("b", deny), [false, true, false, true, false]);
    let pass = policy(Tier::Admin, 1, vec![rule(Action::Pass, &pods)]);
    assert_eq!(set("c", pass), [false, true, false, true, false]);
    let unknown = policy(Tier::Admin, 0, vec![rule(Action::Accept, &[ClusterPeer::Unknown])]);
    assert_eq!(set("d", unknown), [false, true, false, true, false]);
    cluster.policies.clear();
    assert_eq!(all(&cluster), [true, true, true, true, true]);
    let mut set = |name: &str, policy: ClusterPolicy| {
        cluster.cluster_policies.insert(name.to_owned(), policy);
        all(&cluster)
    };
    let baseline = policy(Tier::Baseline, 0, vec![rule(Action::Deny, &pods)]);
    assert_eq!(set("e", baseline), [false, true, true, true, true]);
    let unknown = policy(Tier::Admin, 0, vec![rule(Action::Pass, &[ClusterPeer::Unknown])]);
    assert_eq!(set("d", unknown), [false, true, false, true, false]);
}

/// NP-061 to NP-063, NP-142: of a pod and its own node, and of the pod and itself, by what is in force.
#[test]
fn own_node_is_exempt_from_isolation_only() {
    let start = upstream_cases().remove(1).cluster;
    let text = |text: &str| text.parse::<IpAddr>().unwrap();
    // x/a, which the second case isolates in both directions, and its node.
    let (pod, node) = (text("10.0.1.8"), text("192.0.2.1"));
    let of = |tier, action, isolated: bool| {
        let mut cluster = start.clone();
        if !isolated {
            cluster.policies.clear();
        }
        let everywhere = ClusterPeer::Networks(vec!["0.0.0.0/0".parse().unwrap()]);
        let rule = ClusterRule { action, peers: vec![everywhere], ports: Vec::new() };
        let policy = ClusterPolicy {
            tier,
            priority: 1,
            subject: Subject::Namespaces(Selector::default()),
            ingress: vec![rule.clone()],
            egress: vec![rule],
            watched: false,
        };
        cluster.cluster_policies.insert("all".to_owned(), policy);
        let may = |from, to| allowed(&cluster, from, to, Protocol::Tcp, 80);
        assert!(may(node, pod) && may(pod, pod), "{tier:?} {action:?} {isolated}");
        may(pod, node)
    };
    let both = |tier, action| [true, false].map(|isolated| of(tier, action, isolated));
    assert_eq!(both(Tier::Admin, Action::Deny), [false, false]);
    assert_eq!(both(Tier::Admin, Action::Pass), [true, true]);
    assert_eq!(both(Tier::Admin, Action::Accept), [true, true]);
    assert_eq!(both(Tier::Baseline, Action::Deny), [true, false]);
    assert_eq!(both(Tier::Baseline, Action::Accept), [true, true]);
}

/// Clusters have enough of everything, and are the same again with the same seed.
#[test]
fn generated_clusters_are_varied_and_repeat() {
    let [mut one, mut other] = [Generator::new(1), Generator::new(1)];
    let (mut pods, mut hosts, mut finished, mut policies) = (0, 0, 0, 0);
    for _ in 0..50 {
        let (mut cluster, mut again) = (one.cluster(), other.cluster());
        for _ in 0..5 {
            one.change(&mut cluster);
            other.change(&mut again);
        }
        assert_eq!(cluster, again);
        pods += cluster.pods.len();
        hosts += cluster.pods.values().filter(|pod| pod.host_network).count();
        finished += cluster.pods.values().filter(|pod| pod.finished).count();
        policies += cluster.policies.len() + cluster.cluster_policies.len();
    }
    assert!(pods > 250 && hosts > 10 && finished > 10, "{pods} {hosts} {finished}");
    assert!(policies > 150, "{policies}");
}
