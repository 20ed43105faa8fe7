//! All that the plugin knows: who has which address, who is in which set, and what holds for whom.

use crate::address::Address;
use crate::config::{AddressChange, Change, SetChange};
use crate::hash::Map;
use crate::names::Learned;
use crate::program::Program;
use crate::sets::Sets;

/// Numbers of the programs of an identity; 0: nothing restricts this direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) ingress: u32,
    pub(crate) egress: u32,
}

/// Where a node's resolver listens.
pub(crate) const DNS_PORT: u16 = 53;

/// Of this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// In rising order.
    pub(crate) own_addresses: Box<[Address]>,
    /// Where its resolver is, in rising order.
    pub(crate) resolvers: Box<[Address]>,
    /// Of the pods that the resolver stands for.
    pub(crate) resolver_port: u16,
}

/// All that is configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    settings: Settings,
    identities_v4: Map<u32, u32>,
    /// Four words, as a number of 16 bytes would be aligned to more room.
    identities_v6: Map<[u32; 4], u32>,
    sets: Sets,
    programs: Map<u32, Program>,
    subjects: Map<u32, Subject>,
    learned: Learned,
    /// How often programs refer to a set, and subjects to a program.
    uses: Uses,
}

#[derive(Clone, Debug, Default)]
struct Uses {
    sets: Map<u32, i64>,
    programs: Map<u32, i64>,
}

impl Tables {
    /// The identity of a pod by its address.
    #[inline]
    pub(crate) fn identity(&self, address: Address) -> Option<u32> {
        match address {
            Address::V4(v4) => self.identities_v4.get(&v4).copied(),
            Address::V6(v6) => self.identities_v6.get(&words(v6)).copied(),
        }
    }

    /// The sets that whoever has this address is in.
    #[inline]
    pub(crate) fn sets_of(&self, address: Address) -> &[u32] {
        self.identity(address).map_or(&[], |identity| self.sets.of(identity))
    }

    /// Numbers of the names that a pod has learned an address by, in rising order.
    #[inline]
    pub(crate) fn names_of(&self, pod: Address, address: Address) -> &[u64] {
        self.learned.of(pod, address)
    }

    #[inline]
    pub(crate) fn subject(&self, identity: u32) -> Option<Subject> {
        self.subjects.get(&identity).copied()
    }

    #[inline]
    pub(crate) fn program(&self, number: u32) -> Option<&Program> {
        self.programs.get(&number)
    }

    /// True for an address of this node itself.
    #[inline]
    pub(crate) fn is_own(&self, address: Address) -> bool {
        self.settings.own_addresses.binary_search(&address).is_ok()
    }

    /// The port that what goes to a port there is judged by: to the resolver it is that of the pods that it
    /// stands for.
    #[inline]
    pub(crate) fn judged_port(&self, destination: Address, port: u16) -> u16 {
        let of_resolver = port == DNS_PORT && self.settings.resolvers.contains(&destination);
        if of_resolver { self.settings.resolver_port } else { port }
    }

    /// Does all of a change, or nothing.
    ///
    /// # Errors
    /// A line that names what refers to something that would not be there.
    pub(crate) fn change(&mut self, change: Change<'_>) -> Result<(), String> {
        let uses = self.check(&change)?;
        let Change { settings, addresses, sets, programs, subjects, learned } = change;
        if let Some(settings) = settings {
            self.settings = settings;
        }
        self.set_addresses(&addresses);
        for (number, change) in sets {
            match change {
                SetChange::Whole(members) => self.sets.set(number, members),
                SetChange::Difference { added, removed } => {
                    self.sets.change(number, &added, &removed);
                }
                SetChange::Remove => self.sets.remove(number),
            }
        }
        put(&mut self.programs, programs);
        put(&mut self.subjects, subjects);
        learned.into_iter().for_each(|(pair, names)| self.learned.set(pair, names));
        add(&mut self.uses.sets, &uses.sets);
        add(&mut self.uses.programs, &uses.programs);
        Ok(())
    }

