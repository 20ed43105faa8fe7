//! The way of a datagram from the underlay: whose it is, what is in it, whether it may be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;
use weft_model::{DropReason, MacAddr, PeerId, Timestamp};

use crate::ip::ip_packet;
use crate::mesh::{Mesh, Received};
use crate::peer::{Peer, PeerState, canonical};
use crate::tables::{Carrier, Receiver, Tables, VxlanTables, WireGuardTables};
use crate::vxlan;
use crate::wireguard::{
    Admission, DATA_HEADER_LEN, Established, Identity, Message, Session, Tunnel, classify,
};

/// A batch of datagrams on their way in, under one set of tables.
///
/// What the last datagram needed is remembered, since the next one mostly needs the same. It must
/// not live longer than the batch: tables that were replaced meanwhile stay in use here.
pub struct Reception<'m> {
    mesh: &'m Mesh,
    tables: Guard<Arc<Tables>>,
    now: Timestamp,
    /// The last sender as the socket gave it, and without the IPv6-mapped form.
    from: (SocketAddr, SocketAddr),
    session: Option<InSession>,
    vtep: Option<InVtep>,
    /// An inner source and whose it is.
    source: Option<(IpAddr, Option<PeerId>)>,
    /// Packets and bytes received of a peer and not yet counted.
    counted: Option<(Arc<Peer>, usize, usize)>,
}

/// The session of the last data message.
struct InSession {
    session: Arc<Session>,
    peer: Arc<Peer>,
    /// The peer needs nothing to be told when another message comes from here.
    settled: Option<SocketAddr>,
}

/// A VTEP that was found to be who it says it is.
struct InVtep {
    from: SocketAddr,
    mac: MacAddr,
    source: IpAddr,
    peer: Arc<Peer>,
}

impl<'m> Reception<'m> {
    pub(crate) fn new(mesh: &'m Mesh, now: Timestamp) -> Self {
        let nowhere = SocketAddr::from(([0; 4], 0));
        Self {
            mesh,
            tables: mesh.tables.load(),
            now,
            from: (nowhere, nowhere),
            session: None,
            vtep: None,
            source: None,
            counted: None,
        }
    }

