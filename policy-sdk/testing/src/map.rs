//! The plugin's map in memory, in virtual time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_abi::{BUCKETS_MAX, Draw, MAP_KEY_MAX, MAP_VALUE_MAX};
use weft_model::Timestamp;
use weft_policy_sdk::{HostCalls, Level, MapError};

/// A map that several [`crate::NativePlugin`]s can share, as workers do. Clones are the same map.
#[derive(Clone, Debug, Default)]
pub struct NativeMap(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<Timestamp>)>,
    capacity: usize,
    now: Timestamp,
    log: Vec<(Level, String)>,
}

impl NativeMap {
    /// Entries held at the time of the last packet.
    #[must_use]
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.entries.values().filter(|(_, end)| end.is_none_or(|at| inner.now < at)).count()
    }

    /// True if nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines that were logged, oldest first.
    #[must_use]
    pub fn log_lines(&self) -> Vec<(Level, String)> {
        self.lock().log.clone()
    }

    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.lock().capacity = capacity;
    }

    pub(crate) fn set_now(&self, now: Timestamp) {
        self.lock().now = now;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (value, end) = self.entries.get(key)?;
        end.is_none_or(|at| self.now < at).then_some(value.as_slice())
    }

    fn put(&mut self, key: &[u8], value: &[u8], end: Option<Timestamp>) -> Result<(), MapError> {
        if key.is_empty() || key.len() > MAP_KEY_MAX || value.len() > MAP_VALUE_MAX {
            return Err(MapError::TooLong);
        }
        if !self.entries.contains_key(key) && self.entries.len() >= self.capacity {
            let now = self.now;
            self.entries.retain(|_, (_, end)| end.is_none_or(|at| now < at));
            if self.entries.len() >= self.capacity {
                return Err(MapError::Full);
            }
        }
        self.entries.insert(key.to_vec(), (value.to_vec(), end));
        Ok(())
    }

    /// The ABI counts in milliseconds, rounded up.
    fn end(&self, ttl: Option<Duration>) -> Option<Timestamp> {
        let millis = |t: Duration| u64::try_from(t.as_nanos().div_ceil(1_000_000).max(1));
        let rounded = |t| Duration::from_millis(millis(t).unwrap_or(u64::MAX / 1_000_000));
        ttl.map(|ttl| self.now + rounded(ttl))
    }

    fn take(&mut self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError> {
        if draws.is_empty() || draws.len() > BUCKETS_MAX {
            return Err(MapError::TooLong);
        }
        let held = self.get(key).filter(|value| value.len() == 8 * draws.len());
        let mut buckets = held.map_or_else(|| vec![0; 8 * draws.len()], <[u8]>::to_vec);
        let mut full = self.now;
        for (bucket, draw) in buckets.as_chunks_mut::<8>().0.iter_mut().zip(draws) {
            let Some(next) = draw.take(u64::from_le_bytes(*bucket), self.now.0) else {
                return Ok(false);
            };
            *bucket = next.to_le_bytes();
            full = full.max(Timestamp(next));
        }
        self.put(key, &buckets, Some(full)).map(|()| true)
    }
}

impl HostCalls for NativeMap {
    fn log(&self, level: Level, line: &str) {
        self.lock().log.push((level, line.to_owned()));
    }

    fn map_get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().get(key).map(<[u8]>::to_vec)
    }

    fn map_put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<(), MapError> {
        let mut inner = self.lock();
        let end = inner.end(ttl);
        inner.put(key, value, end)
    }

    fn map_swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, MapError> {
        let mut inner = self.lock();
        if inner.get(key).unwrap_or_default() != old {
            return Ok(false);
        }
        let end = inner.end(ttl);
        inner.put(key, new, end).map(|()| true)
    }

    fn map_take(&self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError> {
        self.lock().take(key, draws)
    }

    fn map_remove(&self, key: &[u8]) -> bool {
        let mut inner = self.lock();
        let live = inner.get(key).is_some();
        inner.entries.remove(key);
        live
    }
}
