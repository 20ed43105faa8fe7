//! WireGuard by boringtun: the only module that knows it.
//!
//! A [`Tunnel`] is one pair of static keys, ours and a peer's. boringtun keeps its sessions, keys,
//! replay windows and session timers, and reads the clock for them; whom to talk to, when to
//! begin a handshake and what waits for it is decided outside. Its packet queue is not used: a
//! tunnel without a session is never asked to encapsulate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey as CurvePoint, StaticSecret};
use weft_model::{PublicKey, Timestamp, overhead};

use crate::SecretKey;

/// Bytes that encapsulation adds to a packet.
pub(crate) const OVERHEAD: usize = overhead::WIREGUARD as usize;
/// Length of a handshake initiation, the longest message that carries no packet.
pub(crate) const INITIATION_LEN: usize = 148;
/// Length of a cookie reply.
const COOKIE_REPLY_LEN: usize = 64;
/// Handshake messages a second for each of our keys before senders have to show a cookie. One
/// costs about 0.2 ms, so this is a fifth of a core. It is above what boringtun's own device uses
/// (100), since a cookie costs its asker 5 s and all nodes may greet a restarted one at once.
const HANDSHAKES_PER_SECOND: u64 = 1000;
/// How long an initiation waits for its answer. Source: WireGuard paper, section 6.1.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first of a row does; each after it twice as long, up to `REKEY_TIMEOUT`. A node that
/// was restarted under load may find its socket full of what it cannot read, and the answer lost;
/// five seconds are an outage then. Peers bear an initiation each 20 ms, and an answer to the one
/// before the last still counts.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// How long to try before giving up. Source: WireGuard paper, section 6.1.
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How often boringtun's timers are to be asked; they are this exact.
pub(crate) const TICK_INTERVAL: Duration = Duration::from_millis(250);

const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_COOKIE: u8 = 3;
const TYPE_DATA: u8 = 4;

/// What a datagram is by its framing; `receiver` is the index its receiver gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation,
    Response { receiver: u32 },
    Cookie { receiver: u32 },
    Data { receiver: u32 },
}

/// Reads the framing: type, reserved bytes, length. `None` if it is no WireGuard message.
pub(crate) fn classify(datagram: &[u8]) -> Option<Message> {
    let word = |at| word(datagram, at);
    match (datagram.first_chunk::<4>()?, datagram.len()) {
        ([TYPE_INITIATION, 0, 0, 0], INITIATION_LEN) => Some(Message::Initiation),
        ([TYPE_RESPONSE, 0, 0, 0], 92) => Some(Message::Response { receiver: word(8)? }),
        ([TYPE_COOKIE, 0, 0, 0], COOKIE_REPLY_LEN) => Some(Message::Cookie { receiver: word(4)? }),
        ([TYPE_DATA, 0, 0, 0], OVERHEAD..) => Some(Message::Data { receiver: word(4)? }),
        _ => None,
    }
}

/// What becomes of a handshake message before any expensive operation.
pub(crate) enum Admission {
    /// Its first MAC is right, and so is the second if there is load.
    Admitted,
    /// Its first MAC is for another key.
    NotOurs,
    /// There is load, and the sender has to prove its address: send it this.
    Cookie(Vec<u8>),
}

/// One of our key pairs.
pub(crate) struct Identity {
    secret: StaticSecret,
    point: CurvePoint,
    /// Counts handshake messages and answers with cookies under load.
    gate: RateLimiter,
    /// What tunnels have to be given: checks the first MAC once more, limits nothing.
    open: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(key: &SecretKey) -> Self {
        let secret = StaticSecret::from(key.0);
        let point = CurvePoint::from(&secret);
        Self {
            gate: RateLimiter::new(&point, HANDSHAKES_PER_SECOND),
            open: Arc::new(RateLimiter::new(&point, u64::MAX)),
            secret,
            point,
        }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey(self.point.to_bytes())
    }

    /// Checks the MACs of a handshake message.
    pub(crate) fn admit(&self, from: IpAddr, datagram: &[u8]) -> Admission {
        let mut reply = [0; COOKIE_REPLY_LEN];
        match self.gate.verify_packet(Some(from), datagram, &mut reply) {
            Ok(_) => Admission::Admitted,
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::Cookie(cookie.to_vec()),
            Err(_) => Admission::NotOurs,
        }
    }

    /// Decrypts the static key of the sender of an initiation (one Diffie-Hellman operation).
    pub(crate) fn initiator_of(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.secret, &self.point, &initiation).ok()?;
        Some(PublicKey(half.peer_static_public))
    }

    /// Lets the gate's count start again once a second.
    pub(crate) fn handle_timeout(&self) {
        self.gate.reset_count();
    }
}

/// What was in a datagram for a tunnel.
pub(crate) enum Opened {
    /// An inner packet of this length, at the start of the buffer, and its source.
    Packet { len: usize, source: IpAddr },
    /// A handshake message or keepalive of this length, at the start of the buffer, to be sent.
    Reply { len: usize },
    /// A keepalive: good, and nothing more is to be done.
    Keepalive,
    /// A cookie for our next initiation. It says nothing about where the peer is.
    Cookie,
    /// Authentication, replay or framing failed.
    Bad,
}

