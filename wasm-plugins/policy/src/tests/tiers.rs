//! ClusterNetworkPolicies: tiers, and rules in their order.

use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};
use weft_proto::tables::v1::{PolicyProgram, PolicyRule};

use super::node::*;

fn answer(program: PolicyProgram) -> String {
    Node::new(&[program]).enter(TCP, C, A, 80)
}

fn admin(rules: &[PolicyRule]) -> PolicyProgram {
    PolicyProgram { admin: rules.to_vec(), ..program(INGRESS) }
}

/// NP-131
#[test]
fn first_rule_that_matches_decides() {
    let deny = |number| any().acts(number, Deny);
    assert_eq!(answer(admin(&[deny(20), deny(21)])), "drop 20");
    assert_eq!(answer(admin(&[sets(&[4]).acts(20, Deny), deny(21)])), "drop 21");
    assert_eq!(answer(admin(&[deny(20).port(UDP, 80, 80), deny(21)])), "drop 21");
    assert_eq!(answer(admin(&[any().acts(20, Accept), deny(21)])), "pass");
    assert_eq!(answer(admin(&[any().acts(20, Pass), deny(21)])), "pass");
    // With and without ports, the order counts and nothing else.
    let ported = |number, action| any().port(TCP, 1, 90).acts(number, action);
    assert_eq!(answer(admin(&[ported(20, Deny), any().acts(21, Accept)])), "drop 20");
    assert_eq!(answer(admin(&[any().acts(20, Accept), ported(21, Deny)])), "pass");
    let narrow = any().port(TCP, 80, 80).acts(22, Accept);
    assert_eq!(answer(admin(&[narrow.clone(), ported(20, Deny)])), "pass");
    assert_eq!(answer(admin(&[ported(20, Deny), narrow])), "drop 20");
}

/// NP-130, NP-132, NP-133, NP-134
#[test]
fn admin_tier_comes_before_network_policies() {
    let with = |rule: PolicyRule, allowed: &[PolicyRule]| {
        answer(PolicyProgram { admin: vec![rule], ..isolated(INGRESS, allowed) })
    };
    assert_eq!(with(any().acts(20, Accept), &[]), "pass");
    assert_eq!(with(any().acts(20, Deny), &[any()]), "drop 20");
    assert_eq!(with(any().acts(20, Pass), &[]), format!("drop {NOT_IN}"));
    assert_eq!(with(any().acts(20, Pass), &[any()]), "pass");
    assert_eq!(with(sets(&[4]).acts(20, Deny), &[]), format!("drop {NOT_IN}"));
}

/// NP-134, NP-135, NP-136
#[test]
fn baseline_is_for_pods_that_nothing_isolates() {
    let baseline = |program: PolicyProgram, rules: &[PolicyRule]| {
        answer(PolicyProgram { baseline: rules.to_vec(), ..program })
    };
    let deny = any().acts(30, Deny);
    assert_eq!(baseline(program(INGRESS), std::slice::from_ref(&deny)), "drop 30");
    assert_eq!(baseline(program(INGRESS), &[any().acts(31, Accept), deny.clone()]), "pass");
    assert_eq!(baseline(program(INGRESS), &[any().acts(31, Pass), deny.clone()]), "pass");
    assert_eq!(baseline(program(INGRESS), &[sets(&[4]).acts(31, Deny)]), "pass");
    assert_eq!(baseline(isolated(INGRESS, &[any()]), std::slice::from_ref(&deny)), "pass");
    let accept = any().acts(31, Accept);
    assert_eq!(baseline(isolated(INGRESS, &[]), &[accept]), format!("drop {NOT_IN}"));
    assert_eq!(baseline(admin(&[any().acts(20, Pass)]), &[deny]), "drop 30");
}

/// NP-138: a network means ICMP too. NP-140
#[test]
fn rules_mean_networks_and_protocols() {
    let rules = [
        blocks(&[("203.0.113.0/24", &[])]).acts(20, Deny),
        any().port(SCTP, 0, 0).acts(21, Deny),
        sets(&[3]).port(TCP, 80, 90).acts(22, Deny),
    ];
    let mut node = Node::new(&[PolicyProgram { admin: rules.to_vec(), ..program(EGRESS) }]);
    for protocol in [TCP, UDP, ICMP] {
        assert_eq!(node.leave(protocol, A, WORLD, 80), "drop 20");
    }
    assert_eq!(node.leave(SCTP, A, D, 7), "drop 21");
    assert_eq!(node.leave(TCP, A, C, 90), "drop 22");
    assert_eq!(node.leave(TCP, A, C, 91), "pass");
    assert_eq!(node.leave(ICMP, A, C, 80), "pass");
}

/// NP-141: a hundred objects of 25 rules, in their order.
#[test]
fn as_many_rules_as_there_may_be() {
    let rule = |n: u16| sets(&[4]).port(TCP, n, n + 30).acts(1000 + u32::from(n), Deny);
    let rules: Vec<_> = (1..=2500).map(rule).collect();
    let mut node = Node::new(&[PolicyProgram { admin: rules, ..program(EGRESS) }]);
    assert_eq!(node.leave(TCP, A, D, 1000), "drop 1970");
    assert_eq!(node.leave(TCP, A, D, 5), "drop 1001");
    assert_eq!(node.leave(TCP, A, D, 2530), "drop 3500");
    assert_eq!(node.leave(TCP, A, D, 2531), "pass");
    assert_eq!(node.leave(TCP, A, C, 1000), "pass");
}
