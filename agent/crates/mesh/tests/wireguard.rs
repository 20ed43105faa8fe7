//! WireGuard between two and three nodes: strictness, authentication, queueing, recovery.

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use std::time::Duration;

use weft_aead::Engine;
use weft_mesh::{
    ConfigError, Conflict, Encapsulated, Event, Mesh, MeshConfig, PeerConfig, Received,
};
use weft_model::{DropReason, Encapsulation, PeerId, Vni};
use weft_packet::{Checksum, Gso, GsoKind, Headers, Meta, Segments};
use wire::{EPOCH, START, Wire, packet, packet6, peer, secret};

const MS: Duration = Duration::from_millis(1);

#[test]
fn packets_of_both_families_cross_unharmed_and_unread() {
    let mut wire = Wire::connected(3);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 0)] {
        wire.send(from, to, &packet(from, to, 9));
        wire.send(from, to, &packet6(from, to));
    }
    wire.run(10 * MS);
    assert_eq!(wire.nodes[0].inbox.len(), 4);
    assert_eq!(wire.nodes[2].inbox.len(), 2);
    assert_eq!(wire.nodes[1].inbox[0], (peer(0), packet(0, 1, 9)));
    assert_eq!(wire.nodes[1].inbox[1], (peer(0), packet6(0, 1)));
    assert!(!wire.marker_was_seen());
}

#[test]
fn datagram_is_packet_and_overhead() {
    let mut wire = Wire::connected(2);
    let inner = packet(0, 1, 1);
    let Encapsulated::Datagrams { len, .. } = wire.send(0, 1, &inner) else { panic!("no session") };
    assert_eq!(len, inner.len() + wire.nodes[0].mesh.overhead());
}

#[test]
fn datagrams_of_a_super_packet_lie_one_behind_the_other() {
    let mut wire = Wire::connected(2);
    let super_packet = super_packet(0, 1, 3 * 1000 + 500);
    let meta = Meta {
        checksum: Checksum::Partial { start: 20, offset: 6 },
        gso: Some(Gso { kind: GsoKind::Udp, segment_size: 1000 }),
    };
    let headers = Headers::parse(&super_packet, &meta).unwrap();
    let segments = Segments::new(&super_packet, &meta, &headers).unwrap();
    let mut out = vec![0; Mesh::room_for(&segments)];
    let sent = wire.nodes[0].mesh.encapsulate(peer(1), &segments, &mut out, wire.now);
    let size = 28 + 1000 + 32;
    let Encapsulated::Datagrams { len, size: each, .. } = sent else { panic!("{sent:?}") };
    assert_eq!((len, each), (3 * size + 28 + 500 + 32, size));
    let from = wire.nodes[0].identity.address;
    for datagram in out[..len].chunks(each) {
        wire.deliver(1, from, datagram);
    }
    let arrived: Vec<_> = wire.nodes[1].inbox.iter().map(|(_, packet)| packet.clone()).collect();
    let mut expected = vec![vec![0; 1028]; 4];
    expected[3].truncate(528);
    (0..4).for_each(|k| assert_eq!(segments.write(k, &mut expected[k]), expected[k].len()));
    assert_eq!(arrived, expected);
}

#[test]
fn before_the_handshake_only_handshakes_are_on_the_wire() {
    let mut wire = Wire::new(2);
    wire.apply_all();
    for number in 0..10 {
        assert_eq!(wire.send(0, 1, &packet(0, 1, number)), Encapsulated::Queued);
    }
    assert!(!wire.seen.is_empty());
    assert!(wire.seen.iter().all(|f| f.bytes.len() == 148 && f.bytes[0] == 1));
    wire.run(20 * MS);
    assert_eq!(wire.numbers(1, 0), (0..10).collect::<Vec<_>>());
    assert!(!wire.marker_was_seen());
}

