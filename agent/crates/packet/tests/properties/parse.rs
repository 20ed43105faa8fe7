//! What is parsed is what was written.

use std::net::IpAddr;

use proptest::prelude::*;
use weft_packet::checksum::transport_is_valid;
use weft_packet::{Fragment, Headers, IpVersion, Meta, ParseError};

use crate::spec::{Spec, Transport, packets};

fn ports(spec: &Spec) -> (u16, u16) {
    match &spec.transport {
        Transport::Tcp(tcp) => (tcp.source, tcp.destination),
        Transport::Udp { source, destination, .. }
        | Transport::Sctp { source, destination, .. } => (*source, *destination),
        Transport::Echo { id, .. } => (*id, *id),
    }
}

fn header_len(spec: &Spec) -> usize {
    match &spec.transport {
        Transport::Tcp(tcp) => 20 + tcp.options.len(),
        Transport::Udp { .. } | Transport::Echo { .. } => 8,
        Transport::Sctp { .. } => 12,
    }
}

proptest! {
    #[test]
    fn headers_are_what_was_written(spec in packets(), padding in 0usize..20) {
        let mut packet = spec.build();
        let len = packet.len();
        packet.resize(len + padding, 0xaa);
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        prop_assert_eq!(headers.source, spec.source);
        prop_assert_eq!(headers.destination, spec.destination);
        prop_assert_eq!(headers.version == IpVersion::V4, spec.source.is_ipv4());
        prop_assert_eq!(headers.protocol, spec.number());
        prop_assert_eq!(headers.total_length, len);
        prop_assert_eq!(usize::from(headers.transport_offset), spec.transport_offset());
        let payload = spec.transport_offset() + header_len(&spec);
        prop_assert_eq!(usize::from(headers.payload_offset), payload);
        prop_assert_eq!((headers.source_port, headers.destination_port), ports(&spec));
        prop_assert_eq!(headers.hop_limit, spec.hop_limit);
        prop_assert_eq!(headers.traffic_class, spec.traffic_class);
        prop_assert_eq!(headers.fragment, Fragment::No);
        prop_assert_eq!(headers.dont_fragment, spec.dont_fragment || spec.source.is_ipv6());
        if let Transport::Tcp(tcp) = &spec.transport {
            prop_assert_eq!(headers.tcp_flags, tcp.flags);
        }
    }

    #[test]
    fn written_checksums_are_valid_and_any_flipped_bit_is_seen(
        spec in packets(),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut packet = spec.build();
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        let without = matches!(
            spec.transport,
            Transport::Udp { without_checksum: true, .. }
        );
        let expected = !without || spec.source.is_ipv4();
        prop_assert_eq!(transport_is_valid(&packet, &headers), expected);
        let data = usize::from(headers.payload_offset)..packet.len();
        if !data.is_empty() && !without {
            let at = data.start + position.index(data.len());
            packet[at] ^= 1 << bit;
            prop_assert!(!transport_is_valid(&packet, &headers));
        }
    }

    #[test]
    fn cut_packet_is_truncated(spec in packets(), at in any::<prop::sample::Index>()) {
        let packet = spec.build();
        let cut = &packet[..at.index(packet.len())];
        prop_assert_eq!(Headers::parse(cut, &Meta::default()), Err(ParseError::Truncated));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let _ = Headers::parse(&bytes, &Meta::default());
    }
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(rest);
    packet
}

fn parse(packet: &[u8]) -> Result<Headers, ParseError> {
    Headers::parse(packet, &Meta::default())
}

#[test]
fn source_routed_packet_is_refused() {
    let routing = [17, 0, 4, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0];
    assert_eq!(parse(&v6(43, &routing)), Err(ParseError::SourceRoute));
}

#[test]
fn hop_by_hop_options_come_first_or_not_at_all() {
    let options = [0, 0, 1, 4, 0, 0, 0, 0, 59, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(parse(&v6(60, &options)), Err(ParseError::ExtensionOrder));
}

#[test]
fn endless_extension_headers_are_refused() {
    let options = [60, 0, 1, 4, 0, 0, 0, 0].repeat(12);
    assert_eq!(parse(&v6(60, &options)), Err(ParseError::TooManyExtensions));
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let fragment = |field: u16, next: u8| {
        let [a, b] = field.to_be_bytes();
        let mut rest = vec![next, 0, a, b, 0, 0, 1, 2];
        rest.extend([0, 1, 0, 2, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        parse(&v6(44, &rest))
    };
    let first = fragment(1, 17).unwrap();
    assert_eq!(first.fragment, Fragment::First { id: 0x102 });
    assert_eq!((first.source_port, first.destination_port), (1, 2));
    let later = fragment(16 | 1, 17).unwrap();
    assert_eq!(later.fragment, Fragment::Later { id: 0x102, offset: 16 });
    assert_eq!((later.source_port, later.destination_port), (0, 0));
    // One that is first and last is a whole packet; its UDP length is then checked.
    assert_eq!(fragment(0, 17), Err(ParseError::Length));
    assert_eq!(fragment(8 | 1, 6), Err(ParseError::BadFragment));
    assert_eq!(fragment(0xfff8, 17), Err(ParseError::BadFragment));
}

#[test]
fn first_fragment_without_whole_tcp_header_is_refused() {
    let mut rest = vec![6, 0, 0, 1, 0, 0, 0, 7];
    rest.extend([0; 16]);
    assert_eq!(parse(&v6(44, &rest)), Err(ParseError::Truncated));
}

#[test]
fn no_next_header_is_a_packet_without_ports() {
    let headers = parse(&v6(59, &[])).unwrap();
    assert_eq!((headers.protocol, headers.source_port), (59, 0));
    assert_eq!(headers.destination, IpAddr::from([0xfe; 16]));
}
