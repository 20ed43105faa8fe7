//! Merging: the inverse of cutting, never across a difference, never out of order.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use weft_packet::{GsoKind, Headers, Merger, Meta};

use crate::segments::{cut, super_packets};
use crate::spec::{Extensions, Spec, Tcp, Transport};

const FIN: u8 = 1;
const PSH: u8 = 8;
const ACK: u8 = 16;
const ECE: u8 = 64;
const CWR: u8 = 128;

fn merge<'a>(
    merger: &mut Merger,
    packets: impl IntoIterator<Item = &'a Vec<u8>>,
) -> Vec<(Vec<u8>, Meta)> {
    for packet in packets {
        merger.push(packet);
    }
    let mut out = Vec::new();
    merger.flush(&mut |packet, meta| out.push((packet.to_vec(), meta)));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn cutting_then_merging_is_the_identity((mut spec, size) in super_packets()) {
        if let Transport::Tcp(tcp) = &mut spec.transport {
            tcp.flags = tcp.flags & (FIN | PSH | ECE | CWR) | ACK;
        }
        let size = size.min(spec.payload.len() as u16 - 1);
        let original = spec.build_super(size);
        let segments = cut(&original.0, &original.1);
        let merged = merge(&mut Merger::new(true), &segments);
        prop_assert_eq!(merged, vec![original]);
    }

    #[test]
    fn interleaved_flows_are_merged_apart(
        (mut a, size) in super_packets(),
        turns in vec(any::<bool>(), 200),
    ) {
        a.transport = Transport::Tcp(plain_tcp());
        let mut b = a.clone();
        b.tcp_mut().source = 7;
        let size = size.min(a.payload.len() as u16 - 1);
        let (super_a, super_b) = (a.build_super(size), b.build_super(size));
        let mut left = cut(&super_a.0, &super_a.1).into_iter().peekable();
        let mut right = cut(&super_b.0, &super_b.1).into_iter().peekable();
        let mut packets = Vec::new();
        let mut turns = turns.into_iter().cycle();
        let first_is_a = turns.clone().next().unwrap();
        while left.peek().is_some() || right.peek().is_some() {
            let from = if turns.next().unwrap() { &mut left } else { &mut right };
            packets.extend(from.next());
            if turns.clone().take(200).all(|t| t) || turns.clone().take(200).all(|t| !t) {
                packets.extend(left.by_ref());
                packets.extend(right.by_ref());
            }
        }
        let merged = merge(&mut Merger::new(false), &packets);
        let expected =
            if first_is_a { vec![super_a, super_b] } else { vec![super_b, super_a] };
        prop_assert_eq!(merged, expected);
    }
}

fn plain_tcp() -> Tcp {
    Tcp {
        source: 80,
        destination: 1234,
        sequence: u32::MAX - 20,
        acknowledgment: 5,
        flags: ACK,
        window: 100,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
    }
}

/// How a packet of a batch differs from one that continues its flow.
#[derive(Clone, Copy, Debug)]
enum Twist {
    None,
    Flags(u8),
    Shorter,
    Longer,
    Lost,
    Pure,
    BadChecksum,
    Window,
    Acknowledgment,
    Options,
    OptionsLen,
    HopLimit,
    Ecn,
    Id,
    DontFragment,
    FlowLabel,
    LaterFragment,
    Garbage,
}

fn twists() -> impl Strategy<Value = Twist> {
    prop_oneof![
        20 => Just(Twist::None),
        4 => prop_oneof![
            Just(PSH), Just(FIN), Just(ECE), Just(CWR), Just(2u8), Just(4u8), Just(32u8)
        ].prop_map(Twist::Flags),
        1 => Just(Twist::Shorter),
        1 => Just(Twist::Longer),
        1 => Just(Twist::Lost),
        1 => Just(Twist::Pure),
        1 => Just(Twist::BadChecksum),
        1 => Just(Twist::Window),
        1 => Just(Twist::Acknowledgment),
        1 => Just(Twist::Options),
        1 => Just(Twist::OptionsLen),
        1 => Just(Twist::HopLimit),
        1 => Just(Twist::Ecn),
        1 => Just(Twist::Id),
        1 => Just(Twist::DontFragment),
        1 => Just(Twist::FlowLabel),
        1 => Just(Twist::LaterFragment),
        1 => Just(Twist::Garbage),
    ]
}

/// A packet of the batch as bytes, and as what the model knows of it.
#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
    /// `None`: no packet of a flow, nothing may pass it.
    spec: Option<Spec>,
    mergeable: bool,
}

/// One of four flows: TCP and UDP over either family.
struct Flow {
    spec: Spec,
}

