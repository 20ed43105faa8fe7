//! A plugin's key-value map: bounded, with an expiry for each entry, shared by all workers.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use weft_abi::{BUCKETS_MAX, Draw, MAP_KEY_MAX, MAP_VALUE_MAX};
use weft_model::Timestamp;

const SHARDS: usize = 16;

/// Entries looked at for one that has expired before a put into a full map is refused.
const SWEEP_MAX: usize = 64;

/// Why nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The map holds as many entries as the manifest asked for.
    #[error("the map is full")]
    Full,
    /// Key over 64 or value over 256 bytes, an empty key, no bucket or over 4.
    #[error("key or value is too long")]
    TooLong,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    key: Box<[u8]>,
    value: Box<[u8]>,
    expires: Option<Timestamp>,
}

impl Entry {
    fn is_live(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|at| now < at)
    }
}

#[derive(Debug, Default)]
struct Shard(HashTable<Entry>);

impl Shard {
    #[inline]
    fn get(&self, key: &Key<'_>, now: Timestamp) -> Option<&Entry> {
        self.0.find(key.hash, |e| *e.key == *key.bytes).filter(|e| e.is_live(now))
    }

    /// Expired or not.
    #[inline]
    fn get_mut(&mut self, key: &Key<'_>) -> Option<&mut Entry> {
        self.0.find_mut(key.hash, |e| *e.key == *key.bytes)
    }

    fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Entry> {
        let entry = self.0.find_entry(hash, |e| *e.key == *key).ok()?;
        Some(entry.remove().0)
    }
}

/// A key with its hash, which is computed once.
struct Key<'a> {
    hash: u64,
    bytes: &'a [u8],
}

/// The map. An operation locks one shard for its own time.
#[derive(Debug)]
pub struct SharedMap {
    shards: Box<[Mutex<Shard>]>,
    /// Seeded at random: keys are made of what strangers send.
    hasher: DefaultHashBuilder,
    /// Entries in all shards, expired ones that were not yet met included.
    entries: AtomicUsize,
    capacity: AtomicUsize,
}

