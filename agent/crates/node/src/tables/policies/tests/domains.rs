//! Policies that name hosts.

use weft_proto::tables::v1::PolicyLearned;
use weft_proto::v1::decision::Reason;
use weft_proto::v1::{EndQuestion, Ports};

use super::*;
use crate::tables::policies::explain::Explaining;
use crate::tables::tests::fqdn_policy;

const A: &str = "10.0.1.1";
const A6: &str = "fd00:1::1";
const B: &str = "10.0.1.2";

/// Pods a and b of namespaces x and y on one node.
fn cluster() -> plain::Cluster {
    let mut cluster = plain::Cluster::default();
    let addresses = vec!["192.0.2.1".parse().unwrap()];
    cluster.nodes.insert("node-1".into(), plain::Node { addresses, ..plain::Node::default() });
    for (namespace, name, addresses) in [("x", "a", &[A, A6][..]), ("y", "b", &[B])] {
        let pod = plain::Pod {
            namespace: namespace.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            node: "node-1".into(),
            ..plain::Pod::default()
        };
        cluster.pods.insert((namespace.into(), name.into()), pod);
    }
    cluster
}

/// A policy of namespace x that allows UDP port 1 of these names.
fn policy(domains: &[&str]) -> Policy {
    let port = PolicyPort::Range { protocol: ServiceProtocol::Udp, first: 1, last: 1 };
    fqdn_policy("x", "p", domains, Some(vec![port]))
}

fn known(pods: &[&str], told: &[(&str, &[&str])]) -> BTreeMap<IpAddr, Arc<Known>> {
    let addresses = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect();
    let known: Known = told.iter().map(|(name, all)| ((*name).into(), addresses(all))).collect();
    let known = Arc::new(known);
    pods.iter().map(|pod| (pod.parse().unwrap(), Arc::clone(&known))).collect()
}

fn compiled(policy: Option<Policy>, known: &BTreeMap<IpAddr, Arc<Known>>) -> (Snapshot, Policies) {
    let (cluster, node) = (cluster(), "node-1".parse().unwrap());
    let mut snapshot = snapshot(&cluster);
    if let Some(policy) = policy {
        snapshot.policies.insert(policy.name.clone(), policy.into());
    }
    let policed = policed(&cluster, &node);
    let policies = compile_known(&snapshot, &cluster, &node, &policed, known, None);
    (snapshot, policies)
}

/// `POD ADDRESS COUNT`: by how many names a pod knows an address.
fn learned(policies: &Policies) -> Vec<String> {
    let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let one = |l: &PolicyLearned| format!("{} {} {}", ip(&l.pod), ip(&l.address), l.names.len());
    policies.complete().learned.iter().map(one).collect()
}

/// NP-151, NP-152, NP-160, NP-165: what the pod's own rules name, for all of its addresses, by family.
#[test]
fn pods_know_what_their_rules_name() {
    let told: &[(&str, &[&str])] = &[
        ("a.example", &["203.0.113.1", "2001:db8::1"]),
        ("b.a.example", &["203.0.113.1", "203.0.113.2"]),
        ("other", &["203.0.113.3"]),
    ];
    let known = known(&[A, A6, B], told);
    let (_, policies) = compiled(Some(policy(&["a.example", "*.example"])), &known);
    let expected = ["10.0.1.1 203.0.113.1 2", "10.0.1.1 203.0.113.2 1", "fd00:1::1 2001:db8::1 2"];
    assert_eq!(learned(&policies), expected);
    let own: BTreeSet<IpAddr> = [A, A6].map(|a| a.parse().unwrap()).into();
    assert_eq!(policies.with_domains(), own);
    assert!(policies.domains_of(B.parse().unwrap()).is_none());
    let (_, none) = compiled(None, &known);
    assert!(learned(&none).is_empty() && none.with_domains().is_empty());
    let change = none.change_from(&policies).unwrap();
    assert_eq!(change.learned.len(), 3);
    assert!(change.learned.iter().all(|l| l.names.is_empty()));
}

/// NP-150: only rules for egress that accept name hosts.
#[test]
fn other_rules_name_no_hosts() {
    let known = known(&[A], &[("a.example", &["203.0.113.1"])]);
    let mut ingress = policy(&["a.example"]);
    ingress.ingress = ingress.egress.take();
    let mut deny = policy(&["a.example"]);
    deny.name = policy_name("", "p");
    deny.tier = PolicyTier::Admin(1);
    deny.egress.as_mut().unwrap()[0].action = PolicyAction::Deny;
    for policy in [ingress, deny] {
        let (_, policies) = compiled(Some(policy), &known);
        assert!(learned(&policies).is_empty());
        assert!(policies.with_domains().is_empty());
    }
}

/// Flows remember numbers: they must not change from one version to the next.
#[test]
fn numbers_of_names_stay_what_they_are() {
    let number = |name: &str| super::super::domains::number(&name.parse().unwrap());
    assert_eq!(number("Example.com."), number("example.com"));
    assert_eq!(number("example.com"), 0x00a3_79a6_f6ee_afb9);
    assert_ne!(number("*.example.com"), number("example.com"));
}

/// NP-114: what is told of an address says by which name it passes, or which names would let it.
#[test]
fn explanation_tells_names() {
    let known = known(&[A, A6], &[("a.example", &["203.0.113.1"])]);
    let (snapshot, policies) = compiled(Some(policy(&["*.example", "b.other"])), &known);
    let explaining = Explaining::new(&policies, &snapshot).unwrap();
    let ask = |peer: &str, port: u32| {
        let ports = Some(Ports { protocol: 17, first: port, last: port });
        let (pod, peer) = (A.to_owned(), peer.to_owned());
        let answer = explaining.answer(&EndQuestion { egress: true, pod, peer, ports }).unwrap();
        answer.ports[0].decision.clone().unwrap()
    };
    let passes = ask("203.0.113.1", 1);
    assert_eq!((passes.reason(), passes.denies), (Reason::Allowed, false));
    assert_eq!(passes.rules[0].learned, ["a.example"]);
    assert_eq!(passes.names, [""; 0]);
    for (peer, port) in [("203.0.113.1", 2), ("203.0.113.2", 1)] {
        let denied = ask(peer, port);
        assert_eq!((denied.reason(), denied.denies), (Reason::Isolated, true));
        assert_eq!(denied.names, ["*.example", "b.other"]);
    }
}
