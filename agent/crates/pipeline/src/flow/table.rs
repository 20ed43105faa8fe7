//! The flow table: shared by all workers, bounded, found by either tuple.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use weft_model::Timestamp;

use super::fragments::{FragmentId, Fragments};
use super::key::{FlowKey, HashSeed, fold};
use super::memory::{Memory, SlotOwners, Slots};
use super::record::{self, RECORD_LEN, RecordError};
use super::sequence::Progress;
use super::shard::{Alias, Flow, FlowId, Seen, Shard, Traffic, Translator};
use super::state::{Direction, FlowState};

/// Shards at most: one bit each in a word.
const SHARDS_MAX: usize = 64;
/// First of the source ports to try, and how many: above Linux's range for its own sockets.
const PORTS_FIRST: (u16, u16) = (61_000, 4_536);
/// Then: all but those of well-known services.
const PORTS: (u16, u16) = (1_024, 64_512);
/// Ports tried of each.
const PORT_TRIES: usize = 32;
/// Flows that make another shard worth while.
const SHARD_LEN_MIN: usize = 1024;

/// Flows of all workers.
///
/// A flow lives in the shard of its original tuple; both directions of an untranslated flow hash
/// alike. A translated flow has an [`Alias`] in the shard of its reply tuple.
///
/// INVARIANT: no two flows share a tuple, be it original or reply.
/// INVARIANT: no thread waits for a shard while it holds another of a higher number.
pub struct FlowTable {
    shards: Box<[Mutex<Shard>]>,
    shard_len: u32,
    seed: HashSeed,
    owners: SlotOwners,
    fragments: Mutex<Fragments>,
    len: AtomicUsize,
    evicted: AtomicU64,
    dirty_shards: AtomicU64,
    next_expiry: AtomicU64,
}

/// A flow that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) id: FlowId,
    pub(crate) direction: Direction,
    /// What the packet's tuple must become.
    pub(crate) target: FlowKey,
    pub(crate) translator: Option<Translator>,
}

/// Two flows would share a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clash;

/// A flow to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewFlow<'a> {
    pub(crate) original: FlowKey,
    /// What the first packet's tuple became.
    pub(crate) target: FlowKey,
    pub(crate) translator: Option<Translator>,
    pub(crate) memory: &'a Memory,
    pub(crate) seen: Seen,
}

/// A flow as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// As the first packet was sent.
    pub original: FlowKey,
    /// As answers are sent; differs from `original` reversed only under translation.
    pub reply: FlowKey,
    /// How far it has come.
    pub state: FlowState,
    /// When it is forgotten if it stays silent.
    pub expires: Timestamp,
    /// Counted by direction: original, reply.
    pub traffic: [Traffic; 2],
}

impl FlowTable {
    /// A table for `capacity` flows, rounded up to a multiple of the number of shards, at least
    /// one and at most 2^31. `seed` must be random: it keeps strangers from choosing colliding
    /// tuples. Memory is taken as flows come, about 500 bytes each.
    #[must_use]
    pub fn new(capacity: usize, seed: u64) -> Self {
        let wanted = (capacity / SHARD_LEN_MIN).clamp(1, SHARDS_MAX);
        let count = if wanted.is_power_of_two() { wanted } else { wanted.next_power_of_two() / 2 };
        Self::with_shards(capacity, count, seed)
    }

    /// `count` is a power of two, at most [`SHARDS_MAX`].
    fn with_shards(capacity: usize, count: usize, seed: u64) -> Self {
        let capacity = capacity.clamp(1, 1 << 31);
        let shard_len = u32::try_from(capacity.div_ceil(count)).unwrap_or(1);
        let seed = HashSeed::new(seed);
        let numbers = 0..u16::try_from(count).unwrap_or(1);
        Self {
            shards: numbers.map(|n| Mutex::new(Shard::new(n, shard_len, seed))).collect(),
            shard_len,
            seed,
            owners: SlotOwners::new(),
            fragments: Mutex::default(),
            len: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            dirty_shards: AtomicU64::new(0),
            next_expiry: AtomicU64::new(0),
        }
    }

