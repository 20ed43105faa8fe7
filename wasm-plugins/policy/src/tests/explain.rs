//! Explanations of single tables: NP-114.

use weft_proto::tables::v1::PolicyProgram;
use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny, Pass};

use super::node::*;
use crate::explain::{Deciding, Explained, Explainer, Ports, Question, Reason};

fn explainer(program: PolicyProgram) -> Explainer {
    Explainer::new(tables(&[program])).unwrap()
}

fn into_a(from: &str) -> Question {
    Question { pod: A.parse().unwrap(), peer: from.parse().unwrap(), egress: false }
}

fn reason(program: PolicyProgram, from: &str, port: u16) -> Reason {
    explainer(program).explain(into_a(from), TCP, port).unwrap().reason
}

#[test]
fn each_ground_has_its_reason() {
    let closed = || isolated(INGRESS, &[]);
    assert_eq!(reason(closed(), A, 80), Reason::Itself);
    assert_eq!(reason(closed(), NODE, 80), Reason::OwnNode { passed_by: None });
    assert_eq!(reason(closed(), C, 80), Reason::Isolated { number: NOT_IN, passed_by: None });
    assert_eq!(reason(program(EGRESS), C, 80), Reason::Unrestricted);
    assert_eq!(reason(program(INGRESS), C, 80), Reason::NoMatch { passed_by: None });
    let of_nobody = Question { pod: "10.0.1.99".parse().unwrap(), ..into_a(C) };
    let unknown = explainer(closed()).explain(of_nobody, TCP, 80).unwrap().reason;
    assert_eq!(unknown, Reason::Unknown(crate::UNKNOWN_POD));
    assert!(unknown.drops() && !Reason::Itself.drops());
}

/// Every rule that matches is named, though the plugin keeps those with the same ports as one.
#[test]
fn all_rules_that_allow_are_named() {
    let numbered = |number, rule| weft_proto::tables::v1::PolicyRule { number, ..rule };
    let rules = [
        numbered(30, sets(&[3])),
        numbered(31, sets(&[4])),
        numbered(32, any().port(TCP, 80, 80)),
        numbered(33, any().port(UDP, 80, 80)),
    ];
    let allowed = |rules: &[u32]| Reason::Allowed { rules: rules.to_vec(), passed_by: None };
    let program = || isolated(INGRESS, &rules);
    assert_eq!(reason(program(), C, 80), allowed(&[30, 32]));
    assert_eq!(reason(program(), D, 81), allowed(&[31]));
    assert_eq!(reason(program(), WORLD, 80), allowed(&[32]));
}

#[test]
fn tiers_are_told_with_what_passed_them() {
    let admin = vec![any().port(TCP, 80, 80).acts(20, Pass), any().acts(21, Accept)];
    let baseline = vec![sets(&[3]).acts(22, Deny), any().acts(23, Accept)];
    let tiers =
        || PolicyProgram { admin: admin.clone(), baseline: baseline.clone(), ..program(INGRESS) };
    let deciding = |rule, denies, passed_by| Deciding { rule, denies, passed_by };
    assert_eq!(reason(tiers(), C, 81), Reason::Admin(deciding(21, false, None)));
    assert_eq!(reason(tiers(), C, 80), Reason::Baseline(deciding(22, true, Some(20))));
    assert_eq!(reason(tiers(), D, 80), Reason::Baseline(deciding(23, false, Some(20))));
    let closed = PolicyProgram { isolated: true, ..tiers() };
    let isolated = Reason::Isolated { number: NOT_IN, passed_by: Some(20) };
    assert_eq!(reason(closed, C, 80), isolated);
}

/// NP-063, NP-142: its own node, which isolation is no reason for and tiers are.
#[test]
fn own_node_is_told_where_it_is_why() {
    let to_node = Question { pod: A.parse().unwrap(), peer: NODE.parse().unwrap(), egress: true };
    let reason = |program, port| explainer(program).explain(to_node, TCP, port).unwrap().reason;
    let rules =
        vec![any().port(TCP, 80, 80).acts(20, Pass), any().port(TCP, 22, 22).acts(21, Deny)];
    let program = |isolated| PolicyProgram {
        admin: rules.clone(),
        isolated,
        baseline: vec![any().port(TCP, 80, 81).acts(22, Deny)],
        ..program(EGRESS)
    };
    let denied = |rule, passed_by| Deciding { rule, denies: true, passed_by };
    for isolated in [true, false] {
        assert_eq!(reason(program(isolated), 22), Reason::Admin(denied(21, None)));
    }
    assert_eq!(reason(program(true), 80), Reason::OwnNode { passed_by: Some(20) });
    assert_eq!(reason(program(true), 81), Reason::OwnNode { passed_by: None });
    assert_eq!(reason(program(false), 80), Reason::Baseline(denied(22, Some(20))));
    assert_eq!(reason(program(false), 82), Reason::NoMatch { passed_by: None });
    // At each port, as where it sends elsewhere.
    let all = explainer(program(true)).explain_all(to_node).unwrap();
    let dropped = all.iter().filter(|(_, explained)| explained.reason.drops());
    let dropped = dropped.map(|(ports, _)| (ports.protocol, ports.first, ports.last));
    assert_eq!(dropped.collect::<Vec<_>>(), [(TCP, 22, 22)]);
}

#[test]
fn what_is_only_watched_is_told_beside_what_decides() {
    let program = PolicyProgram { watched: true, ..program(INGRESS) };
    let told = explainer(program).explain(into_a(C), TCP, 80).unwrap();
    let watched = Some(Reason::Isolated { number: NOT_IN, passed_by: None });
    assert_eq!(told, Explained { reason: Reason::NoMatch { passed_by: None }, watched });
}

#[test]
fn every_port_is_covered_by_as_few_ranges_as_say_it() {
    let rules = [any().port(TCP, 80, 81), any().port(TCP, 82, 90), any().port(UDP, 0, 0)];
    let all = explainer(isolated(INGRESS, &rules)).explain_all(into_a(C)).unwrap();
    let told = all.iter().map(|(Ports { protocol, first, last }, explained)| {
        (*protocol, *first, *last, explained.reason.drops())
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (TCP, 1, 79, true),
            (TCP, 80, 90, false),
            (TCP, 91, u16::MAX, true),
            (UDP, 1, u16::MAX, false),
            (SCTP, 1, u16::MAX, true),
            (0, 0, 0, true),
        ]
    );
}
