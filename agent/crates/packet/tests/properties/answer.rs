//! ICMP errors and resets: what they say, and when there is none.

use std::net::IpAddr;

use proptest::prelude::*;
use weft_packet::checksum::transport_is_valid;
use weft_packet::{
    Headers, Meta, Unreachable, icmp_error_inner, icmp_unreachable, packet_too_big, tcp_reset,
    time_exceeded,
};

use crate::spec::{Spec, Transport, packets, packets_of, tcp};

fn parse(packet: &[u8]) -> Headers {
    Headers::parse(packet, &Meta::default()).unwrap()
}

fn router(v4: bool) -> IpAddr {
    if v4 { IpAddr::from([192, 0, 2, 1]) } else { IpAddr::from([0xfd; 16]) }
}

/// With addresses that may be answered.
fn unicast(mut spec: Spec) -> Spec {
    let host = |last: u8, v4: bool| {
        if v4 {
            IpAddr::from([10, 1, 2, last])
        } else {
            IpAddr::from([0xfc; 16].map(|b: u8| b ^ last))
        }
    };
    let v4 = spec.source.is_ipv4();
    spec.source = host(1, v4);
    spec.destination = host(0, v4);
    spec
}

type Builder = fn(&[u8], &Headers, IpAddr, &mut Vec<u8>) -> bool;

/// Builder, then type and code for IPv4 and IPv6.
type Case = (Builder, (u8, u8), (u8, u8));

const ERRORS: [Case; 6] = [
    (|p, h, a, o| icmp_unreachable(p, h, a, Unreachable::Network, o), (3, 0), (1, 0)),
    (|p, h, a, o| icmp_unreachable(p, h, a, Unreachable::Host, o), (3, 1), (1, 3)),
    (|p, h, a, o| icmp_unreachable(p, h, a, Unreachable::Port, o), (3, 3), (1, 4)),
    (|p, h, a, o| icmp_unreachable(p, h, a, Unreachable::Prohibited, o), (3, 13), (1, 1)),
    (|p, h, a, o| packet_too_big(p, h, a, 1400, o), (3, 4), (2, 0)),
    (time_exceeded, (11, 0), (3, 0)),
];

proptest! {
    #[test]
    fn errors_quote_the_packet_within_their_limit(
        spec in packets_of(crate::spec::transport(), prop::collection::vec(any::<u8>(), 0..1500)),
        which in 0usize..6,
    ) {
        let spec = unicast(spec);
        let v4 = spec.source.is_ipv4();
        let packet = spec.build();
        let headers = parse(&packet);
        let (build, kind_v4, kind_v6) = ERRORS[which];
        let mut out = vec![7; 3];
        prop_assert!(build(&packet, &headers, router(v4), &mut out));

        let answer = parse(&out);
        prop_assert!(transport_is_valid(&out, &answer));
        prop_assert_eq!((answer.source, answer.destination), (router(v4), spec.source));
        let kind = if v4 { kind_v4 } else { kind_v6 };
        prop_assert_eq!((answer.tcp_flags, answer.icmp_code), kind);
        let (max, header_len) = if v4 { (576, 28) } else { (1280, 48) };
        prop_assert_eq!(out.len(), max.min(header_len + packet.len()));
        prop_assert_eq!(&out[header_len..], &packet[..out.len() - header_len]);
        let inner = icmp_error_inner(&out, &answer).unwrap();
        prop_assert_eq!(inner.five_tuple, headers.five_tuple());
        // The kernel's own view of the message.
        prop_assert!(etherparse::SlicedPacket::from_ip(&out).unwrap().transport.is_some());
        if which == 4 {
            prop_assert_eq!(&out[header_len - 4..header_len], &[0, 0, 5, 120]);
        }
        // Never an error about an error.
        let mut second = Vec::new();
        prop_assert!(!build(&out, &answer, router(v4), &mut second));
        prop_assert!(second.is_empty());
    }

    #[test]
    fn reset_refuses_a_segment(spec in packets_of(tcp(), prop::collection::vec(0u8.., 0..50))) {
        let spec = unicast(spec);
        let (packet, segment) = (spec.build(), spec.tcp());
        let mut out = Vec::new();
        let is_answered = tcp_reset(&packet, &parse(&packet), &mut out);
        let is_reset = segment.flags & 4 != 0;
        prop_assert_eq!(is_answered, !is_reset);
        if is_reset {
            return Ok(());
        }
        let answer = parse(&out);
        prop_assert!(transport_is_valid(&out, &answer));
        prop_assert_eq!(answer.five_tuple(), parse(&packet).five_tuple().reversed());
        let at = usize::from(answer.transport_offset);
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        let len = spec.payload.len() as u32 + (segment.flags & 3).count_ones();
        if segment.flags & 16 != 0 {
            prop_assert_eq!((answer.tcp_flags, word(at + 4)), (4, segment.acknowledgment));
        } else {
            prop_assert_eq!((answer.tcp_flags, word(at + 4)), (4 | 16, 0));
            prop_assert_eq!(word(at + 8), segment.sequence.wrapping_add(len));
        }
    }

    #[test]
    fn only_tcp_is_reset(spec in packets()) {
        let packet = unicast(spec.clone()).build();
        let is_tcp = matches!(spec.transport, Transport::Tcp(_));
        let answered = tcp_reset(&packet, &parse(&packet), &mut Vec::new());
        prop_assert!(is_tcp || !answered);
    }
}