#[test]
fn queue_is_bounded_and_what_had_to_go_is_counted() {
    let mut wire = Wire::new(2);
    wire.apply(0);
    for number in 0..300 {
        assert_eq!(wire.send(0, 1, &packet(0, 1, number)), Encapsulated::Queued);
    }
    assert_eq!(wire.dropped(0, DropReason::NoSession), 300 - 256);
    wire.apply(1);
    wire.run(20 * MS);
    assert_eq!(wire.numbers(1, 0), (44..300).collect::<Vec<_>>());
}

#[test]
fn initiation_whose_answer_is_lost_is_repeated_soon() {
    let mut wire = Wire::new(2);
    wire.apply_all();
    wire.loss = 1000;
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(100 * MS);
    wire.loss = 0;
    wire.run(500 * MS);
    assert_eq!(wire.numbers(1, 0), [1]);
}

#[test]
fn peer_that_never_answers_is_given_up_and_its_packets_counted() {
    let mut wire = Wire::new(2);
    wire.apply(0);
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(Duration::from_secs(100));
    assert_eq!(wire.dropped(0, DropReason::NoSession), 1);
    let timed_out = Event::HandshakeTimedOut { peer: peer(1), dropped: 1 };
    assert!(wire.nodes[0].events.contains(&timed_out));
    let initiations = wire.messages(1);
    // Four soon after the first, then one each 5 s.
    assert!((21..=23).contains(&initiations), "{initiations}");
    wire.run(Duration::from_secs(60));
    assert_eq!(wire.messages(1), initiations, "silence after giving up");
    wire.apply(1);
    wire.send(0, 1, &packet(0, 1, 2));
    wire.run(20 * MS);
    assert_eq!(wire.numbers(1, 0), [2]);
}

#[test]
fn lossy_and_reordering_wire_still_gives_a_session_and_no_duplicates() {
    let mut wire = Wire::new(2);
    (wire.loss, wire.jitter) = (300, 20 * MS);
    wire.apply_all();
    for number in 0..2000 {
        wire.send(0, 1, &packet(0, 1, number));
        wire.run(20 * MS);
    }
    let mut numbers = wire.numbers(1, 0);
    numbers.sort_unstable();
    // Half of the handshakes fail; they are tried again soon, then after 5 s, 250 packets.
    assert!(numbers[0] < 1500, "no session before {}", numbers[0]);
    let possible = 2000 - numbers[0] as usize;
    assert!(numbers.len() * 2 > possible, "{} of {possible}", numbers.len());
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(!wire.marker_was_seen());
}

#[test]
fn replayed_datagrams_are_dropped() {
    let mut wire = Wire::connected(2);
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(10 * MS);
    let receiver = wire.nodes[1].identity.address;
    for old in wire.seen.clone().iter().filter(|f| f.to == receiver) {
        let received = wire.deliver(1, old.from, &old.bytes);
        assert_eq!(received, Received::Dropped(DropReason::BadDatagram), "{:?}", &old.bytes[..4]);
    }
    assert_eq!(wire.numbers(1, 0), [1]);
    wire.send(1, 0, &packet(1, 0, 2));
    wire.send(0, 1, &packet(0, 1, 2));
    wire.run(10 * MS);
    assert_eq!((wire.numbers(1, 0), wire.numbers(0, 1)), (vec![1, 2], vec![2]));
}

#[test]
fn changed_datagram_is_dropped() {
    let mut wire = Wire::connected(2);
    wire.send(0, 1, &packet(0, 1, 1));
    let mut flying = wire.flying.pop().unwrap();
    *flying.bytes.last_mut().unwrap() ^= 1;
    let received = wire.deliver(1, flying.from, &flying.bytes);
    assert_eq!(received, Received::Dropped(DropReason::BadDatagram));
}

#[test]
fn peer_may_not_speak_for_another() {
    let mut wire = Wire::connected(3);
    wire.send(0, 1, &packet(2, 1, 1));
    wire.send(0, 1, &packet(9, 1, 1));
    wire.run(10 * MS);
    assert!(wire.nodes[1].inbox.is_empty());
    assert_eq!(wire.dropped(1, DropReason::NotAllowedIp), 2);
    assert_eq!(wire.nodes[1].mesh.status(wire.now)[0].not_allowed, 2);
}

