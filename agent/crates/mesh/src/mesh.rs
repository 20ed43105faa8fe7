//! The face of the mesh: configuration, encapsulation, timers, polling.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use weft_aead::Engine;
use weft_model::{DropReason, PeerId, Timestamp};

use crate::config::{Applied, ConfigError, MeshConfig};
use crate::outbox::{Event, Outbox, Transmit};
use crate::packets::Packets;
use crate::peer::{Lane, Outbound, Peer};
use crate::receive::Reception;
use crate::status::PeerStatus;
use crate::tables::{Carrier, Indices, Tables, VxlanTables};
use crate::vxlan;
use crate::wireguard::{DATA_HEADER_LEN, Machine, OVERHEAD, Session, TICK_INTERVAL};

/// What became of packets given to [`Mesh::encapsulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulated {
    /// A datagram for each of them lies at the start of the buffer, one behind the other.
    Datagrams {
        /// Where to send them.
        to: SocketAddr,
        /// Length of all in bytes.
        len: usize,
        /// Length of each but the last, which may be shorter.
        size: usize,
    },
    /// They wait for a handshake, up to 10 s, and will come out of [`Mesh::poll_transmit`].
    Queued,
    /// They are gone.
    Dropped(DropReason),
}

/// What was in a datagram given to [`Mesh::handle_network_input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// An inner IP packet from a peer that may send from its source address.
    Packet {
        /// Who sent it.
        peer: PeerId,
        /// Where in the datagram's buffer it is.
        range: Range<usize>,
    },
    /// Nothing for the pipeline: a handshake, a keepalive.
    Nothing,
    /// It is gone.
    Dropped(DropReason),
}

/// All peers of a node.
///
/// Shared by workers behind an `Arc`. Packets are sealed and opened without a lock, by as many
/// workers as like; each peer's state has a lock that is taken when something changes.
pub struct Mesh {
    pub(crate) tables: ArcSwap<Tables>,
    /// Held while tables are built, so that configurations follow each other.
    indices: Mutex<Indices>,
    pub(crate) outbox: Outbox,
    machine: Machine,
    next_tick: AtomicU64,
    drops: Vec<AtomicU64>,
}

impl Mesh {
    /// A mesh without peers. `seed` sets where receiver indices start; it should be random.
    /// `epoch` is the Unix time at [`Timestamp::ZERO`]; peers refuse handshakes that are not later
    /// than those they had, so that a clock set back costs the sessions with them. `engine` seals
    /// and opens data messages.
    #[must_use]
    pub fn new(seed: u64, epoch: Duration, engine: Engine) -> Self {
        Self {
            tables: ArcSwap::from_pointee(Tables::empty()),
            indices: Mutex::new(Indices::new(seed)),
            outbox: Outbox::new(),
            machine: Machine { epoch, engine },
            next_tick: AtomicU64::new(0),
            drops: DropReason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Replaces the configuration and begins a handshake with every WireGuard peer that has an
    /// endpoint and no session under its preferred keys.
    ///
    /// Sessions whose two keys are still listed go on, and so does an endpoint found by roaming
    /// unless the configured endpoint itself changed. [`Mesh::poll_transmit`] must be polled
    /// after it.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration cannot run; nothing is changed then.
    pub fn apply(&self, config: &MeshConfig, now: Timestamp) -> Result<Applied, ConfigError> {
        let mut indices = self.indices.lock();
        let (tables, applied) = self.tables.load().next(config, &mut indices, self.machine)?;
        let wireguard = tables.wireguard().is_some();
        let peers: Vec<_> = tables.peers.values().cloned().collect();
        self.tables.store(tables.into());
        drop(indices);
        if wireguard {
            peers.iter().for_each(|peer| peer.lock().configured(&self.outbox, now));
        }
        self.next_tick.store(now.0, Ordering::Release);
        Ok(applied)
    }

    /// Whether data messages are sealed and opened with AVX-512; `None` unless this is WireGuard.
    #[must_use]
    pub fn uses_avx512(&self) -> Option<bool> {
        self.tables.load().wireguard().map(|_| self.machine.engine.is_avx512())
    }

    /// Bytes that encapsulation adds to a packet, outer IP and UDP headers not counted.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match &self.tables.load().carrier {
            Carrier::None | Carrier::WireGuard(_) => OVERHEAD,
            Carrier::Vxlan(_) => vxlan::HEADER_LEN,
        }
    }