    /// How much more or less often than now everything is referred to afterwards.
    fn check(&self, change: &Change<'_>) -> Result<Uses, String> {
        let is_difference = |set: &SetChange| matches!(set, SetChange::Difference { .. });
        let mut differences = change.sets.iter().filter(|(_, set)| is_difference(set));
        if let Some((number, _)) = differences.find(|(n, _)| self.sets.members(**n).is_none()) {
            return Err(format!("changed_sets: set {number} is not there"));
        }
        let mut uses = Uses::default();
        for (number, program) in &change.programs {
            for set in program.iter().flat_map(Program::sets) {
                *uses.sets.entry(set).or_default() += 1;
                let there = match change.sets.get(&set) {
                    Some(change) => !matches!(change, SetChange::Remove),
                    None => self.sets.members(set).is_some(),
                };
                if !there {
                    return Err(format!("program {number}: set {set} is not there"));
                }
            }
            for set in self.programs.get(number).iter().flat_map(|p| p.sets()) {
                *uses.sets.entry(set).or_default() -= 1;
            }
        }
        for (identity, subject) in &change.subjects {
            for program in subject.iter().flat_map(|s| s.programs()) {
                *uses.programs.entry(program).or_default() += 1;
                let there = match change.programs.get(&program) {
                    Some(change) => change.is_some(),
                    None => self.programs.contains_key(&program),
                };
                if !there {
                    return Err(format!("subject {identity}: program {program} is not there"));
                }
            }
            for program in self.subjects.get(identity).iter().flat_map(|s| s.programs()) {
                *uses.programs.entry(program).or_default() -= 1;
            }
        }
        let used = |all: &Map<u32, i64>, change: &Map<u32, i64>, number: &u32| {
            all.get(number).unwrap_or(&0) + change.get(number).unwrap_or(&0) > 0
        };
        for (number, set) in &change.sets {
            let removed = matches!(set, SetChange::Remove);
            if removed && used(&self.uses.sets, &uses.sets, number) {
                return Err(format!("removed_sets: a program refers to set {number}"));
            }
        }
        for (number, program) in &change.programs {
            if program.is_none() && used(&self.uses.programs, &uses.programs, number) {
                return Err(format!("removed_programs: a subject refers to program {number}"));
            }
        }
        Ok(uses)
    }

    fn set_addresses(&mut self, change: &AddressChange<'_>) {
        if self.identities_v4.is_empty() && self.identities_v6.is_empty() {
            self.identities_v4.reserve(change.v4.len());
            self.identities_v6.reserve(change.v6.len());
        }
        for [a, b, c, d, identity @ ..] in change.v4 {
            let (v4, identity) = ([*a, *b, *c, *d], u32::from_be_bytes(*identity));
            set_identity(&mut self.identities_v4, u32::from_be_bytes(v4), identity);
        }
        for record in change.v6 {
            let [address @ .., i0, i1, i2, i3] = *record;
            let (v6, identity) = (u128::from_be_bytes(address), [i0, i1, i2, i3]);
            set_identity(&mut self.identities_v6, words(v6), u32::from_be_bytes(identity));
        }
    }

    /// True if nothing is held but settings.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let identities = self.identities_v4.len() + self.identities_v6.len();
        let named = self.programs.len() + self.subjects.len();
        let uses = self.uses.sets.len() + self.uses.programs.len();
        identities + named + uses == 0 && self.sets.is_empty() && self.learned.is_empty()
    }
}

impl Subject {
    /// Those that there are.
    fn programs(self) -> impl Iterator<Item = u32> {
        [self.ingress, self.egress].into_iter().filter(|number| *number != 0)
    }
}

fn words(v6: u128) -> [u32; 4] {
    [(v6 >> 96) as u32, (v6 >> 64) as u32, (v6 >> 32) as u32, v6 as u32]
}

/// Of an address that is named twice the last record counts.
fn set_identity<A: std::hash::Hash + Eq>(all: &mut Map<A, u32>, address: A, identity: u32) {
    if identity == 0 {
        all.remove(&address);
    } else {
        all.insert(address, identity);
    }
}

fn put<T>(all: &mut Map<u32, T>, change: impl IntoIterator<Item = (u32, Option<T>)>) {
    for (number, value) in change {
        match value {
            Some(value) => drop(all.insert(number, value)),
            None => drop(all.remove(&number)),
        }
    }
}

fn add(all: &mut Map<u32, i64>, change: &Map<u32, i64>) {
    for (number, more) in change.iter().filter(|(_, more)| **more != 0) {
        let uses = all.entry(*number).or_default();
        *uses += more;
        if *uses == 0 {
            all.remove(number);
        }
    }
}
