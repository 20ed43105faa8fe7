//! Compiled tables in the plugin, as it runs natively and as a module, against a plain reading of the
//! rules.

mod domains;
mod fabric;
mod increments;

use std::net::SocketAddr;

use prost::Message as _;
use weft_abi::{Descriptor, flags};
use weft_model::{
    Cluster, Encapsulation, Generation, NamedPort, Namespace, NamespaceSelector, Node, NodeName,
    Operator, Pod, PodName, PodSelector, PolicyAction, PolicyPeer, PolicyPort, PolicyRule,
    PolicyTier, Requirement, Selector, ServiceProtocol, Vni,
};
use weft_pipeline::Plugin as _;
use weft_policy_model as plain;
use weft_policy_sdk::Config;
use weft_policy_testing::{Answered, NativePlugin};
use weft_wasm_host::{ConfigureKind, Engine, Module, PluginInstance, Settings, SharedState};

use super::*;

mod explain;

const NODES: [&str; 2] = ["node-1", "node-2"];

fn snapshot(cluster: &plain::Cluster) -> Snapshot {
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
    snapshot.generation = Generation(1);
    for (name, node) in &cluster.nodes {
        let name: NodeName = name.parse().unwrap();
        let node = Node {
            name: name.clone(),
            uid: String::new(),
            endpoint: None,
            addresses: node.addresses.clone(),
            subnets: vec![],
            keys: vec![],
            vtep_mac: None,
            labels: node.labels.clone(),
        };
        snapshot.nodes.insert(name, node);
    }
    for (name, namespace) in &cluster.namespaces {
        let namespace = Namespace { name: name.clone(), labels: namespace.labels.clone() };
        snapshot.namespaces.insert(name.clone(), namespace.into());
    }
    for ((namespace, name), pod) in &cluster.pods {
        let name = PodName { namespace: namespace.clone(), name: name.clone() };
        let addresses = if pod.host_network { vec![] } else { pod.addresses.clone() };
        let pod = Pod {
            name: name.clone(),
            node: Some(pod.node.parse().unwrap()),
            addresses,
            labels: pod.labels.clone(),
            ports: pod.ports.iter().map(named_port).collect(),
            finished: pod.finished,
            own_search: false,
        };
        snapshot.pods.insert(name, pod.into());
    }
    let policies = cluster
        .policies
        .iter()
        .map(|((namespace, name), policy)| network_policy(policy_name(namespace, name), policy));
    let cluster_policies = cluster.cluster_policies.iter();
    let cluster_policies =
        cluster_policies.map(|(name, policy)| cluster_policy(policy_name("", name), policy));
    for policy in policies.chain(cluster_policies) {
        snapshot.policies.insert(policy.name.clone(), policy.into());
    }
    snapshot
}

fn policy_name(namespace: &str, name: &str) -> PolicyName {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    PolicyName { namespace, name, ..PolicyName::default() }
}

fn protocol(protocol: plain::Protocol) -> Option<ServiceProtocol> {
    ServiceProtocol::from_number(protocol.number())
}

fn named_port(port: &plain::NamedPort) -> NamedPort {
    let protocol = protocol(port.protocol).unwrap();
    NamedPort { name: port.name.clone(), protocol, number: port.port }
}

fn selector(selector: &plain::Selector) -> Selector {
    let labels = selector.labels.iter().map(|(key, value)| Requirement {
        key: key.clone(),
        operator: Operator::In([value.clone()].into()),
    });
    let expressions = selector.expressions.iter().map(|e| {
        let values = || e.values.iter().cloned().collect();
        let operator = match e.operator {
            plain::Operator::In => Operator::In(values()),
            plain::Operator::NotIn => Operator::NotIn(values()),
            plain::Operator::Exists => Operator::Exists,
            plain::Operator::DoesNotExist => Operator::DoesNotExist,
        };
        Requirement { key: e.key.clone(), operator }
    });
    Selector(labels.chain(expressions).collect())
}

