//! Network policies as the plugin on this node is told of them: selectors become sets of identities, and
//! what holds for one direction of a pod becomes one program.

mod explain;
mod identities;
mod program;
mod sets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message as _;
use weft_model::{Pod, PodName, Policy, PolicyName, Snapshot};
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyProgram, PolicySettings, PolicySubject, PolicyTables,
};

pub(crate) use self::explain::Explaining;
use self::identities::{Identities, Identity};
use self::program::{Direction, RuleNumbers};
use self::sets::Sets;
use super::Local;
use crate::tables::services::bytes;

/// Everything the plugin is configured with, and what it was made with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    settings: PolicySettings,
    /// Numbers of the identities of pods.
    addresses: BTreeMap<IpAddr, u32>,
    programs: BTreeMap<u32, Arc<PolicyProgram>>,
    /// Ingress and egress program of each identity that pods of this node have.
    subjects: BTreeMap<u32, (u32, u32)>,
    sets: Sets,
    identities: Identities,
    /// What pods of the snapshot are, as long as they stay as they are.
    known: BTreeMap<PodName, (Arc<Pod>, u32)>,
    rules: RuleNumbers,
    /// By what they say.
    program_numbers: HashMap<Vec<u8>, u32>,
    next_program: u32,
    in_force: bool,
}

/// What it was made with does not count.
impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        self.in_force == other.in_force
            && self.settings == other.settings
            && self.addresses == other.addresses
            && self.programs == other.programs
            && self.subjects == other.subjects
            && self.sets == other.sets
    }
}

impl Policies {
    /// `before`: what was compiled last, whose numbers stay what they are.
    pub(crate) fn compile(snapshot: &Snapshot, local: &Local<'_>, before: Option<&Self>) -> Self {
        let mut next = before.cloned().unwrap_or_default();
        next.in_force = !snapshot.policies.is_empty();
        if !next.in_force {
            // Numbers are not given twice, whatever was between.
            next.take_everything_out();
            next.rules.forget_gone(&snapshot.policies);
            return next;
        }
        let owners = next.owners(snapshot, local);
        next.identities.keep_only(&owners.iter().map(|(_, number)| *number).collect());
        next.addresses = addresses(owners);
        next.settings = settings(local);
        next.make_programs(snapshot, local);
        next.rules.forget_gone(&snapshot.policies);
        next
    }

    /// True if no pod is restricted by anything.
    pub(crate) fn is_empty(&self) -> bool {
        !self.in_force
    }

    fn take_everything_out(&mut self) {
        self.addresses.clear();
        self.programs.clear();
        self.subjects.clear();
        self.program_numbers.clear();
        self.sets.keep_only(&BTreeSet::new());
        self.identities.keep_only(&BTreeSet::new());
        self.known.clear();
        self.settings = PolicySettings::default();
    }

    /// Every address of a pod, with the number of what the pod is. Of this node's pods those count that are
    /// attached here: what the hub knows of them may be about one that had the address before.
    fn owners(&mut self, snapshot: &Snapshot, local: &Local<'_>) -> Vec<(IpAddr, u32)> {
        let own = snapshot.nodes.get(local.node).map(|n| n.subnets.as_slice()).unwrap_or_default();
        let elsewhere = |address: &IpAddr| !own.iter().any(|subnet| subnet.contains(address));
        let before = std::mem::take(&mut self.known);
        let mut owners = Vec::new();
        for (name, pod) in &snapshot.pods {
            if pod.finished || !pod.addresses.iter().any(elsewhere) {
                continue;
            }
            let known = before.get(name).filter(|(old, _)| Arc::ptr_eq(old, pod));
            let number = match known {
                Some((_, number)) => *number,
                None => self.identities.number(Identity::of(pod)),
            };
            let addresses = pod.addresses.iter().copied().filter(elsewhere);
            owners.extend(addresses.map(|address| (address, number)));
            self.known.insert(name.clone(), (Arc::clone(pod), number));
        }
        for (name, addresses) in local.policed {
            // Nothing of it runs: its addresses are nobody's, and closed.
            if snapshot.pods.get(name).is_some_and(|pod| pod.finished) {
                continue;
            }
            let number = self.identities.number(identity_of(snapshot, name));
            owners.extend(addresses.iter().map(|address| (*address, number)));
        }
        owners
    }

