//! Which policy and rule decide about a connection, of the tables as they are compiled and by the
//! plugin's own code.

use std::collections::HashMap;
use std::net::IpAddr;

use weft_control::ToProto as _;
use weft_model::{Policy, PolicyName, PolicyPeer, PolicyRule, PolicyTier, Snapshot};
use weft_policy::explain::{Deciding, Explained, Explainer, Question, Reason};
use weft_proto::v1::decision::Reason as Said;
use weft_proto::v1::{DecidingRule, Decision, EndAnswer, EndPorts, EndQuestion, Ports};

use super::program::{Direction, rules_of};
use super::{Policies, selecting};

/// Protocols with ports, and 0 for all others.
const ALL: [u32; 4] = [6, 17, 132, 0];

/// Rules or policies that are named for one port: more than anybody reads.
const RULES_MAX: usize = 100;

/// Answers questions about ends at pods of this node.
pub(crate) struct Explaining<'a> {
    policies: &'a Policies,
    /// That the policies were compiled of.
    snapshot: &'a Snapshot,
    /// `None` if there are no policies.
    explainer: Option<Explainer>,
    /// Policy and rule by the number that the tables have for it.
    rules: HashMap<u32, (&'a PolicyName, Direction, &'a str)>,
}

impl<'a> Explaining<'a> {
    /// # Errors
    /// The plugin would not take the tables.
    pub(crate) fn new(policies: &'a Policies, snapshot: &'a Snapshot) -> Result<Self, String> {
        let explainer = match policies.is_empty() {
            true => None,
            false => Some(Explainer::new(policies.complete())?),
        };
        Ok(Self { policies, snapshot, explainer, rules: policies.rules.all().collect() })
    }

    /// Answers one question.
    ///
    /// # Errors
    /// A line that says why not.
    pub(crate) fn answer(&self, question: &EndQuestion) -> Result<EndAnswer, String> {
        let address =
            |text: &str| text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no address"));
        let (pod, peer) = (address(&question.pod)?, address(&question.peer)?);
        let Some(explainer) = &self.explainer else {
            return Ok(everywhere(question.ports.as_ref(), Said::NoPolicies));
        };
        // The node's own addresses may be in the range of its pods: the gateway's is.
        if self.policies.is_own(&pod) {
            return Ok(everywhere(question.ports.as_ref(), Said::NoPod));
        }
        let of = Question { pod, peer, egress: question.egress };
        let told = match &question.ports {
            None => explainer.explain_all(of)?,
            Some(ports) => {
                let (protocol, port) = read(ports)?;
                let ports = weft_policy::explain::Ports {
                    // Of the one that stands for all without ports, none.
                    protocol: if ports.protocol == 0 { 0 } else { protocol },
                    first: port,
                    last: port,
                };
                vec![(ports, explainer.explain(of, protocol, port)?)]
            }
        };
        let ports = told.into_iter().map(|(ports, explained)| {
            let (first, last) = (ports.first.into(), ports.last.into());
            let ports = Ports { protocol: ports.protocol.into(), first, last };
            self.told(ports, of, explained)
        });
        Ok(EndAnswer { ports: ports.collect() })
    }

    fn told(&self, ports: Ports, of: Question, explained: Explained) -> EndPorts {
        let Explained { reason, watched } = explained;
        let audited = watched.map(|reason| self.decision(of, &reason, true));
        EndPorts { ports: Some(ports), decision: Some(self.decision(of, &reason, false)), audited }
    }

    /// `watched`: policies in audit mode count as well.
    fn decision(&self, of: Question, reason: &Reason, watched: bool) -> Decision {
        let (said, rules, passed_by) = match reason {
            Reason::Unknown(_) => (Said::UnknownPod, vec![], None),
            Reason::Itself => (Said::Itself, vec![], None),
            Reason::OwnNode { passed_by } => (Said::OwnNode, vec![], *passed_by),
            Reason::Unrestricted => (Said::NotSelected, vec![], None),
            Reason::Admin(Deciding { rule, passed_by, .. }) => {
                (Said::Admin, self.rules(of, &[*rule]), *passed_by)
            }
            Reason::Baseline(Deciding { rule, passed_by, .. }) => {
                (Said::Baseline, self.rules(of, &[*rule]), *passed_by)
            }
            Reason::Allowed { rules, passed_by } => {
                (Said::Allowed, self.rules(of, rules), *passed_by)
            }
            Reason::Isolated { passed_by, .. } => {
                (Said::Isolated, self.isolating(of, watched), *passed_by)
            }
            Reason::NoMatch { passed_by } => (Said::NoMatch, vec![], *passed_by),
        };
        Decision {
            reason: said.into(),
            rules,
            passed_by: passed_by.and_then(|number| self.rule(of, number)),
            denies: reason.drops(),
            names: if of.egress && reason.drops() { self.names(of) } else { Vec::new() },
        }
    }

