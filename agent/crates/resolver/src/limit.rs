//! How often clients may ask over connections. Datagrams are counted in the packets' way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;
use weft_policy_sdk::TokenBucket;

/// Clients that are remembered before those that have not asked of late are forgotten.
const CLIENTS_MAX: usize = 1024;

/// When the bucket of each client will be full again, in nanoseconds since the start.
pub(crate) struct Limits {
    start: Instant,
    full_at: Mutex<HashMap<IpAddr, u64>>,
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), full_at: Mutex::default() }
    }

    /// Counts a query; true if it is one too many.
    pub(crate) fn is_over(&self, limit: TokenBucket, client: IpAddr) -> bool {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.is_over_at(limit, client, now)
    }

    fn is_over_at(&self, limit: TokenBucket, client: IpAddr, now: u64) -> bool {
        let mut all = self.full_at.lock();
        if all.len() >= CLIENTS_MAX {
            all.retain(|_, full_at| *full_at > now);
        }
        let full_at = all.entry(client).or_default();
        match limit.draw(1).take(*full_at, now) {
            Some(later) => {
                *full_at = later;
                false
            }
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DNS-131.
    #[test]
    fn each_client_has_its_own_limit() {
        let limits = Limits::new();
        let limit = TokenBucket::new(2, 2);
        let [one, other] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let second = 1_000_000_000;
        let of_one = |now| limits.is_over_at(limit, one, now);
        assert_eq!([of_one(second), of_one(second), of_one(second)], [false, false, true]);
        assert!(!limits.is_over_at(limit, other, second));
        assert_eq!([of_one(second * 3 / 2), of_one(second * 3 / 2)], [false, true]);
    }

    #[test]
    fn clients_that_ask_no_more_are_forgotten() {
        let limits = Limits::new();
        let limit = TokenBucket::new(1, 1);
        for n in 0..CLIENTS_MAX * 4 {
            let client = IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
            assert!(!limits.is_over_at(limit, client, u64::try_from(n).unwrap() * 100_000_000));
        }
        assert!(limits.full_at.lock().len() <= CLIENTS_MAX);
    }
}
