//! Deterministic mutation fuzzing of every parser of bytes from outside, over a small corpus.
//!
//! `WEFT_FUZZ_ITERATIONS` (default 20000) inputs are made from `tests/corpus/` by a seeded
//! generator, so a failure is found again by running it again; the input is printed as hex.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::IpAddr;
use std::path::Path;

use weft_fuzz::{Random, Report, iterations, mutate};
use weft_packet::checksum::transport_is_valid;
use weft_packet::{
    Checksum, Fragment, Gso, GsoKind, Headers, IpVersion, Merger, Meta, Rewrite, Segments,
    Unreachable, decrement_hop_limit, fragment_ipv4, icmp_error_inner, icmp_unreachable,
    packet_too_big, rewrite, rewrite_icmp_error_inner, tcp_reset, time_exceeded, vxlan,
};

fn corpus() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let lines = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(bytes).collect::<Vec<_>>()
    };
    files.iter().flat_map(lines).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.trim().as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

/// Numbers of versions, protocols and extension headers, and edges.
const TELLING: [u8; 14] = [0, 1, 4, 5, 6, 8, 17, 40, 43, 44, 58, 60, 0x7f, 0xff];

/// Half of the IPv4 inputs get a right header checksum, or few would come past it.
fn any_input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = mutate(random, corpus, &TELLING);
    if random.below(2) == 0 {
        repair(&mut input);
    }
    input
}

