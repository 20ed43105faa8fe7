//! A few nodes on a simulated wire: delay, reordering, loss, and somebody who reads along.
//!
//! Time is virtual and moves from event to event.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use weft_aead::Engine;
use weft_fuzz::Random;
use weft_mesh::{Encapsulated, Event, Mesh, MeshConfig, PeerConfig, Received, SecretKey};
use weft_model::{DropReason, Encapsulation, MacAddr, PeerId, Timestamp, Vni};

/// Where virtual time starts; not zero, as on a machine that has been up for a while.
pub const START: Timestamp = Timestamp(1_000_000_000_000);
/// Unix time at the zero of timestamps.
pub const EPOCH: Duration = Duration::from_secs(1_750_000_000);
/// What nobody but sender and receiver may see.
pub const MARKER: &[u8] = b"the marker that nobody may read";

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Flying {
    pub due: Timestamp,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// What is known of a node before it runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub keys: Vec<SecretKey>,
    pub address: SocketAddr,
    pub configured: bool,
}

pub struct Node {
    pub mesh: Mesh,
    pub identity: Identity,
    /// Inner packets that arrived.
    pub inbox: Vec<(PeerId, Vec<u8>)>,
    pub events: Vec<Event>,
}

pub struct Wire {
    pub now: Timestamp,
    pub nodes: Vec<Node>,
    pub flying: Vec<Flying>,
    /// Every datagram ever sent, lost ones included.
    pub seen: Vec<Flying>,
    /// Of 1000.
    pub loss: u64,
    /// Delays are 1 ms and up to this more.
    pub jitter: Duration,
    random: Random,
}

pub fn secret(byte: u8) -> SecretKey {
    SecretKey([byte; 32])
}

pub fn peer(node: usize) -> PeerId {
    PeerId(u32::try_from(node).unwrap() + 100)
}

pub fn mac(node: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, u8::try_from(node).unwrap()])
}

/// An IPv4 packet from a pod of node `from` to one of node `to`.
pub fn packet(from: usize, to: usize, number: u32) -> Vec<u8> {
    let payload = [MARKER, &number.to_be_bytes()].concat();
    let octet = |node| u8::try_from(node).unwrap();
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend([10, 1, octet(from), 2, 10, 1, octet(to), 2]);
    packet.extend(payload);
    packet
}

