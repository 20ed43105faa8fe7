//! Policies of a model's cluster as tables of a node, in the plainest way that keeps the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_fuzz::Random;
use weft_policy_model::{
    Action, Cluster, ClusterPeer, ClusterPort, ClusterRule, Direction, Labels, NamedPort,
    NetworkPolicy, Peer, Pod, PortNumber, Protocol, Rule, Subject, Tier,
};
use weft_proto::tables::v1::policy_rule::Action as ActionMessage;
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyBlock, PolicyPort, PolicyProgram, PolicyRule,
    PolicySettings, PolicySubject, PolicyTables, Range,
};

use super::node::bytes_of;

/// What pods of one identity have in common: namespace, labels, named ports.
type Alike = (String, Labels, Vec<NamedPort>);

/// Gives the same thing the same number as long as it lives, as the agent does.
#[derive(Debug, Default)]
pub(super) struct Compiler {
    identities: BTreeMap<Alike, u32>,
    numbers: BTreeMap<String, u32>,
}

/// One compilation.
struct Compilation<'a> {
    compiler: &'a mut Compiler,
    cluster: &'a Cluster,
    /// Identities of the cluster's pods.
    alike: BTreeMap<u32, Alike>,
    sets: BTreeMap<u32, BTreeSet<u32>>,
}

impl Compiler {
    pub(super) fn compile(&mut self, cluster: &Cluster, node: &str) -> PolicyTables {
        let mut tables = PolicyTables::default();
        let own = &cluster.nodes[node].addresses;
        let own_addresses = own.iter().map(|a| bytes_of(*a)).collect();
        tables.settings = Some(PolicySettings { own_addresses, ..PolicySettings::default() });
        let (mut alike, mut local) = (BTreeMap::new(), BTreeSet::new());
        for pod in cluster.pods.values().filter(|pod| pod.is_selectable()) {
            let key = (pod.namespace.clone(), pod.labels.clone(), pod.ports.clone());
            let next = 1 + u32::try_from(self.identities.len()).unwrap();
            let identity = *self.identities.entry(key.clone()).or_insert(next);
            alike.insert(identity, key);
            if pod.node == node {
                local.insert(identity);
            }
            for address in &pod.addresses {
                let records = match address {
                    IpAddr::V4(_) => &mut tables.addresses_v4,
                    IpAddr::V6(_) => &mut tables.addresses_v6,
                };
                records.extend(bytes_of(*address));
                records.extend(identity.to_be_bytes());
            }
        }
        let mut compilation = Compilation { compiler: self, cluster, alike, sets: BTreeMap::new() };
        for identity in local {
            let mut numbers = [Direction::Ingress, Direction::Egress].map(|direction| {
                let program = compilation.program(identity, direction);
                let number = program.as_ref().map_or(0, |program| program.number);
                tables.programs.extend(program);
                number
            });
            let [ingress, egress] = &mut numbers;
            tables.subjects.push(PolicySubject { identity, ingress: *ingress, egress: *egress });
        }
        let whole = |(number, members): (u32, BTreeSet<u32>)| IdentitySet {
            number,
            identities: members.into_iter().collect(),
        };
        tables.sets = compilation.sets.into_iter().map(whole).collect();
        tables
    }

    fn number(&mut self, what: String) -> u32 {
        let next = 16 + u32::try_from(self.numbers.len()).unwrap();
        *self.numbers.entry(what).or_insert(next)
    }
}

/// Ports of a rule, resolved where they can be.
enum Ports {
    /// No ports: any protocol.
    Any,
    Some(Vec<PolicyPort>),
}

