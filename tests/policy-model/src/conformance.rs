//! The cases of the network-policy-api's conformance suite for ClusterNetworkPolicies (NP-145), and what
//! every connection that they try has to come to, written down apart from the model.
//!
//! The sub-tests of a test follow each other in one cluster: each is here with what those before it have
//! changed.

use std::net::IpAddr;

use crate::upstream::{addresses, addresses_of, nodes};
use crate::{
    Action, Cluster, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Connection, Direction,
    Labels, NamedPort, Namespace, Pod, Protocol, Selector, Subject, Tier,
};

mod combined;
mod peers;
mod protocols;

/// Namespace and name of a pod.
type PodKey = (&'static str, &'static str);

const GRYFFINDOR: &str = "gryffindor";
const SLYTHERIN: &str = "slytherin";
const HUFFLEPUFF: &str = "hufflepuff";
const RAVENCLAW: &str = "ravenclaw";
const FORREST: &str = "forbidden-forrest";

const HARRY: [PodKey; 2] = [(GRYFFINDOR, "harry-potter-0"), (GRYFFINDOR, "harry-potter-1")];
const DRACO: [PodKey; 2] = [(SLYTHERIN, "draco-malfoy-0"), (SLYTHERIN, "draco-malfoy-1")];
const CEDRIC: [PodKey; 2] = [(HUFFLEPUFF, "cedric-diggory-0"), (HUFFLEPUFF, "cedric-diggory-1")];
const LUNA: [PodKey; 2] = [(RAVENCLAW, "luna-lovegood-0"), (RAVENCLAW, "luna-lovegood-1")];
/// In their nodes' networks.
const CENTAUR: [PodKey; 2] = [(FORREST, "centaur-0"), (FORREST, "centaur-1")];

/// A connection that a sub-test tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The connection.
    pub connection: Connection,
    /// True if it has to be made.
    pub allowed: bool,
}

/// A sub-test.
#[derive(Clone, Debug)]
pub struct ConformanceCase {
    /// Name of its test.
    pub test: String,
    /// What it is about.
    pub sub_test: &'static str,
    /// The cluster, after all of the test's changes up to here.
    pub cluster: Cluster,
    /// What it tries.
    pub probes: Vec<Probe>,
}

impl ConformanceCase {
    /// Addresses of a pod, one of each family.
    ///
    /// # Panics
    /// If it is none of the case's.
    #[must_use]
    pub fn addresses(&self, pod: (&str, &str)) -> [IpAddr; 2] {
        addresses_of(&self.cluster, pod)
    }
}

/// The sub-tests of all tests: those of a test are together and in their order.
#[must_use]
pub fn conformance_cases() -> Vec<ConformanceCase> {
    let mut cases = Vec::new();
    for tier in [Tier::Admin, Tier::Baseline] {
        cases.extend(protocols::all(tier));
        cases.extend(combined::gress(tier));
        cases.extend(peers::networks(tier));
        cases.extend(protocols::named(tier));
        cases.extend(peers::nodes(tier));
    }
    cases.extend(combined::priorities());
    cases.extend(combined::integration());
    cases
}

/// Collects the sub-tests of a test.
struct Test {
    name: String,
    cluster: Cluster,
    cases: Vec<ConformanceCase>,
}

impl Test {
    fn new(tier: Tier, name: &str) -> Self {
        let tier = match tier {
            Tier::Admin => "CNPAdminTier",
            Tier::Baseline => "CNPBaselineTier",
        };
        Self { name: format!("{tier}{name}"), cluster: cluster(), cases: Vec::new() }
    }

    /// Makes a policy, or changes it to this.
    fn apply(&mut self, name: &str, policy: ClusterPolicy) {
        self.cluster.cluster_policies.insert(name.to_owned(), policy);
    }

    fn sub_test(&mut self, sub_test: &'static str, probes: Vec<Probe>) {
        let (test, cluster) = (self.name.clone(), self.cluster.clone());
        self.cases.push(ConformanceCase { test, sub_test, cluster, probes });
    }
}

