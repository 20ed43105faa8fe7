//! Deltas.

use std::collections::BTreeSet;

use weft_fuzz::Random;
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyProgram, PolicySettings, PolicySubject, PolicyTables,
};

use super::node::*;
use crate::sets::{Sets, meet};

const DROP: &str = "drop 100";

fn changed(number: u32, added: &[u32], removed: &[u32]) -> PolicyTables {
    let (added, removed) = (added.to_vec(), removed.to_vec());
    let changed_sets = vec![IdentitySetChange { number, added, removed }];
    PolicyTables { changed_sets, ..PolicyTables::default() }
}

/// NP-090, NP-097: who is in a set counts at once.
#[test]
fn set_gains_and_loses_members() {
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[3])])]);
    assert_eq!(
        (node.enter(TCP, C, A, 80), node.enter(TCP, D, A, 80)),
        ("pass".into(), DROP.into())
    );
    node.delta(&changed(3, &[4], &[3]));
    assert_eq!(
        (node.enter(TCP, C, A, 80), node.enter(TCP, D, A, 80)),
        (DROP.into(), "pass".into())
    );
    // What is so already stays so.
    node.delta(&changed(3, &[4], &[3]));
    assert_eq!(
        (node.enter(TCP, C, A, 80), node.enter(TCP, D, A, 80)),
        (DROP.into(), "pass".into())
    );
    let whole = vec![IdentitySet { number: 3, identities: vec![3] }];
    node.delta(&PolicyTables { sets: whole, ..PolicyTables::default() });
    assert_eq!(
        (node.enter(TCP, C, A, 80), node.enter(TCP, D, A, 80)),
        ("pass".into(), DROP.into())
    );
}

/// NP-094: an address that another pod gets has nothing of the one before.
#[test]
fn address_changes_hands_at_once() {
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[3])])]);
    assert_eq!(node.enter(TCP, C, A, 80), "pass");
    assert_eq!(node.enter(TCP, C6, A6, 80), "pass");
    node.delta(&addresses(&[(C, 4), (C6, 0)]));
    assert_eq!(node.enter(TCP, C, A, 80), DROP);
    assert_eq!(node.enter(TCP, C6, A6, 80), DROP);
    // The pod of this node too.
    node.delta(&addresses(&[(A, 0), (B, 1)]));
    assert_eq!(node.enter(TCP, D, A, 80), "drop 1");
    assert_eq!(node.enter(TCP, D, B, 80), DROP);
}

/// NP-090, NP-091, NP-092: a program, what it refers to and who it is for change in one step.
#[test]
fn programs_sets_and_subjects_change_together() {
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[3])])]);
    node.delta(&PolicyTables {
        sets: vec![IdentitySet { number: 9, identities: vec![4] }],
        removed_sets: vec![3],
        programs: vec![isolated(7, &[sets(&[9])])],
        removed_programs: vec![INGRESS],
        subjects: vec![PolicySubject { identity: 1, ingress: 7, egress: 0 }],
        ..PolicyTables::default()
    });
    assert_eq!(node.enter(TCP, C, A, 80), "drop 101");
    assert_eq!(node.enter(TCP, D, A, 80), "pass");
    node.delta(&PolicyTables {
        removed_sets: vec![9, 1, 2, 4],
        removed_programs: vec![7],
        subjects: vec![PolicySubject { identity: 1, ingress: 0, egress: 0 }],
        ..PolicyTables::default()
    });
    assert_eq!(node.enter(TCP, C, A, 80), "pass");
    node.delta(&PolicyTables { removed_subjects: vec![1, 2], ..PolicyTables::default() });
    assert_eq!(node.enter(TCP, C, A, 80), "drop 2");
    let gone = [(A, 0), (A6, 0), (B, 0), (B6, 0), (C, 0), (C6, 0), (D, 0)];
    node.delta(&addresses(&gone));
    assert!(node.plugin.filter().tables.is_empty());
}

/// NP-093: an open connection is asked about again, in both directions.
#[test]
fn live_flow_ends_when_it_is_no_longer_allowed() {
    let program = |rules: &[_]| PolicyTables {
        programs: vec![isolated(INGRESS, rules), isolated(EGRESS, rules)],
        ..PolicyTables::default()
    };
    let mut node = Node::new(&program(&[any()]).programs);
    let both = |node: &mut Node| (node.enter(TCP, C, A, 80), node.leave(TCP, A, C, 80));
    assert_eq!(both(&mut node), ("pass".into(), "pass".into()));
    node.delta(&program(&[]));
    assert_eq!(both(&mut node), (DROP.into(), "drop 101".into()));
    node.delta(&program(&[any()]));
    assert_eq!(both(&mut node), ("pass".into(), "pass".into()));
}

#[test]
fn settings_come_only_if_they_change() {
    let mut node = Node::new(&[isolated(INGRESS, &[])]);
    node.delta(&PolicyTables::default());
    assert_eq!(node.enter(TCP, NODE, A, 80), "pass");
    let settings =
        Some(PolicySettings { own_addresses: vec![bytes(NODE6)], ..PolicySettings::default() });
    node.delta(&PolicyTables { settings, ..PolicyTables::default() });
    assert_eq!(node.enter(TCP, NODE, A, 80), DROP);
    assert_eq!(node.enter(TCP, NODE6, A6, 80), "pass");
}

/// A full one has nothing of what was before.
#[test]
fn full_configuration_replaces_all() {
    let mut node = Node::new(&[isolated(INGRESS, &[])]);
    node.full(&PolicyTables { programs: Vec::<PolicyProgram>::new(), ..tables(&[]) });
    assert_eq!(node.enter(TCP, C, A, 80), "pass");
    node.full(&PolicyTables::default());
    assert_eq!(node.enter(TCP, C, A, 80), "drop 1");
}

fn some(random: &mut Random, most: usize) -> BTreeSet<u32> {
    (0..random.below(most)).map(|_| 1 + random.below(20) as u32).collect()
}

#[test]
fn sets_are_the_same_from_both_ends() {
    let mut random = Random::new(3);
    let mut plain = std::collections::BTreeMap::<u32, BTreeSet<u32>>::new();
    let mut all = Sets::default();
    for _ in 0..5000 {
        let (members, added) = (some(&mut random, 20), some(&mut random, 4));
        let removed = &some(&mut random, 4) - &added;
        let list = |members: &BTreeSet<u32>| members.iter().copied().collect::<Vec<_>>();
        let number = 1 + random.below(10) as u32;
        match (random.below(3), plain.get_mut(&number)) {
            (0, _) => {
                all.remove(number);
                plain.remove(&number);
            }
            (1, Some(held)) => {
                all.change(number, &list(&added), &list(&removed));
                *held = &(&*held | &added) - &removed;
            }
            _ => {
                all.set(number, list(&members).into());
                plain.insert(number, members);
            }
        }
        for number in 1..=10 {
            assert_eq!(all.members(number).map(<[_]>::to_vec), plain.get(&number).map(list));
        }
        for identity in 1..=20 {
            let of = plain.iter().filter(|(_, members)| members.contains(&identity));
            assert_eq!(all.of(identity), of.map(|(number, _)| *number).collect::<Vec<_>>());
        }
        let (a, b) = (some(&mut random, 8), some(&mut random, 3));
        assert_eq!(meet(&list(&a), &list(&b)), !a.is_disjoint(&b));
    }
}