impl SharedMap {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            entries: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
        }
    }

    /// Entries at most. If there are more, they stay and no new ones come in.
    pub(crate) fn set_capacity(&self, entries: usize) {
        self.capacity.store(entries, Ordering::Relaxed);
    }

    /// Entries held, expired ones that were not yet met included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// True if nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows the value of `key` to `read`, if there is one.
    pub fn get<R>(&self, key: &[u8], now: Timestamp, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let (key, shard) = self.shard(key);
        shard.get(&key, now).map(|e| read(&e.value))
    }

    /// Stores a value, for `ttl` if given.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    pub fn put(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
        now: Timestamp,
    ) -> Result<(), MapError> {
        check(key, value)?;
        let (key, mut shard) = self.shard(key);
        self.store(&mut shard, &key, value, ttl.map(|ttl| now + ttl), now)
    }

    /// Stores `new` if the value is `old`, or if there is none and `old` is empty. Tells if it did.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    pub fn swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
        now: Timestamp,
    ) -> Result<bool, MapError> {
        check(key, new)?;
        let (key, mut shard) = self.shard(key);
        let current = shard.get(&key, now).map(|e| e.value.as_ref());
        if current.unwrap_or_default() != old {
            return Ok(false);
        }
        self.store(&mut shard, &key, new, ttl.map(|ttl| now + ttl), now).map(|()| true)
    }

    /// Takes tokens from each bucket of `key`, or from none. Tells if it could.
    ///
    /// # Errors
    /// [`MapError`]; nothing is taken then.
    pub fn take(&self, key: &[u8], draws: &[Draw], now: Timestamp) -> Result<bool, MapError> {
        check(key, &[])?;
        if !(1..=BUCKETS_MAX).contains(&draws.len()) {
            return Err(MapError::TooLong);
        }
        let (key, mut shard) = self.shard(key);
        // What has expired is full, as zero is.
        let held = shard.get_mut(&key).filter(|e| e.value.len() == 8 * draws.len());
        if let Some(entry) = held {
            let (buckets, _) = entry.value.as_chunks_mut::<8>();
            let Some(full) = draw_each(buckets, draws, now) else { return Ok(false) };
            entry.expires = Some(full);
            return Ok(true);
        }
        let mut buckets = [[0; 8]; BUCKETS_MAX];
        let buckets = buckets.get_mut(..draws.len()).unwrap_or_default();
        let Some(full) = draw_each(buckets, draws, now) else { return Ok(false) };
        self.store(&mut shard, &key, buckets.as_flattened(), Some(full), now).map(|()| true)
    }

    /// Removes a value; tells if there was one.
    pub fn remove(&self, key: &[u8], now: Timestamp) -> bool {
        let (key, mut shard) = self.shard(key);
        let removed = shard.remove(key.hash, key.bytes);
        if removed.is_some() {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
        removed.is_some_and(|e| e.is_live(now))
    }

    #[inline]
    fn store(
        &self,
        shard: &mut Shard,
        key: &Key<'_>,
        value: &[u8],
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), MapError> {
        let Some(entry) = shard.get_mut(key) else {
            self.reserve(shard, now)?;
            let (hash, key) = (key.hash, key.bytes.into());
            let entry = Entry { hash, key, value: value.into(), expires };
            shard.0.insert_unique(hash, entry, |e| e.hash);
            return Ok(());
        };
        entry.expires = expires;
        if entry.value.len() == value.len() {
            entry.value.copy_from_slice(value);
        } else {
            entry.value = value.into();
        }
        Ok(())
    }

    /// Counts one entry more, in place of an expired one if the map is full.
    fn reserve(&self, shard: &mut Shard, now: Timestamp) -> Result<(), MapError> {
        let capacity = self.capacity.load(Ordering::Relaxed);
        let more = |n| (n < capacity).then_some(n + 1);
        if self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            return Ok(());
        }
        let expired = shard.0.iter().take(SWEEP_MAX).find(|e| !e.is_live(now));
        let (hash, key) = expired.map(|e| (e.hash, e.key.clone())).ok_or(MapError::Full)?;
        shard.remove(hash, &key);
        Ok(())
    }

    /// Drops every expired entry. Called off the data path.
    pub fn expire(&self, now: Timestamp) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let before = shard.0.len();
            shard.0.retain(|e| e.is_live(now));
            self.entries.fetch_sub(before - shard.0.len(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn shard<'k>(&self, bytes: &'k [u8]) -> (Key<'k>, MutexGuard<'_, Shard>) {
        let hash = self.hasher.hash_one(bytes);
        // The table uses the lowest and the highest bits.
        let index = usize::try_from((hash >> 32) % SHARDS as u64).unwrap_or(0);
        (Key { hash, bytes }, lock(&self.shards[index]))
    }
}

/// A worker that panicked leaves whole entries behind: no step between two of them can.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes each draw from its bucket and says when all are full again; `None`, and nothing is taken,
/// if one does not hold enough.
#[inline]
fn draw_each(buckets: &mut [[u8; 8]], draws: &[Draw], now: Timestamp) -> Option<Timestamp> {
    let mut full_at = [0; BUCKETS_MAX];
    for ((bucket, draw), full_at) in buckets.iter().zip(draws).zip(&mut full_at) {
        *full_at = draw.take(u64::from_le_bytes(*bucket), now.0)?;
    }
    for (bucket, full_at) in buckets.iter_mut().zip(full_at) {
        *bucket = full_at.to_le_bytes();
    }
    Some(Timestamp(full_at.into_iter().max().unwrap_or(now.0)))
}