/// Pods 0 and 1 of a house are on different nodes: 10.0.N.8 and up, and fd00:N::8 and up.
fn cluster() -> Cluster {
    let mut cluster = Cluster { nodes: nodes(), ..Cluster::default() };
    for node in cluster.nodes.values_mut() {
        node.labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    }
    let named = |name: &str, protocol, port| NamedPort { name: name.to_owned(), protocol, port };
    let ports = [named("web", Protocol::Tcp, 80), named("dns", Protocol::Udp, 53)];
    for (n, house) in (0..).zip([HARRY, DRACO, CEDRIC, LUNA, CENTAUR]) {
        for (p, (namespace, name)) in (0..).zip(house) {
            let host_network = house == CENTAUR;
            let number: u8 = 1 + (n + p) % 2;
            let node = format!("node-{number}");
            let addresses = match cluster.nodes.get(&node) {
                Some(node) if host_network => node.addresses.clone(),
                _ => addresses(number, 8 + 2 * n + p),
            };
            let in_house = ("conformance-house", namespace);
            let pod = Pod {
                namespace: namespace.to_owned(),
                labels: labels(&[in_house]),
                addresses,
                node,
                host_network,
                ports: ports.to_vec(),
                ..Pod::default()
            };
            cluster.pods.insert((namespace.to_owned(), name.to_owned()), pod);
            let labels = labels(&[in_house, ("kubernetes.io/metadata.name", namespace)]);
            cluster.namespaces.insert(namespace.to_owned(), Namespace { labels });
        }
    }
    cluster
}

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Who asks whom at which port, and whether that has to work.
type Row = (PodKey, PodKey, u16, bool);

fn probes(protocol: Protocol, rows: &[Row]) -> Vec<Probe> {
    let probe = |&(from, to, port, allowed): &Row| Probe {
        connection: Connection { from, to, protocol, port },
        allowed,
    };
    rows.iter().map(probe).collect()
}

/// Selects a namespace by its name.
fn by_name(namespace: &str) -> Selector {
    Selector::label("kubernetes.io/metadata.name", namespace)
}

/// Selects the namespace or the pods of a house.
fn of_house(house: &str) -> Selector {
    Selector::label("conformance-house", house)
}

fn pods_of(house: &str) -> Subject {
    Subject::Pods(of_house(house), of_house(house))
}

fn policy(tier: Tier, priority: u32, subject: Subject) -> ClusterPolicy {
    let (ingress, egress) = (Vec::new(), Vec::new());
    ClusterPolicy { tier, priority, subject, ingress, egress, watched: false }
}

fn rule(action: Action, peers: &[ClusterPeer]) -> ClusterRule {
    ClusterRule { action, peers: peers.to_vec(), ports: Vec::new() }
}

/// For a namespace by its name, at ports if there are any.
fn rule_for(action: Action, namespace: &str, ports: &[ClusterPort]) -> ClusterRule {
    let peers = vec![ClusterPeer::Pods(Subject::Namespaces(by_name(namespace)))];
    ClusterRule { action, peers, ports: ports.to_vec() }
}

fn port(protocol: Protocol, port: u16) -> ClusterPort {
    ClusterPort::Ports(protocol, Some((port, port)))
}

fn rules_mut(policy: &mut ClusterPolicy, direction: Direction) -> &mut Vec<ClusterRule> {
    match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    }
}

/// For all of one house, for ports of slytherin, and for a third house but for some ports. Where two rules
/// match the first decides, and which is the first is what a test changes.
fn ordered_rules(
    tier: Tier,
    all_of: &str,
    ports: &[ClusterPort],
    (mostly_not, but): (&str, &[ClusterPort]),
) -> Vec<ClusterRule> {
    let mut rules =
        vec![rule_for(Action::Accept, all_of, &[]), rule_for(Action::Deny, all_of, &[])];
    let passes = tier == Tier::Admin;
    rules.extend(passes.then(|| rule_for(Action::Pass, all_of, &[])));
    rules.push(rule_for(Action::Deny, SLYTHERIN, ports));
    rules.extend(passes.then(|| rule_for(Action::Pass, SLYTHERIN, ports)));
    rules.push(rule_for(Action::Accept, mostly_not, but));
    rules.push(rule_for(Action::Deny, mostly_not, &[]));
    rules
}

/// What sub-tests of such rules are about. Those that pass are of the Admin tier only.
const ORDERED: [&str; 6] =
    ["allow: order", "allow: port", "deny: order", "deny: port", "pass: order", "pass: port"];

/// What a sub-test of [`ORDERED`] changes first.
fn reorder(sub_test: &str, rules: &mut [ClusterRule]) {
    match sub_test {
        "deny: order" => rules.swap(0, 1),
        "pass: order" => rules.swap(0, 2),
        "pass: port" => rules.swap(3, 4),
        _ => {}
    }
}
