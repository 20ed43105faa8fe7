//! The face of the mesh: configuration, encapsulation, timers, polling.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use weft_model::{DropReason, PeerId, Timestamp, overhead};

use crate::config::{Applied, ConfigError, MeshConfig};
use crate::outbox::{Event, Outbox, Transmit};
use crate::peer::{Peer, Sealed};
use crate::status::PeerStatus;
use crate::tables::{Carrier, Indices, Tables};
use crate::vxlan;
use crate::wireguard::TICK_INTERVAL;

/// Length of the buffer that [`Mesh::handle_network_input`] needs: no datagram is longer.
pub const RECEIVE_BUFFER_LEN: usize = 65_535;

/// What became of a packet given to [`Mesh::encapsulate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulated {
    /// One datagram was appended.
    Datagram {
        /// Where to send it.
        to: SocketAddr,
        /// Its length in bytes, at the end of the buffer.
        len: usize,
    },
    /// It waits for a handshake, up to 10 s, and will come out of [`Mesh::poll_transmit`].
    Queued,
    /// It is gone.
    Dropped(DropReason),
}

/// What was in a datagram given to [`Mesh::handle_network_input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// An inner IP packet from a peer that may send from its source address.
    Packet {
        /// Who sent it.
        peer: PeerId,
        /// Where in the output buffer it is.
        range: Range<usize>,
    },
    /// Nothing for the pipeline: a handshake, a keepalive.
    Nothing,
    /// It is gone.
    Dropped(DropReason),
}

/// All peers of a node.
///
/// Shared by workers behind an `Arc`. Each peer's state has its own lock, held for the time of
/// one packet; packets of different peers never wait for each other.
pub struct Mesh {
    pub(crate) tables: ArcSwap<Tables>,
    /// Held while tables are built, so that configurations follow each other.
    indices: Mutex<Indices>,
    pub(crate) outbox: Outbox,
    next_tick: AtomicU64,
    drops: Vec<AtomicU64>,
}

impl Mesh {
    /// Bytes that encapsulation puts before a packet at most.
    pub const HEADROOM: usize = vxlan::HEADER_LEN;
    /// Bytes that encapsulation puts behind a packet at most: the WireGuard tag.
    pub const TAILROOM: usize = 16;

    /// A mesh without peers. `seed` sets where receiver indices start; it should be random.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            tables: ArcSwap::from_pointee(Tables::empty()),
            indices: Mutex::new(Indices::new(seed)),
            outbox: Outbox::new(),
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
        let (tables, applied) = self.tables.load().next(config, &mut indices)?;
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

    /// Bytes that encapsulation adds to a packet, outer IP and UDP headers not counted.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match &self.tables.load().carrier {
            Carrier::None | Carrier::WireGuard(_) => usize::from(overhead::WIREGUARD),
            Carrier::Vxlan(_) => vxlan::HEADER_LEN,
        }
    }

    /// Appends the datagram that carries one inner IP packet to `out`.
    ///
    /// Packets of equal length give datagrams of equal length, so that a run of calls fills a
    /// buffer for one segmented send. Allocates nothing if `out` has room for the packet, the
    /// overhead and 148 bytes. [`Mesh::poll_transmit`] must be polled after it.
    pub fn encapsulate(
        &self,
        peer: PeerId,
        inner: &[u8],
        out: &mut Vec<u8>,
        now: Timestamp,
    ) -> Encapsulated {
        let tables = self.tables.load();
        let Some(peer) = tables.peers.get(&peer) else {
            return self.not_sent(DropReason::UnknownPeer);
        };
        if inner.is_empty() {
            return self.not_sent(DropReason::Malformed);
        }
        match &tables.carrier {
            Carrier::None => self.not_sent(DropReason::NotReady),
            Carrier::WireGuard(_) => match peer.lock().seal(inner, out, &self.outbox, now) {
                Sealed::Datagram { to, len } => Encapsulated::Datagram { to, len },
                Sealed::Queued { dropped } => {
                    self.count(DropReason::NoSession, dropped);
                    Encapsulated::Queued
                }
                Sealed::NoEndpoint => self.not_sent(DropReason::NoPeerEndpoint),
            },
            Carrier::Vxlan(vtep) => {
                let mut state = peer.lock();
                let (Some(to), Some(remote)) = (state.endpoint, state.vtep_mac) else {
                    return self.not_sent(DropReason::NoPeerEndpoint);
                };
                let len = vxlan::emit(vtep.vni, vtep.mac, remote, inner, out);
                state.count_sent(inner.len(), len.is_some());
                len.map_or_else(
                    || self.not_sent(DropReason::Malformed),
                    |len| Encapsulated::Datagram { to, len },
                )
            }
        }
    }

    /// Takes one datagram that came from `from` and writes the packet in it to `out`, which has
    /// [`RECEIVE_BUFFER_LEN`] bytes.
    ///
    /// The packet's source is checked against the AllowedIPs of the peer. A WireGuard peer is
    /// known by its keys; a VXLAN peer by inner source address, outer address and VTEP address.
    /// [`Mesh::poll_transmit`] and [`Mesh::poll_event`] must be polled after it.
    pub fn handle_network_input(
        &self,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
        now: Timestamp,
    ) -> Received {
        let received = self.receive(from, datagram, out, now);
        if let Received::Dropped(reason) = received {
            self.count(reason, 1);
        }
        received
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
        let Some(wireguard) = tables.wireguard() else { return };
        wireguard.identities.iter().for_each(|i| i.handle_timeout());
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

    fn not_sent(&self, reason: DropReason) -> Encapsulated {
        self.count(reason, 1);
        Encapsulated::Dropped(reason)
    }

    fn count(&self, reason: DropReason, packets: usize) {
        if let Some(count) = self.drops.get(reason as usize) {
            count.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("peers", &self.tables.load().peers.len()).finish()
    }
}