fn check(key: &[u8], value: &[u8]) -> Result<(), MapError> {
    let fits = (1..=MAP_KEY_MAX).contains(&key.len()) && value.len() <= MAP_VALUE_MAX;
    if fits { Ok(()) } else { Err(MapError::TooLong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn map(entries: usize) -> SharedMap {
        let map = SharedMap::new();
        map.set_capacity(entries);
        map
    }

    fn value(map: &SharedMap, key: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        map.get(key, now, <[u8]>::to_vec)
    }

    #[test]
    fn value_is_there_until_its_time() {
        let map = map(10);
        map.put(b"k", b"v", Some(MINUTE), T0).unwrap();
        assert_eq!(value(&map, b"k", T0), Some(b"v".to_vec()));
        assert_eq!(value(&map, b"k", T0 + MINUTE), None);
        map.put(b"k", b"longer", None, T0).unwrap();
        assert_eq!(value(&map, b"k", T0 + MINUTE), Some(b"longer".to_vec()));
        assert!(map.remove(b"k", T0));
        assert!(!map.remove(b"k", T0));
        assert!(map.is_empty());
    }

    #[test]
    fn full_map_takes_nothing_new_until_something_expires() {
        let map = map(100);
        for i in 0..100u8 {
            map.put(&[i], b"v", Some(MINUTE), T0).unwrap();
        }
        assert_eq!(map.put(b"new", b"v", None, T0), Err(MapError::Full));
        map.put(&[7], b"w", Some(MINUTE), T0).unwrap();
        map.expire(T0 + MINUTE);
        assert!(map.is_empty());
        map.put(b"new", b"v", None, T0 + MINUTE).unwrap();
    }

    #[test]
    fn swap_stores_only_over_the_value_it_was_told() {
        let map = map(10);
        assert_eq!(map.swap(b"k", b"", b"1", None, T0), Ok(true));
        assert_eq!(map.swap(b"k", b"", b"2", None, T0), Ok(false));
        assert_eq!(map.swap(b"k", b"1", b"2", None, T0), Ok(true));
        assert_eq!(value(&map, b"k", T0), Some(b"2".to_vec()));
    }

    #[test]
    fn long_keys_and_values_are_refused() {
        let map = map(10);
        assert_eq!(map.put(&[0; 65], b"", None, T0), Err(MapError::TooLong));
        assert_eq!(map.put(b"", b"", None, T0), Err(MapError::TooLong));
        assert_eq!(map.put(&[0; 64], &[0; 257], None, T0), Err(MapError::TooLong));
        assert_eq!(map.put(&[0; 64], &[0; 256], None, T0), Ok(()));
    }

    #[test]
    fn buckets_of_a_key_are_drawn_from_together_or_not_at_all() {
        let map = map(1);
        let nanos = |n| Timestamp(T0.0 + n);
        let draws = [Draw { cost: 10, depth: 30 }, Draw { cost: 10, depth: 20 }];
        assert_eq!(map.take(b"k", &draws, T0), Ok(true));
        assert_eq!(map.take(b"k", &draws, T0), Ok(true));
        assert_eq!(map.take(b"k", &draws, T0), Ok(false), "the second holds two");
        assert_eq!(map.take(b"k", &draws, nanos(10)), Ok(true), "the first was not drawn from");
        assert_eq!(map.take(b"k", &draws[..1], nanos(10)), Ok(true), "others: full ones");
        assert_eq!(map.take(b"other", &draws, nanos(19)), Err(MapError::Full));
        assert_eq!(map.take(b"k", &[], T0), Err(MapError::TooLong));
        assert_eq!(map.take(b"k", &[draws[0]; 5], T0), Err(MapError::TooLong));
        map.expire(nanos(20));
        assert!(map.is_empty(), "full buckets take no room");
    }

    #[test]
    fn more_than_a_bucket_holds_is_paid_for_afterwards() {
        let map = map(1);
        let draw = [Draw { cost: 100, depth: 10 }];
        let at = |n| map.take(b"k", &draw, Timestamp(T0.0 + n));
        assert_eq!((at(0), at(99), at(100)), (Ok(true), Ok(false), Ok(true)));
    }

    #[test]
    fn counting_by_swap_from_many_threads_loses_nothing() {
        let map = map(1);
        let add = || {
            for _ in 0..1000 {
                loop {
                    let old = value(&map, b"n", T0).unwrap_or_default();
                    let n = <[u8; 8]>::try_from(&old[..]).map_or(0, u64::from_le_bytes);
                    if map.swap(b"n", &old, &(n + 1).to_le_bytes(), None, T0).unwrap() {
                        break;
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(add))));
        assert_eq!(value(&map, b"n", T0), Some(4000u64.to_le_bytes().to_vec()));
    }
}
