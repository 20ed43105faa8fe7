//! What selectors select: sets of identities, kept up to date instead of made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{NamedPort, Namespace, NamespaceSelector, PodSelector};

use super::identities::{Identities, Identity};

/// The label that every namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

pub(super) type Namespaces = BTreeMap<String, Arc<Namespace>>;

/// Whom a set is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetKey {
    pub(super) selector: PodSelector,
    /// Only those that have this port.
    pub(super) port: Option<NamedPort>,
}

impl SetKey {
    fn has(&self, identity: &Identity, namespaces: &Namespaces) -> bool {
        self.port.as_ref().is_none_or(|port| identity.ports.contains(port))
            && selects(&self.selector, identity, namespaces)
    }
}

/// True if the selector matches pods of this identity.
pub(super) fn selects(
    selector: &PodSelector,
    identity: &Identity,
    namespaces: &Namespaces,
) -> bool {
    let in_namespace = match &selector.namespaces {
        NamespaceSelector::Named(name) => *name == identity.namespace,
        NamespaceSelector::Labels(labels) => match namespaces.get(&identity.namespace) {
            Some(namespace) => labels.matches(&namespace.labels),
            None => labels.matches(&BTreeMap::from([(
                NAMESPACE_NAME.to_owned(),
                identity.namespace.clone(),
            )])),
        },
    };
    in_namespace && selector.pods.matches(&identity.labels)
}

/// All sets that programs name, by number. A number is not given twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    last: u32,
    numbers: BTreeMap<SetKey, u32>,
    members: BTreeMap<u32, Arc<BTreeSet<u32>>>,
    /// What they were made with.
    namespaces: Namespaces,
    seen: u32,
}

/// What they were made with does not count.
impl PartialEq for Sets {
    fn eq(&self, other: &Self) -> bool {
        self.members == other.members
    }
}

impl Sets {
    /// Brings all sets up to date.
    pub(super) fn follow(&mut self, identities: &Identities, namespaces: &Namespaces) {
        if self.namespaces != *namespaces {
            self.namespaces.clone_from(namespaces);
            for (key, number) in &self.numbers {
                let members = all(key, identities, namespaces);
                replace(&mut self.members, *number, members);
            }
        } else {
            for (key, number) in &self.numbers {
                let Some(before) = self.members.get(number) else { continue };
                let stays = |n: &&u32| identities.get(**n).is_some();
                let came = identities.since(self.seen).filter(|(_, i)| key.has(i, namespaces));
                let came: Vec<_> = came.map(|(n, _)| n).collect();
                if came.is_empty() && before.iter().all(|n| stays(&n)) {
                    continue;
                }
                let members = before.iter().filter(stays).copied().chain(came).collect();
                replace(&mut self.members, *number, members);
            }
        }
        self.seen = identities.last();
    }

    /// The number of a set, which is made if it is not there.
    pub(super) fn number(&mut self, key: SetKey, identities: &Identities) -> u32 {
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        self.last += 1;
        self.members.insert(self.last, Arc::new(all(&key, identities, &self.namespaces)));
        self.numbers.insert(key, self.last);
        self.last
    }

    /// Ports of that name and protocol that identities have which the selector matches.
    pub(super) fn named_ports(
        &self,
        selector: &PodSelector,
        wanted: &NamedPort,
        identities: &Identities,
    ) -> BTreeSet<u16> {
        let matching = identities.iter().filter(|(_, i)| selects(selector, i, &self.namespaces));
        let ports = matching.flat_map(|(_, identity)| &identity.ports);
        let same = |p: &&NamedPort| p.name == wanted.name && p.protocol == wanted.protocol;
        ports.filter(same).map(|p| p.number).collect()
    }

    /// Forgets all others.
    pub(super) fn keep_only(&mut self, used: &BTreeSet<u32>) {
        self.numbers.retain(|_, number| used.contains(number));
        self.members.retain(|number, _| used.contains(number));
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &Arc<BTreeSet<u32>>)> {
        self.members.iter().map(|(number, members)| (*number, members))
    }

    pub(super) fn get(&self, number: u32) -> Option<&Arc<BTreeSet<u32>>> {
        self.members.get(&number)
    }
}

fn all(key: &SetKey, identities: &Identities, namespaces: &Namespaces) -> BTreeSet<u32> {
    identities.iter().filter(|(_, i)| key.has(i, namespaces)).map(|(n, _)| n).collect()
}

/// What did not change stays where it was.
fn replace(sets: &mut BTreeMap<u32, Arc<BTreeSet<u32>>>, number: u32, members: BTreeSet<u32>) {
    if sets.get(&number).is_none_or(|before| **before != members) {
        sets.insert(number, Arc::new(members));
    }
}