    fn make_programs(&mut self, snapshot: &Snapshot, local: &Local<'_>) {
        let own: BTreeSet<u32> = local
            .policed
            .iter()
            .flat_map(|(_, addresses)| addresses)
            .filter_map(|address| self.addresses.get(address).copied())
            .collect();
        let (mut used_sets, mut programs) = (BTreeSet::new(), BTreeMap::new());
        let mut numbers = HashMap::new();
        self.sets.follow(&self.identities, &snapshot.namespaces);
        self.subjects.clear();
        for number in own {
            let Some(identity) = self.identities.get(number).cloned() else { continue };
            let selecting: Vec<_> = selecting(snapshot, &identity).collect();
            let mut one = |direction| {
                let context = program::Context {
                    identities: &self.identities,
                    sets: &mut self.sets,
                    rules: &mut self.rules,
                    nodes: &snapshot.nodes,
                    used: &mut used_sets,
                };
                let Some(made) = program::program(context, &selecting, &identity, direction) else {
                    return 0;
                };
                let key = made.encode_to_vec();
                let known = self.program_numbers.get(&key).copied();
                let number = *numbers.entry(key).or_insert_with(|| {
                    known.unwrap_or_else(|| {
                        self.next_program += 1;
                        self.next_program
                    })
                });
                programs.entry(number).or_insert_with(|| PolicyProgram { number, ..made });
                number
            };
            let pair = (one(Direction::Ingress), one(Direction::Egress));
            self.subjects.insert(number, pair);
        }
        self.sets.keep_only(&used_sets);
        self.program_numbers = numbers;
        let before = std::mem::take(&mut self.programs);
        let shared = |(number, program): (u32, PolicyProgram)| match before.get(&number) {
            Some(old) => (number, Arc::clone(old)),
            None => (number, Arc::new(program)),
        };
        self.programs = programs.into_iter().map(shared).collect();
    }

    /// True for an address of this node itself.
    fn is_own(&self, address: &IpAddr) -> bool {
        self.settings.own_addresses.contains(&bytes(address))
    }

    /// What the number of a drop means, in words.
    pub(crate) fn describe(&self, number: u32) -> Option<String> {
        self.rules.describe(number)
    }

    pub(crate) fn complete(&self) -> PolicyTables {
        let (addresses_v4, addresses_v6) =
            records(self.addresses.iter().map(|(address, number)| (address, *number)));
        PolicyTables {
            settings: Some(self.settings.clone()),
            addresses_v4,
            addresses_v6,
            sets: self.sets.all().map(|(number, members)| set(number, members)).collect(),
            programs: self.programs.values().map(|p| (**p).clone()).collect(),
            subjects: self.subjects.iter().map(subject).collect(),
            ..PolicyTables::default()
        }
    }

