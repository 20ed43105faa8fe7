//! Why a connection passes or is dropped at one of its ends, for people: the plugin's tables and its own
//! decision, asked without a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prost::Message as _;
use weft_policy_sdk::{Descriptor, Flow};
use weft_proto::tables::v1::{PolicyProgram, PolicyRule, PolicyTables};

use crate::address::Address;
use crate::config::{read, rule};
use crate::program::{Decision, Program};
use crate::rules::{Action, Asked, Rules};
use crate::tables::Tables;
use crate::{End, Ground};

/// Protocols that have ports.
pub const PROTOCOLS: [u8; 3] = [6, 17, 132];

/// A protocol without ports, in whose stead all others are asked about.
const WITHOUT_PORTS: u8 = 1;

/// Answers from one configuration.
#[derive(Debug)]
pub struct Explainer {
    tables: Tables,
    programs: BTreeMap<u32, PolicyProgram>,
}

/// A connection at one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The pod of this node that it is asked about.
    pub pod: IpAddr,
    /// The other end. An address of the node itself stands for the node.
    pub peer: IpAddr,
    /// The pod begins the connection; else it is the peer.
    pub egress: bool,
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// IANA number; 0: all protocols that have no ports.
    pub protocol: u8,
    /// The first destination port; 0 of protocols without.
    pub first: u16,
    /// The last, included.
    pub last: u16,
}

/// What is decided, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What decides.
    pub reason: Reason,
    /// What would drop it if policies that are only watched were in force.
    pub watched: Option<Reason>,
}

/// What decides. Rules are told by their numbers in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The pod is not known, and closed: with the number of the drop.
    Unknown(u32),
    /// A pod reaches itself.
    Itself,
    /// Its own node reaches a pod, and an isolated pod reaches its own node.
    OwnNode {
        /// The rule of tier Admin that handed it on.
        passed_by: Option<u32>,
    },
    /// Nothing restricts this direction of the pod.
    Unrestricted,
    /// A rule of tier Admin accepts or denies.
    Admin(Deciding),
    /// The pod is isolated, and these rules allow it all the same.
    Allowed {
        /// All that match.
        rules: Vec<u32>,
        /// The rule of tier Admin that handed it on.
        passed_by: Option<u32>,
    },
    /// The pod is isolated, and no rule allows it.
    Isolated {
        /// The number of the drop.
        number: u32,
        /// The rule of tier Admin that handed it on.
        passed_by: Option<u32>,
    },
    /// A rule of tier Baseline accepts, denies or passes.
    Baseline(Deciding),
    /// No rule of any tier matches, and the pod is not isolated.
    NoMatch {
        /// The rule of tier Admin that handed it on.
        passed_by: Option<u32>,
    },
}

/// A rule that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// Its number.
    pub rule: u32,
    /// It drops.
    pub denies: bool,
    /// The rule of tier Admin that handed it on to tier Baseline.
    pub passed_by: Option<u32>,
}

impl Reason {
    /// True if the packet is dropped.
    #[must_use]
    pub fn drops(&self) -> bool {
        match self {
            Self::Unknown(_) | Self::Isolated { .. } => true,
            Self::Admin(rule) | Self::Baseline(rule) => rule.denies,
            Self::Itself
            | Self::OwnNode { .. }
            | Self::Unrestricted
            | Self::Allowed { .. }
            | Self::NoMatch { .. } => false,
        }
    }
}

impl Explainer {
    /// For a complete configuration.
    ///
    /// # Errors
    /// The text with which the plugin refuses it.
    pub fn new(config: PolicyTables) -> Result<Self, String> {
        let mut tables = Tables::default();
        tables.change(read(&config.encode_to_vec())?)?;
        let programs = config.programs.into_iter().map(|program| (program.number, program));
        Ok(Self { tables, programs: programs.collect() })
    }

    /// What becomes of a connection to one port. `protocol`: IANA number.
    ///
    /// # Errors
    /// A rule cannot be read, which the plugin would have refused.
    pub fn explain(&self, of: Question, protocol: u8, port: u16) -> Result<Explained, String> {
        let end = self.end(of, protocol, port);
        let simple = |reason| Ok(Explained { reason, watched: None });
        // Of no flow that there is, and none that will be.
        match end.ground(&self.tables, &mut Flow::new(&Descriptor::default())) {
            Ground::Unknown(number) => simple(Reason::Unknown(number)),
            Ground::Itself => simple(Reason::Itself),
            Ground::FromHost => simple(Reason::OwnNode { passed_by: None }),
            Ground::Unrestricted => simple(Reason::Unrestricted),
            Ground::Program { number, program } => {
                let message = self.programs.get(&number).ok_or("a program is missing")?;
                let asked = end.asked(&self.tables);
                let reason = reason(program, message, &asked, false)?;
                // As the plugin does: what is dropped anyway is not asked about again.
                let watched = match reason.drops() {
                    true => None,
                    false => Some(self::reason(program, message, &asked, true)?),
                };
                Ok(Explained { reason, watched: watched.filter(Reason::drops) })
            }
        }
    }

