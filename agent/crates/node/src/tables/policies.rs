//! Network policies as the plugin on this node is told of them: selectors become sets of identities, and
//! what holds for one direction of a pod becomes one program.

mod domains;
mod explain;
mod identities;
mod owners;
mod program;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message as _;
use weft_model::{Policy, PolicyName, RESOLVERS, SharedMap, Snapshot};
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyProgram, PolicySettings, PolicySubject, PolicyTables,
};

use self::domains::Learned;
pub(crate) use self::domains::{Domains, Known};
pub(crate) use self::explain::Explaining;
use self::identities::Identity;
use self::owners::Owners;
use self::program::{Direction, Needs, RuleNumbers};
use self::sets::{Namespaces, Sets};
use super::Local;
use crate::tables::services::bytes;

/// Everything the plugin is configured with, and what it was made with. A copy shares with it what stays
/// as it is, and what changes is found by what differs from the last time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    settings: PolicySettings,
    owners: Owners,
    programs: BTreeMap<u32, Arc<PolicyProgram>>,
    /// Of each identity that pods of this node have.
    subjects: BTreeMap<u32, Subject>,
    sets: Sets,
    learned: Learned,
    rules: RuleNumbers,
    /// By what they say.
    program_numbers: SharedMap<Arc<[u8]>, u32>,
    next_program: u32,
    in_force: bool,
    /// What all this was made of.
    policies: SharedMap<PolicyName, Arc<Policy>>,
    namespaces: Namespaces,
}

/// What holds for pods of one identity.
#[derive(Clone, Debug, Default)]
struct Subject {
    ingress: u32,
    egress: u32,
    needs: Needs,
}

/// What it was made with does not count.
impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        (self.ingress, self.egress) == (other.ingress, other.egress)
    }
}

/// What differs from the last time, as far as programs are concerned.
#[derive(Debug, Default)]
struct News {
    /// A `ClusterNetworkPolicy`, or whom one may select.
    cluster: bool,
    /// Namespaces with another `NetworkPolicy`.
    namespaces: BTreeSet<String>,
    /// Pods may call other ports by a name.
    names: bool,
}

