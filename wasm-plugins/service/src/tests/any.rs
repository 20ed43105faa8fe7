//! Random Services of a small world, in which they get into each other's way.

use std::net::SocketAddr;

use weft_fuzz::Random;
use weft_proto::tables::v1::{Range, ServiceTable};

use super::node::*;

const NAMES: [&str; 8] = ["a/a", "a/b", "a/c", "b/a", "b/b", "b/c", "c/a", "c/b"];
const FRONTENDS: [&str; 8] = [
    "10.96.0.1",
    "10.96.0.2",
    "198.51.100.1",
    "198.51.100.2",
    "fd00:96::1",
    "fd00:96::2",
    "2001:db8:9::1",
    "192.0.2.1",
];
const OTHERS: [&str; 8] = [
    "192.0.2.1",
    "192.0.2.2",
    "2001:db8::1",
    "2001:db8::2",
    "10.0.1.1",
    "10.96.3.3",
    "fd00:96::3:3",
    "fd00:1::1",
];
const BACKENDS: [&str; 12] = [
    "10.0.1.5",
    "10.0.1.6",
    "10.0.2.5",
    "10.0.2.6",
    "192.0.2.1",
    "192.0.2.2",
    "203.0.113.9",
    "fd00:1::5",
    "fd00:1::6",
    "fd00:2::5",
    "2001:db8::1",
    "2001:db8:6::1",
];
const CLIENTS: [(u32, &str); 12] = [
    (POD, "10.0.1.5"),
    (POD, "10.0.1.6"),
    (POD, "fd00:1::5"),
    (POD, "fd00:1::9"),
    (HOST, "192.0.2.1"),
    (HOST, "10.0.1.1"),
    (HOST, "198.51.100.1"),
    (HOST, "fd00:1::1"),
    (HOST, "2001:db8:9::1"),
    (OUTSIDE, "203.0.113.9"),
    (OUTSIDE, "203.0.113.10"),
    (OUTSIDE, "2001:db8:6::1"),
];
const RANGES: [&str; 6] =
    ["203.0.113.9/32", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/48", "fd00:1::/64", "10.0.1.4/30"];

pub(super) fn any_name(random: &mut Random) -> &'static str {
    random.pick(&NAMES)
}

pub(super) fn any_service(random: &mut Random, name: &str) -> ServiceTable {
    let mut table = service(name);
    for _ in 0..random.below(4) {
        let kind = random.pick(&[ClusterIp, LoadBalancer, ExternalIp]);
        table = table.at(kind, random.pick(&FRONTENDS));
    }
    for _ in 0..random.below(4) {
        let backends: Vec<_> = (0..random.below(6))
            .map(|_| {
                let at = format_backend(random.pick(&BACKENDS), random.pick(&[80, 8080]));
                (at, random.byte() & 7)
            })
            .collect();
        let backends: Vec<_> = backends.iter().map(|(at, bits)| (at.as_str(), *bits)).collect();
        let node_port = random.pick(&[0, 30_000, 30_001]);
        table = table.port(
            random.pick(&[TCP, UDP, SCTP]),
            random.pick(&[80, 81, 30_000]),
            node_port,
            &backends,
        );
    }
    table.internal_local = random.below(3) == 0;
    table.external_local = random.below(2) == 0;
    if random.below(3) == 0 {
        let ranges = (0..=random.below(2)).map(|_| range(random.pick(&RANGES)));
        table.source_ranges = ranges.collect::<Vec<Range>>();
    }
    table
}

fn format_backend(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}

/// Client, protocol, source and destination, of one family.
pub(super) fn any_packet(random: &mut Random) -> (u32, u8, SocketAddr, SocketAddr) {
    let (client, from) = random.pick(&CLIENTS);
    let from = SocketAddr::new(from.parse().unwrap(), 1 + random.below(60_000) as u16);
    loop {
        let to = if random.below(3) == 0 { random.pick(&OTHERS) } else { random.pick(&FRONTENDS) };
        let to = SocketAddr::new(to.parse().unwrap(), random.pick(&[80, 81, 30_000, 30_001]));
        if to.is_ipv4() == from.is_ipv4() {
            return (client, random.pick(&[TCP, UDP, SCTP, TCP, UDP, 1]), from, to);
        }
    }
}
