//! Room and time for as many pods and policies as a cluster may have.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prost::Message;
use weft_policy::Policies;
use weft_policy_sdk::{Config, Descriptor, Filter, Flow, Host, Packet, flags};
use weft_policy_testing::NativeMap;
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyBlock, PolicyPort, PolicyProgram, PolicyRule,
    PolicySubject, PolicyTables, Range,
};

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pods of the node are the first ones.
const LOCAL: u32 = 200;
const PODS: u32 = 50_000;

fn v4(pod: u32) -> [u8; 4] {
    (u32::from_be_bytes([10, 0, 0, 0]) + pod).to_be_bytes()
}

fn v6(pod: u32) -> [u8; 16] {
    (0xfd00_u128 << 112 | u128::from(pod)).to_be_bytes()
}

fn rule(set: u32, port: u32) -> PolicyRule {
    let ports = vec![PolicyPort { protocol: 6, first: port, last: port }];
    PolicyRule { sets: vec![set], ports, ..PolicyRule::default() }
}

fn isolated(number: u32, allowed: Vec<PolicyRule>) -> PolicyProgram {
    PolicyProgram { number, isolated: true, isolation: 99, allowed, ..PolicyProgram::default() }
}

/// Every pod an identity of its own, in a set of all, of its namespace and of its application. Of
/// `policies` each is a program of one pod, or more rules of it.
fn tables(pods: u32, policies: u32) -> PolicyTables {
    let mut tables = PolicyTables::default();
    for pod in 0..pods {
        let identity = (pod + 1).to_be_bytes();
        tables.addresses_v4.extend([v4(pod), identity].concat());
        tables.addresses_v6.extend([&v6(pod)[..], &identity].concat());
    }
    // Namespaces of 50 pods, applications of 10.
    for (first, size) in [(1, pods), (1_000_000, 50), (2_000_000, 10)] {
        tables.sets.extend((0..pods.div_ceil(size)).map(|n| IdentitySet {
            number: first + n,
            identities: (n * size..((n + 1) * size).min(pods)).map(|pod| pod + 1).collect(),
        }));
    }
    let local = pods.min(LOCAL);
    for pod in 0..local {
        let of_pod = (0..policies).filter(|policy| policy % local == pod);
        let rules = of_pod.map(|policy| rule(2_000_000 + policy % pods.div_ceil(10), 80 + policy));
        tables.programs.push(isolated(pod + 1, rules.collect()));
        let subject = PolicySubject { identity: pod + 1, ingress: pod + 1, egress: 0 };
        tables.subjects.push(subject);
    }
    tables
}

/// What reaches a pod of the node.
fn told(from: u32, to: u32, port: u16) -> Descriptor {
    let mapped = |a: [u8; 4]| std::net::Ipv4Addr::from(a).to_ipv6_mapped().octets();
    Descriptor {
        flags: flags::FIRST | flags::DESTINATION_LOCAL_POD,
        source: mapped(v4(from)),
        destination: mapped(v4(to)),
        source_port: 5000,
        destination_port: port,
        protocol: 6,
        ip_version: 4,
        ..Descriptor::default()
    }
}

fn ask(filter: &mut Policies, map: &NativeMap, told: &Descriptor) -> String {
    let calls = CALLS.load(Relaxed);
    let packet = Packet::new(told, &[]);
    let verdict = filter.on_packet(&packet, &mut Flow::new(told), &Host::new(map));
    assert_eq!(CALLS.load(Relaxed), calls, "a lookup allocates");
    format!("{verdict:?}")
}

fn configured(tables: &PolicyTables) -> Policies {
    let mut filter = Policies::default();
    filter.configure(Config::Full(&tables.encode_to_vec())).unwrap();
    filter
}

/// Nanoseconds of a packet, of many different ones: the best of some rounds, as others compute too.
fn time(filter: &mut Policies, packets: &[Descriptor]) -> f64 {
    let map = NativeMap::default();
    let rounds = (0..12).map(|_| {
        let start = Instant::now();
        for told in packets {
            let packet = Packet::new(told, &[]);
            let verdict = filter.on_packet(&packet, &mut Flow::new(told), &Host::new(&map));
            std::hint::black_box(verdict);
        }
        start.elapsed().as_secs_f64() * 1e9 / packets.len() as f64
    });
    rounds.fold(f64::MAX, f64::min)
}

/// NP-111. One test, as the counters are for all threads.
#[test]
fn many_pods_and_policies_fit_and_cost_nothing_more() {
    room_for_many();
    time_does_not_grow();
    programs_of_many_rules();
}