    /// Hosts that rules for what the pod sends name.
    fn names(&self, of: Question) -> Vec<String> {
        let domains = self.policies.domains_of(of.pod).into_iter().flat_map(|all| all.values());
        let mut names: Vec<_> = domains.take(RULES_MAX).map(ToString::to_string).collect();
        names.sort();
        names
    }

    fn rules(&self, of: Question, numbers: &[u32]) -> Vec<DecidingRule> {
        numbers.iter().take(RULES_MAX).filter_map(|number| self.rule(of, *number)).collect()
    }

    fn rule(&self, of: Question, number: u32) -> Option<DecidingRule> {
        let (name, direction, rule) = *self.rules.get(&number)?;
        let policy = self.snapshot.policies.get(name);
        let rules = policy.and_then(|policy| rules_of(policy, direction)).unwrap_or_default();
        let mut places = (1_u32..).zip(rules).filter(|(_, r)| r.name == rule).map(|(n, _)| n);
        // Names that occur twice say of which rule they are as little as none.
        let number = places.next().filter(|_| places.next().is_none()).unwrap_or(0);
        let learned = match direction {
            Direction::Egress => self.learned(of, rules.iter().filter(|r| r.name == rule)),
            Direction::Ingress => Vec::new(),
        };
        let (policy, name) = (Some(name.to_proto()), rule.to_owned());
        Some(DecidingRule { policy, name, number, learned })
    }

    /// Names of the rules by which the pod knows the address.
    fn learned<'r>(
        &self,
        of: Question,
        rules: impl Iterator<Item = &'r PolicyRule>,
    ) -> Vec<String> {
        let domains: Vec<_> = rules
            .flat_map(|rule| rule.peers.iter().flatten())
            .filter_map(|peer| match peer {
                PolicyPeer::Domain(domain) => Some(domain),
                PolicyPeer::Pods(_) | PolicyPeer::Block { .. } | PolicyPeer::Nodes(_) => None,
            })
            .collect();
        let mut names = self.policies.learned.names(&of.pod, &of.peer);
        names.retain(|name| domains.iter().any(|domain| domain.matches(name)));
        names.iter().take(RULES_MAX).map(ToString::to_string).collect()
    }

    /// NetworkPolicies that select the pod for the direction.
    fn isolating(&self, of: Question, watched: bool) -> Vec<DecidingRule> {
        let direction = if of.egress { Direction::Egress } else { Direction::Ingress };
        let number = self.policies.owners.get(&of.pod);
        let identity = number.and_then(|number| self.policies.owners.identities.get(number));
        let Some(identity) = identity else { return Vec::new() };
        let isolating = selecting(self.snapshot, identity).filter(|policy| {
            policy.tier == PolicyTier::Namespace
                && rules_of(policy, direction).is_some()
                && (watched || !policy.watched)
        });
        let whole = |policy: &Policy| DecidingRule {
            policy: Some(policy.name.to_proto()),
            ..DecidingRule::default()
        };
        isolating.take(RULES_MAX).map(whole).collect()
    }
}

/// Protocol and port of what is asked about one of them.
fn read(ports: &Ports) -> Result<(u8, u16), String> {
    let Ports { protocol, first, last } = *ports;
    let wrong = || format!("{first} to {last} of protocol {protocol} is not one port");
    match (u8::try_from(protocol), u16::try_from(first)) {
        // ICMP stands for all that have none.
        (Ok(0), _) => Ok((1, 0)),
        (Ok(protocol), Ok(port)) if first == last => Ok((protocol, port)),
        _ => Err(wrong()),
    }
}

/// The same of all that is asked.
fn everywhere(ports: Option<&Ports>, reason: Said) -> EndAnswer {
    let whole = |protocol| match protocol {
        0 => Ports::default(),
        protocol => Ports { protocol, first: 1, last: u16::MAX.into() },
    };
    let asked = ports.map_or_else(|| ALL.map(whole).to_vec(), |ports| vec![*ports]);
    let said = |ports| {
        let decision = Decision { reason: reason.into(), ..Decision::default() };
        EndPorts { ports: Some(ports), decision: Some(decision), audited: None }
    };
    EndAnswer { ports: asked.into_iter().map(said).collect() }
}