impl Compilation<'_> {
    /// `None` if nothing restricts the direction.
    fn program(&mut self, identity: u32, direction: Direction) -> Option<PolicyProgram> {
        let number = self.compiler.number(format!("{identity} {direction:?}"));
        let isolation = self.compiler.number(format!("isolation {identity} {direction:?}"));
        let mut program = PolicyProgram { number, isolation, ..PolicyProgram::default() };
        let cluster = self.cluster;
        let (namespace, labels, _) = self.alike[&identity].clone();
        for ((of, name), policy) in &cluster.policies {
            let covers = *of == namespace && policy.covers(direction);
            if covers && policy.pods.matches(&labels) {
                program.isolated |= !policy.watched;
                program.watched |= policy.watched;
                let at = format!("{of}/{name}");
                program.allowed.extend(self.allowed(identity, direction, &at, policy));
            }
        }
        program.admin = self.tier(identity, direction, Tier::Admin);
        program.baseline = self.tier(identity, direction, Tier::Baseline);
        let empty = program.admin.is_empty()
            && program.baseline.is_empty()
            && !program.isolated
            && !program.watched;
        (!empty).then_some(program)
    }

    fn allowed(
        &mut self,
        identity: u32,
        direction: Direction,
        at: &str,
        policy: &NetworkPolicy,
    ) -> Vec<PolicyRule> {
        let namespace = self.alike[&identity].0.clone();
        let mut rules = Vec::new();
        for (index, rule) in policy.rules(direction).iter().enumerate() {
            let at = format!("{at} {direction:?} {index}");
            let start = PolicyRule {
                number: self.compiler.number(at.clone()),
                watched: policy.watched,
                ..PolicyRule::default()
            };
            rules.extend(self.rule(identity, direction, &namespace, &at, &start, rule));
        }
        rules
    }

    fn rule(
        &mut self,
        identity: u32,
        direction: Direction,
        namespace: &str,
        at: &str,
        start: &PolicyRule,
        rule: &Rule,
    ) -> Vec<PolicyRule> {
        let unknown =
            |p: &Option<String>| p.as_deref().is_some_and(|p| Protocol::named(p).is_none());
        if rule.ports.iter().any(|port| unknown(&port.protocol)) {
            return Vec::new();
        }
        let (mut ports, mut names) = (Vec::new(), Vec::new());
        for port in &rule.ports {
            let protocol = Protocol::named(port.protocol.as_deref().unwrap_or("TCP")).unwrap();
            match &port.port {
                PortNumber::Any => ports.push(range_of(protocol, None)),
                PortNumber::Range(first, last) => {
                    ports.push(range_of(protocol, Some((*first, *last))));
                }
                PortNumber::Name(name) => names.push((name.clone(), Some(protocol))),
            }
        }
        let members: BTreeSet<u32> = (self.alike.iter())
            .filter(|(_, alike)| rule.peers.iter().any(|peer| self.selects(peer, namespace, alike)))
            .map(|(identity, _)| *identity)
            .collect();
        let any = rule.peers.is_empty();
        let blocks = rule.peers.iter().filter_map(|peer| peer.block.as_ref());
        let blocks = blocks.map(|b| block_of(&b.cidr, &b.except)).collect();
        let whole = PolicyRule { any_peer: any, blocks, ..start.clone() };
        let ports = if rule.ports.is_empty() { Ports::Any } else { Ports::Some(ports) };
        self.split(identity, direction, at, whole, members, ports, &names)
    }

    fn selects(&self, peer: &Peer, namespace: &str, (of, labels, _): &Alike) -> bool {
        let of_namespace = self.cluster.namespace_labels(of);
        match (&peer.namespaces, &peer.pods) {
            (None, None) => false,
            (None, Some(pods)) => of == namespace && pods.matches(labels),
            (Some(namespaces), None) => namespaces.matches(&of_namespace),
            (Some(namespaces), Some(pods)) => {
                namespaces.matches(&of_namespace) && pods.matches(labels)
            }
        }
    }

    /// The rule for ports with numbers, and, as names are those of destinations, one more for each
    /// number that a name has.
    #[expect(clippy::too_many_arguments, reason = "all of a rule")]
    fn split(
        &mut self,
        identity: u32,
        direction: Direction,
        at: &str,
        whole: PolicyRule,
        members: BTreeSet<u32>,
        ports: Ports,
        names: &[(String, Option<Protocol>)],
    ) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        let (is_any, mut ports) = match ports {
            Ports::Any => (true, Vec::new()),
            Ports::Some(ports) => (false, ports),
        };
        let named = |port: &NamedPort| {
            names.iter().any(|(name, protocol)| {
                port.name == *name && protocol.is_none_or(|p| p == port.protocol)
            })
        };
        let range = |port: &NamedPort| range_of(port.protocol, Some((port.port, port.port)));
        match direction {
            Direction::Ingress => {
                let own = &self.alike[&identity].2;
                ports.extend(own.iter().filter(|port| named(port)).map(range));
            }
            Direction::Egress => {
                let mut by_port = BTreeMap::<(Protocol, u16), BTreeSet<u32>>::new();
                for (peer, (_, _, theirs)) in &self.alike {
                    if whole.any_peer || members.contains(peer) {
                        for port in theirs.iter().filter(|port| named(port)) {
                            by_port.entry((port.protocol, port.port)).or_default().insert(*peer);
                        }
                    }
                }
                for ((protocol, port), members) in by_port {
                    let set = self.set(format!("{at} {protocol:?} {port}"), members);
                    rules.push(PolicyRule {
                        any_peer: false,
                        sets: vec![set],
                        blocks: Vec::new(),
                        ports: vec![range_of(protocol, Some((port, port)))],
                        ..whole.clone()
                    });
                }
            }
        }
        if is_any || !ports.is_empty() {
            let sets = if whole.any_peer { vec![] } else { vec![self.set(at.to_owned(), members)] };
            rules.push(PolicyRule { sets, ports, ..whole });
        }
        rules
    }

    fn set(&mut self, at: String, members: BTreeSet<u32>) -> u32 {
        let number = self.compiler.number(format!("set {at}"));
        self.sets.insert(number, members);
        number
    }

    fn tier(&mut self, identity: u32, direction: Direction, tier: Tier) -> Vec<PolicyRule> {
        let cluster = self.cluster;
        let alike = self.alike[&identity].clone();
        let mut policies: Vec<_> = (cluster.cluster_policies.iter())
            .filter(|(_, policy)| policy.tier == tier && self.is_of(&policy.subject, &alike))
            .collect();
        policies.sort_by_key(|(_, policy)| policy.priority);
        let mut rules = Vec::new();
        for (name, policy) in policies {
            for (index, rule) in policy.rules(direction).iter().enumerate() {
                let at = format!("{name} {direction:?} {index}");
                let start = PolicyRule {
                    number: self.compiler.number(at.clone()),
                    watched: policy.watched,
                    ..PolicyRule::default()
                };
                rules.extend(self.cluster_rule(identity, direction, &at, start, rule));
            }
        }
        rules
    }

    fn cluster_rule(
        &mut self,
        identity: u32,
        direction: Direction,
        at: &str,
        mut start: PolicyRule,
        rule: &ClusterRule,
    ) -> Vec<PolicyRule> {
        start.set_action(match rule.action {
            Action::Accept => ActionMessage::Accept,
            Action::Deny => ActionMessage::Deny,
            Action::Pass => ActionMessage::Pass,
        });
        if rule.peers.contains(&ClusterPeer::Unknown) {
            if rule.action == Action::Accept {
                return Vec::new();
            }
            start.set_action(ActionMessage::Deny);
            return vec![PolicyRule { any_peer: true, ..start }];
        }
        let mut members = BTreeSet::new();
        for peer in &rule.peers {
            match peer {
                ClusterPeer::Pods(subject) => {
                    let them = self.alike.iter().filter(|(_, alike)| self.is_of(subject, alike));
                    members.extend(them.map(|(identity, _)| *identity));
                }
                ClusterPeer::Networks(networks) => {
                    start.blocks.extend(networks.iter().map(|net| block_of(net, &[])));
                }
                ClusterPeer::Nodes(selector) => {
                    let nodes = self.cluster.nodes.values();
                    let nodes = nodes.filter(|node| selector.matches(&node.labels));
                    let addresses = nodes.flat_map(|node| &node.addresses);
                    start.blocks.extend(addresses.map(|a| block_of(&IpNet::from(*a), &[])));
                }
                ClusterPeer::Unknown => {}
            }
        }
        let (mut ports, mut names) = (Vec::new(), Vec::new());
        for port in &rule.ports {
            match port {
                ClusterPort::Ports(protocol, range) => ports.push(range_of(*protocol, *range)),
                ClusterPort::Named(name) => names.push((name.clone(), None)),
            }
        }
        let ports = if rule.ports.is_empty() { Ports::Any } else { Ports::Some(ports) };
        self.split(identity, direction, at, start, members, ports, &names)
    }

    fn is_of(&self, subject: &Subject, (namespace, labels, _): &Alike) -> bool {
        let of_namespace = self.cluster.namespace_labels(namespace);
        match subject {
            Subject::Namespaces(selector) => selector.matches(&of_namespace),
            Subject::Pods(namespaces, pods) => {
                namespaces.matches(&of_namespace) && pods.matches(labels)
            }
        }
    }
}

