//! The way of a datagram from the underlay: whose it is, what is in it, whether it may be.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_model::{DropReason, Timestamp};

use crate::ip::has_header;
use crate::mesh::{Mesh, Received};
use crate::peer::{Peer, canonical};
use crate::tables::{Carrier, Tables, VxlanTables, WireGuardTables};
use crate::vxlan;
use crate::wireguard::{Admission, Identity, Message, Opened, classify};

/// A datagram on its way in.
struct Datagram<'a> {
    from: SocketAddr,
    bytes: &'a [u8],
    now: Timestamp,
}

/// A datagram's tunnel: the peer and the two keys, or the peer and an index of ours.
struct Target<'a> {
    peer: &'a Arc<Peer>,
    tunnel: TunnelName,
}

#[derive(Clone, Copy)]
enum TunnelName {
    Keys(weft_model::PublicKey, weft_model::PublicKey),
    Index(u32),
}

impl Mesh {
    pub(crate) fn receive(
        &self,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut [u8],
        now: Timestamp,
    ) -> Received {
        let tables = self.tables.load();
        let datagram = Datagram { from: canonical(from), bytes, now };
        match &tables.carrier {
            Carrier::None => Received::Dropped(DropReason::NotReady),
            Carrier::WireGuard(wireguard) => {
                self.receive_wireguard(&tables, wireguard, &datagram, out)
            }
            Carrier::Vxlan(vxlan) => receive_vxlan(&tables, vxlan, &datagram, out),
        }
    }

    fn receive_wireguard(
        &self,
        tables: &Tables,
        wireguard: &WireGuardTables,
        datagram: &Datagram<'_>,
        out: &mut [u8],
    ) -> Received {
        let Some(message) = classify(datagram.bytes) else {
            return Received::Dropped(DropReason::BadDatagram);
        };
        let target = match message {
            Message::Initiation => self.target_of_initiation(wireguard, datagram),
            Message::Response { receiver } => {
                self.target_of_response(wireguard, receiver, datagram)
            }
            Message::Cookie { receiver } | Message::Data { receiver } => {
                target_of_index(wireguard, receiver)
            }
        };
        match target {
            Ok(target) => self.open(tables, &target, message, datagram, out),
            Err(received) => received,
        }
    }