    /// `None` if nothing changed.
    pub(crate) fn change_from(&self, old: &Self) -> Option<PolicyTables> {
        let came = self.addresses.iter().filter(|(a, number)| old.addresses.get(a) != Some(number));
        let went = old.addresses.keys().filter(|a| !self.addresses.contains_key(a));
        let (addresses_v4, addresses_v6) =
            records(came.map(|(a, n)| (a, *n)).chain(went.map(|a| (a, 0))));
        let (mut sets, mut changed_sets) = (Vec::new(), Vec::new());
        for (number, members) in self.sets.all() {
            match old.sets.get(number) {
                None => sets.push(set(number, members)),
                Some(before) if Arc::ptr_eq(before, members) || before == members => {}
                Some(before) => changed_sets.push(IdentitySetChange {
                    number,
                    added: members.difference(before).copied().collect(),
                    removed: before.difference(members).copied().collect(),
                }),
            }
        }
        let is_new = |number: &u32| !old.programs.contains_key(number);
        let subjects = self.subjects.iter().filter(|(i, pair)| old.subjects.get(i) != Some(pair));
        let change = PolicyTables {
            settings: (self.settings != old.settings).then(|| self.settings.clone()),
            addresses_v4,
            addresses_v6,
            sets,
            changed_sets,
            removed_sets: gone(old.sets.all().map(|(n, _)| n), |n| self.sets.get(n).is_some()),
            programs: self
                .programs
                .iter()
                .filter(|(number, _)| is_new(number))
                .map(|(_, p)| (**p).clone())
                .collect(),
            removed_programs: gone(old.programs.keys().copied(), |n| {
                self.programs.contains_key(&n)
            }),
            subjects: subjects.map(subject).collect(),
            removed_subjects: gone(old.subjects.keys().copied(), |n| {
                self.subjects.contains_key(&n)
            }),
        };
        (change != PolicyTables::default()).then_some(change)
    }
}

/// An address that two pods claim is nobody's: neither may have what the other may.
fn addresses(owners: Vec<(IpAddr, u32)>) -> BTreeMap<IpAddr, u32> {
    let mut addresses: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
    for (address, number) in owners {
        let entry = addresses.entry(address);
        entry
            .and_modify(|known| *known = known.filter(|known| *known == number))
            .or_insert(Some(number));
    }
    addresses.into_iter().filter_map(|(address, number)| Some((address, number?))).collect()
}

/// A pod that nobody has declared has no labels.
fn identity_of(snapshot: &Snapshot, name: &PodName) -> Identity {
    match snapshot.pods.get(name) {
        Some(pod) => Identity::of(pod),
        None => Identity { namespace: name.namespace.clone(), ..Identity::default() },
    }
}

fn selecting<'a>(
    snapshot: &'a Snapshot,
    identity: &'a Identity,
) -> impl Iterator<Item = &'a Policy> + 'a {
    let cluster = PolicyName { namespace: String::new(), name: String::new() };
    let own = PolicyName { namespace: identity.namespace.clone(), name: String::new() };
    let in_namespace = |name: PolicyName| {
        let namespace = name.namespace.clone();
        let policies = snapshot.policies.range(name..);
        policies.take_while(move |(n, _)| n.namespace == namespace).map(|(_, policy)| &**policy)
    };
    let own = (!identity.namespace.is_empty()).then(|| in_namespace(own));
    in_namespace(cluster)
        .chain(own.into_iter().flatten())
        .filter(|policy| sets::selects(&policy.subject, identity, &snapshot.namespaces))
}

fn settings(local: &Local<'_>) -> PolicySettings {
    PolicySettings { own_addresses: local.addresses.iter().map(bytes).collect() }
}

fn set(number: u32, members: &Arc<BTreeSet<u32>>) -> IdentitySet {
    IdentitySet { number, identities: members.iter().copied().collect() }
}

fn subject((identity, (ingress, egress)): (&u32, &(u32, u32))) -> PolicySubject {
    PolicySubject { identity: *identity, ingress: *ingress, egress: *egress }
}

fn gone(numbers: impl Iterator<Item = u32>, is_there: impl Fn(u32) -> bool) -> Vec<u32> {
    numbers.filter(|number| !is_there(*number)).collect()
}

/// Of IPv4 and of IPv6.
fn records<'a>(entries: impl Iterator<Item = (&'a IpAddr, u32)>) -> (Vec<u8>, Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (address, number) in entries {
        let records = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        records.extend(bytes(address));
        records.extend(number.to_be_bytes());
    }
    (v4, v6)
}

#[cfg(test)]
mod tests;
