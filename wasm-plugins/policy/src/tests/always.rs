//! What is always allowed, and what never is.

use std::net::SocketAddr;

use weft_policy_sdk::flags;
use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};
use weft_proto::tables::v1::{PolicyProgram, PolicyRule, PolicyTables};

use super::node::*;

/// A node whose pod A is kept from everything, in every tier.
fn closed() -> Node {
    let deny = [INGRESS, EGRESS]
        .map(|number| PolicyProgram { admin: vec![any().acts(20, Deny)], ..isolated(number, &[]) });
    Node::new(&deny)
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// NP-062, NP-142
#[test]
fn pod_reaches_itself() {
    let mut node = closed();
    for pod in [A, A6] {
        assert_eq!(node.leave(TCP, pod, pod, 80), "pass");
        assert_eq!(node.enter(TCP, pod, pod, 80), "pass");
    }
    assert_eq!(node.leave(TCP, A, B, 80), "drop 20");
}

/// NP-062, NP-073: under an address of the node, which the Service gives it.
#[test]
fn pod_reaches_itself_through_a_service() {
    let mut node = closed();
    let (from, to) = (at(NODE, 50_000), at(A, 8080));
    let both = flags::SOURCE_LOCAL_POD | flags::DESTINATION_LOCAL_POD;
    assert_eq!(node.ask(At::Egress, both, TCP, from, to), "pass");
    assert_eq!(node.ask(At::Ingress, both, TCP, from, to), "pass");
    // Answers: the destination is translated back before anybody is asked.
    let (from, to) = (at(A, 8080), at(A, 40_000));
    for position in [At::Egress, At::Ingress] {
        assert_eq!(node.ask(position, both | flags::REPLY, TCP, from, to), "pass");
    }
}

/// NP-065: of a flow that did not say so at egress nothing is known.
#[test]
fn other_pod_under_the_nodes_address_is_not_the_node_nor_the_pod_itself() {
    let mut node = closed();
    let both = flags::SOURCE_LOCAL_POD | flags::DESTINATION_LOCAL_POD;
    assert_eq!(node.ask(At::Ingress, both, TCP, at(NODE, 50_000), at(A, 80)), "drop 20");
    // Nor what was noted of another pod.
    assert_eq!(node.ask(At::Egress, both, TCP, at(NODE, 50_001), at(B, 80)), "pass");
    assert_eq!(node.ask(At::Ingress, both, TCP, at(NODE, 50_001), at(B, 80)), "pass");
    // Nor what leaves the node so.
    let answer = node.ask(At::Egress, flags::SOURCE_LOCAL_POD, TCP, at(NODE, 1), at(C, 80));
    assert_eq!(answer, "drop 1");
}

/// NP-061, NP-142
#[test]
fn node_reaches_its_pods() {
    let mut node = closed();
    for protocol in [TCP, UDP, SCTP, ICMP] {
        assert_eq!(node.enter(protocol, NODE, A, 80), "pass");
        assert_eq!(node.enter(protocol, NODE6, A6, 80), "pass");
    }
}

/// Answers to what pod A sends to its node in both families, which have to be the same.
fn to_its_node(program: PolicyProgram) -> String {
    let mut node = Node::new(&[program]);
    let mut answer = |protocol, port| {
        let answer = node.leave(protocol, A, NODE, port);
        assert_eq!(node.leave(protocol, A6, NODE6, port), answer);
        answer
    };
    assert_eq!(answer(UDP, 53), answer(ICMP, 0));
    answer(TCP, 80)
}

/// NP-063
#[test]
fn isolation_keeps_no_pod_from_its_node() {
    let isolated = |allowed: &[PolicyRule]| to_its_node(isolated(EGRESS, allowed));
    assert_eq!(isolated(&[]), "pass");
    assert_eq!(isolated(&[sets(&[4])]), "pass");
    let by_name = PolicyRule { names: vec![7], ..PolicyRule::default() };
    assert_eq!(isolated(&[by_name]), "pass");
    assert_eq!(to_its_node(program(EGRESS)), "pass");
    assert_eq!(Node::new(&[]).leave(TCP, A, NODE, 80), "pass");
}

/// NP-063, NP-142: what is exempt from isolation is not from the tiers around it.
#[test]
fn tiers_may_keep_a_pod_from_its_node() {
    let nodes = || blocks(&[("192.0.2.0/24", &[]), ("2001:db8::/64", &[])]);
    let deny = || nodes().acts(20, Deny);
    let others = || blocks(&[("192.0.2.2/32", &[])]).acts(21, Deny);
    let admin = |rules: &[PolicyRule], below: PolicyProgram| {
        to_its_node(PolicyProgram { admin: rules.to_vec(), ..below })
    };
    let baseline = |rule: PolicyRule, above: PolicyProgram| {
        to_its_node(PolicyProgram { baseline: vec![rule], ..above })
    };
    let (open, closed) = (|| program(EGRESS), || isolated(EGRESS, &[]));
    for below in [open(), closed(), isolated(EGRESS, &[any()])] {
        assert_eq!(admin(&[deny()], below.clone()), "drop 20");
        assert_eq!(admin(&[any().acts(22, Deny)], below.clone()), "drop 22");
        assert_eq!(admin(&[nodes().acts(22, Accept), deny()], below.clone()), "pass");
        assert_eq!(admin(&[nodes().acts(22, Pass), deny()], below.clone()), "pass");
        assert_eq!(admin(&[others()], below), "pass");
    }
    assert_eq!(baseline(deny(), open()), "drop 20");
    assert_eq!(baseline(others(), open()), "pass");
    assert_eq!(baseline(nodes().acts(22, Accept), open()), "pass");
    assert_eq!(baseline(deny(), closed()), "pass");
    let passed = |below| PolicyProgram { admin: vec![nodes().acts(22, Pass)], ..below };
    assert_eq!(baseline(deny(), passed(open())), "drop 20");
    assert_eq!(baseline(deny(), passed(closed())), "pass");
}

/// NP-064
#[test]
fn other_nodes_are_not_exempt() {
    let mut node = Node::new(&[
        isolated(INGRESS, &[blocks(&[("192.0.2.3/32", &[])])]),
        isolated(EGRESS, &[blocks(&[("192.0.2.3/32", &[])])]),
    ]);
    assert_eq!(node.enter(TCP, OTHER_NODE, A, 80), format!("drop {NOT_IN}"));
    assert_eq!(node.leave(TCP, A, OTHER_NODE, 80), format!("drop {NOT_OUT}"));
    assert_eq!(node.enter(TCP, "192.0.2.3", A, 80), "pass");
    assert_eq!(node.leave(TCP, A, "192.0.2.3", 80), "pass");
}

/// NP-065
#[test]
fn who_only_has_the_nodes_address_is_not_the_node() {
    let mut node = closed();
    for told in [0, flags::FROM_MESH] {
        let told = told | flags::DESTINATION_LOCAL_POD;
        assert_eq!(node.ask(At::Ingress, told, TCP, at(NODE, 1), at(A, 80)), "drop 20");
    }
    // And the node under another address is somebody else.
    let told = flags::SOURCE_HOST | flags::DESTINATION_LOCAL_POD;
    assert_eq!(node.ask(At::Ingress, told, TCP, at(WORLD, 1), at(A, 80)), "drop 20");
    // Nor does isolation except it.
    let mut node = Node::new(&[isolated(INGRESS, &[]), isolated(EGRESS, &[])]);
    for told in [0, flags::FROM_MESH, flags::SOURCE_LOCAL_POD] {
        let told = told | flags::DESTINATION_LOCAL_POD;
        let answer = node.ask(At::Ingress, told, TCP, at(NODE, 1), at(A, 80));
        assert_eq!(answer, format!("drop {NOT_IN}"));
    }
}

/// NP-100, NP-101, NP-094: neither in nor out, whoever the other end is.
#[test]
fn pod_that_nothing_is_known_of_is_closed() {
    let nobody = "10.0.1.77";
    let mut tables = tables(&[]);
    tables.subjects.pop();
    let mut node = Node::with(&tables);
    for (pod, drop) in [(nobody, "drop 1"), (B, "drop 2"), (B6, "drop 2")] {
        let [peer, host] = if pod == B6 { [C6, NODE6] } else { [C, NODE] };
        for peer in [peer, host, pod] {
            assert_eq!(node.leave(ICMP, pod, peer, 80), drop);
            assert_eq!(node.enter(TCP, peer, pod, 80), drop);
        }
    }
    let both = flags::SOURCE_LOCAL_POD | flags::DESTINATION_LOCAL_POD;
    for (pod, drop) in [(nobody, "drop 1"), (B, "drop 2")] {
        for position in [At::Egress, At::Ingress] {
            let hairpin = node.ask(position, both, TCP, at(NODE, 1), at(pod, 80));
            assert_eq!(hairpin, drop);
        }
    }
    // With no tables at all everything is.
    let mut node = Node::with(&PolicyTables::default());
    assert_eq!(node.leave(TCP, A, C, 80), "drop 1");
}

/// NP-080: what is of no pod of this node is judged elsewhere, or not at all.
#[test]
fn packets_of_no_local_pod_are_not_judged() {
    let mut node = closed();
    assert_eq!(node.ask(At::Egress, flags::SOURCE_HOST, TCP, at(NODE, 1), at(C, 80)), "pass");
    assert_eq!(node.ask(At::Egress, 0, TCP, at(WORLD, 1), at(C, 80)), "pass");
    // What the host sends to a pod is judged where the pod receives it.
    let told = flags::SOURCE_HOST | flags::DESTINATION_LOCAL_POD;
    assert_eq!(node.ask(At::Egress, told, TCP, at(WORLD, 1), at(A, 80)), "pass");
}
