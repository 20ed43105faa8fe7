//! Configurations that are refused, and that they change nothing.

use prost::Message;
use weft_fuzz::{Random, Report, iterations, mutate};
use weft_policy_sdk::Config;
use weft_policy_testing::NativePlugin;
use weft_proto::tables::v1::{
    Frontend, NodePortAddresses, Range, ServicePortTable, ServiceSettings, ServiceTable,
    ServiceTables,
};

use super::any::{any_name, any_service};
use super::node::*;
use crate::Services;

fn web() -> ServiceTable {
    service("ns/web").at(ClusterIp, "10.96.0.1").ready(TCP, 80, 30_080, &["10.0.1.7:80"])
}

fn with_port(change: impl FnOnce(&mut ServicePortTable)) -> ServiceTables {
    let mut table = web();
    change(&mut table.ports[0]);
    tables(&[table])
}

fn with_settings(change: impl FnOnce(&mut ServiceSettings)) -> ServiceTables {
    let mut tables = tables(&[web()]);
    change(tables.settings.as_mut().unwrap());
    tables
}

fn with_frontend(kind: i32, address: &[u8]) -> ServiceTables {
    let mut table = web();
    table.frontends.push(Frontend { kind, address: address.to_vec() });
    tables(&[table])
}

fn with_range(range: Range) -> ServiceTables {
    tables(&[ServiceTable { source_ranges: vec![range], ..web() }])
}

/// Record of a backend: address, port, node 1, bits.
fn record(address: &str, port: u16, bits: u8) -> Vec<u8> {
    [&bytes(address)[..], &port.to_be_bytes(), &[0, 1, bits]].concat()
}

