//! What holds for one direction of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_explain::words::{NAMED_MAX, listed};
use weft_model::{
    NamedPort, NamespaceSelector, Node, NodeName, PodSelector, Policy, PolicyAction, PolicyName,
    PolicyPeer, PolicyPort, PolicyRule, PolicyTier, Selector, SharedMap,
};
use weft_proto::tables::v1::policy_rule::Action;
use weft_proto::tables::v1::{
    PolicyBlock, PolicyPort as PortTable, PolicyProgram, PolicyRule as RuleTable,
};

use super::domains::{self, Domains};
use super::identities::{Identities, Identity};
use super::sets::{Namespaces, SetKey, Sets, named_ports};
use crate::core::gateway;
use crate::tables::services::range;

/// Below this are numbers of the plugin's own.
const FIRST_NUMBER: u32 = 16;
/// The plugin's own numbers.
pub(super) const UNKNOWN_POD: u32 = 1;
/// As [`UNKNOWN_POD`].
pub(super) const UNKNOWN_SUBJECT: u32 = 2;

/// Numbers of what is gone that are kept in any case.
const SPARE_NUMBERS: usize = 1024;

/// Seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// Numbers that drops are told with. A number is not given twice.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleNumbers {
    given: u32,
    /// How many were left when those of what is gone were forgotten last.
    left: usize,
    rules: SharedMap<(PolicyName, Direction, String), u32>,
    /// For what no rule allows.
    isolations: SharedMap<(Isolating, Direction), u32>,
}

/// Policies that isolate a pod: as many as are named, and how many more there are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Isolating {
    named: Vec<PolicyName>,
    more: usize,
}

impl Isolating {
    fn new(policies: &[&PolicyName]) -> Self {
        let named = policies.iter().take(NAMED_MAX).map(|name| (*name).clone()).collect();
        Self { named, more: policies.len().saturating_sub(NAMED_MAX) }
    }
}

impl std::fmt::Display for Isolating {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named: Vec<_> = self.named.iter().map(ToString::to_string).collect();
        f.write_str(&listed(&named, self.more))
    }
}

impl RuleNumbers {
    fn rule(&mut self, policy: &PolicyName, direction: Direction, rule: &str) -> u32 {
        numbered(&mut self.rules, &mut self.given, (policy.clone(), direction, rule.to_owned()))
    }

    fn isolation(&mut self, policies: &[&PolicyName], direction: Direction) -> u32 {
        let key = (Isolating::new(policies), direction);
        numbered(&mut self.isolations, &mut self.given, key)
    }
}

fn numbered<K: Ord + Clone>(numbers: &mut SharedMap<K, u32>, given: &mut u32, key: K) -> u32 {
    if let Some(number) = numbers.get(&key) {
        return *number;
    }
    let number = FIRST_NUMBER + *given;
    *given += 1;
    numbers.insert(key, number);
    number
}

impl RuleNumbers {
    /// What the number of a drop means, in words.
    pub(super) fn describe(&self, number: u32) -> Option<String> {
        match number {
            UNKNOWN_POD => return Some("a pod that is not known yet".to_owned()),
            UNKNOWN_SUBJECT => return Some("a pod whose policies are not known yet".to_owned()),
            _ => {}
        }
        let way = |direction: Direction| match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let of_rule = self.rules.iter().find(|(_, n)| **n == number);
        if let Some(((policy, direction, rule), _)) = of_rule {
            return Some(format!("{policy}, {}: rule {rule}", way(*direction)));
        }
        let ((policies, direction), _) = self.isolations.iter().find(|(_, n)| **n == number)?;
        Some(format!("{policies}, {}: no rule allows it", way(*direction)))
    }

    /// Forgets numbers of policies and rules that are gone, and of isolations that no program in force
    /// has, once these may be the larger part: what is kept is bounded by what there is, and a change
    /// costs no look at everything.
    pub(super) fn forget_gone<'a>(
        &mut self,
        policies: &SharedMap<PolicyName, Arc<Policy>>,
        in_force: impl Iterator<Item = &'a Arc<PolicyProgram>>,
    ) {
        if self.len() <= 2 * self.left + SPARE_NUMBERS {
            return;
        }
        self.rules.retain(|(name, direction, rule), _| {
            let Some(policy) = policies.get(name) else { return false };
            let rules = rules_of(policy, *direction).unwrap_or_default();
            rules.iter().any(|r| r.name == *rule)
        });
        let in_force: BTreeSet<u32> = in_force.map(|program| program.isolation).collect();
        self.isolations.retain(|_, number| in_force.contains(number));
        self.left = self.len();
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len() + self.isolations.len()
    }

    /// All numbers of rules.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, (&PolicyName, Direction, &str))> {
        self.rules.iter().map(|((policy, direction, rule), number)| {
            (*number, (policy, *direction, rule.as_str()))
        })
    }
}

