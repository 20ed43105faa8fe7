//! Token buckets in a plugin's map.

/// What is taken from one bucket. Tokens are counted as the time that they take to come.
///
/// A bucket is one number: when it will be full again, in nanoseconds since boot. A key of the map
/// holds one number for each bucket, and no entry at all is full buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Draw {
    /// Nanoseconds in which the tokens that are asked for come.
    pub cost: u64,
    /// Nanoseconds in which an empty bucket fills.
    pub depth: u64,
}

impl Draw {
    /// Bytes in the guest's memory: cost 8, depth 8.
    pub const LEN: usize = 16;

    /// Reads the layout; every bit pattern is a draw.
    #[must_use]
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            cost: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            depth: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        }
    }

    /// When the bucket is full again if this is taken at `now`; `None` if it does not hold enough.
    ///
    /// More than a bucket holds is granted when it is full, and paid for afterwards.
    #[must_use]
    #[inline]
    pub fn take(self, full_at: u64, now: u64) -> Option<u64> {
        let full_at = if full_at > now { full_at } else { now };
        let cost = if self.cost < self.depth { self.cost } else { self.depth };
        if (full_at - now).saturating_add(cost) > self.depth {
            return None;
        }
        Some(full_at.saturating_add(self.cost))
    }
}
