//! Which backend a flow goes to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use weft_policy_sdk::{
    Config, Descriptor, Draw, Filter, Flow, Host, HostCalls, Level, MapError, Packet, Verdict,
    flags,
};
use weft_policy_testing::{NativeMap, Timestamp};
use weft_proto::tables::v1::{ServiceTable, backend};

use super::node::*;
use crate::Services;
use crate::backend::Backend;

const WEB: &str = "10.96.0.1:80";

fn web(backends: &[&str]) -> ServiceTable {
    service("ns/web").at(ClusterIp, "10.96.0.1").ready(TCP, 80, 0, backends)
}

fn sticky(seconds: u32, protocol: u8, backends: &[&str]) -> ServiceTable {
    let table = service("ns/web").at(ClusterIp, "10.96.0.1");
    ServiceTable { affinity_s: seconds, ..table.ready(protocol, 80, 30_080, backends) }
}

/// `10.0.2.10:8080` and on.
fn many(count: usize) -> Vec<String> {
    (10..10 + count).map(|i| format!("10.0.2.{i}:8080")).collect()
}

/// How many of `flows` go where, from one client with consecutive source ports.
fn counts(node: &mut Node, flows: u16) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for port in 0..flows {
        let to = node.ask(POD, TCP, &format!("10.0.1.5:{}", 30_000 + port), WEB);
        *counts.entry(to).or_default() += 1.0;
    }
    counts
}

fn chi_square(counts: &BTreeMap<String, f64>, expected: f64) -> f64 {
    counts.values().map(|n| (n - expected).powi(2) / expected).sum()
}

/// SVC-040, SVC-042
#[test]
fn backends_get_equal_shares_of_one_clients_connections() {
    let mut node = Node::new(&[web(&["10.0.1.7:80", "10.0.2.8:80", "10.0.2.9:8080"])]);
    let three = counts(&mut node, 3000);
    assert_eq!(three.len(), 3);
    assert!(three.values().all(|n| (900.0..=1100.0).contains(n)), "{three:?}");
    let names = many(30);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let thirty = counts(&mut Node::new(&[web(&names)]), 6000);
    assert_eq!(thirty.len(), 30);
    // p = 0.001 with 29 degrees of freedom.
    assert!(chi_square(&thirty, 200.0) < 58.30, "{thirty:?}");
}

/// SVC-040: IPv6, and clients with one connection each.
#[test]
fn backends_get_equal_shares_of_many_clients() {
    let backends: Vec<_> = (1..=10).map(|i| format!("[fd00:2::{i:x}]:80")).collect();
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    let table = service("ns/web").at(ClusterIp, "fd00:96::1").ready(UDP, 53, 0, &backends);
    let mut node = Node::new(&[table]);
    let mut counts = BTreeMap::<_, f64>::new();
    for client in 0..5000 {
        let to = node.ask(POD, UDP, &format!("[fd00:1::1:{client:x}]:5353"), "[fd00:96::1]:53");
        *counts.entry(to).or_default() += 1.0;
    }
    assert_eq!(counts.len(), 10);
    // p = 0.001 with 9 degrees of freedom.
    assert!(chi_square(&counts, 500.0) < 27.88, "{counts:?}");
}

/// SVC-046, SVC-222
#[test]
fn thousand_backends_get_equal_shares() {
    let names: Vec<_> =
        (0..1000).map(|i| format!("10.0.2{}.{}:80", i / 250 + 2, i % 250 + 1)).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let counts = counts(&mut Node::new(&[web(&names)]), 30_000);
    // p = 0.001 with 999 degrees of freedom.
    assert!(chi_square(&counts, 30.0) < 1142.0, "{}", chi_square(&counts, 30.0));
}

/// SVC-005
#[test]
fn backend_that_is_listed_twice_counts_once() {
    let twice = ["10.0.2.8:80", "10.0.2.8:80", "10.0.2.8:80", "10.0.2.9:80"];
    let counts = counts(&mut Node::new(&[web(&twice)]), 2000);
    assert!(counts.values().all(|n| (900.0..=1100.0).contains(n)), "{counts:?}");
}

/// SVC-031, SVC-041: choice outlives the flow's entry, a restart and is the same on each worker.
#[test]
fn flow_that_was_forgotten_goes_where_it_went() {
    let names = many(20);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (mut a, mut b) = (Node::new(&[web(&names)]), Node::new(&[web(&names)]));
    for port in 1..500 {
        let from = format!("10.0.1.5:{port}");
        let first = a.ask(POD, TCP, &from, WEB);
        a.forget();
        // In the middle of the connection.
        a.tcp_flags = 0x10;
        assert_eq!(a.ask(POD, TCP, &from, WEB), first);
        assert_eq!(b.ask(POD, TCP, &from, WEB), first);
        a.tcp_flags = 2;
    }
}

