//! The plugin of Services answers the same as a native library and as a Wasm module, and as a
//! module it takes many of them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use prost::Message;
use weft_abi::{Descriptor, flags};
use weft_fuzz::{Random, mutate};
use weft_pipeline::Plugin;
use weft_policy_sdk::Config;
use weft_policy_testing::NativePlugin;
use weft_proto::tables::v1::{
    Frontend, NodePortAddresses, Range, ServicePortTable, ServiceSettings, ServiceTable,
    ServiceTables,
};
use weft_service::Services;
use weft_wasm_host::{
    ConfigureError, ConfigureKind, Engine, MEMORY_BYTES_MAX, Module, PluginInstance, Settings,
    SharedState,
};

const CONFIGURATIONS: usize = 300;
const PACKETS: usize = 100;

fn module(config: Vec<u8>) -> PluginInstance {
    let engine = Engine::with_instances(2).unwrap();
    let module = Module::load(&engine, &support::built("service")).unwrap();
    let settings = Settings {
        config,
        // The test is about answers: a machine under load must not fail it.
        deadline: Duration::from_secs(1),
        memory_max: MEMORY_BYTES_MAX,
        ..Settings::new("service")
    };
    PluginInstance::new(&module, settings, SharedState::new("service")).unwrap()
}

/// One of few addresses, so that they meet: of nodes, Services, pods or nobody.
fn address(random: &mut Random, v4: bool) -> Vec<u8> {
    let (group, last) = (random.below(4) as u8, 1 + random.below(3) as u8);
    if v4 {
        return vec![10, group, 0, last];
    }
    [&[0xfd, 0, 0, group][..], &[0; 11], &[last]].concat()
}

fn any_address(random: &mut Random) -> Vec<u8> {
    let v4 = random.below(3) > 0;
    address(random, v4)
}

fn range(random: &mut Random) -> Range {
    let address = any_address(random);
    let prefix = random.below(8 * address.len() + 1) as u32;
    Range { address, prefix }
}

fn several<T>(random: &mut Random, end: usize, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..random.below(end)).map(|_| one(random)).collect()
}

fn backends(random: &mut Random, v4: bool) -> Vec<u8> {
    let record = |random: &mut Random| {
        let rest = [0, random.pick(&[80, 81]), 0, random.below(3) as u8, random.byte() & 0x1f];
        [&address(random, v4)[..], &rest].concat()
    };
    several(random, 6, record).concat()
}

fn service(random: &mut Random) -> ServiceTable {
    ServiceTable {
        name: format!("ns/{}", random.below(8)),
        frontends: several(random, 4, |random| Frontend {
            kind: 1 + random.below(3) as i32,
            address: any_address(random),
        }),
        ports: several(random, 4, |random| ServicePortTable {
            protocol: random.pick(&[6, 17, 132]),
            port: random.pick(&[80, 81]),
            node_port: random.pick(&[0, 80, 82]),
            backends_v4: backends(random, true),
            backends_v6: backends(random, false),
        }),
        affinity_s: random.pick(&[0, 0, 1, 100]),
        internal_local: random.below(3) == 0,
        external_local: random.below(2) == 0,
        source_ranges: several(random, 3, range),
        ports_without_resolver: Vec::new(),
    }
}

fn settings(random: &mut Random) -> ServiceSettings {
    let sources = |random: &mut Random| {
        let families = [true, false].into_iter().filter(|_| random.below(4) > 0);
        let families: Vec<_> = families.collect();
        families.into_iter().map(|v4| address(random, v4)).collect()
    };
    ServiceSettings {
        nodes: several(random, 3, |random| NodePortAddresses {
            node: 1 + random.below(2) as u32,
            addresses: several(random, 3, any_address),
        }),
        own_node: random.below(3) as u32,
        node_sources: sources(random),
        host_sources: sources(random),
        service_cidrs: several(random, 2, range),
    }
}

/// One in eight is damaged.
fn configuration(random: &mut Random) -> Vec<u8> {
    let mut services = several(random, 5, service);
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services.dedup_by(|a, b| a.name == b.name);
    let tables = ServiceTables {
        settings: (random.below(4) > 0).then(|| settings(random)),
        services,
        removed: several(random, 3, |random| format!("ns/{}", random.below(8))),
    };
    let bytes = tables.encode_to_vec();
    let damaged = random.below(8) == 0 && !bytes.is_empty();
    if damaged { mutate(random, &[bytes], &[0, 4, 9, 0x0a, 0x12, 0xff]) } else { bytes }
}

