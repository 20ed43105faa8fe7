//! Blocks of addresses.

use weft_fuzz::Random;

use super::node::*;
use crate::address::{Address, Span};
use crate::blocks::BlocksBuilder;

fn reach(node: &mut Node, peers: &[&str]) -> Vec<bool> {
    let mut pod = |peer: &str| {
        let pod = if peer.contains(':') { A6 } else { A };
        node.leave(TCP, pod, peer, 80) == "pass"
    };
    peers.iter().map(|peer| pod(peer)).collect()
}

/// NP-030: an address, whoever has it. NP-033
#[test]
fn block_means_addresses_of_pods_nodes_and_others() {
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&[("0.0.0.0/0", &[])])])]);
    assert_eq!(reach(&mut node, &[B, C, OTHER_NODE, WORLD]), [true; 4]);
    assert_eq!(reach(&mut node, &[B6, C6, WORLD6]), [false; 3]);
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&[("::/0", &[])])])]);
    assert_eq!(reach(&mut node, &[B, C, OTHER_NODE, WORLD]), [false; 4]);
    assert_eq!(reach(&mut node, &[B6, C6, WORLD6]), [true; 3]);
}

/// NP-031
#[test]
fn what_one_block_excepts_another_may_allow() {
    let rules = [
        blocks(&[("10.0.2.0/24", &["10.0.2.5/32", "10.0.2.6/32"])]),
        blocks(&[("10.0.2.4/30", &["10.0.2.6/31"])]),
    ];
    let mut node = Node::new(&[isolated(EGRESS, &rules)]);
    assert_eq!(reach(&mut node, &[C, D, "10.0.2.7"]), [true, false, true]);
    // The same within one rule, and by another peer.
    let two = blocks(&[("10.0.2.0/24", &["10.0.2.4/30"]), ("10.0.2.5/32", &[])]);
    let mut rule = two.clone();
    rule.sets.push(4);
    let mut node = Node::new(&[isolated(EGRESS, &[rule])]);
    assert_eq!(reach(&mut node, &[C, D, "10.0.2.7", "10.0.2.8"]), [true, true, false, true]);
}

/// NP-032: nested, adjacent and all of it; host bits do not matter.
#[test]
fn exceptions_overlap_as_they_like() {
    let except = ["10.0.2.0/29", "10.0.2.4/30", "10.0.2.8/29", "10.0.2.255/32"];
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&[("10.0.2.77/24", &except)])])]);
    let peers = ["10.0.2.0", "10.0.2.5", "10.0.2.15", "10.0.2.16", "10.0.2.254", "10.0.2.255"];
    assert_eq!(reach(&mut node, &peers), [false, false, false, true, true, false]);
    let all = [("10.0.2.0/24", &["10.0.2.0/25", "10.0.2.128/25"][..])];
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&all)])]);
    assert_eq!(reach(&mut node, &peers), [false; 6]);
    let larger = [("10.0.2.0/24", &["10.0.0.0/8"][..]), ("::/0", &["::/0"])];
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&larger)])]);
    assert_eq!(reach(&mut node, &peers), [false; 6]);
    assert_eq!(reach(&mut node, &[C6]), [false]);
}

/// NP-036
#[test]
fn prefixes_of_every_length_and_two_thousand_of_them() {
    for (cidr, inside, outside) in [
        ("128.0.0.0/1", "203.0.113.9", "10.0.2.5"),
        ("203.0.113.8/31", "203.0.113.9", "203.0.113.10"),
        ("203.0.113.9/32", "203.0.113.9", "203.0.113.8"),
        ("8000::/1", "ffff::1", "2001:db8:9::1"),
        ("2001:db8:9::/127", "2001:db8:9::1", "2001:db8:9::2"),
        ("2001:db8:9::1/128", "2001:db8:9::1", "2001:db8:9::"),
    ] {
        let mut node = Node::new(&[isolated(EGRESS, &[blocks(&[(cidr, &[])])])]);
        assert_eq!(reach(&mut node, &[inside, outside]), [true, false], "{cidr}");
    }
    let text = |n: u32| format!("100.64.{}.{}/32", n / 128, 2 * (n % 128));
    let texts: Vec<_> = (0..2000).map(text).collect();
    let all: Vec<_> = texts.iter().map(|text| (text.as_str(), &[][..])).collect();
    let mut node = Node::new(&[isolated(EGRESS, &[blocks(&all)])]);
    for text in &texts {
        let inside = text.trim_end_matches("/32");
        let (start, last) = inside.rsplit_once('.').unwrap();
        let next = format!("{start}.{}", last.parse::<u32>().unwrap() + 1);
        assert_eq!(reach(&mut node, &[inside, &next]), [true, false]);
    }
}

/// NP-031, NP-032: against each block and its exceptions, one by one.
#[test]
fn spans_hold_what_blocks_say() {
    let mut random = Random::new(5);
    for _ in 0..2000 {
        let v6 = random.below(2) == 0;
        let prefix = |random: &mut Random| {
            let low = random.below(64) as u32;
            let (address, bits) =
                if random.below(12) == 0 { (0, 0) } else { (low, 26 + random.below(7) as u32) };
            let base = if random.below(8) == 0 { u128::MAX - 63 } else { 0 };
            let address = match v6 {
                true => Address::V6(base | u128::from(address)),
                false => Address::V4(base as u32 | address),
            };
            let bits = if v6 && bits > 0 { bits + 96 } else { bits };
            Span::of_prefix(address, bits).unwrap()
        };
        let all: Vec<(Span, Vec<Span>)> = (0..random.below(6))
            .map(|_| {
                let except = (0..random.below(4)).map(|_| prefix(&mut random)).collect();
                (prefix(&mut random), except)
            })
            .collect();
        let mut builder = BlocksBuilder::default();
        all.iter().for_each(|(block, except)| builder.add(*block, except));
        let built = builder.build();
        let within = |span: &Span, a: Address| span.first <= a && a <= span.last;
        for n in (0..130).chain(u128::MAX - 130..=u128::MAX) {
            let address = if v6 { Address::V6(n) } else { Address::V4(n as u32) };
            let expected = all.iter().any(|(block, except)| {
                within(block, address) && !except.iter().any(|e| within(e, address))
            });
            let found = built.as_ref().is_some_and(|blocks| blocks.contains(address));
            assert_eq!(found, expected, "{address:?} in {all:?}");
        }
    }
}