/// SVC-043: also of flows that are chosen for again, only those of a backend that is gone move.
#[test]
fn flows_of_backends_that_stay_are_not_moved() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (mut all, mut less) = (Node::new(&[web(&names)]), Node::new(&[web(&names[1..])]));
    let mut moved = 0;
    for port in 1..2000 {
        let from = format!("10.0.1.5:{port}");
        let (before, after) = (all.ask(POD, TCP, &from, WEB), less.ask(POD, TCP, &from, WEB));
        if before == format!("to {}", names[0]) {
            moved += 1;
        } else {
            assert_eq!(before, after);
        }
    }
    assert!((150..250).contains(&moved), "{moved}");
    for port in 1..2000 {
        less.delta(&[web(&names[port % 9..])], &[]);
        assert_eq!(less.ask(POD, TCP, &format!("10.0.1.5:{port}"), WEB), "pass");
    }
}

/// SVC-045, SVC-142
#[test]
fn backend_outside_of_the_set_gets_nothing() {
    let serving = backend::COUNTS;
    let table = service("ns/web").at(ClusterIp, "10.96.0.1");
    let table = table.port(TCP, 80, 0, &[("10.0.2.8:80", serving), ("10.0.2.9:80", READY)]);
    assert_eq!(Node::new(&[table]).spread(POD, "10.0.1.5", WEB), ["to 10.0.2.9:80"]);
}

/// SVC-050, SVC-057
#[test]
fn client_with_affinity_keeps_its_backend() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(10_800, TCP, &names)]);
    let mut used = std::collections::BTreeSet::new();
    for client in 1..100 {
        let to = node.spread(POD, &format!("10.0.1.{client}"), WEB);
        assert_eq!(to.len(), 1, "{to:?}");
        used.insert(to);
    }
    assert_eq!(used.len(), 10);
}

/// SVC-050: the node port and the cluster IP are one Service port.
#[test]
fn client_with_affinity_keeps_its_backend_at_each_address() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(10_800, TCP, &names)]);
    for client in 1..50 {
        let client = format!("10.0.1.{client}");
        let to = node.spread(POD, &client, WEB);
        assert_eq!(node.spread(POD, &client, "192.0.2.1:30080"), to);
    }
}

/// SVC-051
#[test]
fn affinity_ends_after_its_time_without_a_new_connection() {
    let names = many(40);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(100, TCP, &names)]);
    let mut to = Vec::new();
    for round in 0..20 {
        let port = 1000 + round;
        to.push(node.ask(POD, TCP, &format!("10.0.1.5:{port}"), WEB));
        node.now = node.now + Duration::from_secs(99);
    }
    to.dedup();
    assert_eq!(to.len(), 1, "each connection starts the time anew");
    assert_eq!(node.plugin.map().len(), 1);
    for round in 0..20 {
        node.now = node.now + Duration::from_secs(101);
        to.push(node.ask(POD, TCP, &format!("10.0.1.5:{}", 2000 + round), WEB));
    }
    to.dedup();
    assert!(to.len() > 10, "{to:?}");
}

/// SVC-052
#[test]
fn affinity_is_switched_on_and_off() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(0, TCP, &names)]);
    assert!(node.spread(POD, "10.0.1.5", WEB).len() > 3);
    node.delta(&[sticky(10, TCP, &names)], &[]);
    assert_eq!(node.spread(POD, "10.0.1.5", WEB).len(), 1);
    node.delta(&[sticky(0, TCP, &names)], &[]);
    assert!(node.spread(POD, "10.0.1.5", WEB).len() > 3);
}

/// SVC-053
#[test]
fn client_whose_backend_goes_gets_another_and_keeps_that() {
    let names = many(5);
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(10_800, TCP, &names)]);
    while names.len() > 1 {
        let [to] = &node.spread(POD, "10.0.1.5", WEB)[..] else { panic!("not one") };
        let to = to.trim_start_matches("to ");
        names.retain(|name| *name != to);
        node.delta(&[sticky(10_800, TCP, &names)], &[]);
    }
    assert_eq!(node.spread(POD, "10.0.1.5", WEB), [format!("to {}", names[0])]);
}

/// SVC-054
#[test]
fn affinity_stays_inside_of_the_local_set() {
    let table = sticky(10_800, TCP, &["10.0.1.7:80", "10.0.2.8:80", "10.0.2.9:80"]);
    let table = ServiceTable { external_local: true, ..table };
    let mut node = Node::new(&[table]);
    for client in 1..50 {
        let client = format!("203.0.113.{client}");
        // The node passes it on for the other node too, so it has remembered any backend.
        assert_eq!(node.spread(OUTSIDE, &client, WEB).len(), 1);
        let local = ["to 10.0.1.7:80".to_owned()];
        assert_eq!(node.spread(OUTSIDE, &client, "192.0.2.1:30080"), local);
    }
}

