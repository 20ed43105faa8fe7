//! VXLAN: bytes as RFC 7348 draws them, and everything that is not ours dropped.

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use weft_mesh::{Encapsulated, MeshConfig, Received};
use weft_model::{DropReason, Encapsulation, Vni};
use wire::{Wire, mac, packet, packet6, peer};

fn vxlan(count: usize) -> Wire {
    let wire = Wire::new(count);
    for node in 0..count {
        let vni = Vni::try_new(0x0a_0b_0c).unwrap();
        let config = MeshConfig { vni, ..wire.config(node, Encapsulation::Vxlan) };
        wire.nodes[node].mesh.apply(&config, wire.now).unwrap();
    }
    wire
}

fn frame(wire: &mut Wire, from: usize, to: usize, inner: &[u8]) -> Vec<u8> {
    let sent = wire.send(from, to, inner);
    assert!(matches!(sent, Encapsulated::Datagrams { .. }), "{sent:?}");
    wire.flying.pop().unwrap().bytes
}

#[test]
fn frame_is_laid_out_as_in_the_rfc() {
    let mut wire = vxlan(2);
    let inner = packet(0, 1, 1);
    let bytes = frame(&mut wire, 0, 1, &inner);
    assert_eq!(bytes[..8], [0x08, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0], "flags, reserved, VNI, reserved");
    assert_eq!(bytes[8..14], mac(1).0, "inner destination");
    assert_eq!(bytes[14..20], mac(0).0, "inner source");
    assert_eq!(bytes[20..22], [0x08, 0x00], "EtherType IPv4");
    assert_eq!(bytes[22..], inner);
    assert_eq!(bytes.len() - inner.len(), wire.nodes[0].mesh.overhead());
    assert_eq!(frame(&mut wire, 0, 1, &packet6(0, 1))[20..22], [0x86, 0xdd], "EtherType IPv6");
}

#[test]
fn packets_of_both_families_cross_in_clear() {
    let mut wire = vxlan(2);
    wire.send(0, 1, &packet(0, 1, 1));
    wire.send(0, 1, &packet6(0, 1));
    wire.run(std::time::Duration::from_millis(5));
    let expected = [(peer(0), packet(0, 1, 1)), (peer(0), packet6(0, 1))];
    assert_eq!(wire.nodes[1].inbox, expected);
    assert!(wire.marker_was_seen());
}

#[test]
fn frame_that_is_not_ours_is_dropped() {
    let mut wire = vxlan(2);
    let from = wire.nodes[0].identity.address;
    let good = frame(&mut wire, 0, 1, &packet(0, 1, 1));
    let changes: [(&str, usize, u8); 8] = [
        ("flag I", 0, 0),
        ("VNI", 6, 0x0d),
        ("inner destination", 13, 9),
        ("inner source", 19, 9),
        ("ARP", 21, 0x06),
        ("VLAN tag", 20, 0x81),
        ("EtherType of the other family", 20, 0x86),
        ("inner length beyond the frame", 24, 0xff),
    ];
    for (what, at, value) in changes {
        let mut bad = good.clone();
        bad[at] = value;
        let received = wire.deliver(1, from, &bad);
        assert_eq!(received, Received::Dropped(DropReason::BadVxlan), "{what}");
    }
    for len in 0..good.len() {
        assert!(matches!(wire.deliver(1, from, &good[..len]), Received::Dropped(_)), "{len}");
    }
    assert!(matches!(wire.deliver(1, from, &good), Received::Packet { .. }));
}

#[test]
fn reserved_bits_are_ignored_and_padding_is_cut() {
    let mut wire = vxlan(2);
    let from = wire.nodes[0].identity.address;
    let mut bytes = frame(&mut wire, 0, 1, &packet(0, 1, 1));
    (bytes[0], bytes[3], bytes[7]) = (0xff, 0xff, 0xff);
    bytes.extend([0; 6]);
    wire.deliver(1, from, &bytes);
    assert_eq!(wire.nodes[1].inbox, [(peer(0), packet(0, 1, 1))]);
}

#[test]
fn vtep_may_not_speak_for_another_and_a_stranger_not_at_all() {
    let mut wire = vxlan(3);
    let from = wire.nodes[0].identity.address;
    let spoofed = frame(&mut wire, 0, 1, &packet(2, 1, 1));
    assert_eq!(wire.deliver(1, from, &spoofed), Received::Dropped(DropReason::NotAllowedIp));
    let foreign = frame(&mut wire, 0, 1, &packet(9, 1, 1));
    assert_eq!(wire.deliver(1, from, &foreign), Received::Dropped(DropReason::NotAllowedIp));
    let good = frame(&mut wire, 0, 1, &packet(0, 1, 1));
    let stranger = "198.51.100.9:4789".parse().unwrap();
    assert_eq!(wire.deliver(1, stranger, &good), Received::Dropped(DropReason::UnknownPeer));
    assert_eq!(wire.nodes[1].mesh.status(wire.now)[0].not_allowed, 2);
    assert!(wire.nodes[1].inbox.is_empty());
}

#[test]
fn source_port_of_a_vtep_may_be_any() {
    let mut wire = vxlan(2);
    let good = frame(&mut wire, 0, 1, &packet(0, 1, 1));
    let port = "192.0.2.1:49999".parse().unwrap();
    assert!(matches!(wire.deliver(1, port, &good), Received::Packet { .. }));
    let sent = wire.send(1, 0, &packet(1, 0, 1));
    let Encapsulated::Datagrams { to, .. } = sent else { panic!("{sent:?}") };
    assert_eq!(to.port(), 51820, "answers go to the configured port");
}

#[test]
fn packet_that_is_no_ip_is_not_sent() {
    let mut wire = vxlan(2);
    let malformed = Encapsulated::Dropped(DropReason::Malformed);
    assert_eq!(wire.send(0, 1, &[0x10; 40]), malformed);
    assert_eq!(wire.send(0, 1, &[]), malformed);
}

#[test]
fn encapsulation_can_be_changed_under_way() {
    let mut wire = Wire::connected(2);
    for encapsulation in [Encapsulation::Vxlan, Encapsulation::WireGuard] {
        for node in [0, 1] {
            let config = wire.config(node, encapsulation);
            wire.nodes[node].mesh.apply(&config, wire.now).unwrap();
        }
        wire.run(std::time::Duration::from_millis(20));
        wire.send(0, 1, &packet(0, 1, 1));
        wire.run(std::time::Duration::from_millis(20));
    }
    assert_eq!(wire.numbers(1, 0), [1, 1]);
}