fn range_of(protocol: Protocol, range: Option<(u16, u16)>) -> PolicyPort {
    let (first, last) = range.unwrap_or((0, 0));
    let protocol = protocol.number().into();
    PolicyPort { protocol, first: first.into(), last: last.into() }
}

fn block_of(cidr: &IpNet, except: &[IpNet]) -> PolicyBlock {
    let range =
        |net: &IpNet| Range { address: bytes_of(net.addr()), prefix: net.prefix_len().into() };
    PolicyBlock { range: Some(range(cidr)), except: except.iter().map(range).collect() }
}

/// What makes `new` of `old`. Sets come whole or as what changed, as it happens.
pub(super) fn difference(
    old: &PolicyTables,
    new: &PolicyTables,
    random: &mut Random,
) -> PolicyTables {
    let mut delta = PolicyTables {
        settings: (old.settings != new.settings).then(|| new.settings.clone()).flatten(),
        addresses_v4: addresses::<8>(&old.addresses_v4, &new.addresses_v4),
        addresses_v6: addresses::<20>(&old.addresses_v6, &new.addresses_v6),
        ..PolicyTables::default()
    };
    let sets = |tables: &PolicyTables| -> BTreeMap<u32, BTreeSet<u32>> {
        let sets = tables.sets.iter();
        sets.map(|set| (set.number, set.identities.iter().copied().collect())).collect()
    };
    let (before, after) = (sets(old), sets(new));
    for (number, members) in &after {
        match before.get(number) {
            Some(held) if held == members => {}
            Some(held) if random.below(3) > 0 => delta.changed_sets.push(IdentitySetChange {
                number: *number,
                added: members.difference(held).copied().collect(),
                removed: held.difference(members).copied().collect(),
            }),
            _ => delta.sets.push(IdentitySet {
                number: *number,
                identities: members.iter().copied().collect(),
            }),
        }
    }
    delta.removed_sets = before.keys().filter(|n| !after.contains_key(n)).copied().collect();
    let named = |p: &PolicyProgram| p.number;
    (delta.programs, delta.removed_programs) = changes(&old.programs, &new.programs, named);
    let named = |s: &PolicySubject| s.identity;
    (delta.subjects, delta.removed_subjects) = changes(&old.subjects, &new.subjects, named);
    delta
}

