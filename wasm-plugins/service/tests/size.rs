//! Room and time for as many Services as a cluster may have.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prost::Message;
use weft_policy_sdk::{Config, Descriptor, Filter, Flow, Host, Packet, flags};
use weft_policy_testing::NativeMap;
use weft_proto::tables::v1::{
    Frontend, ServicePortTable, ServiceSettings, ServiceTable, ServiceTables,
};
use weft_service::Services;

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

const SERVICES: u32 = 50_000;
const MEMORY: usize = 64 << 20;

fn address(n: u32) -> [u8; 4] {
    (u32::from_be_bytes([10, 96, 0, 0]) + n).to_be_bytes()
}

fn service(n: u32, first_backend: u8) -> ServiceTable {
    let backend = |i: u8| {
        let [_, _, a, b] = n.to_be_bytes();
        [10, a, b, first_backend + i, 0x1f, 0x90, 0, 1 + i, 7 | 1 << 3]
    };
    ServiceTable {
        name: format!("namespace-{}/service-{n}", n % 100),
        frontends: vec![Frontend { kind: 1, address: address(n).to_vec() }],
        ports: vec![ServicePortTable {
            protocol: 6,
            port: 80,
            backends_v4: (0..5).flat_map(backend).collect(),
            ..ServicePortTable::default()
        }],
        ..ServiceTable::default()
    }
}

fn config() -> Vec<u8> {
    let settings = Some(ServiceSettings { own_node: 1, ..ServiceSettings::default() });
    let services = (0..SERVICES).map(|n| service(n, 1)).collect();
    ServiceTables { settings, services, removed: Vec::new() }.encode_to_vec()
}

fn verdict(filter: &mut Services, map: &NativeMap, to: [u8; 4]) -> String {
    let mapped = |a: [u8; 4]| std::net::Ipv4Addr::from(a).to_ipv6_mapped().octets();
    let told = Descriptor {
        flags: flags::FIRST | flags::EGRESS | flags::SOURCE_LOCAL_POD,
        source: mapped([10, 0, 0, 5]),
        destination: mapped(to),
        source_port: 5000,
        destination_port: 80,
        protocol: 6,
        ip_version: 4,
        ..Descriptor::default()
    };
    let packet = Packet::new(&told, &[]);
    let calls = CALLS.load(Relaxed);
    let verdict = filter.on_packet(&packet, &mut Flow::new(&told), &Host::new(map));
    assert_eq!(CALLS.load(Relaxed), calls, "a lookup allocates");
    format!("{verdict:?}")
}

/// SVC-220, SVC-221. One test, as the counters are for all threads.
#[test]
fn many_services_fit_and_one_of_them_changes_quickly() {
    let (before, config) = (HELD.load(Relaxed), config());
    let map = NativeMap::default();
    let mut filter = Services::default();
    let start = Instant::now();
    filter.configure(Config::Full(&config)).unwrap();
    let full = start.elapsed();
    let held = HELD.load(Relaxed) - before - config.capacity();

    // As the host does it: the new one is made while the old one and the configuration are there.
    MOST.store(0, Relaxed);
    let mut next = Services::default();
    next.configure(Config::Full(&config)).unwrap();
    let most = MOST.load(Relaxed) - before;
    drop(filter);
    let mut filter = next;

    let deltas: Vec<_> = (0..1000)
        .map(|n| ServiceTables { services: vec![service(n * 7, 100)], ..Default::default() })
        .map(|delta| delta.encode_to_vec())
        .collect();
    let start = Instant::now();
    for delta in &deltas {
        filter.configure(Config::Delta(delta)).unwrap();
    }
    let delta = start.elapsed() / 1000;

    for n in 0..SERVICES {
        assert!(verdict(&mut filter, &map, address(n)).starts_with("Rewrite"), "{n}");
    }
    assert_eq!(verdict(&mut filter, &map, [192, 0, 2, 1]), "Continue");
    eprintln!(
        "{} bytes of configuration in {full:?}, {held} bytes held, {most} at most, \
         a delta in {delta:?}",
        config.len()
    );
    // Natively, where addresses have twice the room, and with what a test process has else.
    assert!(most < MEMORY, "{most} bytes");
    // Many times what it takes on an idle machine.
    assert!(full < Duration::from_secs(2), "{full:?}");
    assert!(delta < Duration::from_millis(1), "{delta:?}");
}
