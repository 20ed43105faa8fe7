//! What a flow remembers for plugins, and which plugin owns which slot.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
pub use weft_model::PLUGINS_MAX;

/// Bytes of a plugin's slot in each flow.
pub const SLOT_LEN: usize = 16;

/// A bit for each slot number.
pub(crate) type Slots = u16;

/// What a flow holds for each plugin. Index: the plugin's slot number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory([Entry; PLUGINS_MAX]);

/// What a flow holds for one plugin, together, so that the ones of plugins that are not there are
/// not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// The plugin's own bytes.
    slot: [u8; SLOT_LEN],
    /// The plugin revision that `judged` is about.
    revision: u64,
    /// Four bits each, one for each way: judged by that revision, shown to any revision, accepted
    /// by that revision.
    seen: u16,
}

/// What a plugin has judged by the packet that it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// That packet alone.
    Packet,
    /// Its flow: the next plugin is asked.
    Flow,
    /// Its flow: no further plugin is asked.
    FlowAccepted,
}

const JUDGED: u16 = 0x001;
const SHOWN: u16 = 0x010;
const ACCEPTED: u16 = 0x100;
const SHOWN_MASK: u16 = 0x0f0;
/// No plugin has it.
const NO_REVISION: u64 = u64::MAX;

impl Memory {
    pub(crate) const EMPTY: Self = Self([Entry::EMPTY; PLUGINS_MAX]);

    /// The plugin's own bytes.
    #[inline]
    pub(crate) fn slot(&self, plugin: u8) -> [u8; SLOT_LEN] {
        self.0[usize::from(plugin)].slot
    }

    #[inline]
    pub(crate) fn set_slot(&mut self, plugin: u8, slot: [u8; SLOT_LEN]) {
        self.0[usize::from(plugin)].slot = slot;
    }

    /// Takes what `other` holds for the plugins in `wanted`, a bit for each slot number; the rest
    /// stays as it is.
    #[inline]
    pub(crate) fn copy(&mut self, other: &Self, mut wanted: Slots) {
        while wanted != 0 {
            let plugin = wanted.trailing_zeros() as usize;
            self.0[plugin] = other.0[plugin];
            wanted &= wanted - 1;
        }
    }

    /// Has the plugins in `of` asked again, a bit for each slot number.
    pub(crate) fn forget_verdicts(&mut self, mut of: Slots) {
        while of != 0 {
            self.0[of.trailing_zeros() as usize].revision = NO_REVISION;
            of &= of - 1;
        }
    }

    /// True if `revision` of the plugin has judged `way`, a number below 4 that says direction and
    /// position.
    #[inline]
    pub(crate) fn judged(&self, plugin: u8, way: u8, revision: u64) -> bool {
        let entry = &self.0[usize::from(plugin)];
        entry.revision == revision && entry.seen & (JUDGED << way) != 0
    }

    /// True if any revision of the plugin was shown a packet of `way`.
    #[inline]
    pub(crate) fn shown(&self, plugin: u8, way: u8) -> bool {
        self.0[usize::from(plugin)].seen & (SHOWN << way) != 0
    }

    /// True if the revision that judged `way` asked for no further plugin.
    pub(crate) fn accepted(&self, plugin: u8, way: u8) -> bool {
        self.0[usize::from(plugin)].seen & (ACCEPTED << way) != 0
    }

    /// Notes that `revision` was shown a packet of `way`; true if that is news.
    #[inline]
    pub(crate) fn judge(&mut self, plugin: u8, way: u8, revision: u64, judged: Judged) -> bool {
        let entry = &mut self.0[usize::from(plugin)];
        let mut seen = entry.seen;
        if entry.revision != revision {
            seen &= SHOWN_MASK;
        }
        seen &= !((ACCEPTED | JUDGED) << way);
        seen |= match judged {
            Judged::Packet => SHOWN,
            Judged::Flow => SHOWN | JUDGED,
            Judged::FlowAccepted => SHOWN | JUDGED | ACCEPTED,
        } << way;
        let news = entry.revision != revision || entry.seen != seen;
        entry.revision = revision;
        entry.seen = seen;
        news
    }

    /// Forgets everything of a slot; true if there was something.
    pub(crate) fn clear(&mut self, plugin: usize) -> bool {
        let had = std::mem::replace(&mut self.0[plugin], Entry::EMPTY);
        had.slot != [0; SLOT_LEN] || had.seen != 0
    }

    /// Takes over what `other` has for the plugins in `changed`.
    pub(crate) fn merge(&mut self, other: &Self, changed: Slots) -> bool {
        let mut kept = false;
        for plugin in (0..PLUGINS_MAX).filter(|p| changed & (1 << p) != 0) {
            let (mine, theirs) = (&mut self.0[plugin], &other.0[plugin]);
            kept |= mine.slot != theirs.slot;
            mine.slot = theirs.slot;
            if mine.revision != theirs.revision {
                mine.revision = theirs.revision;
                mine.seen &= SHOWN_MASK;
            }
            mine.seen |= theirs.seen;
        }
        kept
    }

