//! Transport of one session: data messages are sealed and opened in place, by any number of
//! threads at once. Source: WireGuard paper, sections 5.4.6 and 6.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_aead::{Key, TAG_LEN};
use weft_model::Timestamp;

use super::message::{DATA_HEADER_LEN, OVERHEAD, TYPE_DATA};
use super::window::Window;

/// Age at which the initiator of a session makes the next one.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age beyond which nothing is sealed or opened.
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Messages after which the next session is made.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which nothing is sealed or opened.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// One session. Shared by workers; no lock is held while anything is encrypted.
pub(crate) struct Session {
    /// Index that we gave out.
    pub(crate) local: u32,
    /// Index that the peer gave out.
    remote: u32,
    /// We sent the initiation.
    pub(crate) initiator: bool,
    pub(crate) created: Timestamp,
    sender: Key,
    receiver: Key,
    counter: AtomicU64,
    window: Mutex<Window>,
    /// The peer is known to have the keys. A session that it offered must not be sent on before:
    /// the initiation may be a replay.
    confirmed: AtomicBool,
    pub(crate) activity: Arc<Activity>,
}

/// When a tunnel last was used, for its timers. Zero is never.
#[derive(Default)]
pub(crate) struct Activity {
    data_sent: AtomicU64,
    data_received: AtomicU64,
    /// First data sent since anything came back.
    unanswered_since: AtomicU64,
    /// First data received since anything was sent.
    unacknowledged_since: AtomicU64,
}

impl Session {
    /// A session that just was negotiated.
    pub(crate) fn new(
        (local, remote): (u32, u32),
        (sender, receiver): (Key, Key),
        initiator: bool,
        activity: Arc<Activity>,
        now: Timestamp,
    ) -> Self {
        Self {
            local,
            remote,
            initiator,
            created: now,
            sender,
            receiver,
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::default()),
            confirmed: AtomicBool::new(initiator),
            activity,
        }
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    pub(crate) fn confirm(&self) {
        self.confirmed.store(true, Ordering::Release);
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        now.since(self.created) >= REJECT_AFTER_TIME
    }

    /// True if the initiator is to make the next session.
    pub(crate) fn has_sent_its_share(&self) -> bool {
        self.counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
    }

    /// Takes `count` counters in a row and returns the first; `None` if the session is used up.
    pub(crate) fn reserve(&self, count: usize, now: Timestamp) -> Option<u64> {
        if self.is_expired(now) {
            return None;
        }
        let first = self.counter.fetch_add(count as u64, Ordering::Relaxed);
        (first < REJECT_AFTER_MESSAGES).then_some(first)
    }

    /// Completes a datagram in place: header before, tag behind the packet that lies between.
    ///
    /// `counter` must be of [`Self::reserve`] and used once. False, and the datagram is worth
    /// nothing, if it is shorter than the overhead.
    pub(crate) fn seal(&self, counter: u64, datagram: &mut [u8]) -> bool {
        let Some((header, rest)) = datagram.split_first_chunk_mut::<DATA_HEADER_LEN>() else {
            return false;
        };
        let Some((packet, tag)) = rest.split_last_chunk_mut::<TAG_LEN>() else { return false };
        let [t0, t1, t2, t3] = TYPE_DATA;
        let [r0, r1, r2, r3] = self.remote.to_le_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_le_bytes();
        *header = [t0, t1, t2, t3, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7];
        let Some(sealed) = self.sender.seal(counter, packet) else { return false };
        *tag = sealed;
        true
    }

    /// Decrypts a datagram in place and returns the length of the packet, which starts behind the
    /// header. `None` if it is forged, was seen before or is too old.
    pub(crate) fn open(&self, counter: u64, datagram: &mut [u8], now: Timestamp) -> Option<usize> {
        if self.is_expired(now) || counter >= REJECT_AFTER_MESSAGES || datagram.len() < OVERHEAD {
            return None;
        }
        let sealed = datagram.get_mut(DATA_HEADER_LEN..)?;
        let len = self.receiver.open(counter, sealed)?;
        self.window.lock().take(counter).then_some(len)
    }
}

impl Activity {
    /// Something was sent; `data` if not a keepalive or handshake.
    pub(crate) fn sent(&self, data: bool, now: Timestamp) {
        clear(&self.unacknowledged_since);
        if data {
            self.data_sent.store(now.0, Ordering::Relaxed);
            begin(&self.unanswered_since, now);
        }
    }

    /// Something authentic was received; `data` if not a keepalive or handshake.
    pub(crate) fn received(&self, data: bool, now: Timestamp) {
        clear(&self.unanswered_since);
        if data {
            self.data_received.store(now.0, Ordering::Relaxed);
            begin(&self.unacknowledged_since, now);
        }
    }

    pub(crate) fn data_sent(&self) -> Timestamp {
        Timestamp(self.data_sent.load(Ordering::Relaxed))
    }

    pub(crate) fn data_received(&self) -> Timestamp {
        Timestamp(self.data_received.load(Ordering::Relaxed))
    }

    pub(crate) fn unanswered_since(&self) -> Option<Timestamp> {
        since(&self.unanswered_since)
    }

    /// Lets the time start again with the next packet.
    pub(crate) fn forget_unanswered(&self) {
        clear(&self.unanswered_since);
    }

    pub(crate) fn unacknowledged_since(&self) -> Option<Timestamp> {
        since(&self.unacknowledged_since)
    }
}

// Most calls find the value as they want it, and a store would take the cache line from others.

fn begin(at: &AtomicU64, now: Timestamp) {
    if at.load(Ordering::Relaxed) == 0 {
        at.store(now.0, Ordering::Relaxed);
    }
}

fn clear(at: &AtomicU64) {
    if at.load(Ordering::Relaxed) != 0 {
        at.store(0, Ordering::Relaxed);
    }
}

fn since(at: &AtomicU64) -> Option<Timestamp> {
    Some(at.load(Ordering::Relaxed)).filter(|at| *at != 0).map(Timestamp)
}