/// A session that both sides are known to have since this datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Established {
    /// We sent the initiation.
    pub(crate) initiator: bool,
}

/// One pair of static keys and its sessions.
pub(crate) struct Tunnel {
    tunn: Tunn,
    local: PublicKey,
    remote: PublicKey,
    index: u32,
    live: bool,
    last_initiation: Option<Timestamp>,
    /// Initiations of ours since the last session.
    unanswered: u32,
    /// Our index of the session we offered last and that the peer has not used yet. It must not
    /// be sent on: an initiation may be a replay, and only a packet shows that the peer has keys.
    unconfirmed: Option<u32>,
}

impl Tunnel {
    /// `index` (24 bits) is the upper part of every receiver index of the tunnel.
    pub(crate) fn new(identity: &Identity, remote: PublicKey, index: u32) -> Self {
        let point = CurvePoint::from(remote.0);
        let open = Arc::clone(&identity.open);
        Self {
            tunn: Tunn::new(identity.secret.clone(), point, None, None, index, Some(open)),
            local: identity.public_key(),
            remote,
            index,
            live: false,
            last_initiation: None,
            unanswered: 0,
            unconfirmed: None,
        }
    }

    pub(crate) fn keys(&self) -> (PublicKey, PublicKey) {
        (self.local, self.remote)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// True if packets can be encapsulated.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Appends the datagram for one packet to `out` and returns its length. `None`, and `out` is
    /// as before, if there is no session.
    pub(crate) fn seal(&mut self, inner: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if !self.live {
            return None;
        }
        let start = out.len();
        // boringtun panics unless the buffer has the overhead and the length of an initiation.
        out.resize(start + (inner.len() + OVERHEAD).max(INITIATION_LEN), 0);
        let len = match self.tunn.encapsulate(inner, out.get_mut(start..)?) {
            TunnResult::WriteToNetwork([TYPE_DATA, rest @ ..]) => Some(1 + rest.len()),
            _ => None,
        };
        self.live = len.is_some();
        out.truncate(start + len.unwrap_or(0));
        len
    }

    /// Opens a datagram into `out`.
    pub(crate) fn open(
        &mut self,
        from: IpAddr,
        message: Message,
        datagram: &[u8],
        out: &mut [u8],
    ) -> (Opened, Option<Established>) {
        // boringtun panics on a shorter buffer.
        if out.len() < datagram.len().max(INITIATION_LEN) {
            return (Opened::Bad, None);
        }
        let mut offered = None;
        let opened = match self.tunn.decapsulate(Some(from), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, source) => {
                Opened::Packet { len: packet.len(), source: source.into() }
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                Opened::Packet { len: packet.len(), source: source.into() }
            }
            TunnResult::WriteToNetwork(reply) => {
                offered = word(reply, 4);
                Opened::Reply { len: reply.len() }
            }
            TunnResult::Done if matches!(message, Message::Cookie { .. }) => Opened::Cookie,
            TunnResult::Done => Opened::Keepalive,
            TunnResult::Err(_) => Opened::Bad,
        };
        if matches!(opened, Opened::Bad | Opened::Cookie) {
            return (opened, None);
        }
        let established = self.follow(message, offered);
        (opened, established)
    }

    /// Notes what an authenticated message did to the sessions.
    fn follow(&mut self, message: Message, offered: Option<u32>) -> Option<Established> {
        let established = match message {
            Message::Initiation => {
                self.unconfirmed = offered;
                return None;
            }
            Message::Response { .. } => Some(Established { initiator: true }),
            Message::Data { receiver } if self.unconfirmed == Some(receiver) => {
                self.unconfirmed = None;
                Some(Established { initiator: false })
            }
            Message::Data { .. } | Message::Cookie { .. } => None,
        };
        if established.is_some() {
            self.unanswered = 0;
        }
        if established.is_some() || !self.live {
            self.live = self.has_session();
        }
        established
    }

    /// True if no initiation is under way that still may be answered.
    pub(crate) fn may_initiate(&self, now: Timestamp) -> bool {
        let patience = match self.unanswered {
            0 => REKEY_TIMEOUT,
            n => (FIRST_RETRY * (1 << (n - 1).min(8))).min(REKEY_TIMEOUT),
        };
        self.last_initiation.is_none_or(|last| now.since(last) >= patience)
    }

    /// Makes an initiation, a new one if there was one before.
    pub(crate) fn initiate(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        self.last_initiation = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
        let mut buffer = [0; INITIATION_LEN];
        match self.tunn.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(initiation) => Some(initiation.to_vec()),
            _ => None,
        }
    }

    /// Lets the next initiation go out without waiting for the last one's answer.
    pub(crate) fn forget_initiation(&mut self) {
        self.last_initiation = None;
    }

    /// Moves boringtun's timers: sessions expire, and a rekeying initiation or a keepalive may be
    /// due, which is returned.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        let mut buffer = [0; INITIATION_LEN];
        let due = match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
            _ => None,
        };
        if due.as_deref().and_then(<[u8]>::first) == Some(&TYPE_INITIATION) {
            self.last_initiation = Some(now);
        }
        self.live = self.live && self.has_session();
        due
    }

    fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word))
}