/// An IPv6 packet likewise.
pub fn packet6(from: usize, to: usize) -> Vec<u8> {
    let length = u16::try_from(MARKER.len()).unwrap().to_be_bytes();
    let octet = |node| u8::try_from(node).unwrap();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 59, 64];
    for node in [from, to] {
        packet.extend([0xfd, 1, 0, 0, 0, 0, 0, octet(node), 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    packet.extend(MARKER);
    packet
}

impl Wire {
    /// `count` nodes in a full mesh, not yet configured.
    pub fn new(count: usize) -> Self {
        let node = |i: usize| Node {
            mesh: Mesh::new(i as u64 + 7, EPOCH, Engine::fastest()),
            identity: Identity {
                keys: vec![secret(u8::try_from(i).unwrap() + 1)],
                address: format!("192.0.2.{}:51820", i + 1).parse().unwrap(),
                configured: true,
            },
            inbox: Vec::new(),
            events: Vec::new(),
        };
        Self {
            now: START,
            nodes: (0..count).map(node).collect(),
            flying: Vec::new(),
            seen: Vec::new(),
            loss: 0,
            jitter: Duration::ZERO,
            random: Random::new(0x5eed),
        }
    }

    /// Nodes that have been configured and have greeted each other.
    pub fn connected(count: usize) -> Self {
        let mut wire = Self::new(count);
        wire.apply_all();
        wire.run(Duration::from_millis(100));
        wire
    }

    /// What `node` is to be told of the others.
    pub fn config(&self, node: usize, encapsulation: Encapsulation) -> MeshConfig {
        let others = self.nodes.iter().enumerate().filter(|(i, _)| *i != node);
        let peers = others.map(|(i, other)| PeerConfig {
            id: peer(i),
            name: format!("node-{i}"),
            endpoint: other.identity.configured.then_some(other.identity.address),
            keys: other.identity.keys.iter().map(SecretKey::public_key).collect(),
            vtep_mac: Some(mac(i)),
            allowed_ips: vec![
                format!("10.1.{i}.0/24").parse().unwrap(),
                format!("fd01:0:0:{i}::/64").parse().unwrap(),
            ],
        });
        MeshConfig {
            encapsulation,
            keys: self.nodes[node].identity.keys.clone(),
            vni: Vni::DEFAULT,
            vtep_mac: Some(mac(node)),
            peers: peers.collect(),
        }
    }

    pub fn apply(&mut self, node: usize) {
        let config = self.config(node, Encapsulation::WireGuard);
        let applied = self.nodes[node].mesh.apply(&config, self.now).unwrap();
        assert!(applied.conflicts.is_empty(), "{applied:?}");
        self.collect(node);
    }

    pub fn apply_all(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.apply(node));
    }

    /// Sends an inner packet as the datapath would.
    pub fn send(&mut self, node: usize, to: usize, inner: &[u8]) -> Encapsulated {
        let mut out = vec![0; Mesh::room_for(&inner)];
        let result = self.nodes[node].mesh.encapsulate(peer(to), &inner, &mut out, self.now);
        if let Encapsulated::Datagrams { to, len, size } = result {
            assert_eq!(len, size);
            out.truncate(len);
            self.fly(self.nodes[node].identity.address, to, out);
        }
        self.collect(node);
        result
    }

    /// Puts a datagram on the wire.
    pub fn fly(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let jitter = u64::try_from(self.jitter.as_nanos()).unwrap();
        let delay = 1_000_000 + self.random.next() % (jitter + 1);
        let due = self.now + Duration::from_nanos(delay);
        let flying = Flying { due, from, to, bytes };
        self.seen.push(flying.clone());
        if self.random.next() % 1000 >= self.loss {
            self.flying.push(flying);
        }
    }

    /// Hands a datagram to a node at once.
    pub fn deliver(&mut self, node: usize, from: SocketAddr, bytes: &[u8]) -> Received {
        let mut datagram = bytes.to_vec();
        let Node { mesh, inbox, .. } = &mut self.nodes[node];
        let received = mesh.handle_network_input(from, &mut datagram, self.now);
        if let Received::Packet { peer, range } = &received {
            inbox.push((*peer, datagram[range.clone()].to_vec()));
        }
        self.collect(node);
        received
    }

    fn collect(&mut self, node: usize) {
        while let Some(transmit) = self.nodes[node].mesh.poll_transmit() {
            self.fly(self.nodes[node].identity.address, transmit.to, transmit.bytes);
        }
        let Node { mesh, events, .. } = &mut self.nodes[node];
        events.extend(std::iter::from_fn(|| mesh.poll_event()));
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let timers = self.nodes.iter().filter_map(|n| n.mesh.poll_timeout());
            let next = timers.chain(self.flying.iter().map(|f| f.due)).min().unwrap_or(end);
            self.now = next.max(self.now).min(end);
            while let Some(flying) = self.next_due() {
                let to = |n: &Node| n.identity.address == flying.to;
                if let Some(node) = self.nodes.iter().position(to) {
                    self.deliver(node, flying.from, &flying.bytes);
                }
            }
            for node in 0..self.nodes.len() {
                self.nodes[node].mesh.handle_timeout(self.now);
                self.collect(node);
            }
        }
    }

    /// The datagram that arrives next, if it is time.
    fn next_due(&mut self) -> Option<Flying> {
        let due = self.flying.iter().enumerate().filter(|(_, f)| f.due <= self.now);
        let (at, _) = due.min_by_key(|(_, f)| f.due)?;
        Some(self.flying.remove(at))
    }

    /// Starts `node` anew: same keys, no memory.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].mesh = Mesh::new(self.now.0 ^ 0xabcd, EPOCH, Engine::fastest());
        self.flying.retain(|f| f.to != self.nodes[node].identity.address);
        self.apply(node);
    }

    /// Packets that `node` got from `from`, by number, in order of arrival.
    pub fn numbers(&self, node: usize, from: usize) -> Vec<u32> {
        let inbox = self.nodes[node].inbox.iter().filter(|(p, _)| *p == peer(from));
        inbox
            .map(|(_, packet)| *packet.last_chunk::<4>().unwrap())
            .map(u32::from_be_bytes)
            .collect()
    }

    pub fn dropped(&self, node: usize, reason: DropReason) -> u64 {
        let drops = self.nodes[node].mesh.drops();
        drops.iter().find(|(r, _)| *r == reason).map_or(0, |(_, count)| *count)
    }

    /// Datagrams that the eavesdropper saw of a message type (first byte).
    pub fn messages(&self, kind: u8) -> usize {
        self.seen.iter().filter(|f| f.bytes.first() == Some(&kind)).count()
    }

    pub fn marker_was_seen(&self) -> bool {
        self.seen.iter().any(|f| f.bytes.windows(MARKER.len()).any(|w| w == MARKER))
    }
}