    /// The sender of an initiation is known by the key in it, which one of ours decrypts.
    fn target_of_initiation<'a>(
        &self,
        wireguard: &'a WireGuardTables,
        datagram: &Datagram<'_>,
    ) -> Result<Target<'a>, Received> {
        for identity in &wireguard.identities {
            if !self.admit(identity, datagram)? {
                continue;
            }
            let remote = identity
                .initiator_of(datagram.bytes)
                .ok_or(Received::Dropped(DropReason::BadDatagram))?;
            let peer =
                wireguard.by_key.get(&remote).ok_or(Received::Dropped(DropReason::UnknownPeer))?;
            let tunnel = TunnelName::Keys(identity.public_key(), remote);
            return Ok(Target { peer, tunnel });
        }
        Err(Received::Dropped(DropReason::BadDatagram))
    }

    fn target_of_response<'a>(
        &self,
        wireguard: &'a WireGuardTables,
        index: u32,
        datagram: &Datagram<'_>,
    ) -> Result<Target<'a>, Received> {
        let receiver = wireguard
            .receivers
            .get(&(index >> 8))
            .ok_or(Received::Dropped(DropReason::UnknownPeer))?;
        if !self.admit(&receiver.identity, datagram)? {
            return Err(Received::Dropped(DropReason::BadDatagram));
        }
        Ok(Target { peer: &receiver.peer, tunnel: TunnelName::Index(index >> 8) })
    }

    /// Checks the MACs of a handshake message: true if it is for `identity`. Under load the
    /// sender gets a cookie instead, and that is all for this datagram.
    fn admit(&self, identity: &Identity, datagram: &Datagram<'_>) -> Result<bool, Received> {
        match identity.admit(datagram.from.ip(), datagram.bytes) {
            Admission::Admitted => Ok(true),
            Admission::NotOurs => Ok(false),
            Admission::Cookie(reply) => {
                self.outbox.send(datagram.from, reply);
                Err(Received::Nothing)
            }
        }
    }

    fn open(
        &self,
        tables: &Tables,
        target: &Target<'_>,
        message: Message,
        datagram: &Datagram<'_>,
        out: &mut [u8],
    ) -> Received {
        let Datagram { from, bytes, now } = *datagram;
        let id = target.peer.id;
        let mut state = target.peer.lock();
        let tunnel = match target.tunnel {
            TunnelName::Keys(local, remote) => state.tunnel_with(local, remote),
            TunnelName::Index(index) => state.tunnel(index),
        };
        let Some(tunnel) = tunnel else {
            return Received::Dropped(DropReason::UnknownPeer);
        };
        let was_live = tunnel.is_live();
        let (opened, established) = tunnel.open(from.ip(), message, bytes, out);
        let packet = match opened {
            Opened::Bad => return Received::Dropped(DropReason::BadDatagram),
            Opened::Cookie => return Received::Nothing,
            Opened::Keepalive => None,
            Opened::Packet { len, source } => Some((len, source)),
            Opened::Reply { len } => {
                self.outbox.send(from, out.get(..len).unwrap_or_default().to_vec());
                None
            }
        };
        state.roam(id, from, &self.outbox);
        if let Some(established) = established {
            state.session_confirmed(id, established.initiator, &self.outbox, now);
        } else if !was_live {
            state.refresh();
        }
        let Some((len, source)) = packet else { return Received::Nothing };
        // boringtun cuts a packet to the length in its header without asking for a whole header.
        if !out.get(..len).is_some_and(|packet| has_header(packet, source)) {
            return Received::Dropped(DropReason::Malformed);
        }
        if tables.peer_of(source) != Some(id) {
            state.not_allowed += 1;
            return Received::Dropped(DropReason::NotAllowedIp);
        }
        state.count_received(len);
        Received::Packet { peer: id, range: 0..len }
    }
}

fn target_of_index(wireguard: &WireGuardTables, index: u32) -> Result<Target<'_>, Received> {
    let receiver =
        wireguard.receivers.get(&(index >> 8)).ok_or(Received::Dropped(DropReason::UnknownPeer))?;
    Ok(Target { peer: &receiver.peer, tunnel: TunnelName::Index(index >> 8) })
}

fn receive_vxlan(
    tables: &Tables,
    vtep: &VxlanTables,
    datagram: &Datagram<'_>,
    out: &mut [u8],
) -> Received {
    let frame = match vxlan::parse(vtep.vni, datagram.bytes) {
        Some(frame) if frame.destination == vtep.mac => frame,
        Some(_) | None => return Received::Dropped(DropReason::BadVxlan),
    };
    let claimed = tables.peer_of(frame.source_address).and_then(|id| tables.peers.get(&id));
    let from = datagram.from.ip();
    let Some(peer) = claimed.filter(|peer| peer.lock().endpoint.map(|e| e.ip()) == Some(from))
    else {
        return refuse_vtep(vtep.by_address.get(&from));
    };
    let mut state = peer.lock();
    if state.vtep_mac != Some(frame.source) {
        return Received::Dropped(DropReason::BadVxlan);
    }
    let Some(packet) = out.get_mut(..frame.inner.len()) else {
        return Received::Dropped(DropReason::Internal);
    };
    packet.copy_from_slice(frame.inner);
    state.count_received(frame.inner.len());
    Received::Packet { peer: peer.id, range: 0..frame.inner.len() }
}

/// The inner source is not the sender's: the sender is a peer that lies, or nobody.
fn refuse_vtep(sender: Option<&Arc<Peer>>) -> Received {
    let Some(sender) = sender else { return Received::Dropped(DropReason::UnknownPeer) };
    sender.lock().not_allowed += 1;
    Received::Dropped(DropReason::NotAllowedIp)
}
