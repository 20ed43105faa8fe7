//! Mutates WireGuard and VXLAN datagrams and the packets in them: nothing may panic, nothing
//! forged may come through. Deterministic; `WEFT_FUZZ_ITERATIONS` sets how long (20,000).

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use weft_fuzz::{Random, iterations, mutate};
use weft_mesh::{Encapsulated, Mesh, MeshConfig, Received};
use weft_model::{Encapsulation, Vni};
use wire::{Wire, packet, packet6, peer};

/// Types of messages, versions of IP, and edges.
const TELLING: [u8; 8] = [0, 1, 4, 0x08, 0x45, 0x60, 0x7f, 0xff];

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
    let mut random = Random::new(0x1234_5678);
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let mut input = mutate(&mut random, &corpus, &TELLING);
        if corpus.contains(&input) {
            continue;
        }
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &mut input, wire.now);
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
    let mut random = Random::new(0x8765_4321);
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let inner = mutate(&mut random, &corpus, &TELLING);
        let packets = inner.as_slice();
        let mut datagram = vec![0; Mesh::room_for(&packets)];
        let sent = wire.nodes[0].mesh.encapsulate(peer(1), &packets, &mut datagram, wire.now);
        let Encapsulated::Datagrams { len, .. } = sent else {
            assert!(inner.is_empty(), "{sent:?}");
            continue;
        };
        datagram.truncate(len);
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &mut datagram, wire.now);
        if let Received::Packet { range, .. } = received {
            check_packet(&datagram[range], &inner);
        }
    }
}

#[test]
fn fuzz_mutated_vxlan_frames_do_no_harm() {
    let (wire, corpus) = seeds(Encapsulation::Vxlan);
    let mut random = Random::new(0xfeed_beef);
    let from = wire.nodes[0].identity.address;
    for _ in 0..iterations() {
        let mut input = mutate(&mut random, &corpus, &TELLING);
        let mesh = &wire.nodes[1].mesh;
        let received = mesh.handle_network_input(from, &mut input, wire.now);
        if let Received::Packet { range, .. } = received {
            check_packet(&input[range], &input[22..]);
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
