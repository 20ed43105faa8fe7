//! What plugins dropped of late, or would have dropped: one entry for all packets from one address to
//! one port of another.
//!
//! Shared by all workers, bounded, and written when a plugin says so only: what it lets pass without a
//! word costs nothing.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::Mutex;
use weft_model::Timestamp;
use weft_packet::protocol;

use crate::flow::{Direction, FlowKey};
use crate::passage::Passage;
use crate::plugins::Position;

/// Parts with a lock each, so that workers seldom meet; as many again for what passed, which so takes no
/// room from what was dropped.
const SHARDS: usize = 16;
/// Entries of each: so many are looked at to find the oldest, where there is no room.
const SHARD_LEN: usize = 64;

/// Which packets are meant: those of a connection in both directions, as the plugin saw them, whatever
/// port they came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DroppedKey {
    /// Who dropped them.
    pub plugin: Arc<str>,
    /// The number that it gave.
    pub number: u32,
    /// They passed: it only told that it would drop them.
    pub passed: bool,
    /// Dropped for what the destination gets; else for what the source sends.
    pub ingress: bool,
    /// IANA number.
    pub protocol: u8,
    /// Who began the connection.
    pub source: IpAddr,
    /// The other end.
    pub destination: IpAddr,
    /// Destination port of TCP, UDP and SCTP.
    pub port: u16,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Which packets.
    pub key: DroppedKey,
    /// Where the first of them was sent to, if it was translated since.
    pub sent_to: Option<SocketAddr>,
    /// How many; each segment of a super-packet counts. Of what passed, how often the plugin told so.
    pub count: u64,
    /// When the first came.
    pub first: Timestamp,
    /// When the last came.
    pub last: Timestamp,
}

/// What a plugin told of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    /// Its name.
    pub(crate) plugin: &'a Arc<str>,
    /// The number that it gave.
    pub(crate) number: u32,
    /// See [`DroppedKey::passed`].
    pub(crate) passed: bool,
}

#[derive(Debug)]
struct Entry {
    sent_to: Option<SocketAddr>,
    count: u64,
    first: Timestamp,
    last: Timestamp,
    /// [`DropLog::changes`] at its last packet.
    changed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct DropLog {
    shards: [Mutex<HashMap<DroppedKey, Entry>>; 2 * SHARDS],
    hasher: DefaultHashBuilder,
    /// Packets that were noted.
    changes: AtomicU64,
}

impl DropLog {
    /// Entries that are kept at most, and as many of what passed; of those that share a lock the one that was silent longest gives
    /// way to a new one.
    pub const MAX: usize = SHARDS * SHARD_LEN;

    /// Entries with packets after the first `since` that were noted, in no order, and what to ask for
    /// the next time.
    #[must_use]
    pub fn since(&self, since: u64) -> (u64, Vec<Dropped>) {
        // Before looking: what comes meanwhile is told twice rather than never.
        let until = self.changes.load(Ordering::Acquire);
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let newer = shard.iter().filter(|(_, entry)| entry.changed > since);
            all.extend(newer.map(|(key, entry)| Dropped {
                key: key.clone(),
                sent_to: entry.sent_to,
                count: entry.count,
                first: entry.first,
                last: entry.last,
            }));
        }
        (until, all)
    }

    /// Notes what a plugin has just told of a packet.
    #[cold]
    pub(crate) fn note(&self, p: &Passage<'_>, told: Told<'_>, position: Position) {
        let reply = p.direction() == Direction::Reply;
        let tuple = if reply { p.key.reversed() } else { p.key };
        // What every host says to its neighbours, and the fabric carries to nobody.
        if tuple.destination().ip().is_multicast() {
            return;
        }
        let moved = !reply && p.wire_key.destination() != p.key.destination();
        let sent_to = moved.then(|| p.wire_key.destination());
        let key = key(tuple, told, (position == Position::Ingress) != reply);
        let count = if told.passed { 1 } else { u64::from(p.segments()) };
        self.add(key, sent_to, count, p.now);
    }

    fn add(&self, key: DroppedKey, sent_to: Option<SocketAddr>, count: u64, now: Timestamp) {
        let place = usize::try_from(self.hasher.hash_one(&key) >> 32).unwrap_or(0) % SHARDS;
        let room = if key.passed { SHARDS } else { 0 };
        let Some(shard) = self.shards.get(room + place) else { return };
        let mut shard = shard.lock();
        // Under the lock: who reads the count before has not looked here yet.
        let changed = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(entry) = shard.get_mut(&key) {
            entry.count += count;
            entry.last = now;
            entry.changed = changed;
            return;
        }
        if shard.len() >= SHARD_LEN {
            let oldest = shard.iter().min_by_key(|(_, entry)| entry.changed);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                shard.remove(&oldest);
            }
        }
        shard.insert(key, Entry { sent_to, count, first: now, last: now, changed });
    }
}

fn key(tuple: FlowKey, told: Told<'_>, ingress: bool) -> DroppedKey {
    let (source, destination) = (tuple.source(), tuple.destination());
    let has_ports = matches!(tuple.protocol(), protocol::TCP | protocol::UDP | protocol::SCTP);
    DroppedKey {
        plugin: Arc::clone(told.plugin),
        number: told.number,
        passed: told.passed,
        ingress,
        protocol: tuple.protocol(),
        source: source.ip(),
        destination: destination.ip(),
        port: if has_ports { destination.port() } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_port(port: u16, passed: bool) -> DroppedKey {
        let tuple =
            FlowKey::new(protocol::TCP, ([10, 0, 0, 1].into(), 9), ([10, 0, 0, 2].into(), port));
        key(tuple, Told { plugin: &"policy".into(), number: 7, passed }, true)
    }

    #[test]
    fn packets_of_one_connection_are_one_entry() {
        let log = DropLog::default();
        for n in 1..=3 {
            log.add(to_port(80, false), None, 2, Timestamp(n));
        }
        let (until, all) = log.since(0);
        let [one] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((one.count, one.first, one.last), (6, Timestamp(1), Timestamp(3)));
        assert_eq!((until, log.since(until).1.len()), (3, 0));
        log.add(to_port(81, false), None, 1, Timestamp(4));
        log.add(to_port(81, true), None, 1, Timestamp(5));
        assert_eq!(log.since(until).1.len(), 2);
    }

    /// NP-113: whoever knocks at every port does not take more room, and pushes out what is oldest; what
    /// passed pushes out nothing that was dropped.
    #[test]
    fn entries_are_bounded_and_the_latest_stay() {
        let log = DropLog::default();
        log.add(to_port(1, true), None, 1, Timestamp(1));
        for port in 1..=u16::MAX {
            log.add(to_port(port, false), None, 1, Timestamp(port.into()));
        }
        let (_, all) = log.since(0);
        let (passed, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|entry| entry.key.passed);
        assert_eq!(passed.len(), 1);
        assert!(all.len() <= DropLog::MAX && all.len() > DropLog::MAX / 2, "{}", all.len());
        let late = u16::MAX - 4 * u16::try_from(DropLog::MAX).unwrap();
        assert!(all.iter().all(|entry| entry.key.port > late));
    }
}