fn room_for_many() {
    let tables = tables(PODS, 10_000);
    let addresses = PolicyTables {
        addresses_v4: tables.addresses_v4.clone(),
        addresses_v6: tables.addresses_v6.clone(),
        ..PolicyTables::default()
    };
    let held = |tables: &PolicyTables| {
        let before = HELD.load(Relaxed);
        let filter = configured(tables);
        (HELD.load(Relaxed) - before, filter)
    };
    let (of_addresses, _) = held(&addresses);
    let (all, mut filter) = held(&tables);
    let config = tables.encode_to_vec();
    MOST.store(0, Relaxed);
    let before = HELD.load(Relaxed);
    let start = Instant::now();
    let mut next = Policies::default();
    next.configure(Config::Full(&config)).unwrap();
    let full = start.elapsed();
    let most = MOST.load(Relaxed) - before;
    drop(next);

    // A pod with a new identity, as one in a rollout: three sets, one of them of all pods.
    let change = |pod: u32| {
        let identity = 1_000_000 + pod;
        let set = |number| IdentitySetChange { number, added: vec![identity], removed: vec![pod] };
        PolicyTables {
            addresses_v4: [v4(pod - 1), identity.to_be_bytes()].concat(),
            changed_sets: vec![
                set(1),
                set(1_000_000 + (pod - 1) / 50),
                set(2_000_000 + (pod - 1) / 10),
            ],
            ..PolicyTables::default()
        }
    };
    let deltas: Vec<_> = (1..=500).map(|n| change(n * 90).encode_to_vec()).collect();
    let start = Instant::now();
    for delta in &deltas {
        filter.configure(Config::Delta(delta)).unwrap();
    }
    let delta = start.elapsed() / 500;
    eprintln!(
        "{PODS} pods of both families: {of_addresses} bytes; with as many identities in 3 sets each \
         and 10000 policies: {} of configuration in {full:?}, {all} held, {most} at most, \
         a delta in {delta:?}",
        config.len()
    );
    assert!(of_addresses < 4 << 20, "{of_addresses} bytes");
    assert!(all < 12 << 20 && most < 16 << 20, "{all} bytes, {most} at most");
    // Many times what it takes on an idle machine.
    assert!(full < Duration::from_secs(2), "{full:?}");
    assert!(delta < Duration::from_millis(5), "{delta:?}");
}

fn time_does_not_grow() {
    let map = NativeMap::default();
    let mut times = Vec::new();
    for policies in [10, 1000, 10_000] {
        // Some pods have many policies then, but who is asked about has few.
        let mut tables = tables(policies * 4, policies);
        let busy = |p: &PolicyProgram| p.allowed.len() > 1;
        tables.programs.iter_mut().filter(|p| busy(p)).for_each(|p| p.allowed.truncate(2));
        let mut filter = configured(&tables);
        let local = policies.min(10);
        let packets: Vec<_> = (0..4096)
            .map(|n| told(n * 7 % (policies * 4), n % local, 80 + (n % local) as u16))
            .collect();
        let answers = packets.iter().map(|told| ask(&mut filter, &map, told));
        let passed = answers.filter(|answer| answer == "Continue").count();
        assert!(0 < passed && passed < packets.len(), "{passed}");
        times.push(time(&mut filter, &packets));
    }
    eprintln!("a new flow of 10, 1000, 10000 policies: {times:.0?} ns");
    assert!(times[2] < times[0] * 5.0 + 200.0, "{times:?}");
}

/// NP-036, NP-047, NP-111: the flow that no rule allows, which has to be compared with all.
fn programs_of_many_rules() {
    let base = tables(10_000, 0);
    let packets: Vec<_> = (0..1000).map(|n| told(5000 + n, 0, 80)).collect();
    let map = NativeMap::default();
    let timed = |what: &str, rules: Vec<PolicyRule>| {
        let mut tables = base.clone();
        tables.programs[0].allowed = rules;
        let mut filter = configured(&tables);
        for told in &packets {
            assert_eq!(ask(&mut filter, &map, told), "Drop(99)", "{what}");
        }
        let nanos = time(&mut filter, &packets);
        eprintln!("{what}: {nanos:.0} ns");
        assert!(nanos < 50_000.0, "{what}: {nanos} ns");
    };
    let application = |n: u32| 2_000_000 + n % 500;
    timed("1000 rules of one port", (0..1000).map(|n| rule(application(n), 80)).collect());
    timed("1000 rules of a port each", (0..1000).map(|n| rule(2_000_000, 80 + n)).collect());
    let ports = |n: u32| {
        let mut rule = rule(application(n), 80);
        rule.ports.push(PolicyPort { protocol: 6, first: 1000 + n, last: 2000 + n });
        rule
    };
    timed("1000 rules with one port in common", (0..1000).map(ports).collect());
    let blocks = (0..2000_u32).map(|n| PolicyBlock {
        range: Some(Range {
            address: vec![100, (n / 128) as u8, (n % 128) as u8 * 2, 0],
            prefix: 24,
        }),
        except: vec![],
    });
    let blocks = PolicyRule { blocks: blocks.collect(), ..PolicyRule::default() };
    timed("2000 blocks", vec![blocks]);

    // NP-141: 100 objects of 25 rules.
    let mut tables = base.clone();
    let deny = |number, rule| PolicyRule { number, action: 2, ..rule };
    let of_application =
        |n| PolicyRule { sets: vec![application(n)], any_peer: n == 2499, ..PolicyRule::default() };
    tables.programs[0].admin = (0..2500).map(|n| deny(100 + n, of_application(n))).collect();
    let mut filter = configured(&tables);
    for told in &packets {
        assert_eq!(ask(&mut filter, &map, told), "Drop(2599)");
    }
    let nanos = time(&mut filter, &packets);
    eprintln!("2500 rules of a tier, for any port: {nanos:.0} ns");
    assert!(nanos < 200_000.0, "{nanos} ns");
}