/// SVC-055
#[test]
fn affinity_holds_for_udp_and_sctp() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for protocol in [UDP, SCTP] {
        let mut node = Node::new(&[sticky(10_800, protocol, &names)]);
        assert_eq!(node.spread_of(POD, protocol, "10.0.1.5", WEB).len(), 1);
    }
}

/// SVC-056: a client still keeps its backend once there is no room to remember it.
#[test]
fn clients_are_bounded_and_still_stick_when_there_is_no_room() {
    let names = many(5);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut node = Node::new(&[sticky(10_800, TCP, &names)]);
    for client in 0..66_000_u32 {
        let [_, a, b, c] = client.to_be_bytes();
        node.ask(OUTSIDE, TCP, &format!("100.{a}.{b}.{c}:1000"), WEB);
        node.forget();
    }
    assert_eq!(node.plugin.map().len(), 65_536);
    let mut used = std::collections::BTreeSet::new();
    for client in 1..60 {
        let to = node.spread(POD, &format!("10.0.1.{client}"), WEB);
        assert_eq!(to.len(), 1, "{to:?}");
        used.insert(to);
    }
    assert_eq!(used.len(), 5);
}

/// SVC-050: workers share what is remembered, and it outlives a configuration.
#[test]
fn workers_agree_on_a_clients_backend() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let map = NativeMap::default();
    let tables = tables(&[sticky(10_800, TCP, &names)]);
    let mut workers = [0; 4].map(|_| Node::with(&tables, map.clone()));
    for client in 1..50 {
        let client = format!("10.0.1.{client}");
        let first = workers[0].spread(POD, &client, WEB);
        for worker in &mut workers[1..] {
            assert_eq!(worker.spread(POD, &client, WEB), first);
        }
    }
}

/// A map in which another worker is faster, once: between the look-up and the swap.
struct Raced {
    map: RefCell<Option<Vec<u8>>>,
    faster: RefCell<Option<Vec<u8>>>,
}

impl HostCalls for Raced {
    fn log(&self, _: Level, _: &str) {}

    fn map_get(&self, _: &[u8]) -> Option<Vec<u8>> {
        self.map.borrow().clone()
    }

    fn map_put(&self, _: &[u8], _: &[u8], _: Option<Duration>) -> Result<(), MapError> {
        panic!("not without a look at what is there")
    }

    fn map_swap(
        &self,
        _: &[u8],
        old: &[u8],
        new: &[u8],
        _: Option<Duration>,
    ) -> Result<bool, MapError> {
        if let Some(faster) = self.faster.take() {
            self.map.replace(Some(faster));
        }
        let swap = self.map.borrow().as_deref().unwrap_or_default() == old;
        if swap {
            self.map.replace(Some(new.to_vec()));
        }
        Ok(swap)
    }

    fn map_take(&self, _: &[u8], _: &[Draw]) -> Result<bool, MapError> {
        panic!("no buckets")
    }

    fn map_remove(&self, _: &[u8]) -> bool {
        panic!("nothing is removed")
    }
}

/// SVC-050: of two workers that choose for a client at once, the faster chooses for both; a choice
/// that is of no use is not followed.
#[test]
fn worker_that_is_slower_takes_the_choice_of_the_faster() {
    let names = many(10);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut filter = Services::default();
    let config = tables(&[sticky(10_800, TCP, &names)]).encode_to_vec();
    filter.configure(Config::Full(&config)).unwrap();
    let (from, to) = ("10.0.1.5:1".parse().unwrap(), WEB.parse().unwrap());
    let told = described(TCP, from, to, Timestamp(5), 2);
    let told = Descriptor { flags: POD | flags::FIRST, ..told };
    let ask = |filter: &mut Services, host: &Raced| {
        let packet = Packet::new(&told, &[]);
        match filter.on_packet(&packet, &mut Flow::new(&told), &Host::new(host)) {
            Verdict::Rewrite(rewrite) => rewrite.fields().destination.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let raced = |faster| Raced { map: RefCell::default(), faster: RefCell::new(faster) };
    let alone = ask(&mut filter, &raced(None));
    let mut followed = 0;
    let records = sticky(0, TCP, &names).ports.remove(0).backends_v4;
    for backend in records.as_chunks().0.iter().map(Backend::v4) {
        let to = ask(&mut filter, &raced(Some(backend.id().to_le_bytes().to_vec())));
        assert_eq!(to, backend.address.0.to_be_bytes());
        followed += usize::from(to != alone);
    }
    assert_eq!(followed, 9);
    assert_eq!(ask(&mut filter, &raced(Some(vec![7; 8]))), alone);
    assert_eq!(ask(&mut filter, &raced(Some(vec![7; 3]))), alone);
}
