//! The program is run by a small interpreter on frames made by hand.

use std::net::{IpAddr, Ipv6Addr};

use super::*;

const POD4: [u8; 4] = [10, 1, 0, 2];
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const FORGED: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3);

const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// What [`ethernet`] puts into a frame.
const POD_MAC: [u8; 6] = [2; 6];
const OTHER_MAC: [u8; 6] = [2, 2, 2, 2, 2, 3];

fn pod() -> Sender {
    Sender {
        addresses: vec![POD4.into(), POD6.into()],
        mac: Some(MacAddr(POD_MAC)),
        foreign: vec![HOST_LINK_LOCAL],
    }
}

fn verdict(frame: &[u8]) -> u32 {
    run(&program(&pod()), frame, 0)
}

fn verdict_of(allowed: &[IpAddr], frame: &[u8], vlan: u32) -> u32 {
    let sender = Sender { addresses: allowed.to_vec(), ..Sender::default() };
    run(&program(&sender), frame, vlan)
}

/// Classic BPF as the kernel runs it: a load out of range ends the program with 0.
fn run(program: &[u8], frame: &[u8], vlan: u32) -> u32 {
    let (mut at, mut a, mut memory) = (0, 0u32, 0u32);
    loop {
        let raw = &program[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([raw[0], raw[1]]);
        let k = u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]);
        let bytes = |n: usize| frame.get(k as usize..k as usize + n);
        let branch = |yes: bool| usize::from(if yes { raw[2] } else { raw[3] });
        at += 1;
        match code {
            LOAD_WORD if k == VLAN_TAG_PRESENT => a = vlan,
            LOAD_WORD | LOAD_HALF | LOAD_BYTE => {
                let size = match code {
                    LOAD_WORD => 4,
                    LOAD_HALF => 2,
                    _ => 1,
                };
                let Some(bytes) = bytes(size) else { return 0 };
                a = bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            }
            LOAD_IMMEDIATE => a = k,
            LOAD_LENGTH => a = frame.len() as u32,
            LOAD_MEMORY => a = memory,
            STORE_MEMORY => memory = a,
            AND => a &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += branch(a == k),
            JUMP_GREATER_EQUAL => at += branch(a >= k),
            RETURN => return k,
            RETURN_ACCUMULATOR => return a,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    ethernet(0x0800, &packet)
}

fn ipv6(source: Ipv6Addr, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next_header, hop_limit];
    packet.extend(source.octets());
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// An ARP packet that says that `address` is at `mac`.
fn arp(kind: u8, mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, kind];
    packet.extend(mac);
    packet.extend(address);
    packet.extend([0; 10]);
    ethernet(0x0806, &packet)
}

/// CNI-009: nobody is told that another's address is here, or that one is at another's Ethernet
/// address.
#[test]
fn arp_goes_to_the_host_if_it_is_of_the_pod_itself() {
    for kind in [1, 2] {
        assert_eq!(verdict(&arp(kind, POD_MAC, POD4)), OK);
        assert_eq!(verdict(&arp(kind, POD_MAC, [0; 4])), OK, "a probe");
        assert_eq!(verdict(&arp(kind, POD_MAC, [10, 1, 0, 3])), SHOT);
        assert_eq!(verdict(&arp(kind, OTHER_MAC, POD4)), SHOT);
    }
    let whole = arp(1, POD_MAC, POD4);
    for length in 14..whole.len() {
        assert_eq!(verdict(&whole[..length]), SHOT, "{length}");
    }
    let mut other_form = whole;
    other_form[15] = 6;
    assert_eq!(verdict(&other_form), SHOT);
}

/// CNI-009
#[test]
fn frame_from_another_ethernet_address_is_dropped() {
    for mut frame in [
        arp(1, POD_MAC, POD4),
        ipv4(POD4, [10, 1, 0, 3]),
        ipv6(POD6, 6, 64, &[0; 20]),
        ipv6(LINK_LOCAL, 58, 255, &[135, 0, 0, 0]),
    ] {
        assert_ne!(verdict(&frame), SHOT);
        frame[6..12].copy_from_slice(&OTHER_MAC);
        assert_eq!(verdict(&frame), SHOT);
        let unknown = program(&Sender { mac: None, ..pod() });
        assert_ne!(run(&unknown, &frame, 0), SHOT, "it is not checked where it is not known");
    }
}

fn advertisement(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    ipv6(source, 58, 255, &message)
}

