//! A token bucket in the plugin's map.

use std::time::Duration;

use crate::{Map, MapError};

/// Tries before a bucket that other workers keep changing counts as empty.
const TRIES: usize = 16;

const SECOND: u128 = 1_000_000_000;

/// A token bucket that all workers share.
///
/// The map holds one number for each key: the time at which the bucket will be full again. An entry
/// goes when that time has come, so only keys that are in use take room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    rate: u64,
    burst: u64,
}

impl TokenBucket {
    /// Fills with `rate` tokens a second, holds `burst`. Both count as 1 if zero.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Self {
        Self { rate: rate.max(1), burst: burst.max(1) }
    }

    /// Takes `tokens` from the bucket `key`, at `now` nanoseconds. Tells if it could.
    ///
    /// More tokens than the bucket holds are granted when it is full, and paid for afterwards: a
    /// packet larger than the burst is slowed down and not shut out.
    ///
    /// # Errors
    /// [`MapError::Full`] if there is no room for another key.
    pub fn take(&self, map: &Map, key: &[u8], tokens: u64, now: u64) -> Result<bool, MapError> {
        // A full bucket must hold its burst to the last token, so no cost is rounded up.
        let cost = self.time(tokens);
        let depth = self.time(self.burst);
        for _ in 0..TRIES {
            let stored = map.get(key);
            let old = stored.as_deref().unwrap_or_default();
            let full_at = <[u8; 8]>::try_from(old).map_or(now, u64::from_le_bytes).max(now);
            if (full_at - now).saturating_add(cost.min(depth)) > depth {
                return Ok(false);
            }
            let next = full_at.saturating_add(cost);
            let ttl = Duration::from_nanos(next - now);
            if map.swap(key, old, &next.to_le_bytes(), Some(ttl))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whole nanoseconds that `tokens` take to come.
    fn time(&self, tokens: u64) -> u64 {
        let nanos = u128::from(tokens) * SECOND / u128::from(self.rate);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}
