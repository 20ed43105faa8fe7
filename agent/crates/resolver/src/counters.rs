//! What became of queries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What became of queries, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answered from what the cluster has.
    pub cluster: AtomicU64,
    /// Answered by other servers, or from the cache of their answers.
    pub outside: AtomicU64,
    /// How many of the latter were answered at once, from the cache.
    pub cached: AtomicU64,
    /// Other servers did not answer.
    pub failed: AtomicU64,
    /// Too many were waiting, or the client asked too often.
    pub refused: AtomicU64,
    /// Whoever asked may not.
    pub strangers: AtomicU64,
    /// How long other servers took, caches and failures counted in.
    pub took: Latency,
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Latency {
    /// Those of at most [`Latency::BOUNDS`], and longer ones.
    counts: [AtomicU64; Latency::BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Latency {
    /// Upper bounds, in milliseconds.
    pub const BOUNDS: [u64; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];

    pub(crate) fn add(&self, took: Duration) {
        let index = Self::BOUNDS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(count) = self.counts.get(index.unwrap_or(Self::BOUNDS.len())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many took at most each bound, and how many there were.
    #[must_use]
    pub fn up_to(&self) -> ([u64; Self::BOUNDS.len()], u64) {
        let mut sum = 0;
        let mut next = |count: &AtomicU64| {
            sum += count.load(Ordering::Relaxed);
            sum
        };
        let mut counts = self.counts.iter();
        let up_to = std::array::from_fn(|_| counts.next().map_or(0, &mut next));
        let all = counts.next().map_or(0, next);
        (up_to, all)
    }

    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_their_bounds() {
        let latency = Latency::default();
        for millis in [1, 3, 3, 2000, 9000] {
            latency.add(Duration::from_millis(millis));
        }
        let (up_to, all) = latency.up_to();
        assert_eq!(up_to, [1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!((all, latency.sum()), (5, Duration::from_millis(11_007)));
    }
}