    /// Length of the buffer that [`Mesh::encapsulate`] needs for `packets`.
    #[must_use]
    pub fn room_for(packets: &impl Packets) -> usize {
        (0..packets.count()).map(|k| OVERHEAD.max(vxlan::HEADER_LEN) + packets.len_of(k)).sum()
    }

    /// Writes packets of one flow for a peer to `out`, each in a datagram, and seals them there.
    ///
    /// Their datagrams have equal lengths but for the last, so that one segmented send takes them.
    /// `out` has [`Mesh::room_for`] them. Allocates nothing while there is a session.
    /// [`Mesh::poll_transmit`] must be polled after it.
    pub fn encapsulate(
        &self,
        peer: PeerId,
        packets: &impl Packets,
        out: &mut [u8],
        now: Timestamp,
    ) -> Encapsulated {
        let tables = self.tables.load();
        let count = packets.count();
        let done = match (tables.peers.get(&peer), &tables.carrier) {
            (None, _) => Err(DropReason::UnknownPeer),
            (Some(_), Carrier::None) => Err(DropReason::NotReady),
            (Some(_), _) if packets.len_of(0) == 0 => Err(DropReason::Malformed),
            (Some(peer), Carrier::WireGuard(_)) => self.seal(peer, packets, out, now),
            (Some(peer), Carrier::Vxlan(vtep)) => frame(vtep, peer, packets, out),
        };
        done.unwrap_or_else(|reason| {
            self.count(reason, count);
            Encapsulated::Dropped(reason)
        })
    }

    fn seal(
        &self,
        peer: &Peer,
        packets: &impl Packets,
        out: &mut [u8],
        now: Timestamp,
    ) -> Result<Encapsulated, DropReason> {
        let outbound = peer.lane.outbound.load();
        if let Some(Outbound { to, session: Some(session), preferred, .. }) = outbound.as_deref()
            && let Some(done) = seal_with(session, *to, &peer.lane, packets, out, now)?
        {
            if !preferred {
                peer.lock().want_session(&self.outbox, now);
            }
            return Ok(done);
        }
        drop(outbound);
        let mut state = peer.lock();
        // Another worker may have been faster, or another pair of keys may do.
        if let Some((session, to)) = state.next_session(now)
            && let Some(done) = seal_with(&session, to, &peer.lane, packets, out, now)?
        {
            return Ok(done);
        }
        let dropped = state.queue(packets, &self.outbox, now)?;
        self.count(DropReason::NoSession, dropped);
        Ok(Encapsulated::Queued)
    }

