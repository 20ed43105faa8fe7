//! Mutates WireGuard and VXLAN datagrams and the packets in them: nothing may panic, nothing
//! forged may come through. Deterministic; `WEFT_FUZZ_ITERATIONS` sets how long (20,000).

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use weft_mesh::{Encapsulated, MeshConfig, RECEIVE_BUFFER_LEN, Received};
use weft_model::{Encapsulation, Vni};
use wire::{Wire, packet, packet6, peer, random};

/// Longest input: beyond it only the length grows.
const LENGTH_MAX: usize = 2048;

struct Fuzzer {
    state: u64,
    corpus: Vec<Vec<u8>>,
}

impl Fuzzer {
    fn number(&mut self, below: usize) -> usize {
        usize::try_from(random(&mut self.state) >> 16).unwrap() % below.max(1)
    }

    fn byte(&mut self) -> u8 {
        const EDGES: [u8; 8] = [0, 1, 4, 0x08, 0x45, 0x60, 0x7f, 0xff];
        if self.number(2) == 0 {
            EDGES[self.number(EDGES.len())]
        } else {
            u8::try_from(self.number(256)).unwrap()
        }
    }

    /// Something like one of the corpus.
    fn input(&mut self) -> Vec<u8> {
        let at = self.number(self.corpus.len());
        let mut bytes = self.corpus[at].clone();
        for _ in 0..=self.number(4) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(LENGTH_MAX);
        bytes
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.number(bytes.len());
        match self.number(6) {
            0 => bytes.truncate(at),
            1 => {
                let more = self.number(64);
                bytes.extend((0..more).map(|_| self.byte()));
            }
            2 => {
                let other = self.number(self.corpus.len());
                let tail = self.corpus[other].get(at..).unwrap_or_default().to_vec();
                bytes.truncate(at);
                bytes.extend(tail);
            }
            3 => {
                // Headers are where decisions are made.
                let at = self.number(bytes.len().min(48));
                let value = self.byte();
                bytes.get_mut(at).into_iter().for_each(|b| *b = value);
            }
            _ => {
                let value = self.byte();
                bytes.get_mut(at).into_iter().for_each(|b| *b = value);
            }
        }
    }
}

fn iterations() -> u64 {
    std::env::var("WEFT_FUZZ_ITERATIONS").map_or(20_000, |text| text.parse().unwrap())
}

/// A live pair of nodes, and every kind of datagram they exchange.
fn seeds(encapsulation: Encapsulation) -> (Wire, Vec<Vec<u8>>) {
    let mut wire = Wire::new(2);
    for node in [0, 1] {
        let config = MeshConfig { vni: Vni::DEFAULT, ..wire.config(node, encapsulation) };
        wire.nodes[node].mesh.apply(&config, wire.now).unwrap();
    }
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(std::time::Duration::from_millis(50));
    wire.send(0, 1, &packet(0, 1, 2));
    wire.send(0, 1, &packet6(0, 1));
    wire.flying.clear();
    let mut corpus: Vec<Vec<u8>> = wire.seen.iter().map(|f| f.bytes.clone()).collect();
    let mut cookie = vec![0; 64];
    cookie[0] = 3;
    if let Some(index) = corpus.iter().find(|d| d.first() == Some(&1)).map(|d| d[4..8].to_vec()) {
        cookie[4..8].copy_from_slice(&index);
    }
    corpus.extend([cookie, vec![], vec![0xff; 1500]]);
    (wire, corpus)
}

#[test]
fn fuzz_mutated_wireguard_datagrams_are_dropped() {
    let (wire, corpus) = seeds(Encapsulation::WireGuard);
    let mut fuzzer = Fuzzer { state: 0x1234_5678, corpus };
    let mut out = vec![0; RECEIVE_BUFFER_LEN];
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let input = fuzzer.input();
        if fuzzer.corpus.contains(&input) {
            continue;
        }
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &input, &mut out, wire.now);
        // Only the second MAC was changed, and there is load by now: a cookie, nothing more.
        let cookie = mesh.poll_transmit().is_some_and(|t| t.bytes.len() == 64 && t.bytes[0] == 3);
        let expected = if cookie {
            received == Received::Nothing
        } else {
            matches!(received, Received::Dropped(_))
        };
        assert!(expected, "{received:?} of {input:02x?}");
        assert_eq!(mesh.poll_transmit(), None);
    }
}

#[test]
fn fuzz_mutated_packets_of_a_true_peer_do_no_harm() {
    let (wire, _) = seeds(Encapsulation::WireGuard);
    let corpus = vec![packet(0, 1, 1), packet6(0, 1), packet(2, 1, 1), vec![]];
    let mut fuzzer = Fuzzer { state: 0x8765_4321, corpus };
    let (mut datagram, mut out) = (Vec::new(), vec![0; RECEIVE_BUFFER_LEN]);
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let inner = fuzzer.input();
        datagram.clear();
        let sent = wire.nodes[0].mesh.encapsulate(peer(1), &inner, &mut datagram, wire.now);
        if !matches!(sent, Encapsulated::Datagram { .. }) {
            assert!(inner.is_empty(), "{sent:?}");
            continue;
        }
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &datagram, &mut out, wire.now);
        if let Received::Packet { range, .. } = received {
            check_packet(&out[range], &inner);
        }
    }
}

#[test]
fn fuzz_mutated_vxlan_frames_do_no_harm() {
    let (wire, corpus) = seeds(Encapsulation::Vxlan);
    let mut fuzzer = Fuzzer { state: 0xfeed_beef, corpus };
    let mut out = vec![0; RECEIVE_BUFFER_LEN];
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let input = fuzzer.input();
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &input, &mut out, wire.now);
        if let Received::Packet { range, .. } = received {
            check_packet(&out[range], &input[22..]);
        }
    }
}

/// What comes out is the start of what went in, from an allowed source.
fn check_packet(packet: &[u8], sent: &[u8]) {
    assert!(sent.starts_with(packet));
    match packet[0] >> 4 {
        4 => assert_eq!(packet[12..15], [10, 1, 0]),
        6 => assert_eq!(packet[8..16], [0xfd, 1, 0, 0, 0, 0, 0, 0]),
        version => panic!("version {version}"),
    }
}
