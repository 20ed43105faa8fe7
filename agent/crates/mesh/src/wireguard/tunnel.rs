//! One pair of static keys: its handshakes, its sessions and their timers.
//! Source: WireGuard paper, sections 5.1 and 6.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use weft_aead::Key;
use weft_model::{PublicKey, Timestamp};

use super::cookie::Stamp;
use super::message::{
    INITIATION_LEN, MACS_LEN, OVERHEAD, RESPONSE_LEN, RESPONSE_NOISE_LEN, TYPE_INITIATION,
    TYPE_RESPONSE,
};
use super::noise::{Initiator, Keys, Responder, Tai64n};
use super::session::{Activity, REJECT_AFTER_TIME, REKEY_AFTER_TIME, Session};
use super::{Identity, Machine, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};

/// How long the first of a row of initiations waits for its answer; each after it twice as long, up
/// to `REKEY_TIMEOUT`. A node that was restarted under load may find its socket full of what it
/// cannot read, and the answer lost; five seconds are an outage then. Peers bear an initiation each
/// 20 ms, and an answer to the one before the last still counts.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Silence after which a peer that sent data is told that we are there.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions that a tunnel keeps; a power of two. Peers that repeat initiations may use any of what
/// they were offered.
const SESSIONS: usize = 8;
/// Initiations that may be answered.
const INITIATIONS: usize = 2;
/// TAI64 of the Unix epoch, leap seconds included.
const TAI64_UNIX_EPOCH: u64 = (1 << 62) + 37;

/// The sessions of a tunnel, by the lowest bits of our index.
pub(crate) type Sessions = [Option<Arc<Session>>; SESSIONS];

/// What workers find sessions in, without a lock.
pub(crate) struct Inbound(ArcSwap<Sessions>);

impl Inbound {
    /// The session that we gave index `local`.
    pub(crate) fn session(&self, local: u32) -> Option<Arc<Session>> {
        let sessions = self.0.load();
        let found = sessions.get(slot(local))?.as_ref()?;
        (found.local == local).then(|| Arc::clone(found))
    }
}

/// A session that both sides are known to have since this datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Established {
    /// We sent the initiation.
    pub(crate) initiator: bool,
}

/// An initiation on its way.
struct Initiation {
    local: u32,
    state: Initiator,
}

pub(crate) struct Tunnel {
    identity: Arc<Identity>,
    remote: PublicKey,
    /// 24 bits, the upper part of every index that we give out.
    index: u32,
    /// Lower part of the index that was given out last.
    cycle: u8,
    inbound: Arc<Inbound>,
    sessions: Sessions,
    /// The slot of the session to send on.
    current: Option<usize>,
    activity: Arc<Activity>,
    stamp: Stamp,
    /// Ours that may be answered, the last one last.
    initiations: Vec<Initiation>,
    /// When the row of initiations began that the last one is of.
    initiating_since: Option<Timestamp>,
    last_initiation: Option<Timestamp>,
    /// Initiations of ours since the last session.
    unanswered: u32,
    /// Of the peer's last initiation; an older one is a replay.
    newest: Tai64n,
    machine: Machine,
}

impl Tunnel {
    /// `index` (24 bits) is the upper part of every receiver index of the tunnel.
    pub(crate) fn new(
        identity: &Arc<Identity>,
        remote: PublicKey,
        index: u32,
        machine: Machine,
    ) -> Self {
        let sessions = Sessions::default();
        Self {
            identity: Arc::clone(identity),
            remote,
            index,
            cycle: 0,
            inbound: Arc::new(Inbound(ArcSwap::from_pointee(sessions.clone()))),
            sessions,
            current: None,
            activity: Arc::default(),
            stamp: Stamp::new(remote),
            initiations: Vec::with_capacity(INITIATIONS),
            initiating_since: None,
            last_initiation: None,
            unanswered: 0,
            newest: Tai64n::default(),
            machine,
        }
    }

