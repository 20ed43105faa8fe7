//! Deltas, and Services that claim the same.

use std::collections::BTreeMap;

use prost::Message;
use weft_fuzz::Random;
use weft_policy_sdk::Config;
use weft_policy_testing::NativeMap;
use weft_proto::tables::v1::{ServiceTable, ServiceTables};

use super::any::{any_name, any_packet, any_service};
use super::node::*;
use crate::config::{self, Room};

/// Answers to many packets, in new flows.
fn answers(node: &mut Node, seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let answer = |_| {
        let (client, protocol, from, to) = any_packet(&mut random);
        node.forget();
        node.told(client, protocol, from, to)
    };
    (0..60).map(answer).collect()
}

/// SVC-011, SVC-033, SVC-044: in whatever steps, the result is that of the whole at once.
#[test]
fn deltas_lead_to_what_one_configuration_says() {
    let mut random = Random::new(7);
    for round in 0..60 {
        let (mut all, mut stepwise) = (BTreeMap::<String, ServiceTable>::new(), Node::new(&[]));
        let mut settings = settings();
        for step in 0..12 {
            let mut delta = ServiceTables::default();
            let mut names: Vec<_> =
                (0..random.below(4)).map(|_| any_name(&mut random).to_owned()).collect();
            names.sort();
            names.dedup();
            for name in names {
                if random.below(3) == 0 {
                    all.remove(&name);
                    delta.removed.push(name);
                } else {
                    let table = any_service(&mut random, &name);
                    all.insert(name, table.clone());
                    delta.services.push(table);
                }
            }
            if random.below(8) == 0 {
                settings.own_node = random.below(3) as u32;
                settings.nodes.truncate(2 - random.below(2));
                delta.settings = Some(settings.clone());
            }
            stepwise.plugin.configure(Config::Delta(&delta.encode_to_vec())).unwrap();
            let whole = ServiceTables {
                settings: Some(settings.clone()),
                services: all.values().rev().cloned().collect(),
                removed: Vec::new(),
            };
            let mut at_once = Node::with(&whole, NativeMap::default());
            let seed = round * 100 + step;
            assert_eq!(answers(&mut stepwise, seed), answers(&mut at_once, seed), "{whole:#?}");
        }
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        stepwise.delta(&[], &names);
        assert!(stepwise.plugin.filter().tables.is_empty(), "something is left of Services");
    }
}

/// Before a configuration is read, there is a look at how much room it takes.
#[test]
fn room_that_is_counted_is_the_room_that_is_taken() {
    let mut random = Random::new(12);
    for _ in 0..200 {
        let names: std::collections::BTreeSet<_> =
            (0..random.below(9)).map(|_| any_name(&mut random)).collect();
        let services: Vec<_> = names.iter().map(|name| any_service(&mut random, name)).collect();
        let mut bytes = tables(&services).encode_to_vec();
        let lines = Node::new(&services).plugin.filter().tables.lines();
        assert_eq!(config::room(&bytes), Room { services: services.len(), lines });
        bytes.extend(b"\x12\x05ab");
        assert_eq!(config::room(&bytes), Room::default());
    }
}

/// SVC-013
#[test]
fn of_two_services_with_one_address_the_first_by_name_has_it_as_long_as_it_is_there() {
    let table = |name: &str, to: &str| {
        let table = service(name).at(ClusterIp, "10.96.0.1").at(ClusterIp, "fd00:96::1");
        table.ready(TCP, 80, 30_080, &[to, "[fd00:1::7]:1"])
    };
    let [a, b, c] = [("ns/a", "10.0.1.7:1"), ("ns/b", "10.0.1.7:2"), ("ns/c", "10.0.1.7:3")]
        .map(|(n, to)| table(n, to));
    let mut node = Node::new(&[c, b.clone()]);
    let ask = |node: &mut Node, port: u16| {
        for to in ["10.96.0.1:80", "192.0.2.1:30080"] {
            let answer = format!("to 10.0.1.7:{port}");
            assert_eq!(node.spread(POD, "10.0.1.5", to), [answer], "{to}");
        }
    };
    ask(&mut node, 2);
    node.delta(std::slice::from_ref(&a), &[]);
    ask(&mut node, 1);
    node.delta(&[], &["ns/b"]);
    ask(&mut node, 1);
    node.delta(&[], &["ns/a"]);
    ask(&mut node, 3);
    node.delta(&[a, b], &["ns/c"]);
    ask(&mut node, 1);
    // It stays but has the address no longer.
    node.delta(&[service("ns/a").at(ClusterIp, "10.96.0.9")], &[]);
    ask(&mut node, 2);
}

/// SVC-082: a part of an address can be another Service's.
#[test]
fn services_share_an_address_by_ports() {
    let table = |name: &str, port, to: &str| {
        service(name).at(LoadBalancer, "198.51.100.1").ready(TCP, port, 0, &[to])
    };
    let mut node = Node::new(&[table("ns/a", 80, "10.0.1.7:1"), table("ns/b", 443, "10.0.1.7:2")]);
    assert_eq!(node.spread(POD, "10.0.1.5", "198.51.100.1:80"), ["to 10.0.1.7:1"]);
    assert_eq!(node.spread(POD, "10.0.1.5", "198.51.100.1:443"), ["to 10.0.1.7:2"]);
    node.delta(&[], &["ns/a"]);
    assert_eq!(node.spread(POD, "10.0.1.5", "198.51.100.1:80"), ["reject 1"]);
    node.delta(&[], &["ns/b"]);
    assert_eq!(node.spread(POD, "10.0.1.5", "198.51.100.1:80"), ["pass"]);
}

/// Within one Service, the first of what it names twice counts.
#[test]
fn service_that_names_an_address_twice_has_it_as_the_first() {
    let table = service("ns/a").at(ExternalIp, "198.51.100.1").at(LoadBalancer, "198.51.100.1");
    let table = table.ready(TCP, 80, 0, &["10.0.1.7:1"]).ready(TCP, 80, 0, &["10.0.1.7:2"]);
    let table = ServiceTable { source_ranges: vec![range("192.0.2.0/24")], ..table };
    let mut node = Node::new(&[table]);
    assert_eq!(node.spread(OUTSIDE, "203.0.113.9", "198.51.100.1:80"), ["to 10.0.1.7:1"]);
    node.delta(&[], &["ns/a"]);
    assert!(node.plugin.filter().tables.is_empty());
}
