use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use weft_packet::protocol::{ICMP, TCP, UDP, tcp_flag};

use super::*;
use crate::flow::Judged;
use crate::flow::state::opens;

/// Every slot.
const ALL: Slots = (1 << crate::PLUGINS_MAX) - 1;
const START: Timestamp = Timestamp(1_000_000_000);

fn key(protocol: u8, source: u8, destination: u8) -> FlowKey {
    let end = |n: u8| ([10, 0, 0, n].into(), 1000 + u16::from(n));
    FlowKey::new(protocol, end(source), end(destination))
}

fn seen(tcp_flags: u8) -> Seen {
    Seen { packets: 1, bytes: 100, tcp_flags: Some(tcp_flags), numbers: None }
}

fn make(table: &FlowTable, original: FlowKey, target: FlowKey, now: Timestamp) -> bool {
    let memory = &Memory::EMPTY;
    let new = NewFlow { original, target, translator: None, memory, seen: seen(tcp_flag::SYN) };
    table.insert(&new, now).is_ok()
}

fn is_there(table: &FlowTable, key: FlowKey, now: Timestamp) -> bool {
    table.find(&key, false, now, None).is_some()
}

/// One packet, as the pipeline treats it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    key: FlowKey,
    /// What a plugin would make of it if it begins a flow.
    target: FlowKey,
    flags: u8,
    after: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Seenness {
    Known(Direction, FlowKey),
    Began,
    Clash,
}

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let flags = prop::sample::select(vec![
        tcp_flag::SYN,
        tcp_flag::SYN | tcp_flag::ACK,
        tcp_flag::ACK,
        tcp_flag::FIN | tcp_flag::ACK,
        tcp_flag::RST,
    ]);
    let after = prop_oneof![
        6 => 1..1_000u64,
        3 => 1_000_000_000..40_000_000_000u64,
        1 => 40_000_000_000..700_000_000_000u64,
        1 => Just(25 * 3600 * 1_000_000_000u64),
    ];
    let protocol = prop::sample::select(vec![TCP, TCP, UDP, ICMP, 47]);
    let packet = (protocol, 0..5u8, 0..5u8, 0..5u8, prop::bool::weighted(0.3), flags, after);
    let packet = packet.prop_map(|(protocol, from, to, other, translated, flags, after)| {
        let original = key(protocol, from, to);
        let target = if translated { key(protocol, from, other) } else { original };
        Packet { key: original, target, flags, after: Duration::from_nanos(after) }
    });
    prop::collection::vec(packet, 1..120)
}

/// The same rules with a list and no index.
#[derive(Default)]
struct Model {
    flows: Vec<(FlowKey, FlowKey, FlowState, Timestamp)>,
    capacity: usize,
    evicted: u64,
}

impl Model {
    fn packet(&mut self, p: &Packet, now: Timestamp) -> Seenness {
        let timeout = |k: &FlowKey, s: FlowState| {
            Duration::from_nanos(crate::flow::state::CLASS_TIMEOUTS[s.class(k.protocol())])
        };
        self.flows.retain(|(k, _, state, seen)| now.since(*seen) < timeout(k, *state));
        let opening = opens(p.key.protocol(), p.flags);
        self.flows.retain(|(k, r, state, _)| {
            let same = *k == p.key || *r == p.key;
            !(same && opening && state.is_over())
        });
        let holds = |k: &FlowKey| self.flows.iter().position(|(o, r, ..)| o == k || r == k);
        if let Some(at) = holds(&p.key) {
            let (original, reply, state, seen) = &mut self.flows[at];
            let (direction, target) = if *original == p.key {
                (Direction::Original, reply.reversed())
            } else {
                (Direction::Reply, original.reversed())
            };
            (*state, *seen) = (state.next(direction, p.flags), now);
            return Seenness::Known(direction, target);
        }
        let reply = p.target.reversed();
        let turned = p.target != p.key && p.key == reply;
        if turned || holds(&reply).is_some() {
            return Seenness::Clash;
        }
        if self.flows.len() == self.capacity {
            let oldest = (0..self.flows.len()).min_by_key(|i| self.flows[*i].3).unwrap();
            self.flows.remove(oldest);
            self.evicted += 1;
        }
        self.flows.push((p.key, reply, FlowState::first(p.key.protocol(), p.flags), now));
        Seenness::Began
    }
}

