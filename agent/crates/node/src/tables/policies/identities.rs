//! Pods that no policy can tell apart have one identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{Dns, NamedPort, Pod, ServiceProtocol, SharedMap};

/// What policies look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Sorted.
    pub(super) ports: Vec<NamedPort>,
}

impl Identity {
    pub(super) fn of(pod: &Pod) -> Self {
        let mut ports = pod.ports.clone();
        ports.sort_unstable();
        Self { namespace: pod.name.namespace.clone(), labels: pod.labels.clone(), ports }
    }

    /// Of the node's resolver, which stands for pods of the Service that clients ask. Their ports have the
    /// names that the Service's have by custom.
    pub(super) fn of_resolver(dns: &Dns) -> Self {
        let port =
            |name: &str, protocol| NamedPort { name: name.to_owned(), protocol, number: dns.port };
        let mut ports =
            vec![port("dns", ServiceProtocol::Udp), port("dns-tcp", ServiceProtocol::Tcp)];
        ports.sort_unstable();
        Self { namespace: dns.service.namespace.clone(), labels: dns.labels.clone(), ports }
    }
}

/// All that some pod has, by number. A number is not given twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    last: u32,
    numbers: SharedMap<Arc<Identity>, u32>,
    by_number: SharedMap<u32, Held>,
    /// Numbers that were given or taken since the last look.
    changed: BTreeSet<u32>,
}

/// An identity, and how many pods have it.
#[derive(Clone, Debug)]
struct Held {
    identity: Arc<Identity>,
    by: usize,
}

impl Identities {
    /// The number of an identity, which it gets if it has none, for one pod more.
    pub(super) fn hold(&mut self, identity: Identity) -> u32 {
        if let Some(number) = self.numbers.get(&identity).copied() {
            self.count(number, |by| by + 1);
            return number;
        }
        self.last += 1;
        let identity = Arc::new(identity);
        self.by_number.insert(self.last, Held { identity: Arc::clone(&identity), by: 1 });
        self.numbers.insert(identity, self.last);
        self.changed.insert(self.last);
        self.last
    }

    /// One pod less has this identity.
    pub(super) fn release(&mut self, number: u32) {
        self.count(number, |by| by - 1);
    }

    fn count(&mut self, number: u32, change: impl FnOnce(usize) -> usize) {
        let Some(held) = self.by_number.get(&number).cloned() else { return };
        match change(held.by) {
            0 => {
                self.by_number.remove(&number);
                self.numbers.remove(&held.identity);
                self.changed.insert(number);
            }
            by => drop(self.by_number.insert(number, Held { by, ..held })),
        }
    }

    /// The number of an identity that some pod has.
    pub(super) fn number(&self, identity: &Identity) -> Option<u32> {
        self.numbers.get(identity).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<&Arc<Identity>> {
        self.by_number.get(&number).map(|held| &held.identity)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Identity>)> {
        self.by_number.iter().map(|(number, held)| (*number, &held.identity))
    }

    /// Numbers of those in a namespace.
    pub(super) fn of_namespace(&self, name: &str) -> impl Iterator<Item = u32> {
        let first = Identity { namespace: name.to_owned(), ..Identity::default() };
        let from_there = self.numbers.range_from(&first);
        let same =
            move |(identity, _): &(&Arc<Identity>, &u32)| identity.namespace == first.namespace;
        from_there.take_while(same).map(|(_, number)| *number)
    }

    /// Numbers that were given or taken since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }
}
