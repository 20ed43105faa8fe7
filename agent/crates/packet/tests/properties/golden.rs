//! Golden packets: what the Linux kernel makes of a packet, byte for byte.
//!
//! `tests/golden/packet/NAME.txt` has a comment with the origin, `in: HEX`, one `out: HEX` for each
//! packet that came of it, and, where `in` is not complete, `meta:` with the virtio header's GSO
//! type, GSO size, checksum start and checksum offset.

use std::net::IpAddr;
use std::path::Path;

use weft_packet::{
    Checksum, Gso, GsoKind, Headers, Merger, Meta, Unreachable, decrement_hop_limit, fragment_ipv4,
    icmp_unreachable, packet_too_big, tcp_reset, time_exceeded,
};

use crate::segments::cut;

struct Golden {
    input: Vec<u8>,
    meta: Meta,
    output: Vec<Vec<u8>>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/packet");
        let text = std::fs::read_to_string(directory.join(name).with_extension("txt")).unwrap();
        let mut golden = Self { input: Vec::new(), meta: Meta::default(), output: Vec::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(": ").unwrap() {
                ("in", hex) => golden.input = bytes(hex),
                ("out", hex) => golden.output.push(bytes(hex)),
                ("meta", fields) => golden.meta = meta(fields),
                (other, _) => panic!("unknown line {other}"),
            }
        }
        golden
    }

    /// The input as a router forwards it.
    fn forwarded(&self) -> (Vec<u8>, Headers) {
        let mut packet = self.input.clone();
        let mut headers = Headers::parse(&packet, &self.meta).unwrap();
        assert!(decrement_hop_limit(&mut packet, &mut headers));
        (packet, headers)
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.trim().as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn meta(fields: &str) -> Meta {
    let numbers: Vec<u16> = fields.split(' ').map(|n| n.parse().unwrap()).collect();
    let [gso_type, segment_size, start, offset] = numbers[..] else { panic!("meta {fields}") };
    let kind = match gso_type {
        0 => None,
        1 => Some(GsoKind::TcpV4),
        4 => Some(GsoKind::TcpV6),
        5 => Some(GsoKind::Udp),
        other => panic!("GSO type {other}"),
    };
    Meta {
        checksum: Checksum::Partial { start, offset },
        gso: kind.map(|kind| Gso { kind, segment_size }),
    }
}

#[test]
fn segments_are_the_kernels() {
    let names = ["tso_v4_cwr_psh_fin", "tso_v6_psh", "uso_v4", "uso_v6"];
    for name in names.into_iter().chain(["partial_v4", "partial_v6_udp"]) {
        let golden = Golden::read(name);
        assert_eq!(cut(&golden.forwarded().0, &golden.meta), golden.output, "{name}");
    }
}

#[test]
fn merged_segments_of_the_kernel_are_its_super_packet() {
    for name in ["tso_v4_cwr_psh_fin", "tso_v6_psh", "uso_v4", "uso_v6"] {
        let golden = Golden::read(name);
        let mut merger = Merger::new(true);
        golden.output.iter().for_each(|packet| merger.push(packet));
        let mut merged = Vec::new();
        merger.flush(&mut |packet, meta| merged.push((packet.to_vec(), meta)));
        assert_eq!(merged, [(golden.forwarded().0, golden.meta)], "{name}");
    }
}

#[test]
fn fragments_are_the_kernels() {
    let golden = Golden::read("fragments_v4_mtu_1300");
    let (packet, headers) = golden.forwarded();
    let mut pieces = Vec::new();
    let mut scratch = Vec::new();
    fragment_ipv4(&packet, &golden.meta, &headers, 1300, &mut scratch, &mut |piece| {
        pieces.push(piece.to_vec());
    })
    .unwrap();
    assert_eq!(pieces, golden.output);
}

#[test]
fn resets_are_the_kernels() {
    for name in ["reset_v4_syn", "reset_v4_ack_data", "reset_v6_syn"] {
        let golden = Golden::read(name);
        let headers = Headers::parse(&golden.input, &golden.meta).unwrap();
        let mut answer = Vec::new();
        assert!(tcp_reset(&golden.input, &headers, &mut answer));
        assert_eq!(without_flow_label(answer), without_flow_label(golden.output[0].clone()));
    }
}

/// The kernel's is random.
fn without_flow_label(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[1] &= 0xf0;
        packet[2..4].fill(0);
    }
    packet
}

#[test]
fn icmp_errors_are_the_kernels() {
    type Build = fn(&[u8], &Headers, IpAddr, &mut Vec<u8>) -> bool;
    let unreachable: Build = |p, h, a, o| icmp_unreachable(p, h, a, Unreachable::Port, o);
    let too_big: Build = |p, h, a, o| packet_too_big(p, h, a, 1300, o);
    let cases = [
        ("unreachable_v4_port", unreachable),
        ("unreachable_v6_port", unreachable),
        ("time_exceeded_v4", time_exceeded),
        ("time_exceeded_v6", time_exceeded),
        ("too_big_v4", too_big),
        ("too_big_v6", too_big),
    ];
    for (name, build) in cases {
        let golden = Golden::read(name);
        let headers = Headers::parse(&golden.input, &golden.meta).unwrap();
        let expected = &golden.output[0];
        let from = Headers::parse(expected, &Meta::default()).unwrap();
        let mut answer = Vec::new();
        assert!(build(&golden.input, &headers, from.source, &mut answer), "{name}");
        let answered = Headers::parse(&answer, &Meta::default()).unwrap();
        // The kernel keeps the ECN bits of the packet, sets no DF and has a random flow label.
        let traffic_class = answered.traffic_class;
        assert_eq!(answered, Headers { dont_fragment: true, traffic_class, ..from }, "{name}");
        let start = usize::from(from.transport_offset);
        assert_eq!(answer[start..], expected[start..], "{name}");
    }
}