/// What it was made with does not count.
impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        self.in_force == other.in_force
            && self.settings == other.settings
            && self.owners == other.owners
            && self.programs == other.programs
            && self.subjects == other.subjects
            && self.sets == other.sets
            && self.learned == other.learned
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
            next.rules.forget_gone(&snapshot.policies, next.programs.values());
            return next;
        }
        next.settings = settings(snapshot, local);
        next.owners.follow(snapshot, local);
        let news = next.take_news(snapshot);
        next.make_programs(snapshot, &news);
        next.learn(local.known);
        next.rules.forget_gone(&snapshot.policies, next.programs.values());
        next
    }

    /// True if no pod is restricted by anything.
    pub(crate) fn is_empty(&self) -> bool {
        !self.in_force
    }

    /// Takes what pods know now, by each of their addresses. True if it makes a difference.
    pub(crate) fn learn(&mut self, known: &BTreeMap<IpAddr, Arc<Known>>) -> bool {
        let Self { owners, subjects, learned, .. } = self;
        let before = learned.clone();
        learned.follow(owners.local_addresses().filter_map(|(pod, number)| {
            let domains = &subjects.get(&number)?.needs.domains;
            let known = known.get(&pod).filter(|_| !domains.is_empty())?;
            Some((pod, Arc::clone(known), Arc::clone(domains)))
        }));
        *learned != before
    }

    /// Hosts that rules for a pod of this node name, by an address of it; `None` if there are none.
    pub(crate) fn domains_of(&self, pod: IpAddr) -> Option<&Arc<Domains>> {
        let domains = &self.subjects.get(&self.owners.local(&pod)?)?.needs.domains;
        (!domains.is_empty()).then_some(domains)
    }

    /// Addresses of this node's pods whose rules name hosts.
    pub(crate) fn with_domains(&self) -> BTreeSet<IpAddr> {
        let all = self.owners.local_addresses();
        let named = all.filter(|(_, number)| {
            self.subjects.get(number).is_some_and(|s| !s.needs.domains.is_empty())
        });
        named.map(|(address, _)| address).collect()
    }

    fn take_everything_out(&mut self) {
        self.settings = PolicySettings::default();
        self.owners.clear();
        self.owners.identities.take_changed();
        self.programs.clear();
        self.subjects.clear();
        self.learned.clear();
        self.program_numbers = SharedMap::default();
        self.sets.keep_only(&BTreeSet::new());
        self.policies = SharedMap::default();
        self.namespaces = SharedMap::default();
    }

    /// Brings sets up to date, and tells what programs have to follow.
    fn take_news(&mut self, snapshot: &Snapshot) -> News {
        let mut news = News::default();
        let mut changed = self.owners.identities.take_changed();
        let first = snapshot.policies.keys().next();
        let has_cluster = first.is_some_and(|name| name.namespace.is_empty());
        for difference in snapshot.namespaces.differences(&self.namespaces) {
            news.cluster |= has_cluster;
            changed.extend(self.owners.identities.of_namespace(difference.key));
        }
        for difference in snapshot.policies.differences(&self.policies) {
            match difference.key.namespace.as_str() {
                "" => news.cluster = true,
                namespace => drop(news.namespaces.insert(namespace.to_owned())),
            }
        }
        news.names = !changed.is_empty();
        self.policies = snapshot.policies.clone();
        self.namespaces = snapshot.namespaces.clone();
        self.sets.follow(&changed, &self.owners.identities, &self.namespaces);
        news
    }

    fn make_programs(&mut self, snapshot: &Snapshot, news: &News) {
        let own = self.owners.of_node();
        let before = self.subjects.len();
        self.subjects.retain(|number, _| own.contains(number));
        let mut changed = self.subjects.len() != before;
        for number in own {
            let Some(identity) = self.owners.identities.get(number).cloned() else { continue };
            let concerned = |subject: &Subject| {
                news.cluster
                    || news.namespaces.contains(&identity.namespace)
                    || news.names && subject.needs.names
                    || subject.needs.nodes
            };
            if self.subjects.get(&number).is_none_or(concerned) {
                let subject = self.subject(snapshot, &identity);
                self.subjects.insert(number, subject);
                changed = true;
            }
        }
        if changed {
            self.forget_unused();
        }
    }

    fn subject(&mut self, snapshot: &Snapshot, identity: &Identity) -> Subject {
        let selecting: Vec<_> = selecting(snapshot, identity).collect();
        let mut needs = Needs::default();
        let mut one = |direction| {
            let context = program::Context {
                identities: &self.owners.identities,
                sets: &mut self.sets,
                rules: &mut self.rules,
                namespaces: &snapshot.namespaces,
                nodes: &snapshot.nodes,
                needs: &mut needs,
            };
            let Some(made) = program::program(context, &selecting, identity, direction) else {
                return 0;
            };
            let key = made.encode_to_vec();
            if let Some(number) = self.program_numbers.get(key.as_slice()) {
                return *number;
            }
            self.next_program += 1;
            let number = self.next_program;
            self.programs.insert(number, Arc::new(PolicyProgram { number, ..made }));
            self.program_numbers.insert(key.into(), number);
            number
        };
        let (ingress, egress) = (one(Direction::Ingress), one(Direction::Egress));
        Subject { ingress, egress, needs }
    }

    fn forget_unused(&mut self) {
        let (mut sets, mut programs) = (BTreeSet::new(), BTreeSet::new());
        for subject in self.subjects.values() {
            sets.extend(&subject.needs.sets);
            programs.extend([subject.ingress, subject.egress]);
        }
        self.sets.keep_only(&sets);
        self.programs.retain(|number, _| programs.contains(number));
        self.program_numbers.retain(|_, number| programs.contains(number));
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
        let (addresses_v4, addresses_v6) = records(self.owners.iter());
        PolicyTables {
            settings: Some(self.settings.clone()),
            addresses_v4,
            addresses_v6,
            sets: self.sets.all().map(|(number, members)| set(number, members)).collect(),
            programs: self.programs.values().map(|p| (**p).clone()).collect(),
            subjects: self.subjects.iter().map(subject).collect(),
            learned: self.learned.all(),
            ..PolicyTables::default()
        }
    }

    /// `None` if nothing changed.
    pub(crate) fn change_from(&self, old: &Self) -> Option<PolicyTables> {
        let (addresses_v4, addresses_v6) = records(self.owners.changed_from(&old.owners));
        let (mut sets, mut changed_sets, mut removed_sets) = (Vec::new(), Vec::new(), Vec::new());
        for (number, before, now) in self.sets.changed_from(&old.sets) {
            match (before, now) {
                (None, Some(members)) => sets.push(set(number, members)),
                (_, None) => removed_sets.push(number),
                (Some(before), Some(members)) => changed_sets.push(IdentitySetChange {
                    number,
                    added: members.difference(before).copied().collect(),
                    removed: before.difference(members).copied().collect(),
                }),
            }
        }
        let is_new = |number: &u32| !old.programs.contains_key(number);
        let subjects = self.subjects.iter().filter(|(i, s)| old.subjects.get(i) != Some(s));
        let change = PolicyTables {
            settings: (self.settings != old.settings).then(|| self.settings.clone()),
            addresses_v4,
            addresses_v6,
            sets,
            changed_sets,
            removed_sets,
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
            learned: self.learned.changed_from(&old.learned),
        };
        (change != PolicyTables::default()).then_some(change)
    }
}

fn selecting<'a>(
    snapshot: &'a Snapshot,
    identity: &'a Identity,
) -> impl Iterator<Item = &'a Policy> + 'a {
    let cluster = PolicyName::default();
    let own = PolicyName { namespace: identity.namespace.clone(), ..PolicyName::default() };
    let in_namespace = |name: PolicyName| {
        let namespace = name.namespace.clone();
        let policies = snapshot.policies.range_from(&name);
        policies.take_while(move |(n, _)| n.namespace == namespace).map(|(_, policy)| &**policy)
    };
    let own = (!identity.namespace.is_empty()).then(|| in_namespace(own));
    in_namespace(cluster)
        .chain(own.into_iter().flatten())
        .filter(|policy| sets::selects(&policy.subject, identity, &snapshot.namespaces))
}

fn settings(snapshot: &Snapshot, local: &Local<'_>) -> PolicySettings {
    let dns = snapshot.cluster.dns.as_ref();
    PolicySettings {
        own_addresses: local.addresses.iter().map(bytes).collect(),
        resolvers: dns.iter().flat_map(|_| RESOLVERS.iter().map(bytes)).collect(),
        resolver_port: dns.map_or(0, |dns| dns.port.into()),
    }
}

fn set(number: u32, members: &BTreeSet<u32>) -> IdentitySet {
    IdentitySet { number, identities: members.iter().copied().collect() }
}

fn subject((identity, subject): (&u32, &Subject)) -> PolicySubject {
    let Subject { ingress, egress, .. } = subject;
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