fn send(table: &FlowTable, p: &Packet, now: Timestamp) -> Seenness {
    let memory = &Memory::EMPTY;
    match table.find(&p.key, opens(p.key.protocol(), p.flags), now, None) {
        Some(found) => {
            table.commit(&found, seen(p.flags), memory, 0, now);
            Seenness::Known(found.direction, found.target)
        }
        None => {
            let (original, target) = (p.key, p.target);
            let new = NewFlow { original, target, translator: None, memory, seen: seen(p.flags) };
            table.insert(&new, now).map_or(Seenness::Clash, |()| Seenness::Began)
        }
    }
}

type Listing = BTreeMap<FlowKey, (FlowKey, FlowState)>;

fn listing(table: &FlowTable, now: Timestamp) -> Listing {
    let mut all = BTreeMap::new();
    table.for_each(now, &mut |f| {
        all.insert(f.original, (f.reply, f.state));
    });
    all
}

/// What is in the file: as the datapath keeps it.
type File = BTreeMap<u32, [u8; RECORD_LEN]>;

fn save(table: &FlowTable, file: &mut File) {
    table.take_dirty(&mut |index, record| match record {
        Some(record) => {
            assert!((index as usize) < table.capacity());
            file.insert(index, *record);
        }
        None => {
            file.remove(&index);
        }
    });
}

fn load(file: &File, into: &FlowTable, now: Timestamp) -> Vec<RecordError> {
    file.iter().filter_map(|(index, record)| into.load(*index, record, now).err()).collect()
}

proptest! {
    #[test]
    fn table_does_as_the_model(packets in packets(), tight in any::<bool>(), seed in any::<u64>()) {
        let (capacity, shards) = if tight { (4, 1) } else { (8 * 128, 8) };
        let table = FlowTable::with_shards(capacity, shards, seed);
        let mut model = Model { capacity, ..Model::default() };
        let mut file = File::new();
        let mut now = START;
        for packet in &packets {
            now = now + packet.after;
            prop_assert_eq!(send(&table, packet, now), model.packet(packet, now), "{:?}", packet);
            save(&table, &mut file);
        }
        let expected: Listing = model.flows.iter().map(|(o, r, s, _)| (*o, (*r, *s))).collect();
        prop_assert_eq!(listing(&table, now), expected.clone());
        prop_assert_eq!(table.evicted(), model.evicted);
        table.expire(now);
        prop_assert_eq!(table.len(), expected.len());
        save(&table, &mut file);
        prop_assert_eq!(file.len(), expected.len());

        // Another process: other shards, other indices.
        let next = FlowTable::with_shards(capacity, if tight { 1 } else { 4 }, !seed);
        let mut at_load = now;
        for record in file.values() {
            let stored = record::decode(record, &SlotOwners::new()).unwrap();
            at_load = at_load.max(stored.last_seen);
        }
        let refused = load(&file, &next, at_load);
        prop_assert!(refused.iter().all(|e| *e == RecordError::Expired));
        let loaded = listing(&next, at_load);
        prop_assert_eq!(loaded.len() + refused.len(), expected.len());
        prop_assert!(loaded.iter().all(|(k, v)| expected.get(k) == Some(v)));
        save(&next, &mut file);
        prop_assert_eq!(file.len(), loaded.len());
    }
}

#[test]
fn longest_idle_flow_gives_way() {
    let table = FlowTable::new(3, 1);
    let at = |s: u64| START + Duration::from_secs(s);
    for n in 1..=3 {
        assert!(make(&table, key(TCP, n, 0), key(TCP, n, 0), at(u64::from(n))));
    }
    let first = table.find(&key(TCP, 1, 0), false, at(4), None).unwrap();
    table.commit(&first, seen(tcp_flag::SYN), &Memory::EMPTY, 0, at(4));
    assert!(make(&table, key(UDP, 9, 0), key(UDP, 9, 0), at(5)));
    let there = |n| is_there(&table, key(TCP, n, 0), at(5));
    assert_eq!([there(1), there(2), there(3)], [true, false, true]);
    assert_eq!((table.len(), table.evicted()), (3, 1));
}