    pub(crate) fn keys(&self) -> (PublicKey, PublicKey) {
        (self.identity.public_key(), self.remote)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn inbound(&self) -> &Arc<Inbound> {
        &self.inbound
    }

    /// The session to send on; it may have expired since the last look.
    pub(crate) fn current(&self) -> Option<&Arc<Session>> {
        self.sessions.get(self.current?)?.as_ref()
    }

    /// True if packets can be encapsulated.
    pub(crate) fn is_live(&self) -> bool {
        self.current.is_some()
    }

    /// True if no initiation is under way that still may be answered.
    pub(crate) fn may_initiate(&self, now: Timestamp) -> bool {
        self.last_initiation.is_none_or(|last| now.since(last) >= self.patience())
    }

    fn patience(&self) -> Duration {
        match self.unanswered {
            0 => REKEY_TIMEOUT,
            n => (FIRST_RETRY * (1 << (n - 1).min(8))).min(REKEY_TIMEOUT),
        }
    }

    /// Lets the next initiation go out without waiting for the last one's answer.
    pub(crate) fn forget_initiation(&mut self) {
        self.last_initiation = None;
    }

    /// Makes an initiation, a new one if there was one before. `None` if that cannot be: the system
    /// has no randomness.
    pub(crate) fn initiate(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        self.initiating_since.get_or_insert(now);
        self.last_initiation = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
        let timestamp = tai64n(self.machine.epoch, now);
        let (state, noise) = Initiator::new(&self.identity.secret, self.remote, &timestamp)?;
        let local = self.next_local();
        let parts: [&[u8]; 4] = [&TYPE_INITIATION, &local.to_le_bytes(), &noise, &[0; MACS_LEN]];
        let mut message = parts.concat();
        debug_assert_eq!(message.len(), INITIATION_LEN);
        self.stamp.complete(local, &mut message, now);
        if self.initiations.len() == INITIATIONS {
            self.initiations.remove(0);
        }
        self.initiations.push(Initiation { local, state });
        self.activity.sent(false, now);
        Some(message)
    }

    /// Answers an initiation of the peer; `None` if it is a replay.
    pub(crate) fn answer(
        &mut self,
        initiation: Responder,
        sender: u32,
        now: Timestamp,
    ) -> Option<Vec<u8>> {
        if initiation.timestamp <= self.newest {
            return None;
        }
        self.newest = initiation.timestamp;
        let (noise, keys) = initiation.answer()?;
        let local = self.next_local();
        self.keep(self.session((local, sender), &keys, false, now)?);
        let (to, from) = (sender.to_le_bytes(), local.to_le_bytes());
        let parts: [&[u8]; 5] = [&TYPE_RESPONSE, &from, &to, &noise, &[0; MACS_LEN]];
        let mut message = parts.concat();
        debug_assert_eq!(message.len(), RESPONSE_LEN);
        self.stamp.complete(local, &mut message, now);
        self.activity.received(false, now);
        self.activity.sent(false, now);
        Some(message)
    }

    /// Takes the answer to an initiation of ours and returns the keepalive that confirms the
    /// session to the peer; `None` if it answers none.
    pub(crate) fn finish(
        &mut self,
        (sender, receiver): (u32, u32),
        response: &[u8],
        now: Timestamp,
    ) -> Option<Vec<u8>> {
        let noise = response.get(12..)?.get(..RESPONSE_NOISE_LEN)?;
        let initiation = self.initiations.iter_mut().find(|i| i.local == receiver)?;
        let keys = initiation.state.finish(noise)?;
        self.initiations.clear();
        self.activity.received(false, now);
        self.keep(self.session((receiver, sender), &keys, true, now)?);
        self.current = Some(slot(receiver));
        self.established();
        self.keepalive(now)
    }

    /// A session with `keys`; `indices` are ours and the peer's.
    fn session(
        &self,
        indices: (u32, u32),
        keys: &Keys,
        initiator: bool,
        now: Timestamp,
    ) -> Option<Session> {
        let key = |bytes| Key::new(bytes, self.machine.engine);
        let keys = (key(&keys.send)?, key(&keys.receive)?);
        Some(Session::new(indices, keys, initiator, Arc::clone(&self.activity), now))
    }

    /// Takes a cookie for the next handshake message; false if nobody asked for it.
    pub(crate) fn take_cookie(&mut self, receiver: u32, reply: &[u8], now: Timestamp) -> bool {
        self.stamp.take_cookie(receiver, reply, now)
    }

    /// A data message came on `session`: the peer has its keys. True if that is news.
    pub(crate) fn heard(&mut self, session: &Session, now: Timestamp) -> Option<Established> {
        let news = !session.is_confirmed();
        session.confirm();
        let better =
            |current: &Arc<Session>| session.created >= current.created || current.is_expired(now);
        if self.current().is_none_or(better) && self.inbound.session(session.local).is_some() {
            self.current = Some(slot(session.local));
        }
        if news {
            self.established();
        }
        news.then_some(Established { initiator: false })
    }

    fn established(&mut self) {
        self.unanswered = 0;
        self.initiating_since = None;
    }

    /// Forgets what has expired, and returns an initiation or keepalive if one is due.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        self.expire(now);
        if let Some(since) = self.initiating_since {
            // The peer's initiation may have been faster, or nobody is there.
            if now.since(since) >= REKEY_ATTEMPT_TIME {
                self.initiating_since = None;
                self.initiations.clear();
            } else if self.is_live() && self.may_initiate(now) {
                return self.initiate(now);
            }
        } else if self.is_rekeying_due(now) {
            self.activity.forget_unanswered();
            return self.initiate(now);
        }
        let acknowledge = |since| now.since(since) >= KEEPALIVE_TIMEOUT;
        if self.activity.unacknowledged_since().is_some_and(acknowledge) {
            return self.keepalive(now);
        }
        None
    }

