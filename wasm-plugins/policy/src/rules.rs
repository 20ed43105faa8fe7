//! Rules of one tier, found by port first and by peer then.

use std::collections::BTreeMap;

use crate::address::Address;
use crate::blocks::{Blocks, BlocksBuilder};
use crate::sets::meet;

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    /// With the number that the drop is told with.
    Deny(u32),
    /// Asks the next tier.
    Pass,
}

/// What a flow is asked about by: who the other end is, and what it wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) peer: Address,
    /// The pod sends to its own node, from which nothing isolates it.
    pub(crate) to_own_node: bool,
    /// Sets that the peer is in, in rising order.
    pub(crate) sets: &'a [u32],
    /// Numbers of names that the pod has learned the peer by, or that the flow passed by before, in rising
    /// order.
    pub(crate) names: &'a [u64],
    /// What is no port of TCP, UDP or SCTP is in no rule with ports.
    pub(crate) service: ServicePort,
}

/// Protocol and port in one number, so that ports of one protocol are a range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServicePort(u32);

impl ServicePort {
    #[inline]
    pub(crate) fn new(protocol: u8, port: u16) -> Self {
        Self(u32::from(protocol) << 16 | u32::from(port))
    }
}

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortRange {
    pub(crate) first: ServicePort,
    pub(crate) last: ServicePort,
}

/// Whom a rule speaks of.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeersBuilder {
    pub(crate) any: bool,
    pub(crate) sets: Vec<u32>,
    pub(crate) names: Vec<u64>,
    pub(crate) blocks: BlocksBuilder,
}

/// A rule as it is read.
#[derive(Clone, Debug)]
pub(crate) struct NewRule {
    pub(crate) action: Action,
    pub(crate) watched: bool,
    pub(crate) peers: PeersBuilder,
    /// Any protocol if there is none.
    pub(crate) ports: Vec<PortRange>,
}

/// A rule as it is kept, without its ports.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) action: Action,
    watched: bool,
    any_peer: bool,
    /// In rising order.
    sets: Box<[u32]>,
    /// In a box, as most rules have none.
    blocks: Option<Box<Blocks>>,
    /// As `blocks`, in rising order. Twice in a box, so that a rule is no larger for them.
    names: Option<Box<Box<[u64]>>>,
}

impl Rule {
    fn new(action: Action, watched: bool, peers: PeersBuilder) -> Self {
        let PeersBuilder { any, mut sets, mut names, blocks } = peers;
        sets.sort_unstable();
        sets.dedup();
        names.sort_unstable();
        names.dedup();
        let names = (!names.is_empty()).then(|| Box::new(names.into_boxed_slice()));
        let blocks = blocks.build().map(Box::new);
        Self { action, watched, any_peer: any, sets: sets.into_boxed_slice(), blocks, names }
    }

    #[inline]
    fn has(&self, asked: &Asked<'_>, watched: bool) -> bool {
        (watched || !self.watched)
            && (self.any_peer
                || meet(&self.sets, asked.sets)
                || self.blocks.as_ref().is_some_and(|blocks| blocks.contains(asked.peer))
                || self.names.as_ref().is_some_and(|names| meet(names, asked.names)))
    }
}

/// Ports of a rule: one range of them.
#[derive(Clone, Copy, Debug)]
struct Entry {
    ports: PortRange,
    /// Last port of this entry and all before it, whatever their protocol: a search that goes back
    /// ends where this is too small.
    reach: ServicePort,
    /// Place in [`Rules::rules`].
    rule: u32,
}

/// Rules of one tier in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    rules: Box<[Rule]>,
    /// Places of the rules for any protocol, in rising order.
    of_any_port: Box<[u32]>,
    /// In the order of their first ports.
    of_ports: Box<[Entry]>,
    /// One is only watched.
    has_watched: bool,
    /// One has names.
    has_names: bool,
}

impl Rules {
    /// Rules of which the first that matches decides.
    pub(crate) fn in_order(rules: Vec<NewRule>) -> Self {
        Self::new(rules.into_iter().map(|rule| NewRule { ports: joined(rule.ports), ..rule }))
    }