fn changes<T: Clone + PartialEq>(
    old: &[T],
    new: &[T],
    number: impl Fn(&T) -> u32,
) -> (Vec<T>, Vec<u32>) {
    let changed = new.iter().filter(|value| !old.contains(value)).cloned().collect();
    let gone = |value: &&T| !new.iter().any(|n| number(n) == number(value));
    (changed, old.iter().filter(gone).map(&number).collect())
}

fn addresses<const RECORD: usize>(old: &[u8], new: &[u8]) -> Vec<u8> {
    let records = |bytes: &[u8]| -> BTreeMap<Vec<u8>, [u8; 4]> {
        let split = |record: &[u8; RECORD]| {
            let (address, identity) = record.split_at(RECORD - 4);
            (address.to_vec(), identity.try_into().unwrap())
        };
        bytes.as_chunks().0.iter().map(split).collect()
    };
    let (old, new) = (records(old), records(new));
    let mut delta = Vec::new();
    for (address, identity) in new.iter().filter(|(a, identity)| old.get(*a) != Some(identity)) {
        delta.extend(address);
        delta.extend(identity);
    }
    for address in old.keys().filter(|a| !new.contains_key(*a)) {
        delta.extend(address);
        delta.extend([0; 4]);
    }
    delta
}

/// True if a pod is on a node and policies can mean it.
pub(super) fn is_local(cluster: &Cluster, address: IpAddr, node: &str) -> bool {
    cluster.pod_at(address).is_some_and(|pod: &Pod| pod.node == node)
}
