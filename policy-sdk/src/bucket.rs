//! A token bucket in the plugin's map.

use crate::{Draw, Map, MapError};

const SECOND: u64 = 1_000_000_000;

/// A token bucket that all workers share, held by the host: taking is one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    rate: u64,
    /// Nanoseconds in which an empty one fills.
    depth: u64,
}

impl TokenBucket {
    /// Fills with `rate` tokens a second, holds `burst`. Both count as 1 if zero.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Self {
        let rate = rate.max(1);
        Self { rate, depth: time(burst.max(1), rate) }
    }

    /// What [`Map::take`] is to take for `tokens`.
    ///
    /// More tokens than the bucket holds are granted when it is full, and paid for afterwards: a
    /// packet larger than the burst is slowed down and not shut out.
    #[must_use]
    pub fn draw(&self, tokens: u64) -> Draw {
        Draw { cost: time(tokens, self.rate), depth: self.depth }
    }

    /// Takes `tokens` from the one bucket `key`. Tells if it could.
    ///
    /// # Errors
    /// [`MapError::Full`] if there is no room for another key.
    pub fn take(&self, map: &Map, key: &[u8], tokens: u64) -> Result<bool, MapError> {
        map.take(key, &[self.draw(tokens)])
    }
}

/// Whole nanoseconds that `tokens` take to come. Not rounded up: a full bucket must hold its burst
/// to the last token.
fn time(tokens: u64, rate: u64) -> u64 {
    // Wide arithmetic is slow in Wasm, and no packet needs it.
    if tokens <= u64::from(u32::MAX) {
        return tokens * SECOND / rate;
    }
    let nanos = u128::from(tokens) * u128::from(SECOND) / u128::from(rate);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