fn network_policy(name: PolicyName, policy: &plain::NetworkPolicy) -> Policy {
    let own = NamespaceSelector::Named(name.namespace.clone());
    let rules = |direction| {
        policy.covers(direction).then(|| {
            let rules = policy.rules(direction).iter().enumerate();
            rules
                .map(|(index, rule)| PolicyRule {
                    name: format!("rule[{index}]"),
                    action: PolicyAction::Accept,
                    peers: (!rule.peers.is_empty())
                        .then(|| rule.peers.iter().filter_map(|p| peer(p, &own)).collect()),
                    ports: ports(&rule.ports),
                })
                .collect()
        })
    };
    Policy {
        tier: PolicyTier::Namespace,
        watched: policy.watched,
        subject: PodSelector { namespaces: own.clone(), pods: selector(&policy.pods) },
        ingress: rules(plain::Direction::Ingress),
        egress: rules(plain::Direction::Egress),
        name,
    }
}

fn peer(peer: &plain::Peer, own: &NamespaceSelector) -> Option<PolicyPeer> {
    if let Some(block) = &peer.block {
        return Some(PolicyPeer::Block { range: block.cidr, except: block.except.clone() });
    }
    let pods = peer.pods.as_ref().map(selector);
    let namespaces = peer.namespaces.as_ref().map(|s| NamespaceSelector::Labels(selector(s)));
    if pods.is_none() && namespaces.is_none() {
        return None;
    }
    Some(PolicyPeer::Pods(PodSelector {
        namespaces: namespaces.unwrap_or_else(|| own.clone()),
        pods: pods.unwrap_or_default(),
    }))
}

fn ports(ports: &[plain::Port]) -> Option<Vec<PolicyPort>> {
    let one = |port: &plain::Port| {
        let name = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = protocol(plain::Protocol::named(name)?)?;
        Some(match &port.port {
            plain::PortNumber::Any => PolicyPort::Range { protocol, first: 0, last: u16::MAX },
            plain::PortNumber::Range(first, last) => {
                PolicyPort::Range { protocol, first: *first, last: *last }
            }
            plain::PortNumber::Name(name) => PolicyPort::Named { protocol, name: name.clone() },
        })
    };
    (!ports.is_empty()).then(|| ports.iter().filter_map(one).collect())
}

fn cluster_policy(name: PolicyName, policy: &plain::ClusterPolicy) -> Policy {
    let priority = u16::try_from(policy.priority).unwrap();
    let rules = |direction| {
        let rules = policy.rules(direction).iter().enumerate();
        let rules: Vec<_> = rules.map(|(index, rule)| cluster_rule(index, rule)).collect();
        (!rules.is_empty()).then_some(rules)
    };
    Policy {
        name,
        tier: match policy.tier {
            plain::Tier::Admin => PolicyTier::Admin(priority),
            plain::Tier::Baseline => PolicyTier::Baseline(priority),
        },
        watched: policy.watched,
        subject: subject_of(&policy.subject),
        ingress: rules(plain::Direction::Ingress),
        egress: rules(plain::Direction::Egress),
    }
}

fn subject_of(subject: &plain::Subject) -> PodSelector {
    let (namespaces, pods) = match subject {
        plain::Subject::Namespaces(namespaces) => (namespaces, Selector::default()),
        plain::Subject::Pods(namespaces, pods) => (namespaces, selector(pods)),
    };
    PodSelector { namespaces: NamespaceSelector::Labels(selector(namespaces)), pods }
}