fn udp(source: &str, destination: &str) -> Vec<u8> {
    Spec {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        hop_limit: 9,
        traffic_class: 0,
        id: 0,
        dont_fragment: false,
        options: Vec::new(),
        flow_label: 0,
        extensions: Default::default(),
        transport: Transport::Udp { source: 1, destination: 2, without_checksum: false },
        payload: vec![0; 40],
    }
    .build()
}

#[test]
fn nobody_is_told_about_packets_to_many_or_from_nobody() {
    let cases = [
        ("10.0.0.1", "224.0.0.1"),
        ("10.0.0.1", "255.255.255.255"),
        ("0.0.0.0", "10.0.0.1"),
        ("127.0.0.1", "10.0.0.1"),
        ("224.0.0.5", "10.0.0.1"),
        ("255.255.255.255", "10.0.0.1"),
        ("240.0.0.1", "10.0.0.1"),
        ("::", "fd00::1"),
        ("::1", "fd00::1"),
        ("ff02::1", "fd00::1"),
        ("fd00::1", "ff02::1"),
    ];
    for (source, destination) in cases {
        let packet = udp(source, destination);
        let headers = parse(&packet);
        let from = router(headers.source.is_ipv4());
        for (build, ..) in ERRORS.iter().filter(|(_, v4, _)| *v4 != (3, 4)) {
            let answered = build(&packet, &headers, from, &mut Vec::new());
            assert!(!answered, "{source} to {destination}");
        }
    }
}

#[test]
fn path_mtu_is_told_for_ipv6_multicast_as_well() {
    let packet = udp("fd00::1", "ff05::1");
    assert!(packet_too_big(&packet, &parse(&packet), router(false), 1280, &mut Vec::new()));
    let packet = udp("10.0.0.1", "239.0.0.1");
    assert!(!packet_too_big(&packet, &parse(&packet), router(true), 1280, &mut Vec::new()));
}

#[test]
fn later_fragment_is_not_answered_and_the_first_is() {
    let mut packet = udp("10.0.0.1", "10.0.0.2");
    for (field, answered) in [([0x20, 0], true), ([0, 8], false)] {
        packet[6..8].copy_from_slice(&field);
        packet[10..12].fill(0);
        let sum = !crate::spec::slow_sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let headers = parse(&packet);
        assert_eq!(time_exceeded(&packet, &headers, router(true), &mut Vec::new()), answered);
    }
}

#[test]
fn answer_of_the_other_family_is_none() {
    let packet = udp("10.0.0.1", "10.0.0.2");
    assert!(!time_exceeded(&packet, &parse(&packet), router(false), &mut Vec::new()));
}
