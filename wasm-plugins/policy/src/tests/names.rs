//! Addresses that pods have learned by names.

use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};
use weft_proto::tables::v1::{PolicyLearned, PolicyProgram, PolicyRule, PolicyTables};

use super::node::*;

/// Numbers of names.
const API: u64 = 7;
const CDN: u64 = (1 << 56) - 1;
const ELSEWHERE: &str = "203.0.113.10";

fn by_names(names: &[u64]) -> PolicyRule {
    PolicyRule { names: names.to_vec(), ..PolicyRule::default() }
}

/// What a pod knows an address by from now on; nothing: no more.
fn learned(pod: &str, address: &str, names: &[u64]) -> PolicyTables {
    let (pod, address) = (bytes(pod), bytes(address));
    let learned = vec![PolicyLearned { pod, address, names: names.to_vec() }];
    PolicyTables { learned, ..PolicyTables::default() }
}

/// Pod A may send by these rules only.
fn node(allowed: &[PolicyRule]) -> Node {
    Node::new(&[isolated(EGRESS, allowed)])
}

fn denied() -> String {
    format!("drop {NOT_OUT}")
}

/// Another program for what pod A sends.
fn change(node: &mut Node, program: PolicyProgram) {
    node.delta(&PolicyTables { programs: vec![program], ..PolicyTables::default() });
}

/// NP-153, NP-160, NP-161, NP-162, NP-165: for the pod that learned it, in its family, at the rule's ports.
#[test]
fn learned_address_passes_for_its_pod_at_the_rules_ports() {
    let mut node = node(&[by_names(&[API]).port(TCP, 443, 443), by_names(&[9, 10])]);
    assert_eq!(node.leave(TCP, A, WORLD, 443), denied());
    for (pod, address) in [(A, WORLD), (A6, WORLD6), (A, C)] {
        node.delta(&learned(pod, address, &[API, CDN]));
        assert_eq!(node.leave(TCP, pod, address, 443), "pass", "{address}");
        assert_eq!(node.leave(TCP, pod, address, 80), denied(), "{address}");
        assert_eq!(node.leave(UDP, pod, address, 443), denied(), "{address}");
    }
    node.delta(&learned(A, ELSEWHERE, &[CDN]));
    assert_eq!(node.leave(TCP, A, ELSEWHERE, 443), denied(), "by a name that no rule has");
    node.delta(&learned(A, ELSEWHERE, &[10]));
    assert_eq!(node.leave(ICMP, A, ELSEWHERE, 0), "pass");
    node.delta(&PolicyTables {
        subjects: vec![weft_proto::tables::v1::PolicySubject {
            identity: 2,
            ingress: 0,
            egress: EGRESS,
        }],
        ..PolicyTables::default()
    });
    assert_eq!(node.leave(TCP, B, WORLD, 443), denied(), "another pod under the same program");
    // What a pod gets is another matter.
    assert_eq!(node.enter(TCP, C, A, 443), "pass");
}

/// NP-156, NP-157: an address that is known no more lets no new flow pass, and those that it let pass go on.
#[test]
fn flow_goes_on_when_its_address_is_forgotten() {
    let mut node = node(&[by_names(&[API])]);
    node.delta(&learned(A, WORLD, &[API]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
    node.delta(&learned(A, WORLD, &[]));
    for _ in 0..3 {
        assert_eq!(node.leave(TCP, A, WORLD, 443), "pass", "the same flow");
        assert_eq!(node.leave(TCP, A, WORLD, 444), denied(), "a new one");
        node.delta(&PolicyTables::default());
    }
    node.forget();
    assert_eq!(node.leave(TCP, A, WORLD, 443), denied());
}

/// NP-093: a rule without the name cuts what passed by it, known or not, and one that has it still does not.
#[test]
fn change_of_the_rules_cuts_what_they_allow_no_more() {
    let mut node = node(&[by_names(&[API])]);
    for still_known in [true, false] {
        node.delta(&learned(A, WORLD, &[API]));
        assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
        if !still_known {
            node.delta(&learned(A, WORLD, &[]));
        }
        let wider = isolated(EGRESS, &[by_names(&[3, API]), any().port(TCP, 80, 80)]);
        change(&mut node, wider);
        assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
        for rule in [by_names(&[3]), by_names(&[API]).port(TCP, 80, 80), sets(&[3])] {
            change(&mut node, isolated(EGRESS, &[rule]));
            assert_eq!(node.leave(TCP, A, WORLD, 443), denied());
        }
        node.forget();
        change(&mut node, isolated(EGRESS, &[by_names(&[API])]));
    }
}

/// A flow that passed by an address or a selector has no name to go on with.
#[test]
fn flow_that_no_name_let_pass_goes_on_by_none() {
    let mut node = node(&[by_names(&[API]), blocks(&[("203.0.113.0/24", &[])])]);
    node.delta(&learned(A, WORLD, &[API]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
    node.delta(&learned(A, WORLD, &[]));
    change(&mut node, isolated(EGRESS, &[by_names(&[API])]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), denied());
}

/// Of two names the flow remembers the one that a rule has, and the newer one after a change.
#[test]
fn flow_remembers_a_name_that_lets_it_pass() {
    let mut node = node(&[by_names(&[CDN])]);
    node.delta(&learned(A, WORLD, &[API, CDN]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
    change(&mut node, isolated(EGRESS, &[by_names(&[API])]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
    node.delta(&learned(A, WORLD, &[]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
    change(&mut node, isolated(EGRESS, &[by_names(&[CDN])]));
    assert_eq!(node.leave(TCP, A, WORLD, 443), denied());
}

/// NP-134, NP-150: a rule of names accepts in its place, before and after others.
#[test]
fn rules_of_names_have_their_place_in_a_tier() {
    let accept = by_names(&[API]).acts(20, Accept);
    for (rules, known, unknown) in [
        (vec![accept.clone(), any().acts(21, Deny)], "pass".to_owned(), "drop 21".to_owned()),
        (vec![any().acts(21, Deny), accept.clone()], "drop 21".into(), "drop 21".into()),
        (vec![any().acts(21, Pass), accept.clone()], denied(), denied()),
        (vec![accept.clone()], "pass".into(), denied()),
    ] {
        let program = PolicyProgram { admin: rules, ..isolated(EGRESS, &[]) };
        let mut node = Node::new(&[program]);
        assert_eq!(node.leave(TCP, A, WORLD, 443), unknown);
        node.delta(&learned(A, WORLD, &[API]));
        assert_eq!(node.leave(TCP, A, WORLD, 443), known);
    }
}

/// What is only watched is told of once, and the name is remembered beside.
#[test]
fn watched_rules_of_names_tell_what_they_would_drop() {
    let program =
        PolicyProgram { watched: true, ..isolated(EGRESS, &[by_names(&[API]), any().watched()]) };
    let audited = PolicyProgram { allowed: vec![by_names(&[API]).watched()], ..program.clone() };
    for (program, lines) in [(program, 0), (PolicyProgram { isolated: false, ..audited }, 1)] {
        let mut node = Node::new(&[program]);
        node.delta(&learned(A, WORLD, &[API]));
        assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
        node.delta(&learned(A, WORLD, &[]));
        assert_eq!(node.leave(TCP, A, WORLD, 443), "pass");
        assert_eq!(node.would_drop.len(), 0, "a flow that passed by the name");
        for _ in 0..2 {
            node.leave(TCP, A, ELSEWHERE, 443);
            node.delta(&PolicyTables::default());
        }
        assert_eq!(node.would_drop.len(), lines);
    }
}
