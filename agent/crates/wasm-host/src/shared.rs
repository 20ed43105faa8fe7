//! What the instances of one plugin share: its map, its counters, its standing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_model::Timestamp;
use weft_pipeline::PluginFault;

use crate::map::SharedMap;
use crate::standing::Standing;

/// Lines of a plugin's log in one second; more are counted and dropped.
const LOG_LINES_PER_SECOND: u32 = 20;
/// Numbers of drops that an instance counts apart; drops with others count in the sum only. The same
/// of what it would drop and of its replies.
const NUMBERS_MAX: usize = 4096;

/// Kept by plugin name for as long as the process lives, so that the map outlives a replace.
///
/// Every instance of the plugin, on whatever worker, is made with the same one.
#[derive(Debug)]
pub struct SharedState {
    name: String,
    map: SharedMap,
    standing: Mutex<Arc<Standing>>,
    instances: Mutex<Instances>,
    log: Mutex<LogBudget>,
    /// Nanoseconds: the last time any instance used the map.
    now: AtomicU64,
}

#[derive(Debug, Default)]
struct Instances {
    live: Vec<Arc<InstanceCounters>>,
    /// Sums of the instances that are gone.
    retired: Counters,
    retired_numbers: Numbers,
}

/// Sums over all instances the plugin ever had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets it was asked about.
    pub calls: u64,
    /// Packets it dropped, rejected ones included.
    pub drops: u64,
    /// Calls that trapped or answered nonsense.
    pub traps: u64,
    /// Calls that passed their deadline.
    pub deadlines: u64,
}

/// How a plugin is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Sums over all instances.
    pub counters: Counters,
    /// Too many faults: it is asked nothing any more until it is replaced.
    pub taken_out: bool,
    /// Conversations that it is not asked about for a while, since it faulted on them too often.
    pub cut_off: usize,
    /// What the last fault of the module in force was, in one line.
    pub last_fault: Option<String>,
    /// Entries in its map.
    pub map_entries: usize,
    /// Live instances, one for each worker.
    pub instances: usize,
    /// Packets dropped or rejected, by the number that the plugin gave.
    pub drops_by_number: BTreeMap<u32, u64>,
    /// How often it told that it would drop one, by the number that it gave.
    pub would_drop_by_number: BTreeMap<u32, u64>,
    /// Packets that it replied to, by the number that it gave.
    pub replies_by_number: BTreeMap<u32, u64>,
}

impl SharedState {
    /// For the plugin `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            map: SharedMap::new(),
            standing: Mutex::default(),
            instances: Mutex::default(),
            log: Mutex::default(),
            now: AtomicU64::new(0),
        })
    }

    /// The plugin's name in the fabric.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's map. Off the data path, call [`SharedMap::expire`] about once in a second.
    #[must_use]
    pub fn map(&self) -> &SharedMap {
        &self.map
    }

    /// How the plugin is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let standing = Arc::clone(&lock(&self.standing));
        let instances = lock(&self.instances);
        let mut counters = instances.retired;
        instances.live.iter().for_each(|c| counters.add(&c.read()));
        let mut numbers = instances.retired_numbers.clone();
        instances.live.iter().for_each(|c| numbers.add(&lock(&c.numbers)));
        Status {
            counters,
            taken_out: standing.is_taken_out(),
            cut_off: standing.cut_off(),
            last_fault: standing.last_fault(),
            map_entries: self.map.len(),
            instances: instances.live.len(),
            drops_by_number: numbers.dropped,
            would_drop_by_number: numbers.would_drop,
            replies_by_number: numbers.replied,
        }
    }

    /// The standing of what is in force since `revision`; a later revision starts clean.
    pub(crate) fn standing(&self, revision: u64) -> Arc<Standing> {
        let mut standing = lock(&self.standing);
        if standing.revision() < revision {
            *standing = Arc::new(Standing::new(revision));
        }
        Arc::clone(&standing)
    }

    pub(crate) fn register(&self) -> Arc<InstanceCounters> {
        let counters = Arc::new(InstanceCounters::default());
        lock(&self.instances).live.push(Arc::clone(&counters));
        counters
    }

    pub(crate) fn retire(&self, counters: &Arc<InstanceCounters>) {
        let mut instances = lock(&self.instances);
        instances.live.retain(|c| !Arc::ptr_eq(c, counters));
        instances.retired.add(&counters.read());
        instances.retired_numbers.add(&lock(&counters.numbers));
    }

    pub(crate) fn see(&self, now: Timestamp) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    pub(crate) fn last_seen(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    /// Asks for a line of log; the answer is how many were dropped before this one.
    pub(crate) fn take_log_line(&self, now: Timestamp) -> Option<u64> {
        lock(&self.log).take(now)
    }
}