#[test]
fn stranger_gets_no_answer() {
    let mut wire = Wire::connected(2);
    wire.nodes[0].identity.keys = vec![secret(77)];
    wire.nodes[0].mesh = Mesh::new(1, EPOCH, Engine::Ring);
    wire.seen.clear();
    wire.apply(0);
    wire.run(10 * MS);
    assert_eq!((wire.messages(1), wire.messages(2)), (1, 0));
    assert_eq!(wire.dropped(1, DropReason::UnknownPeer), 1);
}

#[test]
fn restarted_peer_is_back_at_once() {
    let mut wire = Wire::connected(2);
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(10 * MS);
    wire.restart(1);
    wire.run(5 * MS);
    wire.send(0, 1, &packet(0, 1, 2));
    wire.send(1, 0, &packet(1, 0, 3));
    wire.run(5 * MS);
    assert_eq!(wire.numbers(1, 0), [1, 2]);
    assert_eq!(wire.numbers(0, 1), [3]);
}

#[test]
fn peer_without_endpoint_is_heard_first() {
    let mut wire = Wire::new(2);
    wire.nodes[1].identity.configured = false;
    wire.apply(0);
    let dropped = Encapsulated::Dropped(DropReason::NoPeerEndpoint);
    assert_eq!(wire.send(0, 1, &packet(0, 1, 1)), dropped);
    assert!(wire.seen.is_empty());
    wire.apply(1);
    wire.run(10 * MS);
    wire.send(0, 1, &packet(0, 1, 2));
    wire.run(10 * MS);
    assert_eq!(wire.numbers(1, 0), [2]);
}

#[test]
fn endpoint_follows_the_peer_and_outlives_a_new_configuration() {
    let mut wire = Wire::connected(2);
    let moved = "198.51.100.9:4000".parse().unwrap();
    wire.nodes[1].identity.address = moved;
    wire.send(1, 0, &packet(1, 0, 1));
    wire.run(10 * MS);
    assert_eq!(wire.nodes[0].mesh.status(wire.now)[0].endpoint, Some(moved));
    let changed = |e: &Event| matches!(e, Event::EndpointChanged { to, .. } if *to == moved);
    assert!(wire.nodes[0].events.iter().any(changed));

    wire.nodes[1].identity.address = "192.0.2.2:51820".parse().unwrap();
    let config = wire.config(0, Encapsulation::WireGuard);
    wire.nodes[0].mesh.apply(&config, wire.now).unwrap();
    assert_eq!(wire.nodes[0].mesh.status(wire.now)[0].endpoint, Some(moved));

    let configured = "203.0.113.5:51820".parse().unwrap();
    wire.nodes[1].identity.address = configured;
    wire.apply(0);
    assert_eq!(wire.nodes[0].mesh.status(wire.now)[0].endpoint, Some(configured));
    assert!(matches!(wire.send(0, 1, &packet(0, 1, 2)), Encapsulated::Datagrams { .. }));
}

#[test]
fn forged_datagram_does_not_move_the_endpoint() {
    let mut wire = Wire::connected(2);
    wire.send(1, 0, &packet(1, 0, 1));
    let flying = wire.flying.pop().unwrap();
    let elsewhere = "198.51.100.9:4000".parse().unwrap();
    let mut changed = flying.bytes.clone();
    changed[20] ^= 1;
    wire.deliver(0, elsewhere, &changed);
    wire.deliver(0, flying.from, &flying.bytes);
    wire.deliver(0, elsewhere, &flying.bytes);
    assert_eq!(wire.nodes[0].mesh.status(wire.now)[0].endpoint, Some(flying.from));
}