    /// Flows that fit; also the number of records.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shards.len() * self.shard_len as usize
    }

    /// Flows in the table, those not yet swept included.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// True if no flow is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows that gave way to others since the table was made. When a shard is full, its flow that
    /// was silent for longest goes; expired ones go first and are not counted.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Which direction of a live flow a packet with this tuple is of; `None` if of no flow.
    #[must_use]
    #[inline]
    pub fn direction_of(&self, key: &FlowKey, now: Timestamp) -> Option<Direction> {
        self.find(key, false, now, None).map(|found| found.direction)
    }

    /// True if what answers a packet with that tuple is of a live flow.
    pub(crate) fn is_taken(&self, key: &FlowKey, now: Timestamp) -> bool {
        self.find(&key.reversed(), false, now, None).is_some()
    }

    /// The tuple with a source port whose answers are of no flow; not to be guessed from outside.
    /// `None` if none was found. Ports that hosts do not take for themselves come first.
    pub(crate) fn with_free_source_port(&self, key: FlowKey, now: Timestamp) -> Option<FlowKey> {
        let mut random = key.hash(&self.seed) ^ now.0;
        let ranges = std::iter::repeat_n(PORTS_FIRST, PORT_TRIES).chain([PORTS; PORT_TRIES]);
        for (from, count) in ranges {
            random = fold(random ^ self.seed.word(), 0x9e37_79b9_7f4a_7c15);
            let port = from + u16::try_from(random % u64::from(count)).unwrap_or(0);
            let tried = key.with_source_port(port)?;
            if !self.is_taken(&tried, now) {
                return Some(tried);
            }
        }
        None
    }

    /// Looks a packet's tuple up. `opening`: it opens a TCP connection, so that one that is over
    /// with the same ports is forgotten. `memory` is filled if there is a flow: with what it holds
    /// for the plugins that have a bit.
    #[inline]
    pub(crate) fn find(
        &self,
        key: &FlowKey,
        opening: bool,
        now: Timestamp,
        memory: Option<(&mut Memory, Slots)>,
    ) -> Option<Found> {
        let hash = key.hash(&self.seed);
        let number = self.shard_of(hash);
        let shard = self.shards[number].lock();
        if let Some(index) = shard.find(hash, key) {
            return self.found(shard, index, key, opening, now, memory);
        }
        let alias = shard.find_alias(hash, key)?;
        drop(shard);
        let home = self.shards[usize::from(alias.home.shard)].lock();
        if !home.is_live(alias.home) {
            return None;
        }
        self.found(home, alias.home.index, key, opening, now, memory)
    }

    #[inline]
    fn found(
        &self,
        mut shard: parking_lot::MutexGuard<'_, Shard>,
        index: u32,
        key: &FlowKey,
        opening: bool,
        now: Timestamp,
        memory: Option<(&mut Memory, Slots)>,
    ) -> Option<Found> {
        let flow = shard.flow(index);
        if flow.expires() <= now || (opening && flow.state.is_over()) {
            let removed = shard.remove(index);
            self.note(&shard);
            drop(shard);
            self.forget(removed);
            return None;
        }
        let (direction, target) = if flow.original == *key {
            (Direction::Original, flow.reply.reversed())
        } else {
            (Direction::Reply, flow.original.reversed())
        };
        if let Some((memory, wanted)) = memory {
            memory.copy(&flow.memory, wanted);
        }
        let translator = flow.translator;
        Some(Found { id: shard.id(index), direction, target, translator })
    }

    /// Counts a packet of a flow that was found, and keeps what plugins wrote: `changed` has a bit
    /// for each plugin slot to take over from `memory`. Nothing happens if the flow is gone.
    #[inline]
    pub(crate) fn commit(
        &self,
        found: &Found,
        seen: Seen,
        memory: &Memory,
        changed: Slots,
        now: Timestamp,
    ) {
        let mut shard = self.shards[usize::from(found.id.shard)].lock();
        if !shard.is_live(found.id) {
            return;
        }
        shard.touch(found.id.index, found.direction, seen, now);
        if changed != 0 {
            shard.remember(found.id.index, memory, changed);
        }
        self.note(&shard);
    }

    /// Keeps what plugins wrote though the packet went no further.
    pub(crate) fn remember(&self, found: &Found, memory: &Memory, changed: Slots) {
        let mut shard = self.shards[usize::from(found.id.shard)].lock();
        if changed != 0 && shard.is_live(found.id) {
            shard.remember(found.id.index, memory, changed);
            self.note(&shard);
        }
    }

    /// Makes a flow. If another worker just made the same one, the packet counts for that.
    ///
    /// # Errors
    /// [`Clash`] if another flow has one of its tuples.
    pub(crate) fn insert(&self, new: &NewFlow<'_>, now: Timestamp) -> Result<(), Clash> {
        let protocol = new.original.protocol();
        let flags = new.seen.tcp_flags.unwrap_or(0);
        let mut progress = Progress::default();
        if let Some(numbers) = new.seen.numbers {
            progress.heed(Direction::Original, flags, numbers);
        }
        let mut flow = Flow {
            original: new.original,
            reply: new.target.reversed(),
            state: FlowState::first(protocol, flags),
            progress,
            translator: new.translator,
            created: now,
            last_seen: now,
            traffic: [Traffic::default(); 2],
            memory: *new.memory,
        };
        flow.traffic[0].packets = u64::from(new.seen.packets);
        flow.traffic[0].bytes = new.seen.bytes;
        match self.add(&flow, now) {
            Ok(_) => Ok(()),
            Err(holder) => self.join(holder, &flow, new, now),
        }
    }

    /// Another flow holds a tuple: the same one, made by another worker?
    fn join(
        &self,
        holder: Option<FlowId>,
        flow: &Flow,
        new: &NewFlow<'_>,
        now: Timestamp,
    ) -> Result<(), Clash> {
        let Some(id) = holder else { return Err(Clash) };
        let mut shard = self.shards[usize::from(id.shard)].lock();
        if !shard.is_live(id) {
            return Err(Clash);
        }
        let held = shard.flow(id.index);
        if held.original != flow.original || held.reply != flow.reply {
            return Err(Clash);
        }
        shard.touch(id.index, Direction::Original, new.seen, now);
        self.note(&shard);
        Ok(())
    }

    /// Replaces the translation of a flow. A flow whose new tuple clashes is forgotten.
    ///
    /// # Errors
    /// [`Clash`] if another flow has its new reply tuple.
    pub(crate) fn retarget(
        &self,
        found: &Found,
        target: FlowKey,
        translator: Option<Translator>,
        now: Timestamp,
    ) -> Result<Found, Clash> {
        let mut shard = self.shards[usize::from(found.id.shard)].lock();
        if !shard.is_live(found.id) {
            return Err(Clash);
        }
        let removed = shard.remove(found.id.index);
        self.note(&shard);
        drop(shard);
        let mut flow = removed.1.clone();
        self.forget(removed);
        flow.reply = target.reversed();
        flow.translator = translator;
        let id = self.add(&flow, now).map_err(|_| Clash)?;
        Ok(Found { id, target, translator, ..*found })
    }

    /// Adds a flow; else says which flow holds one of its tuples, if that is known.
    fn add(&self, flow: &Flow, now: Timestamp) -> Result<FlowId, Option<FlowId>> {
        loop {
            match self.try_add(flow, now) {
                // Its home is in a shard that was not swept.
                Err(Some(holder)) if self.remove_expired(holder, now) => {}
                result => return result,
            }
        }
    }

    fn remove_expired(&self, id: FlowId, now: Timestamp) -> bool {
        let mut shard = self.shards[usize::from(id.shard)].lock();
        if !shard.is_live(id) || shard.flow(id.index).expires() > now {
            return false;
        }
        let removed = shard.remove(id.index);
        self.note(&shard);
        drop(shard);
        self.forget(removed);
        true
    }

    fn try_add(&self, flow: &Flow, now: Timestamp) -> Result<FlowId, Option<FlowId>> {
        let home_hash = flow.original.hash(&self.seed);
        let home = self.shard_of(home_hash);
        self.expire_shard(home, now);
        if !flow.is_translated() {
            return self.add_plain(flow, home, home_hash);
        }
        if flow.original == flow.reply {
            return Err(None);
        }
        let reply_hash = flow.reply.hash(&self.seed);
        let other = self.shard_of(reply_hash);
        if other != home {
            self.expire_shard(other, now);
        }
        let (mut low, mut high) = if home == other {
            (self.shards[home].lock(), None)
        } else {
            let low = self.shards[home.min(other)].lock();
            (low, Some(self.shards[home.max(other)].lock()))
        };
        let home_first = home <= other;
        let (home_shard, other_shard) = match (&mut high, home_first) {
            (None, _) => (&mut *low, None),
            (Some(high), true) => (&mut *low, Some(&mut **high)),
            (Some(high), false) => (&mut **high, Some(&mut *low)),
        };
        if let Some(holder) = self.holder(home_shard, home_hash, &flow.original) {
            return Err(Some(holder));
        }
        let reply_shard = other_shard.as_deref().unwrap_or(home_shard);
        if let Some(holder) = self.holder(reply_shard, reply_hash, &flow.reply) {
            return Err(Some(holder));
        }
        let (id, evicted) = home_shard.insert(home_hash, flow.clone());
        self.note(home_shard);
        let reply_shard = other_shard.unwrap_or(home_shard);
        reply_shard.add_alias(reply_hash, Alias { reply: flow.reply, home: id });
        drop((low, high));
        self.added(evicted);
        Ok(id)
    }

    fn add_plain(&self, flow: &Flow, home: usize, hash: u64) -> Result<FlowId, Option<FlowId>> {
        let mut shard = self.shards[home].lock();
        let holder = [flow.original, flow.reply].iter().find_map(|k| self.holder(&shard, hash, k));
        if holder.is_some() {
            return Err(holder);
        }
        let (id, evicted) = shard.insert(hash, flow.clone());
        self.note(&shard);
        drop(shard);
        self.added(evicted);
        Ok(id)
    }

    /// The flow one of whose tuples is `key`.
    fn holder(&self, shard: &Shard, hash: u64, key: &FlowKey) -> Option<FlowId> {
        let flow = shard.find(hash, key).map(|i| shard.id(i));
        flow.or_else(|| shard.find_alias(hash, key).map(|a| a.home))
    }

    fn added(&self, evicted: Option<(FlowId, Flow)>) {
        self.len.fetch_add(1, Ordering::Relaxed);
        if let Some(evicted) = evicted {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            self.forget(evicted);
        }
    }

    /// Finishes the removal of a flow. No shard may be locked.
    fn forget(&self, (id, flow): (FlowId, Flow)) {
        self.len.fetch_sub(1, Ordering::Relaxed);
        if flow.is_translated() {
            let hash = flow.reply.hash(&self.seed);
            self.shards[self.shard_of(hash)].lock().remove_alias(hash, id);
        }
    }

    fn expire_shard(&self, number: usize, now: Timestamp) {
        loop {
            let mut shard = self.shards[number].lock();
            let Some(index) = shard.expired(now) else { return };
            let removed = shard.remove(index);
            self.note(&shard);
            drop(shard);
            self.forget(removed);
        }
    }

    /// Forgets every flow and fragment whose time has come.
    pub fn expire(&self, now: Timestamp) {
        (0..self.shards.len()).for_each(|n| self.expire_shard(n, now));
        self.fragments.lock().expire(now);
    }

    /// As [`Self::expire`], by one of several callers at most once in `interval`.
    pub(crate) fn expire_each(&self, interval: std::time::Duration, now: Timestamp) {
        let next = self.next_expiry.load(Ordering::Relaxed);
        let after = (now + interval).0;
        let swap =
            || self.next_expiry.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed);
        if now.0 >= next && swap().is_ok() {
            self.expire(now);
        }
    }

    /// Lets later fragments follow a first one.
    pub(crate) fn remember_fragment(&self, id: FragmentId, key: FlowKey, now: Timestamp) {
        self.fragments.lock().remember(id, key, now);
    }

    /// The tuple of the first fragment.
    pub(crate) fn resolve_fragment(&self, id: &FragmentId, now: Timestamp) -> Option<FlowKey> {
        self.fragments.lock().resolve(id, now)
    }

    /// A slot for a plugin of this name, in use until [`Self::release_slot`]; `None` if all are in
    /// use by other names. What flows hold for the name is kept.
    pub(crate) fn acquire_slot(&self, name: &str) -> Option<u8> {
        let acquired = self.owners.acquire(name)?;
        if acquired.recycled {
            for shard in &self.shards {
                let mut shard = shard.lock();
                shard.clear_slot(usize::from(acquired.slot));
                self.note(&shard);
            }
        }
        Some(acquired.slot)
    }

    pub(crate) fn release_slot(&self, slot: u8) {
        self.owners.release(slot);
    }

    /// Gives each record that changed since the last call: index below [`Self::capacity`], and the
    /// record, or `None` if it is free and must be erased. Cheap if nothing changed; any worker may
    /// call it. `store` is called with a shard locked: it must be short and must not call back.
    pub fn take_dirty(&self, store: &mut dyn FnMut(u32, Option<&[u8; RECORD_LEN]>)) {
        if self.dirty_shards.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut shards = self.dirty_shards.swap(0, Ordering::Relaxed);
        let mut bytes = [0; RECORD_LEN];
        while shards != 0 {
            let number = shards.trailing_zeros();
            shards &= shards - 1;
            let Some(shard) = self.shards.get(number as usize) else { continue };
            let base = number * self.shard_len;
            shard.lock().drain_dirty(&mut |index, flow| match flow {
                Some(flow) => {
                    record::encode(flow, &self.owners, &mut bytes);
                    store(base + index, Some(&bytes));
                }
                None => store(base + index, None),
            });
        }
    }

    /// Takes a stored flow back. Call it for every record of the file before any packet and before
    /// [`Self::take_dirty`], which then brings the file in line with the table: flows may have got
    /// other indices, and records that were no flow are erased.
    ///
    /// # Errors
    /// [`RecordError`] if the record is not taken; its index is erased unless it was empty.
    pub fn load(
        &self,
        index: u32,
        record: &[u8; RECORD_LEN],
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let decoded = record::decode(record, &self.owners);
        if decoded != Err(RecordError::Empty) {
            self.mark(index);
        }
        let flow = decoded?;
        // A time to come is from before a reboot.
        if flow.expires() <= now || flow.last_seen > now {
            return Err(RecordError::Expired);
        }
        self.add(&flow, now).map(|_| ()).map_err(|_| RecordError::Clash)
    }

    fn mark(&self, index: u32) {
        if let Some(shard) = self.shards.get((index / self.shard_len) as usize) {
            let mut shard = shard.lock();
            shard.mark(index % self.shard_len);
            self.note(&shard);
        }
    }

    /// Shows every flow, in no order. One shard at a time is locked meanwhile.
    pub fn for_each(&self, now: Timestamp, show: &mut dyn FnMut(&FlowInfo)) {
        for shard in &self.shards {
            for flow in shard.lock().flows().filter(|f| f.expires() > now) {
                show(&FlowInfo {
                    original: flow.original,
                    reply: flow.reply,
                    state: flow.state,
                    expires: flow.expires(),
                    traffic: flow.traffic,
                });
            }
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // a mask is what is wanted
    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }

    #[inline]
    fn note(&self, shard: &Shard) {
        if shard.has_dirty() {
            let bit = 1 << shard.number();
            if self.dirty_shards.load(Ordering::Relaxed) & bit == 0 {
                self.dirty_shards.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

impl std::fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTable")
            .field("capacity", &self.capacity())
            .field("len", &self.len())
            .field("evicted", &self.evicted())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
