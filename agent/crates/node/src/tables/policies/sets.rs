//! What selectors select: sets of identities, kept up to date instead of made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{NamedPort, Namespace, NamespaceSelector, PodSelector, SharedMap};

use super::identities::{Identities, Identity};

/// The label that every namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

pub(super) type Namespaces = SharedMap<String, Arc<Namespace>>;

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
    numbers: SharedMap<Arc<SetKey>, u32>,
    by_number: SharedMap<u32, Set>,
}

#[derive(Clone, Debug)]
struct Set {
    key: Arc<SetKey>,
    members: Arc<BTreeSet<u32>>,
}

/// What it is a set of does not count.
impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        self.members == other.members
    }
}

/// What they were made with does not count.
impl PartialEq for Sets {
    fn eq(&self, other: &Self) -> bool {
        self.by_number == other.by_number
    }
}

impl Sets {
    /// Brings all sets up to date: `changed` are identities that came or went, or whose namespace has
    /// other labels.
    pub(super) fn follow(
        &mut self,
        changed: &BTreeSet<u32>,
        identities: &Identities,
        namespaces: &Namespaces,
    ) {
        if changed.is_empty() {
            return;
        }
        let mut moved = Vec::new();
        for (number, Set { key, members }) in &self.by_number {
            let is_in = |identity: &u32| {
                identities.get(*identity).is_some_and(|identity| key.has(identity, namespaces))
            };
            let moving =
                changed.iter().filter(|identity| members.contains(identity) != is_in(identity));
            let moving: Vec<u32> = moving.copied().collect();
            if !moving.is_empty() {
                moved.push((*number, Arc::clone(key), Arc::clone(members), moving));
            }
        }
        for (number, key, mut members, moving) in moved {
            let all = Arc::make_mut(&mut members);
            for identity in moving {
                if !all.remove(&identity) {
                    all.insert(identity);
                }
            }
            self.by_number.insert(number, Set { key, members });
        }
    }

    /// The number of a set, which is made if it is not there.
    pub(super) fn number(
        &mut self,
        key: SetKey,
        identities: &Identities,
        namespaces: &Namespaces,
    ) -> u32 {
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        self.last += 1;
        let key = Arc::new(key);
        let members = Arc::new(all(&key, identities, namespaces));
        self.by_number.insert(self.last, Set { key: Arc::clone(&key), members });
        self.numbers.insert(key, self.last);
        self.last
    }

    /// Forgets all others.
    pub(super) fn keep_only(&mut self, used: &BTreeSet<u32>) {
        self.numbers.retain(|_, number| used.contains(number));
        self.by_number.retain(|number, _| used.contains(number));
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &BTreeSet<u32>)> {
        self.by_number.iter().map(|(number, set)| (*number, &*set.members))
    }

    /// Those that differ from what they were, with both.
    pub(super) fn changed_from<'a>(
        &'a self,
        old: &'a Self,
    ) -> impl Iterator<Item = (u32, Option<&'a BTreeSet<u32>>, Option<&'a BTreeSet<u32>>)> {
        fn members(set: Option<&Set>) -> Option<&BTreeSet<u32>> {
            set.map(|set| &*set.members)
        }
        let differences = self.by_number.differences(&old.by_number).into_iter();
        differences.map(|d| (*d.key, members(d.old), members(d.new)))
    }
}

/// Ports of that name and protocol that identities have which the selector matches.
pub(super) fn named_ports(
    selector: &PodSelector,
    wanted: &NamedPort,
    identities: &Identities,
    namespaces: &Namespaces,
) -> BTreeSet<u16> {
    let matching = identities.iter().filter(|(_, i)| selects(selector, i, namespaces));
    let ports = matching.flat_map(|(_, identity)| &identity.ports);
    let same = |p: &&NamedPort| p.name == wanted.name && p.protocol == wanted.protocol;
    ports.filter(same).map(|p| p.number).collect()
}

fn all(key: &SetKey, identities: &Identities, namespaces: &Namespaces) -> BTreeSet<u32> {
    identities.iter().filter(|(_, i)| key.has(i, namespaces)).map(|(n, _)| n).collect()
}