#[test]
fn expired_flow_gives_way_before_a_live_one() {
    let table = FlowTable::new(2, 1);
    assert!(make(&table, key(TCP, 1, 0), key(TCP, 1, 0), START));
    assert!(make(&table, key(UDP, 2, 0), key(UDP, 2, 0), START + Duration::from_secs(1)));
    let later = START + Duration::from_secs(32);
    assert!(make(&table, key(UDP, 3, 0), key(UDP, 3, 0), later));
    assert!(is_there(&table, key(TCP, 1, 0), later));
    assert_eq!(table.evicted(), 0);
}

#[test]
fn two_flows_with_one_reply_tuple_clash() {
    let table = FlowTable::with_shards(1024, 8, 5);
    assert!(make(&table, key(UDP, 1, 2), key(UDP, 1, 3), START));
    assert!(!make(&table, key(UDP, 1, 4), key(UDP, 1, 3), START));
    assert!(!make(&table, key(UDP, 1, 3), key(UDP, 1, 3), START));
    assert!(!is_there(&table, key(UDP, 1, 3), START));
    // What holds the tuple has expired, wherever it lives.
    let later = START + Duration::from_secs(31);
    assert!(make(&table, key(UDP, 1, 4), key(UDP, 1, 3), later));
}

#[test]
fn new_translation_moves_the_reply_tuple() {
    let table = FlowTable::with_shards(1024, 8, 5);
    assert!(make(&table, key(UDP, 1, 2), key(UDP, 1, 3), START));
    let found = table.find(&key(UDP, 1, 2), false, START, None).unwrap();
    let moved = table.retarget(&found, key(UDP, 1, 4), None, START).unwrap();
    assert_eq!(moved.target, key(UDP, 1, 4));
    assert!(is_there(&table, key(UDP, 4, 1), START));
    assert!(!is_there(&table, key(UDP, 3, 1), START));
    assert_eq!(table.len(), 1);
}

#[test]
fn torn_record_is_ignored_and_erased() {
    let table = FlowTable::new(4, 1);
    assert!(make(&table, key(TCP, 1, 0), key(TCP, 2, 0), START));
    let mut file = File::new();
    save(&table, &mut file);
    let (index, whole) = file.first_key_value().map(|(i, r)| (*i, *r)).unwrap();
    for byte in 0..RECORD_LEN {
        let mut torn = whole;
        torn[byte] ^= 1;
        let fresh = FlowTable::new(4, 2);
        let result = fresh.load(index, &torn, START);
        assert_eq!(result, Err(RecordError::Checksum), "{byte}");
        let mut erased = Vec::new();
        fresh.take_dirty(&mut |i, record| erased.push((i, record.is_none())));
        assert_eq!(erased, [(index, true)]);
    }
    assert_eq!(FlowTable::new(4, 2).load(0, &[0; RECORD_LEN], START), Err(RecordError::Empty));
}

#[test]
fn record_keeps_slots_by_plugin_name() {
    let table = FlowTable::new(4, 1);
    let (a, b) = (table.acquire_slot("a").unwrap(), table.acquire_slot("b").unwrap());
    let mut memory = Memory::EMPTY;
    memory.set_slot(a, [1; 16]);
    memory.set_slot(b, [2; 16]);
    memory.judge(b, 3, 7, Judged::FlowAccepted);
    let original = key(TCP, 1, 0);
    let translator = Some(Translator { slot: b, ingress: true });
    let new = NewFlow { original, target: original, translator, memory: &memory, seen: seen(2) };
    table.insert(&new, START).unwrap();
    let mut file = File::new();
    save(&table, &mut file);

    let next = FlowTable::new(4, 2);
    let b = next.acquire_slot("b").unwrap();
    assert_eq!(load(&file, &next, START), []);
    let a = next.acquire_slot("a").unwrap();
    let mut kept = Memory::EMPTY;
    let found = next.find(&original, false, START, Some((&mut kept, ALL))).unwrap();
    assert_eq!(kept.slot(a), [1; 16]);
    assert_eq!(kept.slot(b), [2; 16]);
    assert!(kept.shown(b, 3) && !kept.judged(b, 3, 7));
    assert_eq!(found.translator, Some(Translator { slot: b, ingress: true }));
}

