//! Nanoseconds per packet of what every packet passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::IpAddr;

use divan::{Bencher, black_box, counter::BytesCount};
use etherparse::PacketBuilder;
use weft_packet::{Gso, GsoKind, Headers, Merger, Meta, Rewrite, Segments, checksum, rewrite};

fn main() {
    divan::main();
}

fn packet(v4: bool, len: usize) -> Vec<u8> {
    let builder = if v4 {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    } else {
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64)
    };
    let mut out = Vec::new();
    builder.tcp(1, 2, 3, 4).ack(5).write(&mut out, &vec![7; len]).unwrap();
    out
}

fn super_packet(len: usize) -> (Vec<u8>, Meta) {
    let gso = Gso { kind: GsoKind::TcpV4, segment_size: 1380 };
    (packet(true, len), Meta { gso: Some(gso), ..Meta::default() })
}

#[divan::bench(args = [true, false])]
fn parse_tcp(bencher: Bencher, v4: bool) {
    let packet = packet(v4, 1000);
    bencher.bench(|| Headers::parse(black_box(&packet), &Meta::default()));
}

#[divan::bench(args = [true, false])]
fn rewrite_tcp(bencher: Bencher, v4: bool) {
    let mut packet = packet(v4, 1000);
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    let destination = if v4 { IpAddr::from([10; 4]) } else { IpAddr::from([10; 16]) };
    let change = Rewrite {
        destination: Some(destination),
        destination_port: Some(8080),
        ..Rewrite::default()
    };
    bencher.bench_local(|| rewrite(&mut packet, &Meta::default(), &mut headers, &change));
}

#[divan::bench]
fn sum_1400_bytes(bencher: Bencher) {
    let bytes = [5; 1400];
    bencher.counter(BytesCount::new(1400usize)).bench(|| checksum::sum(black_box(&bytes)));
}

#[divan::bench]
fn segments_of_60_kib(bencher: Bencher) {
    let (packet, meta) = super_packet(61_440);
    let headers = Headers::parse(&packet, &meta).unwrap();
    let mut out = vec![0; 1500];
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        let segments = Segments::new(&packet, &meta, &headers).unwrap();
        (0..segments.count()).map(|k| segments.write(k, &mut out)).sum::<usize>()
    });
}

#[divan::bench]
fn merge_to_60_kib(bencher: Bencher) {
    let (packet, meta) = super_packet(61_440);
    let headers = Headers::parse(&packet, &meta).unwrap();
    let segments = Segments::new(&packet, &meta, &headers).unwrap();
    let pieces: Vec<Vec<u8>> = (0..segments.count())
        .map(|k| {
            let mut out = vec![0; segments.len_of(k)];
            segments.write(k, &mut out);
            out
        })
        .collect();
    let mut merger = Merger::new(false);
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        pieces.iter().for_each(|piece| merger.push(piece));
        let mut count = 0;
        merger.flush(&mut |_, _| count += 1);
        assert_eq!(count, 1);
    });
}
