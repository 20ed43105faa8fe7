//! Policies that are only watched.

use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};
use weft_proto::tables::v1::{PolicyProgram, PolicyRule};

use super::node::*;

/// The answer to a connection, and the numbers that it would have been dropped with.
fn watched(program: PolicyProgram) -> (String, Vec<u32>) {
    let mut node = Node::new(&[program]);
    let answer = node.enter(TCP, C, A, 80);
    (answer, node.would_drop)
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

/// NP-113: in both directions, with any protocol.
#[test]
fn each_end_and_protocol_is_told_of() {
    let mut node = Node::new(&[
        audited(&[]),
        PolicyProgram { admin: vec![any().acts(20, Deny).watched()], ..program(EGRESS) },
    ]);
    node.enter(TCP, C6, A6, 80);
    node.leave(UDP, A, WORLD, 53);
    node.leave(ICMP, A, WORLD, 0);
    assert_eq!(node.would_drop, [NOT_IN, 20, 20]);
}

/// However often it is asked about; and again if another number would be told.
#[test]
fn flow_is_told_of_once_at_each_end() {
    let program = |number| PolicyProgram { watched: true, isolation: number, ..program(INGRESS) };
    let out =
        PolicyProgram { admin: vec![any().acts(20, Deny).watched()], ..self::program(EGRESS) };
    let mut node = Node::new(&[program(30), out.clone()]);
    let counts = |node: &Node| {
        [20, 30, 31].map(|number| node.would_drop.iter().filter(|n| **n == number).count())
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
    assert_eq!(node.would_drop, [20, 20]);
}

/// NP-061 to NP-063: what is always allowed would be allowed then too.
#[test]
fn exempt_packets_are_not_told_of() {
    let deny = || vec![any().acts(20, Deny).watched()];
    let isolates = |number| PolicyProgram { watched: true, ..program(number) };
    let mut node =
        Node::new(&[PolicyProgram { admin: deny(), ..isolates(INGRESS) }, isolates(EGRESS)]);
    for peer in [NODE, A] {
        assert_eq!(node.enter(TCP, peer, A, 80), "pass");
        assert_eq!(node.leave(TCP, A, peer, 80), "pass");
    }
    assert_eq!(node.would_drop, []);
}

/// NP-063, NP-142: a tier may keep a pod from its node, and so would one that is watched.
#[test]
fn watched_tiers_tell_what_a_pod_sends_to_its_node() {
    let told = |program: PolicyProgram| {
        let mut node = Node::new(&[program]);
        assert_eq!(node.leave(TCP, A, NODE, 80), "pass");
        node.would_drop
    };
    let deny = || vec![any().acts(20, Deny).watched()];
    assert_eq!(told(PolicyProgram { admin: deny(), ..program(EGRESS) }), [20]);
    assert_eq!(told(PolicyProgram { admin: deny(), ..isolated(EGRESS, &[]) }), [20]);
    assert_eq!(told(PolicyProgram { baseline: deny(), ..program(EGRESS) }), [20]);
    assert_eq!(told(PolicyProgram { baseline: deny(), ..isolated(EGRESS, &[]) }), []);
    let watched = PolicyProgram { watched: true, ..program(EGRESS) };
    assert_eq!(told(PolicyProgram { baseline: deny(), ..watched }), []);
}