    /// What is kept of `seen` over a restart: which ways were shown. What was judged is not, since
    /// revisions of plugins are counted anew.
    pub(crate) fn kept_seen(&self, plugin: usize) -> u16 {
        self.0[plugin].seen & SHOWN_MASK
    }

    /// What is kept of the plugin's bytes over a restart: all.
    pub(crate) fn kept_slot(&self, plugin: usize) -> &[u8; SLOT_LEN] {
        &self.0[plugin].slot
    }

    pub(crate) fn restore(&mut self, plugin: usize, slot: [u8; SLOT_LEN], seen: u16) {
        self.0[plugin] = Entry { slot, seen: seen & SHOWN_MASK, ..Entry::EMPTY };
    }
}

impl Entry {
    const EMPTY: Self = Self { slot: [0; SLOT_LEN], revision: 0, seen: 0 };
}

#[derive(Clone, Copy, Default)]
struct Owner {
    /// Hash of the plugin's name; zero if the slot was never owned.
    name: u64,
    users: u32,
}

/// Which plugin owns which slot, by hash of its name.
///
/// A slot stays with a name that is not in use until another plugin needs it.
pub(crate) struct SlotOwners {
    owners: Mutex<[Owner; PLUGINS_MAX]>,
    /// Copy of the names for writers of records.
    names: [AtomicU64; PLUGINS_MAX],
}

/// A slot that was given.
pub(crate) struct Acquired {
    pub(crate) slot: u8,
    /// It belonged to another plugin: its bytes in every flow must be cleared before use.
    pub(crate) recycled: bool,
}

impl SlotOwners {
    pub(crate) fn new() -> Self {
        Self { owners: Mutex::default(), names: Default::default() }
    }

    /// A slot for `name`, once more in use; `None` if all are in use by others.
    pub(crate) fn acquire(&self, name: &str) -> Option<Acquired> {
        let mut owners = self.owners.lock();
        let name = hash_name(name);
        let found = owners.iter().position(|o| o.name == name);
        let slot = found
            .or_else(|| owners.iter().position(|o| o.name == 0))
            .or_else(|| owners.iter().position(|o| o.users == 0))?;
        let recycled = found.is_none() && owners[slot].name != 0;
        owners[slot].name = name;
        owners[slot].users += 1;
        self.names[slot].store(name, Ordering::Relaxed);
        Some(Acquired { slot: u8::try_from(slot).ok()?, recycled })
    }

    /// One user less.
    pub(crate) fn release(&self, slot: u8) {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get_mut(usize::from(slot)) {
            owner.users = owner.users.saturating_sub(1);
        }
    }

    /// The slot of a stored name, given to it if one was never owned.
    pub(crate) fn recall(&self, name: u64) -> Option<usize> {
        if name == 0 {
            return None;
        }
        let mut owners = self.owners.lock();
        let free = || owners.iter().position(|o| o.name == 0);
        let slot = owners.iter().position(|o| o.name == name).or_else(free)?;
        owners[slot].name = name;
        self.names[slot].store(name, Ordering::Relaxed);
        Some(slot)
    }

    pub(crate) fn name(&self, slot: usize) -> u64 {
        self.names[slot].load(Ordering::Relaxed)
    }
}

/// FNV-1a, 64 bits; never zero. Stored, so it must not change.
fn hash_name(name: &str) -> u64 {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_belongs_to_a_name_until_another_needs_it() {
        let owners = SlotOwners::new();
        let names: Vec<String> = (0..PLUGINS_MAX).map(|i| format!("p{i}")).collect();
        let slots: Vec<u8> = names.iter().map(|n| owners.acquire(n).unwrap().slot).collect();
        assert_eq!(owners.acquire("p3").unwrap().slot, slots[3]);
        assert!(owners.acquire("late").is_none());
        owners.release(slots[5]);
        assert!(!owners.acquire("p5").unwrap().recycled);
        owners.release(slots[5]);
        let late = owners.acquire("late").unwrap();
        assert_eq!((late.slot, late.recycled), (slots[5], true));
    }

    #[test]
    fn new_revision_forgets_what_was_judged_but_not_what_was_shown() {
        let mut memory = Memory::EMPTY;
        memory.judge(2, 1, 7, Judged::Flow);
        assert!(memory.judged(2, 1, 7) && memory.shown(2, 1));
        assert!(!memory.judged(2, 0, 7) && !memory.judged(2, 1, 8) && !memory.judged(1, 1, 7));
        memory.judge(2, 0, 8, Judged::FlowAccepted);
        assert!(!memory.judged(2, 1, 8) && memory.judged(2, 0, 8) && memory.shown(2, 1));
        assert!(memory.accepted(2, 0) && !memory.accepted(2, 1));
    }
}