/// `None` if the policy does not speak of the direction.
pub(super) fn rules_of(policy: &Policy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// What programs are made with.
pub(super) struct Context<'a> {
    pub(super) identities: &'a Identities,
    pub(super) sets: &'a mut Sets,
    pub(super) rules: &'a mut RuleNumbers,
    pub(super) namespaces: &'a Namespaces,
    pub(super) nodes: &'a BTreeMap<NodeName, Node>,
    pub(super) needs: &'a mut Needs,
}

/// What a program rests on beside policies and whom they select.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    /// Numbers of the sets that it names.
    pub(super) sets: BTreeSet<u32>,
    /// It names ports that other pods have.
    pub(super) names: bool,
    /// It names nodes by their labels.
    pub(super) nodes: bool,
    /// Hosts that it names.
    pub(super) domains: Arc<Domains>,
}

/// Makes the program, without its number; `None` if nothing restricts the direction.
pub(super) fn program(
    mut context: Context<'_>,
    selecting: &[&Policy],
    subject: &Identity,
    direction: Direction,
) -> Option<PolicyProgram> {
    let mut program = PolicyProgram::default();
    let mut speaks = false;
    let (mut isolating, mut watching) = (Vec::new(), Vec::new());
    let mut by_tier: Vec<_> = selecting.to_vec();
    by_tier.sort_by_key(|policy| (policy.tier, &policy.name));
    for policy in by_tier {
        let Some(rules) = rules_of(policy, direction) else { continue };
        let list = match policy.tier {
            PolicyTier::Admin(_) => &mut program.admin,
            PolicyTier::Baseline(_) => &mut program.baseline,
            PolicyTier::Namespace => {
                let policies = if policy.watched { &mut watching } else { &mut isolating };
                policies.push(&policy.name);
                speaks = true;
                &mut program.allowed
            }
        };
        for rule in rules {
            let made = context.rule(policy, rule, subject, direction);
            speaks |= !made.is_empty();
            list.extend(made);
        }
    }
    program.isolated = !isolating.is_empty();
    program.watched = !watching.is_empty();
    // What drops is named before what would.
    let named = if program.isolated { isolating } else { watching };
    if !named.is_empty() {
        program.isolation = context.rules.isolation(&named, direction);
    }
    speaks.then_some(program)
}