    /// Begins to take in a batch of datagrams; see [`Reception::open`].
    pub fn reception(&self, now: Timestamp) -> Reception<'_> {
        Reception::new(self, now)
    }

    /// Takes one datagram that came from `from`: a [`Mesh::reception`] of one.
    pub fn handle_network_input(
        &self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Timestamp,
    ) -> Received {
        self.reception(now).open(from, datagram)
    }

    /// Moves timers: repeats handshakes, begins those for new keys, sends keepalives, drops
    /// expired sessions. Extra calls are harmless; of several workers one does the work.
    /// [`Mesh::poll_transmit`] and [`Mesh::poll_event`] must be polled after it.
    pub fn handle_timeout(&self, now: Timestamp) {
        let due = self.next_tick.load(Ordering::Acquire);
        let next = (now + TICK_INTERVAL).0;
        if now.0 < due
            || self
                .next_tick
                .compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
        {
            return;
        }
        let tables = self.tables.load();
        if tables.wireguard().is_none() {
            return;
        }
        for peer in tables.peers.values() {
            let dropped = peer.lock().handle_timeout(peer.id, &self.outbox, now);
            self.count(DropReason::NoSession, dropped);
        }
    }

    /// When [`Mesh::handle_timeout`] is to be called; `None` if never. To be polled again after
    /// [`Mesh::apply`] and [`Mesh::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let tables = self.tables.load();
        let timers = tables.wireguard().is_some() && !tables.peers.is_empty();
        timers.then(|| Timestamp(self.next_tick.load(Ordering::Acquire)))
    }

    /// The next datagram that the mesh sends on its own account: handshakes, keepalives, packets
    /// that waited. Cheap when there is none.
    pub fn poll_transmit(&self) -> Option<Transmit> {
        self.outbox.poll_transmit()
    }

    /// The next event. Cheap when there is none; the oldest are forgotten if nobody polls.
    pub fn poll_event(&self) -> Option<Event> {
        self.outbox.poll_event()
    }

    /// Every peer, by id.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Vec<PeerStatus> {
        let tables = self.tables.load();
        let wireguard = tables.wireguard().is_some();
        let status = |peer: &std::sync::Arc<Peer>| peer.status(wireguard, now);
        let mut peers: Vec<_> = tables.peers.values().map(status).collect();
        peers.sort_by_key(|p| p.peer);
        peers
    }

    /// Packets and datagrams dropped since the start: those answered with `Dropped`, and those
    /// that waited for a handshake in vain. Reasons that never occurred are left out.
    #[must_use]
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let counts = self.drops.iter().map(|count| count.load(Ordering::Relaxed));
        DropReason::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn count(&self, reason: DropReason, packets: usize) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }
}

/// `None` if the session has come to its end.
pub(crate) fn seal_with(
    session: &Session,
    to: SocketAddr,
    lane: &Lane,
    packets: &impl Packets,
    out: &mut [u8],
    now: Timestamp,
) -> Result<Option<Encapsulated>, DropReason> {
    let Some(first) = session.reserve(packets.count(), now) else { return Ok(None) };
    let behind = OVERHEAD - DATA_HEADER_LEN;
    let done = lay_out(packets, out, (DATA_HEADER_LEN, behind), |k, datagram| {
        session.seal(first + k as u64, datagram)
    });
    let (len, size) = done.ok_or(DropReason::Malformed)?;
    session.activity.sent(true, now);
    lane.sent.add(packets.count(), len - packets.count() * OVERHEAD);
    Ok(Some(Encapsulated::Datagrams { to, len, size }))
}

fn frame(
    vtep: &VxlanTables,
    peer: &Peer,
    packets: &impl Packets,
    out: &mut [u8],
) -> Result<Encapsulated, DropReason> {
    let outbound = peer.lane.outbound.load();
    let Some(Outbound { to, vtep_mac: Some(remote), .. }) = outbound.as_deref() else {
        return Err(DropReason::NoPeerEndpoint);
    };
    let done = lay_out(packets, out, (vxlan::HEADER_LEN, 0), |_, datagram| {
        vxlan::put_header(vtep.vni, vtep.mac, *remote, datagram)
    });
    let (len, size) = done.ok_or(DropReason::Malformed)?;
    peer.lane.sent.add(packets.count(), len - packets.count() * vxlan::HEADER_LEN);
    Ok(Encapsulated::Datagrams { to: *to, len, size })
}

/// Writes each packet with room before and behind it, and has it finished there. Returns the length
/// of all and that of the first.
fn lay_out(
    packets: &impl Packets,
    out: &mut [u8],
    (before, behind): (usize, usize),
    mut finish: impl FnMut(usize, &mut [u8]) -> bool,
) -> Option<(usize, usize)> {
    let (mut at, mut size) = (0, 0);
    for k in 0..packets.count() {
        let len = packets.len_of(k);
        let datagram = out.get_mut(at..at + before + len + behind)?;
        if !packets.write(k, datagram.get_mut(before..before + len)?) || !finish(k, datagram) {
            return None;
        }
        size = size.max(datagram.len());
        at += datagram.len();
    }
    Some((at, size))
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("peers", &self.tables.load().peers.len()).finish()
    }
}
