//! Sets of identities, kept in both ways: who is in a set, and in which sets somebody is.
//!
//! A rule asks whether two short lists have something in common, which costs as much as the shorter
//! one is long: neither the size of a set nor the number of sets counts. Room is that of the
//! members, twice.

use crate::hash::Map;

/// All sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    /// Members of each set, in rising order. To know what changes when a set does.
    members: Map<u32, Box<[u32]>>,
    /// Sets of each identity that is in any, in rising order.
    of: Map<u32, Vec<u32>>,
}

impl Sets {
    /// The sets that an identity is in, in rising order.
    #[inline]
    pub(crate) fn of(&self, identity: u32) -> &[u32] {
        self.of.get(&identity).map_or(&[], Vec::as_slice)
    }

    /// Members of a set in rising order, if there is such a set.
    pub(crate) fn members(&self, set: u32) -> Option<&[u32]> {
        self.members.get(&set).map(|members| &**members)
    }

    /// Gives a set these members, in rising order, instead of those that it has.
    pub(crate) fn set(&mut self, set: u32, members: Box<[u32]>) {
        let held = self.members.remove(&set).unwrap_or_default();
        for identity in only_in(&held, &members) {
            self.leave(identity, set);
        }
        for identity in only_in(&members, &held) {
            self.join(identity, set);
        }
        self.members.insert(set, members);
    }

    /// Adds members to a set and takes some out: both in rising order, and nobody in both.
    pub(crate) fn change(&mut self, set: u32, added: &[u32], removed: &[u32]) {
        let held = self.members.remove(&set).unwrap_or_default();
        for identity in removed {
            self.leave(*identity, set);
        }
        for identity in added {
            self.join(*identity, set);
        }
        let mut members = Vec::with_capacity(held.len() + added.len());
        members.extend(only_in(&held, removed));
        members.extend_from_slice(added);
        // Two runs in rising order, which a stable sort only merges.
        members.sort();
        members.dedup();
        self.members.insert(set, members.into_boxed_slice());
    }

    /// Removes a set.
    pub(crate) fn remove(&mut self, set: u32) {
        self.set(set, Box::default());
        self.members.remove(&set);
    }

    /// True if nothing is held.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.of.is_empty()
    }

    fn join(&mut self, identity: u32, set: u32) {
        let sets = self.of.entry(identity).or_default();
        let Err(at) = sets.binary_search(&set) else { return };
        // Most lists are short, and there are many: they grow by half, not to 4 and twice.
        if sets.len() == sets.capacity() {
            sets.reserve_exact(sets.len() / 2 + 1);
        }
        sets.insert(at, set);
    }

    fn leave(&mut self, identity: u32, set: u32) {
        let Some(sets) = self.of.get_mut(&identity) else { return };
        if let Ok(at) = sets.binary_search(&set) {
            sets.remove(at);
        }
        if sets.is_empty() {
            self.of.remove(&identity);
        }
    }
}

/// Those of `all`, in rising order, that are not in `other`, in rising order.
fn only_in<'a>(all: &'a [u32], other: &'a [u32]) -> impl Iterator<Item = u32> {
    let mut other = other;
    all.iter().copied().filter(move |number| {
        let smaller = other.iter().take_while(|o| *o < number).count();
        other = other.get(smaller..).unwrap_or_default();
        other.first() != Some(number)
    })
}

/// True if two lists in rising order have a number in common.
#[inline]
pub(crate) fn meet<N: Ord>(a: &[N], b: &[N]) -> bool {
    let (few, mut many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    for number in few {
        match many.binary_search(number) {
            Ok(_) => return true,
            Err(at) => many = many.get(at..).unwrap_or_default(),
        }
    }
    false
}