impl Context<'_> {
    /// A rule is several if its ports have names, and none if it matches nothing.
    fn rule(
        &mut self,
        policy: &Policy,
        rule: &PolicyRule,
        subject: &Identity,
        direction: Direction,
    ) -> Vec<RuleTable> {
        let number = self.rules.rule(&policy.name, direction, &rule.name);
        let action = match (policy.tier, rule.action) {
            (PolicyTier::Namespace, _) => Action::Unspecified,
            (_, PolicyAction::Accept) => Action::Accept,
            (_, PolicyAction::Deny) => Action::Deny,
            (_, PolicyAction::Pass) => Action::Pass,
        };
        let base = RuleTable {
            number,
            action: action.into(),
            watched: policy.watched,
            ..RuleTable::default()
        };
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for port in rule.ports.iter().flatten() {
            match port {
                PolicyPort::Range { protocol, first, last } => {
                    numbers.push(ports(protocol.number(), *first, *last));
                }
                PolicyPort::Named { protocol, name } => {
                    names.push(NamedPort { name: name.clone(), protocol: *protocol, number: 0 });
                }
            }
        }
        if direction == Direction::Ingress {
            for name in names.drain(..) {
                let own = subject.ports.iter();
                let same = own.filter(|p| p.name == name.name && p.protocol == name.protocol);
                numbers.extend(same.map(|p| ports(p.protocol.number(), p.number, p.number)));
            }
        }
        let mut made = Vec::new();
        if rule.ports.is_none() || !numbers.is_empty() {
            let base = RuleTable { ports: numbers, ..base.clone() };
            made.extend(self.with_peers(rule, direction, base));
        }
        for name in names {
            made.extend(self.with_named_port(rule, &name, &base));
        }
        made
    }

    fn with_peers(
        &mut self,
        rule: &PolicyRule,
        direction: Direction,
        base: RuleTable,
    ) -> Option<RuleTable> {
        let Some(peers) = &rule.peers else { return Some(RuleTable { any_peer: true, ..base }) };
        let (mut sets, mut blocks, mut names) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        let by_name = direction == Direction::Egress && rule.action == PolicyAction::Accept;
        for peer in peers {
            match peer {
                PolicyPeer::Pods(selector) => {
                    sets.insert(self.set(SetKey { selector: selector.clone(), port: None }));
                }
                PolicyPeer::Block { range: of, .. } if is_mapped(of) => {}
                PolicyPeer::Block { range: of, except } => blocks.push(PolicyBlock {
                    range: Some(range(&of.trunc())),
                    except: except
                        .iter()
                        .filter(|e| !is_mapped(e))
                        .map(|e| range(&e.trunc()))
                        .collect(),
                }),
                PolicyPeer::Nodes(selector) => {
                    self.needs.nodes = true;
                    let nodes = self.nodes.values().filter(|n| selector.matches(&n.labels));
                    blocks.extend(nodes.flat_map(addresses).map(|address| host(&address)));
                }
                PolicyPeer::Domain(domain) if by_name => {
                    let number = domains::number(domain);
                    names.insert(number);
                    Arc::make_mut(&mut self.needs.domains).insert(number, domain.clone());
                }
                PolicyPeer::Domain(_) => {}
            }
        }
        let matches = !sets.is_empty() || !blocks.is_empty() || !names.is_empty();
        let (sets, names) = (sets.into_iter().collect(), names.into_iter().collect());
        matches.then_some(RuleTable { sets, blocks, names, ..base })
    }

    /// Each number that the name has somewhere, for those where it has it.
    fn with_named_port(
        &mut self,
        rule: &PolicyRule,
        name: &NamedPort,
        base: &RuleTable,
    ) -> Vec<RuleTable> {
        self.needs.names = true;
        let everybody = [PolicyPeer::Pods(PodSelector {
            namespaces: NamespaceSelector::Labels(Selector::default()),
            pods: Selector::default(),
        })];
        let peers = rule.peers.as_deref().unwrap_or(&everybody);
        // Addresses that are no pod's name nothing.
        let selectors = peers.iter().filter_map(|peer| match peer {
            PolicyPeer::Pods(selector) => Some(selector),
            PolicyPeer::Block { .. } | PolicyPeer::Nodes(_) | PolicyPeer::Domain(_) => None,
        });
        let mut by_number: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
        for selector in selectors {
            for number in named_ports(selector, name, self.identities, self.namespaces) {
                let port = Some(NamedPort { number, ..name.clone() });
                let set = self.set(SetKey { selector: selector.clone(), port });
                by_number.entry(number).or_default().insert(set);
            }
        }
        let made = by_number.into_iter().map(|(number, sets)| RuleTable {
            sets: sets.into_iter().collect(),
            ports: vec![ports(name.protocol.number(), number, number)],
            ..base.clone()
        });
        made.collect()
    }

    fn set(&mut self, key: SetKey) -> u32 {
        let number = self.sets.number(key, self.identities, self.namespaces);
        self.needs.sets.insert(number);
        number
    }
}

fn ports(protocol: u8, first: u16, last: u16) -> PortTable {
    let (first, last) = if (first, last) == (0, u16::MAX) { (0, 0) } else { (first, last) };
    PortTable { protocol: protocol.into(), first: first.into(), last: last.into() }
}

/// IPv4 addresses in the words of IPv6, which no packet has.
/// Those that a node says are its own, and those that its pods know it by.
pub(super) fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let gateways = node.subnets.iter().filter_map(gateway).map(|gateway| gateway.addr());
    node.addresses.iter().copied().chain(gateways)
}

fn is_mapped(range: &IpNet) -> bool {
    matches!(range.network(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn host(address: &IpAddr) -> PolicyBlock {
    PolicyBlock { range: Some(range(&IpNet::from(*address))), except: Vec::new() }
}