    /// What becomes of connections to every port of every protocol: ranges of ports in rising order, as
    /// few as say it.
    ///
    /// # Errors
    /// As [`Self::explain`].
    pub fn explain_all(&self, of: Question) -> Result<Vec<(Ports, Explained)>, String> {
        let mut all: Vec<(Ports, Explained)> = Vec::new();
        for protocol in PROTOCOLS {
            let starts = self.starts(of, protocol);
            let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
            for (first, last) in starts.iter().copied().zip(ends) {
                let explained = self.explain(of, protocol, first)?;
                match all.last_mut() {
                    Some((before, same)) if before.protocol == protocol && *same == explained => {
                        before.last = last;
                    }
                    _ => all.push((Ports { protocol, first, last }, explained)),
                }
            }
        }
        let others = Ports { protocol: 0, first: 0, last: 0 };
        all.push((others, self.explain(of, WITHOUT_PORTS, 0)?));
        Ok(all)
    }

    fn end(&self, of: Question, protocol: u8, port: u16) -> End {
        let peer = address(of.peer);
        End {
            pod: address(of.pod),
            peer,
            began: of.egress,
            sends: of.egress,
            from_host: !of.egress && self.tables.is_own(peer),
            to_local_pod: false,
            protocol,
            port,
        }
    }

    /// First ports of ranges in which no rule of the pod's program begins or ends. Nobody listens on
    /// port 0.
    fn starts(&self, of: Question, protocol: u8) -> BTreeSet<u16> {
        let mut starts = BTreeSet::from([1]);
        let end = self.end(of, protocol, 1);
        let ground = end.ground(&self.tables, &mut Flow::new(&Descriptor::default()));
        let Ground::Program { number, .. } = ground else { return starts };
        for port in self.programs.get(&number).into_iter().flat_map(rules).flat_map(|r| &r.ports) {
            if port.protocol != u32::from(protocol) {
                continue;
            }
            let bounds = [Some(port.first), port.last.checked_add(1)].into_iter().flatten();
            starts.extend(bounds.filter_map(|b| u16::try_from(b).ok()).filter(|b| *b > 0));
        }
        starts
    }
}

fn address(ip: IpAddr) -> Address {
    match ip.to_canonical() {
        IpAddr::V4(v4) => Address::V4(v4.into()),
        IpAddr::V6(v6) => Address::V6(v6.into()),
    }
}

fn rules(program: &PolicyProgram) -> impl Iterator<Item = &PolicyRule> {
    program.admin.iter().chain(&program.allowed).chain(&program.baseline)
}

/// `message`: what the program was made of, where rules still have their numbers.
fn reason(
    program: &Program,
    message: &PolicyProgram,
    asked: &Asked<'_>,
    watched: bool,
) -> Result<Reason, String> {
    let passing = program.admin.first(asked, watched);
    let passed_by = passing.and_then(|(place, _)| number_at(&message.admin, place));
    let deciding = |rules: &[PolicyRule], place, action, passed_by| {
        let rule = number_at(rules, place).ok_or("a rule is missing")?;
        Ok::<_, String>(Deciding { rule, denies: matches!(action, Action::Deny(_)), passed_by })
    };
    Ok(match program.decide(asked, watched) {
        Decision::Admin(place, action) => {
            Reason::Admin(deciding(&message.admin, place, action, None)?)
        }
        Decision::OwnNode => Reason::OwnNode { passed_by },
        Decision::Allowed => {
            let mut matching = BTreeSet::new();
            for message in &message.allowed {
                if Rules::united(vec![rule(message, Action::Accept)?]).any(asked, watched) {
                    matching.insert(message.number);
                }
            }
            Reason::Allowed { rules: matching.into_iter().collect(), passed_by }
        }
        Decision::Isolated => Reason::Isolated { number: program.isolation, passed_by },
        Decision::Baseline(place, action) => {
            Reason::Baseline(deciding(&message.baseline, place, action, passed_by)?)
        }
        Decision::Nothing => Reason::NoMatch { passed_by },
    })
}

fn number_at(rules: &[PolicyRule], place: u32) -> Option<u32> {
    rules.get(usize::try_from(place).ok()?).map(|rule| rule.number)
}
