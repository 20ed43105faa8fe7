//! Both directions and every protocol at once, policies by their priorities, and one tier after the other.

use super::{
    CEDRIC, ConformanceCase, DRACO, GRYFFINDOR, HARRY, HUFFLEPUFF, LUNA, ORDERED, PodKey, Probe,
    RAVENCLAW, SLYTHERIN, Test, by_name, of_house, ordered_rules, pods_of, policy, port, probes,
    reorder, rule,
};
use crate::Protocol::{Sctp, Tcp, Udp};
use crate::upstream::{namespaces, peers};
use crate::{
    Action, ClusterPeer, ClusterPolicy, Connection, Direction, NetworkPolicy, Protocol, Subject,
    Tier,
};

/// As [`super::Row`], with the protocol.
type MixedRow = (PodKey, PodKey, Protocol, u16, bool);

fn mixed(rows: &[MixedRow]) -> Vec<Probe> {
    let probe = |&(from, to, protocol, port, allowed): &MixedRow| Probe {
        connection: Connection { from, to, protocol, port },
        allowed,
    };
    rows.iter().map(probe).collect()
}

/// What each of [`ORDERED`] tries, from gryffindor and to it.
const GRESS: [&[MixedRow]; 6] = [
    &[
        (HARRY[0], LUNA[0], Tcp, 80, true),
        (HARRY[1], LUNA[0], Udp, 53, true),
        (HARRY[0], LUNA[0], Sctp, 9003, true),
        (LUNA[0], HARRY[0], Tcp, 80, true),
        (LUNA[1], HARRY[0], Udp, 53, true),
        (LUNA[1], HARRY[0], Sctp, 9003, true),
    ],
    &[
        (HARRY[0], CEDRIC[1], Tcp, 8080, true),
        (HARRY[1], CEDRIC[1], Tcp, 80, false),
        (HARRY[0], CEDRIC[1], Udp, 5353, true),
        (HARRY[1], CEDRIC[1], Udp, 53, false),
        (HARRY[0], CEDRIC[1], Sctp, 9003, true),
        (HARRY[1], CEDRIC[1], Sctp, 9005, false),
        (CEDRIC[0], HARRY[1], Tcp, 80, true),
        (CEDRIC[1], HARRY[1], Tcp, 8080, false),
        (CEDRIC[0], HARRY[1], Udp, 5353, true),
        (CEDRIC[1], HARRY[1], Udp, 53, false),
        (CEDRIC[0], HARRY[1], Sctp, 9003, true),
        (CEDRIC[1], HARRY[1], Sctp, 9005, false),
    ],
    &[
        (HARRY[0], LUNA[1], Tcp, 80, false),
        (HARRY[1], LUNA[1], Udp, 53, false),
        (HARRY[0], LUNA[1], Sctp, 9003, false),
        (LUNA[0], HARRY[1], Tcp, 80, false),
        (LUNA[1], HARRY[1], Udp, 53, false),
        (LUNA[1], HARRY[1], Sctp, 9003, false),
    ],
    &[
        (HARRY[0], DRACO[0], Tcp, 80, false),
        (HARRY[1], DRACO[0], Tcp, 8080, true),
        (HARRY[0], DRACO[0], Udp, 53, false),
        (HARRY[1], DRACO[0], Udp, 5353, true),
        (HARRY[0], DRACO[0], Sctp, 9003, false),
        (HARRY[1], DRACO[0], Sctp, 9005, true),
        (DRACO[0], HARRY[0], Tcp, 80, false),
        (DRACO[1], HARRY[0], Tcp, 8080, true),
        (DRACO[0], HARRY[0], Udp, 53, false),
        (DRACO[1], HARRY[0], Udp, 5353, true),
        (DRACO[0], HARRY[0], Sctp, 9003, false),
        (DRACO[1], HARRY[0], Sctp, 9005, true),
    ],
    &[
        (HARRY[0], LUNA[0], Tcp, 80, true),
        (HARRY[0], LUNA[0], Udp, 5353, true),
        (HARRY[0], LUNA[0], Sctp, 9003, true),
        (LUNA[0], HARRY[0], Tcp, 80, true),
        (LUNA[1], HARRY[0], Udp, 53, true),
        (LUNA[1], HARRY[0], Sctp, 9003, true),
    ],
    &[
        (HARRY[0], DRACO[0], Tcp, 80, true),
        (HARRY[1], DRACO[0], Tcp, 8080, true),
        (HARRY[0], DRACO[0], Udp, 53, true),
        (HARRY[1], DRACO[0], Udp, 5353, true),
        (HARRY[0], DRACO[0], Sctp, 9003, true),
        (HARRY[1], DRACO[0], Sctp, 9005, true),
        (DRACO[0], HARRY[0], Tcp, 80, true),
        (DRACO[1], HARRY[0], Tcp, 8080, true),
        (DRACO[0], HARRY[0], Udp, 53, true),
        (DRACO[1], HARRY[0], Udp, 5353, true),
        (DRACO[0], HARRY[0], Sctp, 9003, true),
        (DRACO[1], HARRY[0], Sctp, 9005, true),
    ],
];