impl Flow {
    fn new(v4: bool, tcp: bool) -> Self {
        let address = |last: u8| if v4 { IpAddr::from([10, 0, 0, last]) } else { v6(last) };
        let transport = if tcp {
            Transport::Tcp(plain_tcp())
        } else {
            Transport::Udp { source: 53, destination: 99, without_checksum: false }
        };
        let spec = Spec {
            source: address(1),
            destination: address(2),
            hop_limit: 60,
            traffic_class: 2,
            id: if v4 { 65_534 } else { 0 },
            dont_fragment: v4,
            options: Vec::new(),
            flow_label: 0,
            extensions: Extensions::default(),
            transport,
            payload: Vec::new(),
        };
        Self { spec }
    }

    fn send(&mut self, twist: Twist, size: usize) -> Sent {
        let mut spec = self.spec.clone();
        let is_v4 = spec.source.is_ipv4();
        let mut is_bad = false;
        spec.payload = vec![spec.id as u8 ^ 0x5a; size];
        match twist {
            Twist::None => {}
            Twist::Shorter => spec.payload.truncate(size - 1),
            Twist::Longer => spec.payload.push(9),
            Twist::Pure => spec.payload.clear(),
            Twist::BadChecksum => is_bad = true,
            Twist::HopLimit => spec.hop_limit -= 1,
            Twist::Ecn => spec.traffic_class = 3,
            Twist::Id if is_v4 => spec.id = spec.id.wrapping_add(1),
            Twist::DontFragment if is_v4 => spec.dont_fragment = false,
            Twist::FlowLabel if !is_v4 => spec.flow_label = 1,
            Twist::LaterFragment | Twist::Garbage => return self.send_foreign(twist),
            Twist::Id | Twist::DontFragment | Twist::FlowLabel => {}
            Twist::Flags(_)
            | Twist::Lost
            | Twist::Window
            | Twist::Acknowledgment
            | Twist::Options
            | Twist::OptionsLen => twist_tcp(&mut spec, twist),
        }
        self.advance(&spec, is_v4);
        let mut bytes = spec.build();
        if is_bad {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let flags_ok = match &spec.transport {
            Transport::Tcp(tcp) => tcp.flags & (2 | 4 | 32) == 0,
            _ => true,
        };
        let mergeable = flags_ok && !is_bad && !spec.payload.is_empty();
        Sent { bytes, spec: Some(spec), mergeable }
    }

    fn send_foreign(&self, twist: Twist) -> Sent {
        let mut bytes = Flow::new(true, false).spec.build();
        if matches!(twist, Twist::Garbage) {
            bytes = vec![1, 2, 3];
        } else {
            bytes.extend([3; 16]);
            bytes[3] += 16;
            bytes[6..8].copy_from_slice(&[0, 9]);
            bytes[10..12].fill(0);
            let sum = !crate::spec::slow_sum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            assert!(Headers::parse(&bytes, &Meta::default()).is_ok());
        }
        Sent { bytes, spec: None, mergeable: false }
    }

    fn advance(&mut self, sent: &Spec, is_v4: bool) {
        if is_v4 {
            self.spec.id = sent.id.wrapping_add(1);
        }
        if let Transport::Tcp(tcp) = &sent.transport {
            let next = tcp.sequence.wrapping_add(sent.payload.len() as u32);
            self.spec.tcp_mut().sequence = next;
        }
    }
}

fn twist_tcp(spec: &mut Spec, twist: Twist) {
    let Transport::Tcp(tcp) = &mut spec.transport else {
        return;
    };
    match twist {
        Twist::Flags(flags) => tcp.flags |= flags,
        Twist::Lost => tcp.sequence = tcp.sequence.wrapping_add(1),
        Twist::Window => tcp.window += 1,
        Twist::Acknowledgment => tcp.acknowledgment += 1,
        Twist::Options => tcp.options[7] = 9,
        Twist::OptionsLen => tcp.options.clear(),
        _ => {}
    }
}

fn v6(last: u8) -> IpAddr {
    let mut octets = [0xfd; 16];
    octets[15] = last;
    IpAddr::from(octets)
}

/// A group of packets that leave as one. The model works on descriptions, not on bytes.
struct Group {
    packets: Vec<Sent>,
    open: bool,
}

fn same_flow(a: &Spec, b: &Spec) -> bool {
    (a.source, a.number()) == (b.source, b.number())
}

fn is_last(spec: &Spec, first: &Spec) -> bool {
    let ends = match &spec.transport {
        Transport::Tcp(tcp) => tcp.flags & (FIN | PSH) != 0,
        _ => false,
    };
    ends || spec.payload.len() < first.payload.len()
}

/// Whether `next` is what the sender of `group` would have sent as its next segment.
fn continues(group: &Group, next: &Spec) -> bool {
    let specs: Vec<&Spec> = group.packets.iter().filter_map(|p| p.spec.as_ref()).collect();
    let (first, last) = (specs[0], specs[specs.len() - 1]);
    let mut expected = (*last).clone();
    if next.source.is_ipv4() {
        expected.id = last.id.wrapping_add(1);
    }
    if let (Transport::Tcp(tcp), Transport::Tcp(has)) = (&mut expected.transport, &next.transport) {
        tcp.sequence = tcp.sequence.wrapping_add(last.payload.len() as u32);
        tcp.flags = tcp.flags & !CWR | has.flags & (FIN | PSH);
    }
    expected.payload.clone_from(&next.payload);
    let total = group.packets.iter().map(|p| p.bytes.len()).sum::<usize>() + next.payload.len();
    expected == *next && next.payload.len() <= first.payload.len() && total <= 60_000
}

fn model(packets: &[Sent], merge_udp: bool) -> Vec<Vec<Vec<u8>>> {
    let mut groups: Vec<Group> = Vec::new();
    for packet in packets {
        let Some(spec) = &packet.spec else {
            groups.iter_mut().for_each(|group| group.open = false);
            groups.push(Group { packets: vec![packet.clone()], open: false });
            continue;
        };
        let mergeable = packet.mergeable && (merge_udp || spec.number() == 6);
        let of_flow = groups.iter_mut().rev().find(|group| {
            group.packets[0].spec.as_ref().is_some_and(|first| same_flow(first, spec))
        });
        if let Some(group) = of_flow {
            if mergeable && group.open && continues(group, spec) {
                group.open = !is_last(spec, group.packets[0].spec.as_ref().unwrap());
                group.packets.push(packet.clone());
                continue;
            }
            group.open = false;
        }
        let open = mergeable && !is_last(spec, spec);
        groups.push(Group { packets: vec![packet.clone()], open });
    }
    groups.into_iter().map(|g| g.packets.into_iter().map(|p| p.bytes).collect()).collect()
}

proptest! {
    #[test]
    fn merger_does_what_the_slow_model_does(
        steps in vec((twists(), 0usize..3, any::<bool>()), 1..60),
        merge_udp in any::<bool>(),
        size in 2usize..1400,
    ) {
        let mut flows = [(true, true), (false, true), (true, false)].map(|(a, b)| Flow::new(a, b));
        flows[2].spec.source = IpAddr::from([10, 0, 0, 9]);
        let sent: Vec<Sent> =
            steps.iter().map(|(twist, flow, _)| flows[*flow].send(*twist, size)).collect();
        // Reused from batch to batch: nothing of one may be left for the next.
        let mut merger = Merger::new(merge_udp);
        merge(&mut merger, sent.iter().map(|s| &s.bytes).take(3));
        let merged = merge(&mut merger, sent.iter().map(|s| &s.bytes));
        prop_assert!(merger.is_empty());
        let expanded: Vec<Vec<Vec<u8>>> = merged
            .iter()
            .map(|(packet, meta)| match meta.gso {
                Some(_) => cut(packet, meta),
                None => vec![packet.clone()],
            })
            .collect();
        prop_assert_eq!(expanded, model(&sent, merge_udp));
    }
}

#[test]
fn super_packet_never_exceeds_an_ip_packet() {
    for tcp in [true, false] {
        let mut flow = Flow::new(false, tcp);
        let sent: Vec<Vec<u8>> = (0..100).map(|_| flow.send(Twist::None, 1400).bytes).collect();
        let merged = merge(&mut Merger::new(true), &sent);
        assert_eq!(merged.len(), 3);
        assert!(merged.iter().all(|(packet, _)| packet.len() <= 65_535));
        let expanded: Vec<_> = merged.iter().flat_map(|(packet, meta)| cut(packet, meta)).collect();
        assert_eq!(expanded, sent);
    }
}

#[test]
fn small_datagrams_are_merged_up_to_what_the_kernel_takes() {
    let mut flow = Flow::new(true, false);
    let sent: Vec<Vec<u8>> = (0..130).map(|_| flow.send(Twist::None, 10).bytes).collect();
    let merged = merge(&mut Merger::new(true), &sent);
    assert_eq!(merged.len(), 2);
    assert_eq!(cut(&merged[0].0, &merged[0].1).len(), 128);
    assert_eq!(merged[0].1.gso.unwrap().kind, GsoKind::Udp);
}

#[test]
fn padding_of_ethernet_is_cut_off() {
    let mut flow = Flow::new(true, true);
    let sent: Vec<Vec<u8>> = (0..2).map(|_| flow.send(Twist::None, 2).bytes).collect();
    let padded: Vec<Vec<u8>> = sent
        .iter()
        .map(|packet| {
            let mut packet = packet.clone();
            packet.resize(80, 0);
            packet
        })
        .collect();
    let merged = merge(&mut Merger::new(false), &padded);
    assert_eq!(cut(&merged[0].0, &merged[0].1), sent);
}