#[test]
fn refusal_names_the_service_and_the_field_and_changes_nothing() {
    let mapped = [&[0; 10][..], &[0xff; 2], &[10, 96, 0, 2]].concat();
    let mapped_record = [&mapped[..], &[0, 80, 0, 1, READY]].concat();
    let cases = [
        (tables(&[web(), web()]), "service \"ns/web\": it is there twice"),
        (tables(&[ServiceTable::default()]), "services: one without a name"),
        (with_frontend(0, &[10, 96, 0, 2]), "service \"ns/web\": frontend 2: kind 0 is not known"),
        (with_frontend(9, &[10, 96, 0, 2]), "service \"ns/web\": frontend 2: kind 9 is not known"),
        (
            with_frontend(1, &[10, 96, 0]),
            "service \"ns/web\": frontend 2: an address of 3 bytes: expected 4 or 16",
        ),
        (
            with_frontend(1, &mapped),
            "service \"ns/web\": frontend 2: an IPv4 address in 16 bytes: expected 4",
        ),
        (
            with_port(|port| port.protocol = 1),
            "service \"ns/web\": protocol 1: expected 6, 17 or 132",
        ),
        (
            with_port(|port| port.protocol = 256 + 6),
            "service \"ns/web\": protocol 262: expected 6, 17 or 132",
        ),
        (with_port(|port| port.port = 0), "service \"ns/web\": port 0: expected 1 to 65535"),
        (
            with_port(|port| port.port = 65_536),
            "service \"ns/web\": port 65536: expected 1 to 65535",
        ),
        (
            with_port(|port| port.node_port = 65_536),
            "service \"ns/web\": port 80: node_port 65536: expected up to 65535",
        ),
        (
            with_port(|port| port.backends_v4.push(0)),
            "service \"ns/web\": port 80: backends_v4: 10 bytes: expected records of 9",
        ),
        (
            with_port(|port| port.backends_v6 = vec![0; 20]),
            "service \"ns/web\": port 80: backends_v6: 20 bytes: expected records of 21",
        ),
        (
            with_port(|port| port.backends_v4 = record("10.0.1.7", 0, READY)),
            "service \"ns/web\": port 80: backend 10.0.1.7: port 0",
        ),
        (
            with_port(|port| port.backends_v6 = record("fd00::7", 80, 0x20)),
            "service \"ns/web\": port 80: backend fd00::7: bits 0x20 are not known",
        ),
        (
            with_port(|port| port.backends_v6 = mapped_record),
            "service \"ns/web\": port 80: backends_v6: 10.96.0.2 is IPv4",
        ),
        (
            with_range(Range { address: bytes("10.0.0.0"), prefix: 33 }),
            "service \"ns/web\": source_ranges: prefix 33 of 10.0.0.0 is too long",
        ),
        (
            with_range(Range { address: bytes("fd00::"), prefix: 129 }),
            "service \"ns/web\": source_ranges: prefix 129 of fd00:: is too long",
        ),
        (
            with_range(Range::default()),
            "service \"ns/web\": source_ranges: an address of 0 bytes: expected 4 or 16",
        ),
        (
            with_settings(|s| s.nodes.push(NodePortAddresses::default())),
            "settings: nodes: node 0: expected 1 to 65535",
        ),
        (with_settings(|s| s.nodes[1].node = 65_536), "settings: node 65536: expected up to 65535"),
        (
            with_settings(|s| s.nodes[1].addresses.push(vec![1])),
            "settings: node 2: an address of 1 bytes: expected 4 or 16",
        ),
        (
            with_settings(|s| s.own_node = 70_000),
            "settings: own_node: node 70000: expected up to 65535",
        ),
        (
            with_settings(|s| s.node_sources.push(bytes("192.0.2.9"))),
            "settings: node_sources: more than one of a family",
        ),
        (
            with_settings(|s| s.host_sources[0] = vec![0; 5]),
            "settings: host_sources: an address of 5 bytes: expected 4 or 16",
        ),
        (
            with_settings(|s| s.service_cidrs[0].prefix = 40),
            "settings: service_cidrs: prefix 40 of 10.96.0.0 is too long",
        ),
    ];
    let mut node = Node::new(&[web()]);
    for (mut tables, text) in cases {
        let full = NativePlugin::<Services>::new(tables.encode_to_vec()).map(drop);
        assert_eq!(full, Err(text.to_owned()));
        // What comes before the fault is good, and not done either.
        tables.services.insert(0, ServiceTable { name: "ns/a".to_owned(), ..web() });
        tables.services[0].ports[0].backends_v4 = record("10.0.1.8", 80, READY);
        tables.removed.push("ns/web".to_owned());
        let bytes = tables.encode_to_vec();
        for config in [Config::Delta(&bytes), Config::Full(&bytes)] {
            assert_eq!(node.plugin.configure(config), Err(text.to_owned()));
            assert_eq!(node.spread(POD, "10.0.1.5", "10.96.0.1:80"), ["to 10.0.1.7:80"]);
            assert_eq!(node.spread(POD, "10.0.1.5", "192.0.2.1:30080"), ["to 10.0.1.7:80"]);
        }
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let cases: [(&[u8], &str); 6] = [
        (b"\x12", "not a ServiceTables message: "),
        (b"\x12\x05ab", "not a ServiceTables message: it is cut short"),
        (b"\x08\x01", "not a ServiceTables message: field 1 is no message"),
        (b"\x12\x02\xff\xff", "service \"\": "),
        (b"\x0a\x02\xff\xff", "settings: "),
        (b"\x1a\x01\xff", "removed: a name that is not UTF-8"),
    ];
    for (bytes, text) in cases {
        let refusal = NativePlugin::<Services>::new(bytes).map(drop).unwrap_err();
        assert!(refusal.starts_with(text), "{refusal}");
        assert!(!refusal.contains('\n'), "{refusal}");
    }
}

#[test]
fn claims_of_one_service_are_bounded() {
    let mut table = web();
    table.frontends = vec![table.frontends[0].clone(); 1000];
    table.ports = vec![table.ports[0].clone(); 100];
    let text = NativePlugin::<Services>::new(tables(&[table]).encode_to_vec()).map(drop);
    let expected = "service \"ns/web\": frontends and ports make 100100 claims: too many";
    assert_eq!(text, Err(expected.to_owned()));
}

/// An empty configuration is none, and fields of a later version are left out.
#[test]
fn nothing_and_what_is_not_known_are_accepted() {
    let mut empty = NativePlugin::<Services>::new("").unwrap();
    empty.configure(Config::Delta(b"")).unwrap();
    let mut bytes = tables(&[web()]).encode_to_vec();
    bytes.extend(b"\x22\x03abc\x28\x05\x31\0\0\0\0\0\0\0\0");
    empty.configure(Config::Full(&bytes)).unwrap();
    empty.configure(Config::Delta(b"\x1a\x06ns/foo")).unwrap();
    assert!(!empty.filter().tables.is_empty());
}

/// Whatever the bytes are, they are refused in one line or in force, and packets are answered.
#[test]
fn fuzz_configuration() {
    let mut random = Random::new(11);
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    for _ in 0..40 {
        let services: Vec<_> = (0..random.below(4))
            .map(|_| {
                let name = any_name(&mut random);
                any_service(&mut random, name)
            })
            .collect();
        corpus.push(
            ServiceTables { removed: vec!["a/a".to_owned()], ..tables(&services) }.encode_to_vec(),
        );
    }
    let telling = [0, 1, 4, 6, 8, 9, 0x0a, 0x10, 0x12, 0x1a, 0x22, 0x7f, 0x80, 0xff];
    let mut node = Node::new(&[web()]);
    let (mut accepted, mut refused) = (0, 0);
    for iteration in 0..iterations() {
        let input = mutate(&mut random, &corpus, &telling);
        let _report = Report { iteration, input: &input };
        let config =
            if random.below(4) == 0 { Config::Full(&input) } else { Config::Delta(&input) };
        match node.plugin.configure(config) {
            Ok(()) => accepted += 1,
            Err(text) => {
                assert!(!text.is_empty() && text.lines().count() == 1, "{text}");
                refused += 1;
            }
        }
        let (client, protocol, from, to) = super::any::any_packet(&mut random);
        node.told(client, protocol, from, to);
    }
    assert!(accepted > 50 && refused > 50, "{accepted} {refused}");
}
