//! One peer: its tunnels, its endpoint, what waits for it. Each has its own short lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use weft_model::{DropReason, MacAddr, PeerId, PublicKey, Timestamp};

use crate::mesh::{Encapsulated, Mesh, seal_with};
use crate::outbox::{Event, Outbox};
use crate::packets::Packets;
use crate::queue::PacketQueue;
use crate::status::PeerStatus;
use crate::wireguard::{REKEY_ATTEMPT_TIME, Session, Tunnel};

/// A peer as the tables and the workers share it.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) name: String,
    pub(crate) lane: Arc<Lane>,
    state: Mutex<PeerState>,
}

/// What workers read and count of a peer without its lock.
#[derive(Default)]
pub(crate) struct Lane {
    /// How packets go out; `None` while nobody knows where to.
    pub(crate) outbound: ArcSwapOption<Outbound>,
    pub(crate) sent: Traffic,
    pub(crate) received: Traffic,
    pub(crate) not_allowed: AtomicU64,
}

/// The way to a peer.
pub(crate) struct Outbound {
    pub(crate) to: SocketAddr,
    pub(crate) vtep_mac: Option<MacAddr>,
    pub(crate) session: Option<Arc<Session>>,
    /// The session is under the keys to be preferred.
    pub(crate) preferred: bool,
}

/// Inner packets and their bytes.
#[derive(Default)]
pub(crate) struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn add(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What changes with configuration, handshakes and time.
#[derive(Default)]
pub(crate) struct PeerState {
    lane: Arc<Lane>,
    configured: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
    vtep_mac: Option<MacAddr>,
    /// In order of preference.
    pub(crate) tunnels: Vec<Tunnel>,
    /// INVARIANT: the first live tunnel, if any; kept by `refresh` after whatever may change it.
    active: Option<usize>,
    queue: PacketQueue,
    /// Until when initiations are repeated; `None` if nobody waits for a session.
    wanted_until: Option<Timestamp>,
    last_handshake: Option<Timestamp>,
    handshakes: u64,
    no_session: u64,
    /// What `no_session` was when there last was one.
    no_session_before: u64,
}

impl Peer {
    pub(crate) fn new(id: PeerId, name: String, state: PeerState) -> Self {
        Self { id, name, lane: Arc::clone(&state.lane), state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    pub(crate) fn status(&self, wireguard: bool, now: Timestamp) -> PeerStatus {
        let state = self.lock();
        let active = state.active.and_then(|i| state.tunnels.get(i));
        let Lane { sent, received, not_allowed, .. } = &*self.lane;
        PeerStatus {
            peer: self.id,
            name: self.name.clone(),
            endpoint: state.endpoint,
            ready: state.endpoint.is_some() && (active.is_some() || !wireguard),
            last_handshake: state.last_handshake.map(|at| now.since(at)),
            handshakes: state.handshakes,
            keys: active.map(Tunnel::keys),
            rx_packets: received.packets(),
            rx_bytes: received.bytes(),
            tx_packets: sent.packets(),
            tx_bytes: sent.bytes(),
            queued: state.queue.len(),
            no_session: state.no_session,
            not_allowed: not_allowed.load(Ordering::Relaxed),
        }
    }
}

impl PeerState {
    /// Takes over a configured endpoint and VTEP. An endpoint that roaming found stays unless the
    /// configured one is another than before.
    pub(crate) fn configure(&mut self, configured: Option<SocketAddr>, vtep_mac: Option<MacAddr>) {
        self.vtep_mac = vtep_mac;
        let configured = configured.map(canonical);
        if configured != self.configured {
            self.configured = configured;
            if configured.is_some() {
                self.endpoint = configured;
                self.tunnels.iter_mut().for_each(Tunnel::forget_initiation);
            }
        }
        self.refresh();
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Forgets sessions, what waits for one, and where roaming led.
    pub(crate) fn leave_wireguard(&mut self) {
        self.tunnels.clear();
        self.no_session += self.queue.clear() as u64;
        self.wanted_until = None;
        self.last_handshake = None;
        self.endpoint = self.configured;
        self.refresh();
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

    /// Finds the tunnel to send on, and lets workers know.
    pub(crate) fn refresh(&mut self) {
        self.active = self.tunnels.iter().position(Tunnel::is_live);
        let session = self.active.and_then(|at| self.tunnels.get(at)?.current());
        let outbound = self.endpoint.map(|to| Outbound {
            to,
            vtep_mac: self.vtep_mac,
            session: session.cloned(),
            preferred: self.active == Some(0),
        });
        if !same(self.lane.outbound.load().as_deref(), outbound.as_ref()) {
            self.lane.outbound.store(outbound.map(Arc::new));
        }
    }

    /// A session that has not expired, and where its datagrams go.
    pub(crate) fn next_session(&mut self, now: Timestamp) -> Option<(Arc<Session>, SocketAddr)> {
        self.tunnels.iter_mut().for_each(|tunnel| tunnel.expire(now));
        self.refresh();
        let session = self.tunnels.get(self.active?)?.current()?;
        Some((Arc::clone(session), self.endpoint?))
    }

    /// Lets packets wait and begins a handshake. Returns how many older ones had to go.
    pub(crate) fn queue(
        &mut self,
        packets: &impl Packets,
        outbox: &Outbox,
        now: Timestamp,
    ) -> Result<usize, DropReason> {
        if self.endpoint.is_none() {
            return Err(DropReason::NoPeerEndpoint);
        }
        let mut dropped = 0;
        for k in 0..packets.count() {
            let mut packet = vec![0; packets.len_of(k)];
            if !packets.write(k, &mut packet) {
                return Err(DropReason::Malformed);
            }
            dropped += self.queue.push(packet, now);
        }
        self.no_session += dropped as u64;
        self.want_session(outbox, now);
        Ok(dropped)
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
            self.refresh();
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
        self.flush(outbox, now);
        self.no_session_before = self.no_session;
        if self.active == Some(0) {
            self.wanted_until = None;
        }
    }

    fn flush(&mut self, outbox: &Outbox, now: Timestamp) {
        while self.queue.len() > 0
            && let Some((session, to)) = self.next_session(now)
            && let Some(packet) = self.queue.pop()
        {
            let packet = packet.as_slice();
            let mut datagram = vec![0; Mesh::room_for(&packet)];
            let sealed = seal_with(&session, to, &self.lane, &packet, &mut datagram, now);
            let sent = if let Ok(Some(Encapsulated::Datagrams { len, .. })) = sealed {
                datagram.truncate(len);
                outbox.send(to, datagram)
            } else {
                false
            };
            self.no_session += u64::from(!sent);
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

fn same(a: Option<&Outbound>, b: Option<&Outbound>) -> bool {
    let session = |o: &Outbound| o.session.as_ref().map(Arc::as_ptr);
    let key = |o: &Outbound| (o.to, o.vtep_mac, session(o), o.preferred);
    a.map(key) == b.map(key)
}

/// The address without the IPv6-mapped form that a dual-stack socket reports for IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