#[test]
fn mapped_address_of_a_dual_stack_socket_is_the_same_peer() {
    let mut wire = Wire::connected(2);
    wire.send(1, 0, &packet(1, 0, 1));
    let flying = wire.flying.pop().unwrap();
    let mapped = "[::ffff:192.0.2.2]:51820".parse().unwrap();
    assert!(matches!(wire.deliver(0, mapped, &flying.bytes), Received::Packet { .. }));
    assert_eq!(wire.nodes[0].mesh.status(wire.now)[0].endpoint, Some(flying.from));
}

#[test]
fn new_configuration_keeps_sessions_even_if_peers_are_numbered_anew() {
    let mut wire = Wire::connected(3);
    let handshakes = wire.messages(1);
    let mut config = wire.config(0, Encapsulation::WireGuard);
    config.peers.reverse();
    for (number, peer) in config.peers.iter_mut().enumerate() {
        peer.id = PeerId(u32::try_from(number).unwrap());
    }
    wire.nodes[0].mesh.apply(&config, wire.now).unwrap();
    wire.run(10 * MS);
    assert_eq!(wire.messages(1), handshakes);
    wire.send(2, 0, &packet(2, 0, 1));
    wire.run(10 * MS);
    assert_eq!(wire.nodes[0].inbox, [(PeerId(0), packet(2, 0, 1))]);
}

#[test]
fn removed_peer_is_a_stranger() {
    let mut wire = Wire::connected(2);
    let mut config = wire.config(0, Encapsulation::WireGuard);
    config.peers.clear();
    wire.nodes[0].mesh.apply(&config, wire.now).unwrap();
    wire.send(1, 0, &packet(1, 0, 1));
    wire.run(10 * MS);
    assert!(wire.nodes[0].inbox.is_empty());
    assert_eq!(wire.dropped(0, DropReason::UnknownPeer), 1);
    let unknown = Encapsulated::Dropped(DropReason::UnknownPeer);
    assert_eq!(wire.send(0, 1, &packet(0, 1, 1)), unknown);
    assert_eq!(wire.nodes[0].mesh.poll_timeout(), None);
}

#[test]
fn handshake_flood_is_answered_with_cookies_and_a_peer_still_gets_in() {
    let mut wire = Wire::new(3);
    wire.apply(1);
    let flood = MeshConfig {
        encapsulation: Encapsulation::WireGuard,
        keys: (0..1200u32)
            .map(|n| {
                let mut key = secret(200);
                key.0[..4].copy_from_slice(&n.to_be_bytes());
                key
            })
            .collect(),
        vni: Vni::DEFAULT,
        vtep_mac: None,
        peers: wire.config(0, Encapsulation::WireGuard).peers,
    };
    wire.nodes[2].mesh.apply(&flood, START).unwrap();
    let attacker = wire.nodes[2].identity.address;
    while let Some(transmit) = wire.nodes[2].mesh.poll_transmit() {
        if transmit.to == wire.nodes[1].identity.address {
            wire.deliver(1, attacker, &transmit.bytes);
        }
    }
    let cookies = wire.messages(3);
    assert!(cookies > 0, "no cookie after 1200 initiations");
    wire.apply(0);
    wire.send(0, 1, &packet(0, 1, 1));
    wire.run(Duration::from_secs(6));
    assert_eq!(wire.numbers(1, 0), [1]);
}

#[test]
fn claims_of_two_peers_go_to_the_first() {
    let mesh = Mesh::new(3, EPOCH, Engine::fastest());
    let wire = Wire::new(3);
    let mut config = wire.config(0, Encapsulation::WireGuard);
    let stolen = config.peers[0].allowed_ips[0];
    let key = config.peers[0].keys[0];
    config.peers[1].allowed_ips.push(stolen);
    config.peers[1].keys.push(key);
    let applied = mesh.apply(&config, START).unwrap();
    let (holder, refused) = (peer(1), peer(2));
    let expected = [
        Conflict::Key { key, holder: Some(holder), refused },
        Conflict::AllowedIp { range: stolen, holder, refused },
    ];
    assert_eq!(applied.conflicts, expected);
}