#[test]
fn record_keeps_that_the_pipeline_translated() {
    let table = FlowTable::new(4, 1);
    let (original, target) = (key(TCP, 1, 2), key(TCP, 3, 2));
    let translator = Some(Translator::PIPELINE);
    let new = NewFlow { original, target, translator, memory: &Memory::EMPTY, seen: seen(2) };
    table.insert(&new, START).unwrap();
    let mut file = File::new();
    save(&table, &mut file);
    let next = FlowTable::new(4, 2);
    assert_eq!(load(&file, &next, START), []);
    let found = next.find(&original, false, START, None).unwrap();
    assert_eq!((found.target, found.translator), (target, translator));
}

#[test]
fn only_what_is_worth_keeping_makes_a_record_dirty() {
    let table = FlowTable::new(4, 1);
    let original = key(UDP, 1, 0);
    assert!(make(&table, original, original, START));
    let dirty = || {
        let mut count = 0;
        table.take_dirty(&mut |_, _| count += 1);
        count
    };
    let packet = |key: FlowKey, now| {
        let found = table.find(&key, false, now, None).unwrap();
        table.commit(&found, seen(0), &Memory::EMPTY, 0, now);
    };
    assert_eq!((dirty(), dirty()), (1, 0));
    packet(original, START + Duration::from_millis(1));
    assert_eq!(dirty(), 0);
    packet(original.reversed(), START + Duration::from_millis(2));
    assert_eq!(dirty(), 1, "state changed");
    packet(original, START + Duration::from_secs(16));
    assert_eq!(dirty(), 1, "an eighth of its timeout later");
    table.expire(START + Duration::from_secs(3600));
    assert_eq!(dirty(), 1, "gone");
}

#[test]
fn slot_given_to_another_plugin_is_empty() {
    let table = FlowTable::new(4, 1);
    let all = 0..super::super::PLUGINS_MAX;
    let slots: Vec<u8> = all.map(|n| table.acquire_slot(&format!("p{n}")).unwrap()).collect();
    let mut memory = Memory::EMPTY;
    memory.set_slot(slots[4], [9; 16]);
    let original = key(TCP, 1, 0);
    let new =
        NewFlow { original, target: original, translator: None, memory: &memory, seen: seen(2) };
    table.insert(&new, START).unwrap();
    assert_eq!(table.acquire_slot("other"), None);
    table.release_slot(slots[4]);
    assert_eq!(table.acquire_slot("other"), Some(slots[4]));
    let mut kept = memory;
    assert!(table.find(&original, false, START, Some((&mut kept, ALL))).is_some());
    assert_eq!(kept, Memory::EMPTY);
}

#[test]
fn workers_share_the_table_without_losing_count() {
    let table = FlowTable::with_shards(256, 8, 3);
    std::thread::scope(|scope| {
        for worker in 0..4_u8 {
            let table = &table;
            scope.spawn(move || {
                for step in 0..20_000_u32 {
                    let now = START + Duration::from_millis(u64::from(step) * 7);
                    let [a, b, c, _] = (step.wrapping_mul(2_654_435_761) >> worker).to_be_bytes();
                    let original = key(UDP, a % 32, b % 32);
                    let target = if c % 2 == 0 { original } else { key(UDP, a % 32, c % 32) };
                    let after = Duration::ZERO;
                    send(table, &Packet { key: original, target, flags: 0, after }, now);
                    if step % 64 == 0 {
                        table.take_dirty(&mut |_, _| {});
                    }
                    if step % 1024 == 0 {
                        table.expire(now);
                    }
                }
            });
        }
    });
    let end = START + Duration::from_millis(20_000 * 7);
    table.expire(end);
    assert_eq!(listing(&table, end).len(), table.len());
    table.expire(end + Duration::from_secs(3600));
    assert_eq!(table.len(), 0);
    for shard in &table.shards {
        assert!(shard.lock().has_no_alias());
    }
}
