//! Isolation, and what is allowed by peers.

use super::node::*;

/// NP-001, NP-003
#[test]
fn pod_that_no_policy_selects_sends_and_gets_everything() {
    let mut node = Node::new(&[]);
    for protocol in [TCP, UDP, SCTP, ICMP, 47] {
        assert_eq!(node.leave(protocol, A, C, 80), "pass");
        assert_eq!(node.enter(protocol, C, A, 80), "pass");
        assert_eq!(node.enter(protocol, WORLD6, A6, 80), "pass");
    }
    let mut node = Node::new(&[isolated(INGRESS, &[])]);
    assert_eq!(node.leave(TCP, A, C, 80), "pass", "isolated in the other direction only");
    let mut node = Node::new(&[isolated(EGRESS, &[])]);
    assert_eq!(node.enter(TCP, C, A, 80), "pass");
}

/// NP-002, NP-007, NP-011: dropped, with the program's number.
#[test]
fn isolated_pod_sends_and_gets_nothing_that_no_rule_allows() {
    let mut node = Node::new(&[isolated(INGRESS, &[]), isolated(EGRESS, &[])]);
    for protocol in [TCP, UDP, SCTP, ICMP, 47] {
        for (pod, peer) in [(A, B), (A, C), (A, WORLD), (A6, B6), (A6, C6), (A6, WORLD6)] {
            assert_eq!(node.leave(protocol, pod, peer, 80), format!("drop {NOT_OUT}"));
            assert_eq!(node.enter(protocol, peer, pod, 80), format!("drop {NOT_IN}"));
        }
    }
    // The other pod is as free as before.
    assert_eq!(node.leave(TCP, B, C, 80), "pass");
    assert_eq!(node.enter(TCP, C, B, 80), "pass");
}

/// NP-012: whatever else there is.
#[test]
fn rule_for_all_allows_all() {
    let rules = [sets(&[]), any()];
    let mut node = Node::new(&[isolated(INGRESS, &rules), isolated(EGRESS, &rules)]);
    for protocol in [TCP, UDP, SCTP, ICMP] {
        assert_eq!(node.leave(protocol, A, WORLD, 80), "pass");
        assert_eq!(node.enter(protocol, OTHER_NODE, A, 80), "pass");
    }
}

/// NP-002, NP-006, NP-021, NP-022
#[test]
fn what_any_rule_allows_passes() {
    let rules = [sets(&[3]).port(TCP, 80, 80), sets(&[2, 4]).port(TCP, 81, 81)];
    let mut node = Node::new(&[isolated(INGRESS, &rules)]);
    let drop = format!("drop {NOT_IN}");
    for (peer, port, answer) in [
        (C, 80, "pass"),
        (C, 81, &drop),
        (D, 80, &drop),
        (D, 81, "pass"),
        (B, 81, "pass"),
        (WORLD, 81, &drop),
    ] {
        assert_eq!(node.enter(TCP, peer, A, port), answer, "{peer} {port}");
    }
}

/// NP-023, NP-081: peers by selectors are pods, in whatever family they speak.
#[test]
fn sets_have_pods_only() {
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[1, 2, 3, 4])])]);
    for (peer, pod) in [(B, A), (C, A), (D, A), (B6, A6), (C6, A6)] {
        assert_eq!(node.enter(TCP, peer, pod, 80), "pass");
    }
    for (peer, pod) in [(OTHER_NODE, A), (WORLD, A), (WORLD6, A6)] {
        assert_eq!(node.enter(TCP, peer, pod, 80), format!("drop {NOT_IN}"));
    }
}

/// NP-027
#[test]
fn rule_without_peers_matches_nobody() {
    let mut node = Node::new(&[isolated(EGRESS, &[sets(&[]).port(TCP, 80, 80)])]);
    for peer in [B, C, WORLD] {
        assert_eq!(node.leave(TCP, A, peer, 80), format!("drop {NOT_OUT}"));
    }
}

/// NP-004: each end is asked on its own.
#[test]
fn between_pods_of_one_node_both_have_to_allow() {
    let mut node = Node::new(&[isolated(EGRESS, &[]), isolated(INGRESS, &[any()])]);
    assert_eq!(node.leave(TCP, A, B, 80), format!("drop {NOT_OUT}"));
    assert_eq!(node.enter(TCP, A, B, 80), "pass");
    assert_eq!(node.leave(TCP, B, A, 80), "pass");
    assert_eq!(node.enter(TCP, B, A, 80), "pass");
}
