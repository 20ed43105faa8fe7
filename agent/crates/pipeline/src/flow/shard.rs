//! One shard of the flow table: flows in a slab, an index, and lists in order of last use.

use hashbrown::HashTable;
use weft_model::Timestamp;

use super::key::{FlowKey, HashSeed};
use super::memory::{Memory, Slots};
use super::sequence::{Numbers, Progress};
use super::state::{CLASS_TIMEOUTS, CLASSES, Direction, FlowState};

const NIL: u32 = u32::MAX;

/// A record is written again when a flow was used this part of its timeout after the last time,
/// so that what a restarted datapath loads is not older than that.
const SAVE_FRACTION: u64 = 8;

/// Where a flow is. `generation` tells it from others that had the place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowId {
    pub(crate) shard: u16,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Who first translated a flow: plugins up to it see packets as they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translator {
    pub(crate) slot: u8,
    pub(crate) ingress: bool,
}

impl Translator {
    /// The pipeline itself, after all plugins.
    pub(crate) const PIPELINE: Self = Self { slot: 0xfe, ingress: true };
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// IP packets; each segment of a super-packet counts.
    pub packets: u64,
    /// Bytes with IP headers.
    pub bytes: u64,
}

/// In this order, so that what each packet touches is together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Flow {
    /// As the first packet was sent.
    pub(crate) original: FlowKey,
    /// As answers are sent: `original` reversed, unless translated.
    pub(crate) reply: FlowKey,
    pub(crate) state: FlowState,
    pub(crate) translator: Option<Translator>,
    pub(crate) progress: Progress,
    pub(crate) last_seen: Timestamp,
    pub(crate) traffic: [Traffic; 2],
    pub(crate) created: Timestamp,
    pub(crate) memory: Memory,
}

impl Flow {
    pub(crate) fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }

    #[inline]
    pub(crate) fn class(&self) -> usize {
        self.state.class(self.original.protocol())
    }

    #[inline]
    pub(crate) fn expires(&self) -> Timestamp {
        Timestamp(self.last_seen.0.saturating_add(CLASS_TIMEOUTS[self.class()]))
    }
}

/// In this order, as a [`Flow`] is.
#[repr(C)]
struct Entry {
    /// The list it is in: that of its state, but while it moves.
    class: usize,
    older: u32,
    newer: u32,
    generation: u32,
    used: bool,
    dirty: bool,
    saved: Timestamp,
    flow: Flow,
}

/// The reply tuple of a translated flow, whose home is in the shard of its original tuple.
#[derive(Clone, Copy)]
pub(crate) struct Alias {
    pub(crate) reply: FlowKey,
    pub(crate) home: FlowId,
}

#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
}

pub(crate) struct Shard {
    number: u16,
    capacity: u32,
    seed: HashSeed,
    entries: Vec<Entry>,
    free: Vec<u32>,
    index: HashTable<u32>,
    aliases: HashTable<Alias>,
    lists: [List; CLASSES],
    dirty: Vec<u32>,
}

impl Shard {
    pub(crate) fn new(number: u16, capacity: u32, seed: HashSeed) -> Self {
        Self {
            number,
            capacity,
            seed,
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            aliases: HashTable::new(),
            lists: [List { oldest: NIL, newest: NIL }; CLASSES],
            dirty: Vec::new(),
        }
    }

    /// The flow one of whose tuples is `key`, if its original tuple belongs here.
    #[inline]
    pub(crate) fn find(&self, hash: u64, key: &FlowKey) -> Option<u32> {
        let has = |flow: &Flow| flow.original == *key || flow.reply == *key;
        self.index.find(hash, |i| has(&self.entries[*i as usize].flow)).copied()
    }

    /// The translated flow whose reply tuple is `key`.
    #[inline]
    pub(crate) fn find_alias(&self, hash: u64, key: &FlowKey) -> Option<Alias> {
        if self.aliases.is_empty() {
            return None;
        }
        self.aliases.find(hash, |a| a.reply == *key).copied()
    }

    #[inline]
    pub(crate) fn flow(&self, index: u32) -> &Flow {
        &self.entries[index as usize].flow
    }

    #[inline]
    pub(crate) fn id(&self, index: u32) -> FlowId {
        let generation = self.entries[index as usize].generation;
        FlowId { shard: self.number, index, generation }
    }

    /// True if `id` still is the flow it was.
    #[inline]
    pub(crate) fn is_live(&self, id: FlowId) -> bool {
        self.entries.get(id.index as usize).is_some_and(|e| e.used && e.generation == id.generation)
    }

    /// Adds a flow in a free place, at the cost of the longest idle one if there is none; gives
    /// that one back. No flow may have one of its tuples.
    pub(crate) fn insert(&mut self, hash: u64, flow: Flow) -> (FlowId, Option<(FlowId, Flow)>) {
        let full = self.free.is_empty() && self.entries.len() >= self.capacity as usize;
        let evicted = if full { self.longest_idle().map(|i| self.remove(i)) } else { None };
        let class = flow.class();
        let index = self.place(flow, class);
        self.append(index, class);
        let (entries, seed) = (&self.entries, self.seed);
        self.index.insert_unique(hash, index, |i| entries[*i as usize].flow.original.hash(&seed));
        self.mark(index);
        (self.id(index), evicted)
    }