    /// Takes one datagram that came from `from`; the packet in it is decrypted where it is.
    ///
    /// The packet's source is checked against the AllowedIPs of the peer. A WireGuard peer is
    /// known by its keys; a VXLAN peer by inner source address, outer address and VTEP address.
    /// [`Mesh::poll_transmit`] and [`Mesh::poll_event`] must be polled after it.
    pub fn open(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Received {
        if self.from.0 != from {
            self.from = (from, canonical(from));
        }
        let received = match &self.tables.carrier {
            Carrier::None => Err(DropReason::NotReady),
            Carrier::WireGuard(_) => self.open_wireguard(datagram),
            Carrier::Vxlan(_) => self.open_vxlan(datagram),
        };
        received.unwrap_or_else(|reason| {
            self.mesh.count(reason, 1);
            Received::Dropped(reason)
        })
    }

    fn open_wireguard(&mut self, datagram: &mut [u8]) -> Result<Received, DropReason> {
        let message = classify(datagram).ok_or(DropReason::BadDatagram)?;
        let Message::Data { receiver, counter } = message else {
            return self.handshake(message, datagram);
        };
        if self.session.as_ref().is_none_or(|s| s.session.local != receiver) {
            self.session = Some(self.find_session(receiver)?);
        }
        let Some(found) = &mut self.session else { return Err(DropReason::Internal) };
        let session = &found.session;
        let opened = session.open(counter, datagram, self.now).ok_or(DropReason::BadDatagram)?;
        session.activity.received(opened > 0, self.now);
        if found.settled != Some(self.from.1) {
            settle(self.mesh, found, self.from.1, self.now);
        }
        let peer = Arc::clone(&found.peer);
        if opened == 0 {
            return Ok(Received::Nothing);
        }
        let packet = datagram.get(DATA_HEADER_LEN..DATA_HEADER_LEN + opened);
        let (packet, source) = packet.and_then(ip_packet).ok_or(DropReason::Malformed)?;
        let range = DATA_HEADER_LEN..DATA_HEADER_LEN + packet.len();
        if self.holder(source) != Some(peer.id) {
            peer.lane.not_allowed.fetch_add(1, Ordering::Relaxed);
            return Err(DropReason::NotAllowedIp);
        }
        Ok(self.accepted(&peer, range))
    }

    fn find_session(&self, receiver: u32) -> Result<InSession, DropReason> {
        let wireguard = self.tables.wireguard().ok_or(DropReason::NotReady)?;
        let Receiver { peer, inbound, .. } = receiver_of(wireguard, receiver)?;
        let session = inbound.session(receiver).ok_or(DropReason::BadDatagram)?;
        Ok(InSession { session, peer: Arc::clone(peer), settled: None })
    }

    fn open_vxlan(&mut self, datagram: &[u8]) -> Result<Received, DropReason> {
        let Carrier::Vxlan(vtep) = &self.tables.carrier else { return Err(DropReason::NotReady) };
        let frame = vxlan::parse(vtep.vni, datagram)
            .filter(|frame| frame.destination == vtep.mac)
            .ok_or(DropReason::BadVxlan)?;
        let (source, mac, from) = (frame.source_address, frame.source, self.from.1);
        let range = vxlan::HEADER_LEN..vxlan::HEADER_LEN + frame.inner.len();
        let known = |v: &&InVtep| v.from == from && v.mac == mac && v.source == source;
        let peer = match self.vtep.as_ref().filter(known) {
            Some(known) => Arc::clone(&known.peer),
            None => {
                let peer = find_vtep(&self.tables, vtep, from.ip(), source, mac)?;
                self.vtep = Some(InVtep { from, mac, source, peer: Arc::clone(&peer) });
                peer
            }
        };
        Ok(self.accepted(&peer, range))
    }

    /// The peer that may send from `source`.
    fn holder(&mut self, source: IpAddr) -> Option<PeerId> {
        match self.source {
            Some((known, peer)) if known == source => peer,
            Some(_) | None => {
                let peer = self.tables.peer_of(source);
                self.source = Some((source, peer));
                peer
            }
        }
    }

    fn accepted(&mut self, peer: &Arc<Peer>, range: std::ops::Range<usize>) -> Received {
        match &mut self.counted {
            Some((of, packets, bytes)) if of.id == peer.id => {
                *packets += 1;
                *bytes += range.len();
            }
            Some(_) | None => {
                self.count_received();
                self.counted = Some((Arc::clone(peer), 1, range.len()));
            }
        }
        Received::Packet { peer: peer.id, range }
    }

    fn count_received(&mut self) {
        if let Some((peer, packets, bytes)) = self.counted.take() {
            peer.lane.received.add(packets, bytes);
        }
    }

    /// Everything but data: rare, so under the lock of the peer.
    fn handshake(&self, message: Message, datagram: &[u8]) -> Result<Received, DropReason> {
        let wireguard = self.tables.wireguard().ok_or(DropReason::NotReady)?;
        match message {
            Message::Initiation { sender } => self.initiation(wireguard, sender, datagram),
            Message::Response { sender, receiver } => {
                self.response(wireguard, (sender, receiver), datagram)
            }
            Message::Cookie { receiver } => self.cookie(wireguard, receiver, datagram),
            Message::Data { .. } => Err(DropReason::Internal),
        }
    }

    /// The sender of an initiation is known by the key in it, which one of ours decrypts.
    fn initiation(
        &self,
        wireguard: &WireGuardTables,
        sender: u32,
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        for identity in &wireguard.identities {
            match self.admit(identity, sender, datagram) {
                Admitted::Yes => {}
                Admitted::NotOurs => continue,
                Admitted::AnsweredWithCookie => return Ok(Received::Nothing),
            }
            let initiation = identity.read(datagram).ok_or(DropReason::BadDatagram)?;
            let remote = initiation.remote;
            let peer = wireguard.by_key.get(&remote).ok_or(DropReason::UnknownPeer)?;
            let mut state = peer.lock();
            let tunnel = state.tunnel_with(identity.public_key(), remote);
            let tunnel = tunnel.ok_or(DropReason::UnknownPeer)?;
            let answer = tunnel.answer(initiation, sender, self.now);
            let answer = answer.ok_or(DropReason::BadDatagram)?;
            self.mesh.outbox.send(self.from.1, answer);
            self.heard(&mut state, peer.id, None);
            return Ok(Received::Nothing);
        }
        Err(DropReason::BadDatagram)
    }

    fn response(
        &self,
        wireguard: &WireGuardTables,
        indices: (u32, u32),
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        let Receiver { peer, identity, .. } = receiver_of(wireguard, indices.1)?;
        match self.admit(identity, indices.0, datagram) {
            Admitted::Yes => {}
            Admitted::NotOurs => return Err(DropReason::BadDatagram),
            Admitted::AnsweredWithCookie => return Ok(Received::Nothing),
        }
        let mut state = peer.lock();
        let tunnel = tunnel_of(&mut state, indices.1)?;
        let keepalive = tunnel.finish(indices, datagram, self.now);
        let keepalive = keepalive.ok_or(DropReason::BadDatagram)?;
        self.mesh.outbox.send(self.from.1, keepalive);
        self.heard(&mut state, peer.id, Some(Established { initiator: true }));
        Ok(Received::Nothing)
    }

    /// A cookie for our next handshake message. It says nothing about where the peer is.
    fn cookie(
        &self,
        wireguard: &WireGuardTables,
        receiver: u32,
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        let mut state = receiver_of(wireguard, receiver)?.peer.lock();
        let tunnel = tunnel_of(&mut state, receiver)?;
        let taken = tunnel.take_cookie(receiver, datagram, self.now);
        if taken { Ok(Received::Nothing) } else { Err(DropReason::BadDatagram) }
    }

    /// An authentic handshake message came from `from`.
    fn heard(&self, state: &mut PeerState, id: PeerId, established: Option<Established>) {
        state.roam(id, self.from.1, &self.mesh.outbox);
        if let Some(Established { initiator }) = established {
            state.session_confirmed(id, initiator, &self.mesh.outbox, self.now);
        }
    }

    /// Checks the MACs of a handshake message. Under load the sender gets a cookie instead, and
    /// that is all for this datagram.
    fn admit(&self, identity: &Identity, sender: u32, datagram: &[u8]) -> Admitted {
        match identity.gate.admit(self.from.1, sender, datagram, self.now) {
            Admission::Admitted => Admitted::Yes,
            Admission::NotOurs => Admitted::NotOurs,
            Admission::Cookie(reply) => {
                self.mesh.outbox.send(self.from.1, reply.to_vec());
                Admitted::AnsweredWithCookie
            }
        }
    }
}

impl Drop for Reception<'_> {
    fn drop(&mut self) {
        self.count_received();
    }
}