fn told(random: &mut Random, now: u64) -> Descriptor {
    let v4 = random.below(3) > 0;
    let mapped = |random: &mut Random| {
        let address = address(random, v4);
        let mut mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        mapped[16 - address.len()..].copy_from_slice(&address);
        mapped
    };
    let clients = [flags::SOURCE_LOCAL_POD, flags::SOURCE_HOST, 0];
    let reply = if random.below(20) == 0 { flags::REPLY } else { 0 };
    Descriptor {
        flags: flags::EGRESS
            | random.pick(&clients)
            | random.pick(&[flags::FIRST, flags::FIRST, 0])
            | reply,
        ip_version: if v4 { 4 } else { 6 },
        source: mapped(random),
        destination: mapped(random),
        source_port: 1000 + random.below(50) as u16,
        destination_port: random.pick(&[80, 81, 82]),
        protocol: random.pick(&[6, 6, 17, 17, 132, 1, 58]),
        tcp_flags: random.pick(&[2, 0x10]),
        now,
        segments: 1,
        ..Descriptor::default()
    }
}

#[test]
fn service_answers_the_same_natively_and_in_wasm() {
    let mut random = Random::new(8);
    let mut native = NativePlugin::<Services>::new("").unwrap();
    let mut wasm = module(Vec::new());
    assert_eq!(native.interest(), wasm.interest());
    let (mut now, mut decided, mut refused, mut slots) = (1_000_000_000, 0, 0, vec![[0; 16]]);
    for revision in 2..2 + CONFIGURATIONS as u64 {
        let bytes = configuration(&mut random);
        let (config, kind) = match random.below(4) {
            0 => (Config::Full(&bytes), ConfigureKind::Full),
            _ => (Config::Delta(&bytes), ConfigureKind::Delta),
        };
        let answer = native.configure(config).map_err(ConfigureError::Refused);
        refused += usize::from(answer.is_err());
        assert_eq!(answer, wasm.configure(kind, &bytes, revision));
        for _ in 0..PACKETS {
            now += random.next() % 40_000_000;
            let slot = if random.below(4) == 0 { random.pick(&slots) } else { [0; 16] };
            let told = Descriptor { slot, ..told(&mut random, now) };
            let native = native.on_packet(&told, &[0x45]);
            let wasm = wasm.on_packet(&told, &[0x45]);
            assert_eq!(native, wasm, "{told:?}");
            let outcome = native.unwrap();
            decided += usize::from(outcome.verdict != weft_pipeline::Verdict::Continue);
            if let Some(slot) = outcome.slot {
                slots.push(*slot);
            }
        }
        if slots.len() > 50 {
            slots.drain(1..40);
        }
    }
    assert_eq!(wasm.shared().status().counters.traps, 0);
    assert!(decided > PACKETS * CONFIGURATIONS / 5, "{decided}");
    assert!(refused > CONFIGURATIONS / 50, "{refused}");
}

/// SVC-221: 20,000 with five backends each, which stays within the deadline of a configuration; the
/// new tables are made while the old ones are there.
#[test]
#[allow(clippy::print_stderr)]
fn module_takes_many_services() {
    let service = |n: u32| {
        let [a, b, c, d] = (u32::from_be_bytes([10, 96, 0, 0]) + n).to_be_bytes();
        let backend = |i: u8| [10, b, c, d, 0x1f, 0x90 + i, 0, 1 + i, 7];
        ServiceTable {
            name: format!("namespace-{}/service-{n}", n % 100),
            frontends: vec![Frontend { kind: 1, address: vec![a, b, c, d] }],
            ports: vec![ServicePortTable {
                protocol: 6,
                port: 80,
                backends_v4: (0..5).flat_map(backend).collect(),
                ..ServicePortTable::default()
            }],
            ..ServiceTable::default()
        }
    };
    let tables =
        ServiceTables { services: (0..20_000).map(service).collect(), ..Default::default() };
    let bytes = tables.encode_to_vec();
    let mut wasm = module(Vec::new());
    for revision in 2..5 {
        let start = Instant::now();
        wasm.configure(ConfigureKind::Full, &bytes, revision).unwrap();
        eprintln!("{} bytes in {:?}", bytes.len(), start.elapsed());
    }
    let delta = ServiceTables { services: vec![service(20_000)], ..ServiceTables::default() };
    let start = Instant::now();
    wasm.configure(ConfigureKind::Delta, &delta.encode_to_vec(), 5).unwrap();
    eprintln!("a delta in {:?}", start.elapsed());
}
