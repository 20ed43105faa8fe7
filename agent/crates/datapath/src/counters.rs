//! What the workers count: plain numbers, one set for each worker, summed only when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weft_model::DropReason;
use weft_proto::v1::Traffic;

/// A number with one writer: a load and a store, no locked instruction.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only the worker that owns the counter may call it.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and bytes in one direction.
#[derive(Default)]
pub(crate) struct TrafficCounter {
    packets: Counter,
    bytes: Counter,
}

impl TrafficCounter {
    pub(crate) fn add(&self, packets: usize, bytes: usize) {
        self.packets.add(packets as u64);
        self.bytes.add(bytes as u64);
    }
}

/// The counters of one worker, on cache lines that no other worker writes.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// Packets that wires would carry: a super-packet counts as its segments.
    pub(crate) tun_in: TrafficCounter,
    pub(crate) tun_out: TrafficCounter,
    pub(crate) mesh_in: TrafficCounter,
    pub(crate) mesh_out: TrafficCounter,
    drops: [Counter; DropReason::ALL.len()],
}

impl Counters {
    pub(crate) fn dropped(&self, reason: DropReason, packets: usize) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(packets as u64);
        }
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Counter::get)
    }
}

/// Sums one direction over all workers.
pub(crate) fn traffic(
    all: &[Arc<Counters>],
    pick: impl Fn(&Counters) -> &TrafficCounter,
) -> Traffic {
    Traffic {
        packets: all.iter().map(|c| pick(c).packets.get()).sum(),
        bytes: all.iter().map(|c| pick(c).bytes.get()).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_cache_lines_of_its_own() {
        assert_eq!(std::mem::align_of::<Counters>() % 128, 0);
        assert_eq!(std::mem::size_of::<Counters>() % 128, 0);
    }
}