/// NP-139: what is not known makes an acceptance match nothing, and all else a denial of everything.
fn cluster_rule(index: usize, rule: &plain::ClusterRule) -> PolicyRule {
    let unknown = rule.peers.contains(&plain::ClusterPeer::Unknown);
    let (action, everything) = match (rule.action, unknown) {
        (plain::Action::Accept, _) => (PolicyAction::Accept, false),
        (plain::Action::Deny, false) => (PolicyAction::Deny, false),
        (plain::Action::Pass, false) => (PolicyAction::Pass, false),
        (_, true) => (PolicyAction::Deny, true),
    };
    let peers = rule.peers.iter().flat_map(|peer| match peer {
        plain::ClusterPeer::Pods(subject) => vec![PolicyPeer::Pods(subject_of(subject))],
        plain::ClusterPeer::Networks(networks) => networks
            .iter()
            .map(|range| PolicyPeer::Block { range: *range, except: vec![] })
            .collect(),
        plain::ClusterPeer::Nodes(nodes) => vec![PolicyPeer::Nodes(selector(nodes))],
        plain::ClusterPeer::Unknown => vec![],
    });
    let ports = rule.ports.iter().flat_map(|port| match port {
        plain::ClusterPort::Ports(of, range) => {
            let (first, last) = range.unwrap_or((0, u16::MAX));
            vec![PolicyPort::Range { protocol: protocol(*of).unwrap(), first, last }]
        }
        plain::ClusterPort::Named(name) => {
            let all = [ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
            all.map(|protocol| PolicyPort::Named { protocol, name: name.clone() }).into()
        }
    });
    let nothing_known = unknown && action == PolicyAction::Accept;
    PolicyRule {
        name: format!("rule[{index}]"),
        action,
        peers: (!everything).then(|| if nothing_known { vec![] } else { peers.collect() }),
        ports: (!rule.ports.is_empty() && !everything).then(|| ports.collect()),
    }
}

/// The plugin of one node with what it was given.
struct Host {
    name: NodeName,
    plugin: NativePlugin<weft_policy::Policies>,
    module: PluginInstance,
    revision: u64,
    policies: Policies,
    flows: BTreeMap<(u8, SocketAddr, SocketAddr), [u8; 16]>,
}

fn compile(cluster: &plain::Cluster, name: &NodeName, before: Option<&Policies>) -> Policies {
    compile_snapshot(&snapshot(cluster), cluster, name, &policed(cluster, name), before)
}

/// Pods of a node, with their addresses.
fn policed(cluster: &plain::Cluster, name: &NodeName) -> Vec<(PodName, Vec<IpAddr>)> {
    let pods = cluster.pods.iter().filter(|(_, pod)| pod.node == name.as_str());
    // One that has finished is attached until the runtime takes it away.
    pods.filter(|(_, pod)| !pod.host_network)
        .map(|((namespace, name), pod)| {
            let name = PodName { namespace: namespace.clone(), name: name.clone() };
            (name, pod.addresses.clone())
        })
        .collect()
}

fn compile_snapshot(
    snapshot: &Snapshot,
    cluster: &plain::Cluster,
    name: &NodeName,
    policed: &[(PodName, Vec<IpAddr>)],
    before: Option<&Policies>,
) -> Policies {
    compile_known(snapshot, cluster, name, policed, &BTreeMap::new(), before)
}

fn compile_known(
    snapshot: &Snapshot,
    cluster: &plain::Cluster,
    name: &NodeName,
    policed: &[(PodName, Vec<IpAddr>)],
    known: &BTreeMap<IpAddr, Arc<Known>>,
    before: Option<&Policies>,
) -> Policies {
    let addresses = cluster.nodes[name.as_str()].addresses.iter().copied().collect();
    let local = Local {
        node: name,
        interface: "weft0",
        mtu: 1420,
        vtep_mac: weft_model::MacAddr([2; 6]),
        addresses: &addresses,
        keys: &[],
        pods: &BTreeMap::new(),
        policed,
        known,
    };
    Policies::compile(snapshot, &local, before)
}

impl Host {
    fn new(cluster: &plain::Cluster, name: &str, module: &Arc<Module>) -> Self {
        let name: NodeName = name.parse().unwrap();
        let policies = compile(cluster, &name, None);
        let config = policies.complete().encode_to_vec();
        let plugin = NativePlugin::new(config.clone()).unwrap();
        let settings = Settings { config, ..Settings::new("policy") };
        let module = PluginInstance::new(module, settings, SharedState::new("policy")).unwrap();
        Self { name, plugin, module, revision: 1, policies, flows: BTreeMap::new() }
    }

    fn update(&mut self, cluster: &plain::Cluster) {
        let next = compile(cluster, &self.name, Some(&self.policies));
        if let Some(change) = next.change_from(&self.policies) {
            let bytes = change.encode_to_vec();
            self.plugin.configure(Config::Delta(&bytes)).unwrap();
            self.revision += 1;
            self.module.configure(ConfigureKind::Delta, &bytes, self.revision).unwrap();
        } else {
            assert_eq!(next.complete(), self.policies.complete());
        }
        self.policies = next;
    }

    fn passes(
        &mut self,
        cluster: &plain::Cluster,
        egress: bool,
        protocol: u8,
        from: SocketAddr,
        to: SocketAddr,
    ) -> bool {
        // Then it does not run.
        if self.policies.is_empty() {
            return true;
        }
        let local = |address: IpAddr| {
            cluster.pod_at(address).is_some_and(|pod| pod.node == self.name.as_str())
        };
        let own = &cluster.nodes[self.name.as_str()].addresses;
        let mark = |bit, set| if set { bit } else { 0 };
        let key = (protocol, from, to);
        let told = Descriptor {
            flags: mark(flags::SOURCE_LOCAL_POD, local(from.ip()))
                | mark(flags::DESTINATION_LOCAL_POD, local(to.ip()))
                | mark(flags::SOURCE_HOST, own.contains(&from.ip()))
                | mark(flags::EGRESS, egress),
            source: mapped(from.ip()),
            destination: mapped(to.ip()),
            source_port: from.port(),
            destination_port: to.port(),
            protocol,
            ip_version: if from.is_ipv4() { 4 } else { 6 },
            segments: 1,
            slot: self.flows.get(&key).copied().unwrap_or_default(),
            ..Descriptor::default()
        };
        let outcome = self.plugin.on_packet(&told, &[0x45]).unwrap();
        let slot = outcome.slot.copied().unwrap_or(told.slot);
        let answer = Answered::from(outcome.verdict);
        let outcome = self.module.on_packet(&told, &[0x45; 20]).unwrap();
        assert_eq!(outcome.slot.copied().unwrap_or(told.slot), slot);
        assert_eq!(Answered::from(outcome.verdict), answer, "as a module");
        let passes = matches!(answer, Answered::Continue | Answered::WouldDrop(_));
        if passes {
            self.flows.insert(key, slot);
        }
        passes
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// NP-001 to NP-007, NP-010 to NP-012, NP-020 to NP-027, NP-030 to NP-033, NP-037, NP-040 to NP-053,
/// NP-094, NP-095, NP-130 to NP-140: what is compiled allows what the rules say, through all changes.
#[test]
fn compiled_tables_allow_what_the_rules_allow() {
    let (mut allowed, mut denied) = (0, 0);
    let engine = Engine::with_instances(4).unwrap();
    let module = Module::load(&engine, weft_builtin::POLICY.module).unwrap();
    for seed in 0..200 {
        let mut generator = plain::Generator::new(seed);
        let mut cluster = generator.cluster();
        let mut nodes = NODES.map(|name| Host::new(&cluster, name, &module));
        for _ in 0..8 {
            for _ in 0..40 {
                let (from, to) = generator.ends(&cluster);
                let (protocol, port) = generator.service();
                let (a, b) = (SocketAddr::new(from, 40_000), SocketAddr::new(to, port));
                for node in &mut nodes {
                    let here = |address: IpAddr| {
                        cluster.pod_at(address).is_some_and(|p| p.node == node.name.as_str())
                    };
                    let (sends, gets) = (here(from), here(to));
                    for (concerned, egress) in [(sends, true), (gets, false)] {
                        if !concerned {
                            continue;
                        }
                        let rules =
                            if egress { plain::egress_allowed } else { plain::ingress_allowed };
                        let expected = rules(&cluster, from, to, protocol, port);
                        let passes = node.passes(&cluster, egress, protocol.number(), a, b);
                        assert_eq!(
                            passes,
                            expected,
                            "seed {seed}, egress {egress}, {protocol:?} {a} to {b} at {}: {cluster:#?}\n{:#?}",
                            node.name,
                            node.policies.complete()
                        );
                        allowed += usize::from(passes);
                        denied += usize::from(!passes);
                    }
                }
            }
            generator.change(&mut cluster);
            nodes.iter_mut().for_each(|node| node.update(&cluster));
        }
    }
    assert!(allowed > 20_000 && denied > 5_000, "{allowed} {denied}");
}

/// A node with one pod, in namespace `x`.
fn one_pod() -> plain::Cluster {
    let mut cluster = plain::Cluster::default();
    let addresses = vec!["192.0.2.1".parse().unwrap()];
    cluster.nodes.insert("node-1".into(), plain::Node { addresses, ..plain::Node::default() });
    let pod = plain::Pod {
        namespace: "x".into(),
        addresses: vec!["10.0.1.1".parse().unwrap()],
        node: "node-1".into(),
        ..plain::Pod::default()
    };
    cluster.pods.insert(("x".into(), "a".into()), pod);
    cluster
}

/// NP-113: who reads of a drop is told which policy it was, and which rule.
#[test]
fn numbers_of_drops_are_told_in_words() {
    let mut cluster = one_pod();
    cluster.policies.insert(("x".into(), "closed".into()), plain::NetworkPolicy::default());
    let policies = compile(&cluster, &"node-1".parse().unwrap(), None);
    let tables = policies.complete();
    let told = policies.describe(tables.programs[0].isolation).unwrap();
    assert_eq!(told, "NetworkPolicy x/closed, ingress: no rule allows it");
    assert_eq!(policies.describe(9_999), None);
    let own = [weft_policy::UNKNOWN_POD, weft_policy::UNKNOWN_SUBJECT];
    assert_eq!(own, [program::UNKNOWN_POD, program::UNKNOWN_SUBJECT]);
}

/// NP-113: a pod that several policies isolate is told with all of them, as it is explained; those that are
/// only watched are named where no other is.
#[test]
fn drop_of_an_isolated_pod_names_all_policies_that_isolate_it() {
    let mut cluster = one_pod();
    let told = |cluster: &plain::Cluster| {
        let policies = compile(cluster, &"node-1".parse().unwrap(), None);
        policies.describe(policies.complete().programs[0].isolation).unwrap()
    };
    let mut policy = |name: &str, watched| {
        let policy = plain::NetworkPolicy { watched, ..plain::NetworkPolicy::default() };
        cluster.policies.insert(("x".into(), name.into()), policy);
        told(&cluster)
    };
    let watched = "NetworkPolicy x/w, ingress: no rule allows it";
    assert_eq!(policy("w", true), watched);
    assert_eq!(policy("b", false), watched.replace("x/w", "x/b"));
    let two = "NetworkPolicy x/a and NetworkPolicy x/b, ingress: no rule allows it";
    assert_eq!(policy("a", false), two);
    for name in ["c", "d", "e", "f"] {
        policy(name, false);
    }
    let many = policy("g", false);
    assert!(many.starts_with("NetworkPolicy x/a, NetworkPolicy x/b, "), "{many}");
    assert!(many.ends_with("NetworkPolicy x/e and 2 more, ingress: no rule allows it"), "{many}");
}

/// NP-145: a process of a node's host is not got at by the address that the node's pods know it by.
#[test]
fn node_is_meant_by_what_its_pods_know_it_by_too() {
    let cluster = one_pod();
    let mut snapshot = snapshot(&cluster);
    let node = snapshot.nodes.values_mut().next().unwrap();
    node.subnets = vec!["10.0.1.0/24".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()];
    let addresses: Vec<_> = program::addresses(node).map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["192.0.2.1", "10.0.1.1", "fd00:0:0:1::1"]);
}

/// Policies that come and go under ever new names leave nothing behind for good.
#[test]
fn numbers_of_what_is_gone_are_forgotten() {
    let mut cluster = one_pod();
    let allows = || plain::NetworkPolicy {
        ingress: vec![plain::Rule::default()],
        ..plain::NetworkPolicy::default()
    };
    cluster.policies.insert(("x".into(), "stays".into()), allows());
    let mut before: Option<Policies> = None;
    let mut stays = None;
    for n in 0..5000 {
        cluster.policies.retain(|(_, name), _| name == "stays");
        cluster.policies.insert(("x".into(), format!("p{n}")), allows());
        let policies = compile(&cluster, &"node-1".parse().unwrap(), before.as_ref());
        let number = policies.rules.all().find(|(_, (policy, ..))| policy.name == "stays");
        let number = number.unwrap().0;
        assert_eq!(*stays.get_or_insert(number), number);
        assert!(policies.rules.len() <= 1100, "{n}");
        before = Some(policies);
    }
}