    fn is_rekeying_due(&self, now: Timestamp) -> bool {
        let Some(session) = self.current() else { return false };
        let age = |at: Timestamp| at.since(session.created);
        let on_send = age(self.activity.data_sent()) >= REKEY_AFTER_TIME;
        let last_chance = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        let on_receive = age(self.activity.data_received()) >= last_chance;
        let used_up = session.has_sent_its_share();
        let silence = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
        let unanswered = self.activity.unanswered_since().is_some_and(|s| now.since(s) >= silence);
        session.initiator && (on_send || on_receive || used_up) || unanswered
    }

    /// Forgets sessions that have expired.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let expired = |s: &Option<Arc<Session>>| s.as_ref().is_some_and(|s| s.is_expired(now));
        if !self.sessions.iter().any(expired) {
            return;
        }
        self.sessions.iter_mut().filter(|s| expired(s)).for_each(|s| *s = None);
        self.current =
            self.current.filter(|at| self.sessions.get(*at).is_some_and(Option::is_some));
        self.publish();
    }

    fn keepalive(&self, now: Timestamp) -> Option<Vec<u8>> {
        let session = self.current()?;
        let mut datagram = vec![0; OVERHEAD];
        let counter = session.reserve(1, now)?;
        self.activity.sent(false, now);
        session.seal(counter, &mut datagram).then_some(datagram)
    }

    /// An index whose slot is not that of the session in use.
    fn next_local(&mut self) -> u32 {
        self.cycle = self.cycle.wrapping_add(1);
        if self.current == Some(slot(self.cycle.into())) {
            self.cycle = self.cycle.wrapping_add(1);
        }
        (self.index << 8) | u32::from(self.cycle)
    }

    fn keep(&mut self, session: Session) {
        if let Some(place) = self.sessions.get_mut(slot(session.local)) {
            *place = Some(Arc::new(session));
        }
        self.publish();
    }

    fn publish(&self) {
        self.inbound.0.store(Arc::new(self.sessions.clone()));
    }
}

fn slot(local: u32) -> usize {
    local as usize % SESSIONS
}

fn tai64n(epoch: Duration, now: Timestamp) -> Tai64n {
    let unix = epoch + Duration::from_nanos(now.0);
    let mut bytes = Tai64n::default();
    let (seconds, nanos) = bytes.split_at_mut(8);
    seconds.copy_from_slice(&(TAI64_UNIX_EPOCH + unix.as_secs()).to_be_bytes());
    nanos.copy_from_slice(&unix.subsec_nanos().to_be_bytes());
    bytes
}
