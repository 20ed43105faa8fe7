//! Policies and namespaces of the source, made into what nodes have to know. Pure.
//!
//! What of a policy cannot be understood is a problem with file and line, and is read so that nothing
//! more passes than was meant: it allows nothing, and what is left of the policy stands.

mod cluster;
mod fqdn;
mod namespaces;
mod network;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_model::{Policy, PolicyKind, PolicyName, PolicyPeer, SharedMap};

pub(super) use namespaces::{namespace, namespaces};

use self::reader::Reader;
use crate::source::Problem;
use crate::source::object::{Key, Object};
use crate::source::objects::Objects;

/// What is said of a policy of an older kind.
const NOT_ENFORCED: &str = "nothing of it is enforced: write it as ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2, tier Admin or Baseline";

/// What is said of a policy that names hosts where no names are answered.
const WITHOUT_DNS: &str = "hosts that it names are reached by nobody: start the hub without --no-dns, so that nodes learn addresses";

/// What comes of the manifests.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) policies: SharedMap<PolicyName, Arc<Policy>>,
    /// Those of them that stand in for what cannot be read.
    pub(super) unread: BTreeSet<PolicyName>,
    pub(super) problems: Vec<Problem>,
    /// Of those that name hosts, if nobody answers queries.
    pub(super) without_dns: Vec<Problem>,
}

/// Makes the policies of a snapshot, of all kinds.
pub(super) fn build(source: &Objects) -> Outcome {
    let mut outcome = Outcome::default();
    for (key, defined) in &source.objects {
        let name = name_of(key);
        let (policy, notes, unread) = match &defined.object {
            Object::NetworkPolicy(manifest) => {
                let mut reader = Reader::new(manifest);
                let watched = reader.watched(manifest.mode.as_deref());
                let policy = network::policy(&mut reader, name, watched, &manifest.spec);
                (policy, reader.into_notes(), manifest.unread)
            }
            Object::ClusterNetworkPolicy(manifest) => {
                let mut reader = Reader::new(manifest);
                let watched = reader.watched(manifest.mode.as_deref());
                let policy = cluster::policy(&mut reader, name, watched, &manifest.spec);
                (policy, reader.into_notes(), manifest.unread)
            }
            Object::FqdnPolicy(manifest) => {
                let mut reader = Reader::new(manifest);
                let watched = reader.watched(manifest.mode.as_deref());
                let name = PolicyName { kind: PolicyKind::Fqdn, ..name };
                let policy = fqdn::policy(&mut reader, name, watched, &manifest.spec);
                (policy, reader.into_notes(), manifest.unread)
            }
            Object::OldPolicy => {
                outcome.problems.push(Problem {
                    file: defined.file.clone(),
                    line: defined.line,
                    reason: format!("{key}: {NOT_ENFORCED}"),
                });
                continue;
            }
            _ => continue,
        };
        let problem = |note: &str| Problem {
            file: defined.file.clone(),
            line: defined.line,
            reason: format!("{}: {note}", policy.name),
        };
        outcome.problems.extend(notes.iter().map(|note| problem(note)));
        outcome.without_dns.extend(names_hosts(&policy).then(|| problem(WITHOUT_DNS)));
        outcome.unread.extend(unread.then(|| policy.name.clone()));
        outcome.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    outcome
}

fn names_hosts(policy: &Policy) -> bool {
    let rules = policy.egress.iter().flatten();
    let mut peers = rules.flat_map(|rule| rule.peers.iter().flatten());
    peers.any(|peer| matches!(peer, PolicyPeer::Domain(_)))
}

fn name_of(key: &Key) -> PolicyName {
    PolicyName {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        kind: PolicyKind::Kubernetes,
    }
}