fn repair(input: &mut [u8]) {
    let header_len = input.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
    if input.first().is_some_and(|b| b >> 4 == 4) && (20..=input.len()).contains(&header_len) {
        input[10..12].fill(0);
        let sum = weft_packet::checksum::full(&input[..header_len]);
        input[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Runs every parser on one input and checks what must hold of any input.
fn fuzz_parse(input: &[u8], random: &mut Random, merger: &mut Merger) {
    if let Ok(frame) = vxlan::parse(input) {
        assert_eq!(frame.payload.len() + vxlan::OVERHEAD, input.len());
        if let Some(packet) = frame.ip_packet() {
            fuzz_packet(packet, random);
        }
    }
    fuzz_packet(input, random);
    fuzz_merger(input, random, merger);
}

fn fuzz_packet(input: &[u8], random: &mut Random) {
    let metas = [Meta::default(), meta(random)];
    for meta in metas {
        let Ok(headers) = Headers::parse(input, &meta) else {
            continue;
        };
        let (transport, payload) =
            (usize::from(headers.transport_offset), usize::from(headers.payload_offset));
        assert!(headers.total_length <= input.len());
        assert!(transport <= payload && payload <= headers.total_length);
        assert_eq!(headers.source.is_ipv4(), headers.version == IpVersion::V4);
        let _ = transport_is_valid(input, &headers);
        fuzz_rewrite(input, &meta, headers, random);
        fuzz_segments(input, &meta, &headers);
        fuzz_answers(input, &headers);
        fuzz_fragments(input, &meta, &headers, random);
    }
}

fn meta(random: &mut Random) -> Meta {
    let start = [20, 40, 24, random.below(100) as u16][random.below(4)];
    let offset = [2, 6, 16, random.below(30) as u16][random.below(4)];
    let kind = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][random.below(3)];
    let gso = Gso { kind, segment_size: random.below(40) as u16 };
    Meta {
        checksum: Checksum::Partial { start, offset },
        gso: (random.below(2) == 0).then_some(gso),
    }
}

fn change(v4: bool, random: &mut Random) -> Rewrite {
    let mut address = || {
        let bits = random.next();
        let value = if v4 {
            IpAddr::from((bits as u32).to_be_bytes())
        } else {
            IpAddr::from(u128::from(bits).to_be_bytes())
        };
        (bits & 1 == 0).then_some(value)
    };
    let (source, destination) = (address(), address());
    let ports = random.next();
    Rewrite {
        source,
        destination,
        source_port: (ports & 1 == 0).then_some((ports >> 8) as u16),
        destination_port: (ports & 2 == 0).then_some((ports >> 24) as u16),
    }
}

fn fuzz_rewrite(input: &[u8], meta: &Meta, before: Headers, random: &mut Random) {
    let mut packet = input.to_vec();
    let mut headers = before;
    let v4 = headers.version == IpVersion::V4;
    let was_valid = transport_is_valid(input, &before);
    // Of nothing but zeros a wrong checksum of 0 is as good as the right one, 0xffff.
    let message = &input[usize::from(before.transport_offset)..before.total_length];
    let has_sum = message.iter().any(|byte| *byte != 0);
    if rewrite(&mut packet, meta, &mut headers, &change(v4, random)).is_ok() {
        assert_eq!(Headers::parse(&packet, meta), Ok(headers));
        let whole = headers.fragment == Fragment::No && meta.checksum == Checksum::Complete;
        if whole && has_sum {
            assert_eq!(transport_is_valid(&packet, &headers), was_valid);
        }
    } else {
        assert_eq!(packet, input);
    }
    if let Some(inner) = icmp_error_inner(&packet, &headers) {
        assert!(usize::from(inner.transport_offset) <= headers.total_length);
        let done =
            rewrite_icmp_error_inner(&mut packet, meta, &headers, &inner, &change(v4, random));
        if done.is_ok() && meta.checksum == Checksum::Complete {
            assert_eq!(transport_is_valid(&packet, &headers), was_valid);
        }
    }
    let _ = decrement_hop_limit(&mut packet, &mut headers);
    assert_eq!(Headers::parse(&packet, meta), Ok(headers));
}

fn fuzz_segments(input: &[u8], meta: &Meta, headers: &Headers) {
    let Ok(segments) = Segments::new(input, meta, headers) else {
        return;
    };
    assert!(segments.count() >= 1);
    let mut out = vec![0; headers.total_length];
    let mut data = 0;
    for k in 0..segments.count() {
        let len = segments.write(k, &mut out);
        assert_eq!(len, segments.len_of(k));
        assert!(len > 0);
        if meta.gso.is_some() {
            let segment = Headers::parse(&out[..len], &Meta::default()).unwrap();
            assert!(transport_is_valid(&out[..len], &segment));
            data += segment.payload_len();
        }
    }
    assert!(meta.gso.is_none() || data == headers.payload_len());
    assert_eq!(segments.write(segments.count(), &mut out), 0);
}

fn fuzz_answers(input: &[u8], headers: &Headers) {
    let from = match headers.version {
        IpVersion::V4 => IpAddr::from([10, 0, 0, 1]),
        IpVersion::V6 => IpAddr::from([0xfd; 16]),
    };
    let mut out = Vec::new();
    let check = |answered: bool, out: &[u8]| {
        if !answered {
            assert!(out.is_empty());
            return;
        }
        let answer = Headers::parse(out, &Meta::default()).unwrap();
        assert!(transport_is_valid(out, &answer));
        assert!(out.len() <= if answer.source.is_ipv4() { 576 } else { 1280 });
        assert_eq!(answer.destination, headers.source);
    };
    check(icmp_unreachable(input, headers, from, Unreachable::Port, &mut out), &out);
    check(packet_too_big(input, headers, from, 1280, &mut out), &out);
    check(time_exceeded(input, headers, from, &mut out), &out);
    check(tcp_reset(input, headers, &mut out), &out);
}

fn fuzz_fragments(input: &[u8], meta: &Meta, headers: &Headers, random: &mut Random) {
    let mtu = random.below(200) as u16;
    let mut data = 0;
    let mut scratch = Vec::new();
    let done = fragment_ipv4(input, meta, headers, mtu, &mut scratch, &mut |piece| {
        assert!(piece.len() <= usize::from(mtu));
        data += piece.len() - usize::from(headers.transport_offset);
    });
    if done.is_ok() {
        assert_eq!(data, headers.total_length - usize::from(headers.transport_offset));
    }
}

fn fuzz_merger(input: &[u8], random: &mut Random, merger: &mut Merger) {
    merger.push(input);
    if random.below(16) > 0 {
        return;
    }
    let expected = merger.len();
    let mut seen = 0;
    merger.flush(&mut |packet, meta| {
        seen += 1;
        if meta.gso.is_some() {
            let headers = Headers::parse(packet, &meta).unwrap();
            let segments = Segments::new(packet, &meta, &headers).unwrap();
            assert!(segments.count() > 1);
        }
    });
    assert_eq!(seen, expected);
}

#[test]
fn fuzz_corpus_is_replayed() {
    let mut random = Random::new(1);
    let mut merger = Merger::new(true);
    let corpus = corpus();
    assert!(corpus.len() > 30);
    for (iteration, input) in corpus.iter().enumerate() {
        let report = Report { iteration, input };
        fuzz_parse(input, &mut random, &mut merger);
        drop(report);
    }
}

#[test]
fn fuzz_parsers_survive_mutated_packets() {
    let corpus = corpus();
    let mut random = Random::new(0x5eed);
    let mut merger = Merger::new(true);
    let mut understood = 0;
    for iteration in 0..iterations() {
        let input = any_input(&mut random, &corpus);
        let report = Report { iteration, input: &input };
        fuzz_parse(&input, &mut random, &mut merger);
        understood += usize::from(Headers::parse(&input, &Meta::default()).is_ok());
        drop(report);
    }
    // The generator must reach behind the first checks.
    assert!(understood * 10 > iterations(), "only {understood} inputs were packets");
}