    /// Rules that all say the same, of which any may match: those with the same ports become one.
    pub(crate) fn united(rules: Vec<NewRule>) -> Self {
        let mut by_ports = BTreeMap::<(Vec<PortRange>, bool), PeersBuilder>::new();
        for rule in rules {
            // A rule with ports has some left: ranges are never empty.
            let peers = by_ports.entry((joined(rule.ports), rule.watched)).or_default();
            peers.add(rule.peers);
        }
        // The map's order puts the rule for any protocol first.
        Self::new(by_ports.into_iter().map(|((ports, watched), peers)| {
            let action = Action::Accept;
            NewRule { action, watched, peers, ports }
        }))
    }

    fn new(rules: impl Iterator<Item = NewRule>) -> Self {
        let (mut kept, mut of_any_port, mut of_ports) = (Vec::new(), Vec::new(), Vec::new());
        for (place, rule) in (0_u32..).zip(rules) {
            if rule.ports.is_empty() {
                of_any_port.push(place);
            }
            let entry = |ports: PortRange| Entry { ports, reach: ports.last, rule: place };
            of_ports.extend(rule.ports.into_iter().map(entry));
            kept.push(Rule::new(rule.action, rule.watched, rule.peers));
        }
        of_ports.sort_by_key(|entry| (entry.ports, entry.rule));
        let mut reach = ServicePort(0);
        for entry in &mut of_ports {
            reach = reach.max(entry.reach);
            entry.reach = reach;
        }
        Self {
            has_watched: kept.iter().any(|rule: &Rule| rule.watched),
            has_names: kept.iter().any(|rule: &Rule| rule.names.is_some()),
            rules: kept.into(),
            of_any_port: of_any_port.into(),
            of_ports: of_ports.into_boxed_slice(),
        }
    }

    /// The first rule that matches, and its place; of those that are only watched if `watched`.
    pub(crate) fn first(&self, asked: &Asked<'_>, watched: bool) -> Option<(u32, &Rule)> {
        let matching = |place: u32| {
            let rule = self.rules.get(place as usize)?;
            rule.has(asked, watched).then_some((place, rule))
        };
        let mut first = self.of_any_port.iter().find_map(|place| matching(*place));
        let begun = self.of_ports.partition_point(|entry| entry.ports.first <= asked.service);
        let entries = self.of_ports.get(..begun).unwrap_or_default().iter().rev();
        for entry in entries.take_while(|entry| entry.reach >= asked.service) {
            let earlier = first.is_none_or(|(place, _)| entry.rule < place);
            if earlier && entry.ports.last >= asked.service {
                first = matching(entry.rule).or(first);
            }
        }
        first
    }

    /// True if a rule matches.
    #[inline]
    pub(crate) fn any(&self, asked: &Asked<'_>, watched: bool) -> bool {
        self.first(asked, watched).is_some()
    }

    /// True if a rule is only watched.
    pub(crate) fn has_watched(&self) -> bool {
        self.has_watched
    }

    /// True if a rule has names.
    #[inline]
    pub(crate) fn has_names(&self) -> bool {
        self.has_names
    }

    /// Every set that a rule names, for each rule that does.
    pub(crate) fn sets(&self) -> impl Iterator<Item = u32> {
        self.rules.iter().flat_map(|rule| &rule.sets).copied()
    }
}

impl PeersBuilder {
    fn add(&mut self, other: Self) {
        self.any |= other.any;
        self.sets.extend(other.sets);
        self.names.extend(other.names);
        self.blocks.append(other.blocks);
    }
}

/// Sorts ranges and joins those that overlap or touch. Those of two protocols never do: there are
/// other protocols between TCP, UDP and SCTP.
fn joined(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, held| {
        let touches = next.first.0 <= held.last.0 + 1;
        if touches {
            held.last = held.last.max(next.last);
        }
        touches
    });
    ranges
}
