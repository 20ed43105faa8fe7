//! One peer: its tunnels, its endpoint, what waits for it. Each has its own short lock.

use std::net::SocketAddr;

use parking_lot::{Mutex, MutexGuard};
use weft_model::{MacAddr, PeerId, PublicKey, Timestamp};

use crate::outbox::{Event, Outbox};
use crate::queue::PacketQueue;
use crate::status::PeerStatus;
use crate::wireguard::{REKEY_ATTEMPT_TIME, Tunnel};

/// A peer as the tables and the workers share it.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) name: String,
    state: Mutex<PeerState>,
}

/// What becomes of a packet for a peer.
pub(crate) enum Sealed {
    /// A datagram of this length was appended.
    Datagram {
        to: SocketAddr,
        len: usize,
    },
    /// It waits, and that many older packets had to go.
    Queued {
        dropped: usize,
    },
    NoEndpoint,
}

/// What changes with packets and configuration.
#[derive(Default)]
pub(crate) struct PeerState {
    configured: Option<SocketAddr>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) vtep_mac: Option<MacAddr>,
    /// In order of preference.
    pub(crate) tunnels: Vec<Tunnel>,
    /// INVARIANT: the first live tunnel, if any; kept by `refresh` after whatever may change it.
    active: Option<usize>,
    queue: PacketQueue,
    /// Until when initiations are repeated; `None` if nobody waits for a session.
    wanted_until: Option<Timestamp>,
    last_handshake: Option<Timestamp>,
    handshakes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    no_session: u64,
    /// What `no_session` was when there last was one.
    no_session_before: u64,
    pub(crate) not_allowed: u64,
}