/// Counters of one instance, written by its worker only, on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct InstanceCounters {
    calls: AtomicU64,
    drops: AtomicU64,
    traps: AtomicU64,
    deadlines: AtomicU64,
    /// Taken by the worker where it counts, and by whoever asks for the status.
    numbers: Mutex<Numbers>,
}

/// Counts by the number that the plugin gave.
#[derive(Clone, Debug, Default)]
struct Numbers {
    dropped: BTreeMap<u32, u64>,
    would_drop: BTreeMap<u32, u64>,
    replied: BTreeMap<u32, u64>,
}

impl Numbers {
    fn count(counts: &mut BTreeMap<u32, u64>, number: u32) {
        if counts.len() < NUMBERS_MAX || counts.contains_key(&number) {
            *counts.entry(number).or_default() += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.dropped, &other.dropped),
            (&mut self.would_drop, &other.would_drop),
            (&mut self.replied, &other.replied),
        ];
        for (to, from) in pairs {
            from.iter().for_each(|(number, count)| *to.entry(*number).or_default() += count);
        }
    }
}

impl InstanceCounters {
    #[inline]
    pub(crate) fn note_call(&self) {
        increment(&self.calls);
    }

    pub(crate) fn note_drop(&self, number: u32) {
        increment(&self.drops);
        Numbers::count(&mut lock(&self.numbers).dropped, number);
    }

    pub(crate) fn note_would_drop(&self, number: u32) {
        Numbers::count(&mut lock(&self.numbers).would_drop, number);
    }

    pub(crate) fn note_reply(&self, number: u32) {
        Numbers::count(&mut lock(&self.numbers).replied, number);
    }

    pub(crate) fn note_fault(&self, fault: PluginFault) {
        match fault {
            PluginFault::Trap => increment(&self.traps),
            PluginFault::Deadline => increment(&self.deadlines),
            PluginFault::TakenOut => {}
        }
    }

    fn read(&self) -> Counters {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Counters {
            calls: get(&self.calls),
            drops: get(&self.drops),
            traps: get(&self.traps),
            deadlines: get(&self.deadlines),
        }
    }
}

/// A plain addition: there is one writer.
#[inline]
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Counters {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.drops += other.drops;
        self.traps += other.traps;
        self.deadlines += other.deadlines;
    }
}

#[derive(Debug, Default)]
struct LogBudget {
    second: u64,
    lines: u32,
    dropped: u64,
}

impl LogBudget {
    fn take(&mut self, now: Timestamp) -> Option<u64> {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            (self.second, self.lines) = (second, 0);
        }
        if self.lines == LOG_LINES_PER_SECOND {
            self.dropped += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_revision_starts_clean_and_an_older_one_cannot_bring_the_past_back() {
        let shared = SharedState::new("p");
        shared.standing(1).take_out("x".into());
        assert!(shared.status().taken_out);
        assert!(shared.standing(1).is_taken_out());
        assert!(!shared.standing(2).is_taken_out());
        assert!(!shared.standing(1).is_taken_out());
    }

    #[test]
    fn counters_of_gone_instances_stay_in_the_sum() {
        let shared = SharedState::new("p");
        let (a, b) = (shared.register(), shared.register());
        a.note_call();
        b.note_call();
        b.note_drop(7);
        b.note_would_drop(8);
        shared.retire(&b);
        a.note_would_drop(8);
        let status = shared.status();
        assert_eq!((status.counters.calls, status.counters.drops, status.instances), (2, 1, 1));
        assert_eq!(status.drops_by_number, BTreeMap::from([(7, 1)]));
        assert_eq!(status.would_drop_by_number, BTreeMap::from([(8, 2)]));
    }

    #[test]
    fn log_lines_over_the_rate_are_dropped_and_counted() {
        let shared = SharedState::new("p");
        let passed = (0..50).filter(|_| shared.take_log_line(Timestamp(5)).is_some()).count();
        assert_eq!(passed, 20);
        assert_eq!(shared.take_log_line(Timestamp(1_000_000_005)), Some(30));
    }
}
