//! Pods that no policy can tell apart have one identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{NamedPort, Pod};

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
}

/// All that some pod has, by number. A number is not given twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    last: u32,
    numbers: BTreeMap<Arc<Identity>, u32>,
    by_number: BTreeMap<u32, Arc<Identity>>,
}

impl Identities {
    /// The number of an identity, which it gets if it has none.
    pub(super) fn number(&mut self, identity: Identity) -> u32 {
        if let Some(number) = self.numbers.get(&identity) {
            return *number;
        }
        self.last += 1;
        let identity = Arc::new(identity);
        self.by_number.insert(self.last, Arc::clone(&identity));
        self.numbers.insert(identity, self.last);
        self.last
    }

    /// Forgets all others.
    pub(super) fn keep_only(&mut self, used: &BTreeSet<u32>) {
        self.numbers.retain(|_, number| used.contains(number));
        self.by_number.retain(|number, _| used.contains(number));
    }

    pub(super) fn get(&self, number: u32) -> Option<&Arc<Identity>> {
        self.by_number.get(&number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Identity>)> {
        self.by_number.iter().map(|(number, identity)| (*number, identity))
    }

    /// Those with a higher number than this: numbers rise.
    pub(super) fn since(&self, number: u32) -> impl Iterator<Item = (u32, &Arc<Identity>)> {
        self.by_number.range(number.saturating_add(1)..).map(|(n, identity)| (*n, identity))
    }

    pub(super) fn last(&self) -> u32 {
        self.last
    }
}