/// CNI-009
#[test]
fn neighbour_is_advertised_by_itself_only() {
    for source in [POD6, LINK_LOCAL] {
        for target in [POD6, LINK_LOCAL] {
            assert_eq!(verdict(&advertisement(source, target)), OK, "{source} {target}");
        }
        for target in [FORGED, HOST_LINK_LOCAL] {
            assert_eq!(verdict(&advertisement(source, target)), SHOT, "{source} {target}");
        }
        let whole = advertisement(source, POD6);
        for length in 55..whole.len() {
            assert_eq!(verdict(&whole[..length]), SHOT, "{length}");
        }
    }
    for source in [FORGED, HOST_LINK_LOCAL] {
        assert_eq!(verdict(&advertisement(source, POD6)), SHOT);
        assert_eq!(verdict(&ipv6(source, 58, 255, &[135, 0, 0, 0])), SHOT);
    }
}

#[test]
fn vlan_and_unknown_protocols_are_dropped() {
    let frame = ipv4(POD4, [10, 1, 0, 3]);
    assert_eq!(verdict_of(&[POD4.into()], &frame, 1), SHOT);
    assert_eq!(verdict(&ethernet(0x8100, &[0; 60])), SHOT);
    assert_eq!(verdict(&ethernet(0x88cc, &[0; 60])), SHOT);
}

#[test]
fn ipv4_passes_from_the_pods_address_only() {
    assert_eq!(verdict(&ipv4(POD4, [10, 1, 0, 3])), UNSPEC);
    assert_eq!(verdict(&ipv4([10, 1, 0, 3], [10, 1, 0, 1])), SHOT);
    assert_eq!(verdict(&ipv4([0; 4], [255; 4])), SHOT);
    assert_eq!(verdict(&ipv4(POD4, [255; 4])), SHOT);
}

#[test]
fn ipv6_passes_from_the_pods_address_only() {
    assert_eq!(verdict(&ipv6(POD6, 6, 64, &[0; 20])), UNSPEC);
    assert_eq!(verdict(&ipv6(FORGED, 6, 64, &[0; 20])), SHOT);
    assert_eq!(verdict(&ipv6(LINK_LOCAL, 17, 64, &[0; 8])), SHOT);
}

#[test]
fn every_address_of_many_is_found() {
    let many: Vec<IpAddr> = (0..ADDRESSES_MAX as u16)
        .map(|n| Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 1, n).into())
        .collect();
    for ip in &many {
        let IpAddr::V6(ip) = *ip else { continue };
        assert_eq!(verdict_of(&many, &ipv6(ip, 6, 64, &[0; 20]), 0), UNSPEC);
    }
    assert_eq!(verdict_of(&many, &ipv6(FORGED, 6, 64, &[0; 20]), 0), SHOT);
    assert_eq!(verdict_of(&many, &ethernet(0x88cc, &[0; 60]), 0), SHOT);
}

#[test]
fn neighbour_discovery_goes_to_the_host() {
    for source in [LINK_LOCAL, Ipv6Addr::UNSPECIFIED, POD6] {
        for kind in [133, 135] {
            assert_eq!(verdict(&ipv6(source, 58, 255, &[kind, 0, 0, 0])), OK, "{source} {kind}");
        }
    }
    assert_eq!(verdict(&ipv6(FORGED, 58, 255, &[135, 0, 0, 0])), SHOT);
    assert_eq!(verdict(&ipv6(LINK_LOCAL, 58, 64, &[135, 0, 0, 0])), SHOT);
}

#[test]
fn router_advertisement_never_reaches_the_host() {
    for kind in [134, 137] {
        assert_eq!(verdict(&ipv6(LINK_LOCAL, 58, 255, &[kind, 0, 0, 0])), SHOT);
        assert_eq!(verdict(&ipv6(POD6, 58, 255, &[kind, 0, 0, 0])), UNSPEC);
    }
}

#[test]
fn multicast_report_goes_to_the_host() {
    let report = [58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0];
    assert_eq!(verdict(&ipv6(LINK_LOCAL, 0, 1, &report)), OK);
    assert_eq!(verdict(&ipv6(FORGED, 0, 1, &report)), SHOT);
}

#[test]
fn truncated_packet_does_not_slip_through() {
    for length in 14..33 {
        assert_eq!(verdict(&ipv4([10, 1, 0, 3], [10, 1, 0, 1])[..length]), SHOT, "{length}");
    }
    for next_header in [0, 58] {
        for length in 14..70 {
            let frame = ipv6(FORGED, next_header, 255, &[58, 0, 0, 0, 0, 0, 0, 0, 143, 0, 0, 0]);
            let frame = &frame[..length.min(frame.len())];
            assert_eq!(verdict(frame), SHOT, "{next_header} {length}");
        }
    }
}