enum Admitted {
    Yes,
    NotOurs,
    AnsweredWithCookie,
}

/// Tells the peer, if it has to know, that it was heard from `from` on this session.
fn settle(mesh: &Mesh, found: &mut InSession, from: SocketAddr, now: Timestamp) {
    let outbound = found.peer.lane.outbound.load();
    let knows = outbound.as_ref().is_some_and(|o| o.to == from && o.session.is_some());
    drop(outbound);
    if !knows || !found.session.is_confirmed() {
        let (id, mut state) = (found.peer.id, found.peer.lock());
        state.roam(id, from, &mesh.outbox);
        let tunnel = state.tunnel(found.session.local >> 8);
        match tunnel.and_then(|tunnel| tunnel.heard(&found.session, now)) {
            Some(Established { initiator }) => {
                state.session_confirmed(id, initiator, &mesh.outbox, now);
            }
            None => state.refresh(),
        }
    }
    found.settled = Some(from);
}

fn receiver_of(wireguard: &WireGuardTables, local: u32) -> Result<&Receiver, DropReason> {
    wireguard.receivers.get(&(local >> 8)).ok_or(DropReason::UnknownPeer)
}

fn tunnel_of(state: &mut PeerState, local: u32) -> Result<&mut Tunnel, DropReason> {
    state.tunnel(local >> 8).ok_or(DropReason::UnknownPeer)
}

/// The peer that may send from `source`, if it is who sent this.
fn find_vtep(
    tables: &Tables,
    vtep: &VxlanTables,
    from: IpAddr,
    source: IpAddr,
    mac: MacAddr,
) -> Result<Arc<Peer>, DropReason> {
    let claimed = tables.peer_of(source).and_then(|id| tables.peers.get(&id));
    let outbound = claimed.and_then(|peer| peer.lane.outbound.load_full());
    match (claimed, outbound) {
        (Some(peer), Some(outbound)) if outbound.to.ip() == from => {
            let its = outbound.vtep_mac == Some(mac);
            if its { Ok(Arc::clone(peer)) } else { Err(DropReason::BadVxlan) }
        }
        _ => Err(refuse_vtep(vtep.by_address.get(&from))),
    }
}

/// The inner source is not the sender's: the sender is a peer that lies, or nobody.
fn refuse_vtep(sender: Option<&Arc<Peer>>) -> DropReason {
    let Some(sender) = sender else { return DropReason::UnknownPeer };
    sender.lane.not_allowed.fetch_add(1, Ordering::Relaxed);
    DropReason::NotAllowedIp
}