impl Peer {
    pub(crate) fn new(id: PeerId, name: String, state: PeerState) -> Self {
        Self { id, name, state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    pub(crate) fn status(&self, wireguard: bool, now: Timestamp) -> PeerStatus {
        let state = self.lock();
        let active = state.active.and_then(|i| state.tunnels.get(i));
        PeerStatus {
            peer: self.id,
            name: self.name.clone(),
            endpoint: state.endpoint,
            ready: state.endpoint.is_some() && (active.is_some() || !wireguard),
            last_handshake: state.last_handshake.map(|at| now.since(at)),
            handshakes: state.handshakes,
            keys: active.map(Tunnel::keys),
            rx_packets: state.rx_packets,
            rx_bytes: state.rx_bytes,
            tx_packets: state.tx_packets,
            tx_bytes: state.tx_bytes,
            queued: state.queue.len(),
            no_session: state.no_session,
            not_allowed: state.not_allowed,
        }
    }
}

impl PeerState {
    /// Takes over a configured endpoint. One that roaming found stays unless the configured one
    /// is another than before.
    pub(crate) fn configure_endpoint(&mut self, configured: Option<SocketAddr>) {
        let configured = configured.map(canonical);
        if configured != self.configured {
            self.configured = configured;
            if configured.is_some() {
                self.endpoint = configured;
                self.tunnels.iter_mut().for_each(Tunnel::forget_initiation);
            }
        }
    }

    /// Forgets sessions, what waits for one, and where roaming led.
    pub(crate) fn leave_wireguard(&mut self) {
        self.tunnels.clear();
        self.refresh();
        self.no_session += self.queue.clear() as u64;
        self.wanted_until = None;
        self.last_handshake = None;
        self.endpoint = self.configured;
    }

    pub(crate) fn tunnel(&mut self, index: u32) -> Option<&mut Tunnel> {
        self.tunnels.iter_mut().find(|t| t.index() == index)
    }

    pub(crate) fn tunnel_with(
        &mut self,
        local: PublicKey,
        remote: PublicKey,
    ) -> Option<&mut Tunnel> {
        self.tunnels.iter_mut().find(|t| t.keys() == (local, remote))
    }

    /// Finds the tunnel to send on.
    pub(crate) fn refresh(&mut self) {
        self.active = self.tunnels.iter().position(Tunnel::is_live);
    }

    /// Encapsulates a packet, or lets it wait and begins a handshake.
    pub(crate) fn seal(
        &mut self,
        inner: &[u8],
        out: &mut Vec<u8>,
        outbox: &Outbox,
        now: Timestamp,
    ) -> Sealed {
        let Some(to) = self.endpoint else { return Sealed::NoEndpoint };
        if let Some(len) = self.seal_now(inner, out) {
            if self.active != Some(0) {
                self.want_session(outbox, now);
            }
            return Sealed::Datagram { to, len };
        }
        let dropped = self.queue.push(inner, now);
        self.no_session += dropped as u64;
        self.want_session(outbox, now);
        Sealed::Queued { dropped }
    }

    fn seal_now(&mut self, inner: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let tunnel = self.active.and_then(|i| self.tunnels.get_mut(i))?;
        let len = tunnel.seal(inner, out);
        if len.is_none() {
            self.refresh();
        }
        self.count_sent(inner.len(), len.is_some());
        len
    }

    pub(crate) fn count_sent(&mut self, bytes: usize, sent: bool) {
        if sent {
            self.tx_packets += 1;
            self.tx_bytes += bytes as u64;
        }
    }

    pub(crate) fn count_received(&mut self, bytes: usize) {
        self.rx_packets += 1;
        self.rx_bytes += bytes as u64;
    }

    /// A configuration was taken over: makes new tunnels live at once.
    pub(crate) fn configured(&mut self, outbox: &Outbox, now: Timestamp) {
        if self.active != Some(0) {
            self.want_session(outbox, now);
        }
    }

    /// Begins handshakes that are needed, and repeats them for `REKEY_ATTEMPT_TIME`. Traffic does
    /// not prolong that, so that a peer which never answers is reported each time it is over.
    pub(crate) fn want_session(&mut self, outbox: &Outbox, now: Timestamp) {
        self.wanted_until.get_or_insert(now + REKEY_ATTEMPT_TIME);
        self.initiate(outbox, now);
    }

    /// Sends an initiation on the preferred tunnel unless it is live; on every tunnel if none is.
    fn initiate(&mut self, outbox: &Outbox, now: Timestamp) {
        let Some(to) = self.endpoint else { return };
        let candidates = if self.active.is_some() { 1 } else { self.tunnels.len() };
        for tunnel in self.tunnels.iter_mut().take(candidates) {
            if tunnel.is_live() || !tunnel.may_initiate(now) {
                continue;
            }
            if let Some(initiation) = tunnel.initiate(now) {
                outbox.send(to, initiation);
            }
        }
    }

    /// An authenticated datagram came from `from`: answers go there.
    pub(crate) fn roam(&mut self, peer: PeerId, from: SocketAddr, outbox: &Outbox) {
        if self.endpoint != Some(from) {
            let event = Event::EndpointChanged { peer, from: self.endpoint, to: from };
            self.endpoint = Some(from);
            outbox.tell(event);
        }
    }

    /// The peer has the keys of a new session: notes it, and sends what waited for it.
    pub(crate) fn session_confirmed(
        &mut self,
        peer: PeerId,
        initiator: bool,
        outbox: &Outbox,
        now: Timestamp,
    ) {
        self.handshakes += 1;
        self.last_handshake = Some(now);
        self.refresh();
        outbox.tell(Event::HandshakeCompleted { peer, initiator });
        self.flush(outbox);
        self.no_session_before = self.no_session;
        if self.active == Some(0) {
            self.wanted_until = None;
        }
    }

    fn flush(&mut self, outbox: &Outbox) {
        let Some(to) = self.endpoint else { return };
        while self.active.is_some()
            && let Some(packet) = self.queue.pop()
        {
            let mut datagram = Vec::new();
            let sent = self.seal_now(&packet, &mut datagram).is_some();
            if !sent || !outbox.send(to, datagram) {
                self.no_session += 1;
            }
        }
    }

    /// Moves every tunnel's timers. Returns how many packets waited too long.
    pub(crate) fn handle_timeout(
        &mut self,
        peer: PeerId,
        outbox: &Outbox,
        now: Timestamp,
    ) -> usize {
        for tunnel in &mut self.tunnels {
            if let (Some(message), Some(to)) = (tunnel.handle_timeout(now), self.endpoint) {
                outbox.send(to, message);
            }
        }
        self.refresh();
        match self.wanted_until {
            None => {}
            Some(_) if self.active == Some(0) => self.wanted_until = None,
            Some(until) if now < until => self.initiate(outbox, now),
            Some(_) => self.give_up(peer, outbox),
        }
        let dropped = self.queue.handle_timeout(now);
        self.no_session += dropped as u64;
        dropped
    }

    fn give_up(&mut self, peer: PeerId, outbox: &Outbox) {
        self.wanted_until = None;
        if self.active.is_none() {
            let dropped = self.no_session - self.no_session_before;
            let dropped = usize::try_from(dropped).unwrap_or(usize::MAX);
            outbox.tell(Event::HandshakeTimedOut { peer, dropped });
        }
    }
}

/// The address without the IPv6-mapped form that a dual-stack socket reports for IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