    fn place(&mut self, flow: Flow, class: usize) -> u32 {
        let saved = flow.last_seen;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.flow = flow;
            entry.class = class;
            entry.saved = saved;
            entry.used = true;
            return index;
        }
        self.entries.push(Entry {
            flow,
            class,
            older: NIL,
            newer: NIL,
            generation: 0,
            saved,
            used: true,
            dirty: false,
        });
        u32::try_from(self.entries.len() - 1).unwrap_or(NIL)
    }

    /// Takes a flow out. The alias of a translated one stays and must be removed by the caller.
    pub(crate) fn remove(&mut self, index: u32) -> (FlowId, Flow) {
        let id = self.id(index);
        let hash = self.entries[index as usize].flow.original.hash(&self.seed);
        if let Ok(entry) = self.index.find_entry(hash, |i| *i == index) {
            entry.remove();
        }
        self.unlink(index);
        self.free.push(index);
        let entry = &mut self.entries[index as usize];
        entry.used = false;
        entry.generation = entry.generation.wrapping_add(1);
        let flow = entry.flow.clone();
        self.mark(index);
        (id, flow)
    }

    #[cfg(test)]
    pub(crate) fn has_no_alias(&self) -> bool {
        self.aliases.is_empty()
    }

    pub(crate) fn add_alias(&mut self, hash: u64, alias: Alias) {
        let seed = self.seed;
        self.aliases.insert_unique(hash, alias, |a| a.reply.hash(&seed));
    }

    pub(crate) fn remove_alias(&mut self, hash: u64, home: FlowId) {
        if let Ok(entry) = self.aliases.find_entry(hash, |a| a.home == home) {
            entry.remove();
        }
    }

    /// Counts one packet and moves state and expiry.
    #[inline]
    pub(crate) fn touch(&mut self, index: u32, direction: Direction, seen: Seen, now: Timestamp) {
        let entry = &mut self.entries[index as usize];
        let traffic = &mut entry.flow.traffic[direction.index()];
        traffic.packets += u64::from(seen.packets);
        traffic.bytes += seen.bytes;
        let state = match seen.tcp_flags {
            Some(mut flags) => {
                if let Some(numbers) = seen.numbers {
                    flags = entry.flow.progress.heed(direction, flags, numbers);
                }
                entry.flow.state.next(direction, flags)
            }
            None => entry.flow.state,
        };
        entry.flow.last_seen = entry.flow.last_seen.max(now);
        let changed = state != entry.flow.state;
        let unsaved = now.0.saturating_sub(entry.saved.0);
        let stale = unsaved > CLASS_TIMEOUTS[entry.class] / SAVE_FRACTION;
        entry.flow.state = state;
        let class = entry.flow.class();
        if changed || self.lists[class].newest != index {
            self.unlink(index);
            self.append(index, class);
        }
        if changed || stale {
            self.mark(index);
        }
    }

    /// Takes over what plugins wrote.
    pub(crate) fn remember(&mut self, index: u32, memory: &Memory, changed: Slots) {
        if self.entries[index as usize].flow.memory.merge(memory, changed) {
            self.mark(index);
        }
    }

    /// Clears one plugin's memory in every flow.
    pub(crate) fn clear_slot(&mut self, slot: usize) {
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(0) {
            let entry = &mut self.entries[index as usize];
            let translator = entry.flow.translator.is_some_and(|t| usize::from(t.slot) == slot);
            if translator {
                entry.flow.translator = None;
            }
            if entry.flow.memory.clear(slot) || translator {
                self.mark(index);
            }
        }
    }

    /// One flow whose time has come.
    pub(crate) fn expired(&self, now: Timestamp) -> Option<u32> {
        let oldest = self.lists.iter().map(|l| l.oldest);
        oldest.filter(|i| *i != NIL).find(|i| self.flow(*i).expires() <= now)
    }

    fn longest_idle(&self) -> Option<u32> {
        let oldest = self.lists.iter().map(|l| l.oldest).filter(|i| *i != NIL);
        oldest.min_by_key(|i| self.flow(*i).last_seen)
    }

    /// Gives every place that changed since the last call, with the flow if one is there.
    pub(crate) fn drain_dirty(&mut self, emit: &mut dyn FnMut(u32, Option<&Flow>)) {
        for index in self.dirty.drain(..) {
            let Some(entry) = self.entries.get_mut(index as usize) else {
                emit(index, None);
                continue;
            };
            entry.dirty = false;
            entry.saved = entry.flow.last_seen;
            emit(index, entry.used.then_some(&entry.flow));
        }
    }

    #[inline]
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Has the place written again, or erased if nothing is there.
    pub(crate) fn mark(&mut self, index: u32) {
        match self.entries.get_mut(index as usize) {
            Some(entry) if entry.dirty => {}
            Some(entry) => {
                entry.dirty = true;
                self.dirty.push(index);
            }
            None => self.dirty.push(index),
        }
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.entries.iter().filter(|e| e.used).map(|e| &e.flow)
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    fn append(&mut self, index: u32, class: usize) {
        let newest = self.lists[class].newest;
        if newest == NIL {
            self.lists[class].oldest = index;
        } else {
            self.entries[newest as usize].newer = index;
        }
        self.lists[class].newest = index;
        let entry = &mut self.entries[index as usize];
        (entry.class, entry.older, entry.newer) = (class, newest, NIL);
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (older, newer) = (entry.older, entry.newer);
        let list = &mut self.lists[entry.class];
        if list.oldest == index {
            list.oldest = newer;
        }
        if list.newest == index {
            list.newest = older;
        }
        if older != NIL {
            self.entries[older as usize].newer = newer;
        }
        if newer != NIL {
            self.entries[newer as usize].older = older;
        }
    }
}

/// What one packet adds to its flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) packets: u32,
    pub(crate) bytes: u64,
    /// `None` if the packet says nothing of the flow's state: a later fragment.
    pub(crate) tcp_flags: Option<u8>,
    /// `None` if it has no TCP header.
    pub(crate) numbers: Option<Numbers>,
}
