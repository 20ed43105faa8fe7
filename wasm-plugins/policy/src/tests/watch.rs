//! Policies that are only watched.

use weft_policy_sdk::{HostCalls, Level};
use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};
use weft_proto::tables::v1::{PolicyProgram, PolicyRule};

use super::node::*;
use crate::watched_key;

/// The answer to a connection, and the numbers that it would have been dropped with.
fn watched(program: PolicyProgram) -> (String, Vec<u32>) {
    let mut node = Node::new(&[program]);
    let answer = node.enter(TCP, C, A, 80);
    let number = |line: &str| line.split([' ', ':']).nth(1).unwrap().parse().unwrap();
    let lines = node.plugin.map().log_lines();
    let numbers: Vec<u32> = lines.iter().map(|(_, line)| number(line)).collect();
    for number in &numbers {
        let count = node.plugin.map().map_get(&watched_key(*number));
        assert_eq!(count, Some(1_u64.to_le_bytes().to_vec()));
    }
    assert_eq!(node.plugin.map().len(), numbers.len());
    (answer, numbers)
}

fn passes(numbers: &[u32]) -> (String, Vec<u32>) {
    ("pass".to_owned(), numbers.to_vec())
}

fn audited(allowed: &[PolicyRule]) -> PolicyProgram {
    PolicyProgram { watched: true, allowed: allowed.to_vec(), ..program(INGRESS) }
}

#[test]
fn watched_isolation_lets_pass_and_tells() {
    assert_eq!(watched(audited(&[])), passes(&[NOT_IN]));
    assert_eq!(watched(audited(&[sets(&[4]).watched()])), passes(&[NOT_IN]));
    assert_eq!(watched(audited(&[any().watched()])), passes(&[]));
    assert_eq!(watched(audited(&[any()])), passes(&[]));
}

#[test]
fn watched_policy_beside_one_in_force_opens_nothing() {
    let both = |allowed: &[PolicyRule]| PolicyProgram { isolated: true, ..audited(allowed) };
    let dropped = (format!("drop {NOT_IN}"), vec![]);
    assert_eq!(watched(both(&[any().watched()])), dropped);
    assert_eq!(watched(both(&[any().watched(), sets(&[4])])), dropped);
    assert_eq!(watched(both(&[sets(&[4]).watched(), sets(&[3])])), passes(&[]));
}

#[test]
fn watched_rules_of_tiers_decide_nothing() {
    let admin =
        |rules: &[PolicyRule]| watched(PolicyProgram { admin: rules.to_vec(), ..program(INGRESS) });
    let deny = any().acts(20, Deny);
    assert_eq!(admin(&[deny.clone().watched()]), passes(&[20]));
    assert_eq!(admin(&[deny.clone().watched(), any().acts(21, Accept)]), passes(&[20]));
    assert_eq!(admin(&[any().acts(21, Accept), deny.clone().watched()]), passes(&[]));
    let dropped = ("drop 20".to_owned(), vec![]);
    assert_eq!(admin(&[any().acts(21, Accept).watched(), deny.clone()]), dropped);
    assert_eq!(admin(&[any().acts(21, Pass).watched(), deny.clone()]), dropped);
    let baseline = |rule: PolicyRule, isolation: PolicyProgram| {
        watched(PolicyProgram { baseline: vec![rule], ..isolation })
    };
    assert_eq!(baseline(deny.clone().watched(), program(INGRESS)), passes(&[20]));
    assert_eq!(baseline(deny.clone(), audited(&[any().watched()])), dropped);
    assert_eq!(baseline(deny.watched(), isolated(INGRESS, &[any()])), passes(&[]));
}

/// NP-113: source, destination, port, direction.
#[test]
fn line_says_what_it_is_about() {
    let mut node = Node::new(&[
        audited(&[]),
        PolicyProgram { admin: vec![any().acts(20, Deny).watched()], ..program(EGRESS) },
    ]);
    node.enter(TCP, C6, A6, 80);
    node.leave(UDP, A, WORLD, 53);
    node.leave(ICMP, A, WORLD, 0);
    let line = |text: &str| (Level::Info, text.to_owned());
    assert_eq!(
        node.plugin.map().log_lines(),
        [
            line("watched 100: would drop ingress fd00:2::5 to fd00:1::5, tcp port 80"),
            line("watched 20: would drop egress 10.0.1.5 to 203.0.113.9, udp port 53"),
            line("watched 20: would drop egress 10.0.1.5 to 203.0.113.9, protocol 1"),
        ]
    );
    let count = node.plugin.map().map_get(&watched_key(20));
    assert_eq!(count, Some(2_u64.to_le_bytes().to_vec()));
}

/// However often it is asked about; and again if another number would be told.
#[test]
fn flow_is_told_of_once_at_each_end() {
    let program = |number| PolicyProgram { watched: true, isolation: number, ..program(INGRESS) };
    let out =
        PolicyProgram { admin: vec![any().acts(20, Deny).watched()], ..self::program(EGRESS) };
    let mut node = Node::new(&[program(30), out.clone()]);
    let counts = |node: &Node| {
        [20, 30, 31].map(|number| {
            let count = node.plugin.map().map_get(&watched_key(number));
            count.map_or(0, |count| u64::from_le_bytes(count.try_into().unwrap()))
        })
    };
    for _ in 0..3 {
        node.enter(TCP, C, A, 80);
        node.leave(TCP, A, D, 80);
        node.full(&tables(&[program(30), out.clone()]));
    }
    assert_eq!(counts(&node), [1, 1, 0]);
    node.full(&tables(&[program(31), out]));
    node.enter(TCP, C, A, 80);
    assert_eq!(counts(&node), [1, 1, 1]);
    node.forget();
    node.enter(TCP, C, A, 80);
    node.leave(TCP, A, D, 80);
    assert_eq!(counts(&node), [2, 1, 2]);
}

/// Both ends are here, and what is told of one is not taken for the other.
#[test]
fn flow_between_pods_of_the_node_has_two_ends() {
    let deny =
        |number| PolicyProgram { admin: vec![any().acts(20, Deny).watched()], ..program(number) };
    let mut tables = tables(&[deny(INGRESS), deny(EGRESS)]);
    tables.subjects[1].ingress = INGRESS;
    let mut node = Node::with(&tables);
    for _ in 0..3 {
        assert_eq!(node.leave(TCP, A, B, 80), "pass");
        assert_eq!(node.enter(TCP, A, B, 80), "pass");
    }
    assert_eq!(node.plugin.map().log_lines().len(), 2);
}

/// NP-061 to NP-063: what is always allowed would be allowed then too.
#[test]
fn exempt_packets_are_not_told_of() {
    let mut node = Node::new(&[audited(&[])]);
    for peer in [NODE, A] {
        assert_eq!(node.enter(TCP, peer, A, 80), "pass");
    }
    assert_eq!(node.plugin.map().log_lines(), []);
}