/// Both directions.
pub(super) fn gress(tier: Tier) -> Vec<ConformanceCase> {
    let mut test = Test::new(tier, "Gress");
    let priority = if tier == Tier::Admin { 15 } else { 10 };
    let mut policy = policy(tier, priority, Subject::Namespaces(by_name(GRYFFINDOR)));
    let [ports, but_out, but_in] =
        [[80, 53, 9003], [8080, 5353, 9003], [80, 5353, 9003]].map(|[tcp, udp, sctp]| {
            [(Tcp, tcp), (Udp, udp), (Sctp, sctp)].map(|(protocol, number)| port(protocol, number))
        });
    policy.egress = ordered_rules(tier, RAVENCLAW, &ports, (HUFFLEPUFF, &but_out));
    policy.ingress = ordered_rules(tier, RAVENCLAW, &ports, (HUFFLEPUFF, &but_in));
    for (sub_test, rows) in ORDERED.into_iter().zip(GRESS) {
        if tier == Tier::Baseline && sub_test.starts_with("pass") {
            continue;
        }
        reorder(sub_test, &mut policy.egress);
        reorder(sub_test, &mut policy.ingress);
        test.apply("gress", policy.clone());
        test.sub_test(sub_test, mixed(rows));
    }
    test.cases
}

/// What slytherin tries at gryffindor, and what gryffindor tries there.
fn between(ingress: Option<bool>, egress: Option<bool>) -> Vec<Probe> {
    let ingress = ingress.into_iter().flat_map(|allowed| {
        [(DRACO[0], HARRY[0], 80, allowed), (DRACO[1], HARRY[0], 8080, allowed)]
    });
    let egress = egress.into_iter().flat_map(|allowed| {
        [(HARRY[0], DRACO[0], 80, allowed), (HARRY[1], DRACO[0], 8080, allowed)]
    });
    probes(Tcp, &ingress.chain(egress).collect::<Vec<_>>())
}

/// One rule for each direction, for the same peers.
fn symmetric(mut policy: ClusterPolicy, action: Action, peers: &[ClusterPeer]) -> ClusterPolicy {
    policy.ingress = vec![rule(action, peers)];
    policy.egress = vec![rule(action, peers)];
    policy
}

/// Two policies of the Admin tier change places, before one of the Baseline tier.
pub(super) fn priorities() -> Vec<ConformanceCase> {
    let mut test = Test::new(Tier::Admin, "PriorityField");
    let slytherin = [ClusterPeer::Pods(pods_of(SLYTHERIN))];
    let of = |tier, priority, action| {
        symmetric(policy(tier, priority, pods_of(GRYFFINDOR)), action, &slytherin)
    };
    test.apply("denies", of(Tier::Admin, 50, Action::Deny));
    test.apply("passes", of(Tier::Admin, 60, Action::Pass));
    test.apply("accepts", of(Tier::Baseline, 10, Action::Accept));
    test.sub_test("deny ingress", between(Some(false), None));
    test.sub_test("deny egress", between(None, Some(false)));
    test.apply("passes", of(Tier::Admin, 40, Action::Pass));
    test.sub_test("pass both to Baseline", between(Some(true), Some(true)));
    test.cases
}

/// A policy of the Admin tier, a NetworkPolicy that allows, and one of the Baseline tier that denies.
pub(super) fn integration() -> Vec<ConformanceCase> {
    let mut test = Test::new(Tier::Admin, "Integration");
    let slytherin = [ClusterPeer::Pods(Subject::Namespaces(of_house(SLYTHERIN)))];
    let of = |tier| {
        let policy = policy(tier, 10, Subject::Namespaces(of_house(GRYFFINDOR)));
        symmetric(policy, Action::Deny, &slytherin)
    };
    let mut admin = of(Tier::Admin);
    test.apply("admin", admin.clone());
    test.apply("baseline", of(Tier::Baseline));
    let allowed = vec![peers(&[namespaces(of_house(SLYTHERIN))])];
    let allows = NetworkPolicy {
        types: Some(vec![Direction::Ingress, Direction::Egress]),
        ingress: allowed.clone(),
        egress: allowed,
        ..NetworkPolicy::default()
    };
    test.cluster.policies.insert((GRYFFINDOR.to_owned(), "allows".to_owned()), allows);
    test.sub_test("deny ingress", between(Some(false), None));
    test.sub_test("deny egress", between(None, Some(false)));
    admin.ingress = vec![rule(Action::Pass, &slytherin)];
    test.apply("admin", admin.clone());
    test.sub_test("pass ingress to NetworkPolicy", between(Some(true), None));
    admin.egress = vec![rule(Action::Pass, &slytherin)];
    test.apply("admin", admin);
    test.sub_test("pass egress to NetworkPolicy", between(None, Some(true)));
    test.cluster.policies.clear();
    test.sub_test("pass ingress to Baseline", between(Some(false), None));
    test.sub_test("pass egress to Baseline", between(None, Some(false)));
    test.cases
}