#[test]
fn configuration_that_cannot_run_changes_nothing() {
    let mut wire = Wire::connected(2);
    let good = wire.config(0, Encapsulation::WireGuard);
    let twice = |peers: &[PeerConfig]| [peers, peers].concat();
    let cases = [
        (MeshConfig { keys: vec![], ..good.clone() }, ConfigError::NoKey),
        (
            MeshConfig { encapsulation: Encapsulation::Vxlan, vtep_mac: None, ..good.clone() },
            ConfigError::NoVtepMac,
        ),
        (MeshConfig { peers: twice(&good.peers), ..good }, ConfigError::DuplicatePeer(peer(1))),
    ];
    for (config, error) in cases {
        assert_eq!(wire.nodes[0].mesh.apply(&config, wire.now), Err(error));
    }
    assert!(matches!(wire.send(0, 1, &packet(0, 1, 1)), Encapsulated::Datagrams { .. }));
}

#[test]
fn status_tells_traffic_and_handshake() {
    let mut wire = Wire::connected(2);
    let inner = packet(0, 1, 1);
    wire.send(0, 1, &inner);
    wire.run(Duration::from_secs(2));
    let sender = &wire.nodes[0].mesh.status(wire.now)[0];
    let receiver = &wire.nodes[1].mesh.status(wire.now)[0];
    assert!(sender.ready && receiver.ready);
    assert_eq!((sender.tx_packets, sender.tx_bytes), (1, inner.len() as u64));
    assert_eq!((receiver.rx_packets, receiver.rx_bytes), (1, inner.len() as u64));
    let age = sender.last_handshake.unwrap();
    assert!(age > Duration::from_secs(1) && age < Duration::from_secs(3), "{age:?}");
}

#[test]
fn secret_is_not_shown() {
    let wire = Wire::new(2);
    let shown = format!("{:?}", wire.config(0, Encapsulation::WireGuard));
    assert!(shown.contains("SecretKey(..)") && !shown.contains("SecretKey([1"));
}

/// A UDP super-packet with `payload` bytes.
fn super_packet(from: u8, to: u8, payload: u16) -> Vec<u8> {
    let [l0, l1] = (28 + payload).to_be_bytes();
    let [u0, u1] = (8 + payload).to_be_bytes();
    let mut packet = vec![0x45, 0, l0, l1, 0, 7, 0, 0, 64, 17, 0, 0];
    packet.extend([10, 1, from, 2, 10, 1, to, 2]);
    packet.extend([0x30, 0x39, 0x30, 0x3a, u0, u1, 0, 0]);
    packet.extend((0..payload).map(|k| k.to_be_bytes()[1]));
    packet
}

/// Workers that seal for one peer at once take different counters, and none waits for another.
#[test]
fn datagrams_sealed_by_many_threads_all_open_once() {
    const THREADS: u32 = 4;
    const EACH: u32 = 500;
    let mut wire = Wire::connected(2);
    let sealed: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let mesh = &wire.nodes[0].mesh;
        let now = wire.now;
        let seal = move |thread: u32| {
            let each = (0..EACH).map(move |k| {
                let inner = packet(0, 1, thread * EACH + k);
                let mut out = vec![0; Mesh::room_for(&inner.as_slice())];
                let sent = mesh.encapsulate(peer(1), &inner.as_slice(), &mut out, now);
                let Encapsulated::Datagrams { len, .. } = sent else { panic!("{sent:?}") };
                out.truncate(len);
                out
            });
            each.collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || seal(t))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let from = wire.nodes[0].identity.address;
    // One after the other of each thread, so far out of order as the window allows.
    sealed.iter().for_each(|datagram| {
        wire.deliver(1, from, datagram);
    });
    let mut numbers = wire.numbers(1, 0);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..THREADS * EACH).collect::<Vec<_>>());
}
