//! Peers by networks and nodes.

use super::{
    CEDRIC, CENTAUR, ConformanceCase, DRACO, GRYFFINDOR, HARRY, LUNA, PodKey, Probe, SLYTHERIN,
    Test, by_name, pods_of, policy, port, probes, rule,
};
use crate::Protocol::{Sctp, Tcp, Udp};
use crate::upstream::addresses_of;
use crate::{Action, ClusterPeer, ClusterPort, ClusterRule, Selector, Subject, Tier};

fn subject(tier: Tier) -> Subject {
    match tier {
        Tier::Admin => pods_of(GRYFFINDOR),
        Tier::Baseline => Subject::Namespaces(by_name(GRYFFINDOR)),
    }
}

fn everywhere() -> ClusterPeer {
    let net = |text: &str| text.parse().expect("a network");
    ClusterPeer::Networks(vec![net("0.0.0.0/0"), net("::/0")])
}

/// What harry-potter-1 tries at these pods.
fn at(pods: &[PodKey], allowed: bool) -> Vec<Probe> {
    let of = |(protocol, port)| {
        let rows: Vec<_> = pods.iter().map(|to| (HARRY[1], *to, port, allowed)).collect();
        probes(protocol, &rows)
    };
    [(Tcp, 80), (Udp, 53), (Sctp, 9003)].into_iter().flat_map(of).collect()
}

/// Everywhere but to slytherin is denied, and then two pods are accepted by their addresses.
pub(super) fn networks(tier: Tier) -> Vec<ConformanceCase> {
    let mut test = Test::new(tier, "EgressInlineCIDRPeers");
    let priority = if tier == Tier::Admin { 85 } else { 10 };
    let mut policy = policy(tier, priority, subject(tier));
    policy.egress = vec![
        rule(Action::Accept, &[ClusterPeer::Pods(pods_of(SLYTHERIN))]),
        rule(Action::Deny, &[everywhere()]),
    ];
    test.apply("networks", policy.clone());
    let denied = at(&[LUNA[0], CEDRIC[0]], false);
    test.sub_test("deny: networks", [denied, at(&[DRACO[0]], true)].concat());
    let accepted = [LUNA[0], CEDRIC[0]];
    let addresses = accepted.iter().flat_map(|pod| addresses_of(&test.cluster, *pod));
    let accepted_networks = ClusterPeer::Networks(addresses.map(Into::into).collect());
    policy.egress.insert(0, rule(Action::Accept, &[accepted_networks]));
    test.apply("networks", policy);
    let others = at(&[LUNA[1], CEDRIC[1]], false);
    test.sub_test("allow: networks", [at(&accepted, true), others].concat());
    test.cases
}

/// Ports of nodes, of which some are accepted and, in the Admin tier, one is passed.
///
/// The suite leaves it to the scheduler whether a pod and centaur-1 are on one node: here each pod tries its
/// own node and the other one (NP-063, NP-142).
pub(super) fn nodes(tier: Tier) -> Vec<ConformanceCase> {
    let mut test = Test::new(tier, "EgressNodePeers");
    let linux = ClusterPeer::Nodes(Selector::label("kubernetes.io/os", "linux"));
    let at = |action, port: ClusterPort| ClusterRule {
        action,
        peers: vec![linux.clone()],
        ports: vec![port],
    };
    let priority = if tier == Tier::Admin { 75 } else { 10 };
    let mut policy = policy(tier, priority, subject(tier));
    let both = |from, protocol, port, allowed| {
        probes(protocol, &CENTAUR.map(|to| (from, to, port, allowed)))
    };
    let harry = HARRY[1];
    match tier {
        Tier::Admin => {
            let slytherin = ClusterPeer::Pods(pods_of(SLYTHERIN));
            policy.egress = vec![
                at(Action::Accept, port(Tcp, 34345)),
                at(Action::Pass, port(Udp, 34347)),
                rule(Action::Deny, &[slytherin, linux.clone(), everywhere()]),
            ];
            test.apply("nodes", policy);
            test.sub_test("allow: node", both(harry, Tcp, 34345, true));
            test.sub_test("pass: node", both(harry, Udp, 34347, true));
            let denied = [
                both(harry, Tcp, 34346, false),
                both(harry, Udp, 34349, false),
                both(harry, Sctp, 34351, false),
            ];
            test.sub_test("deny: node", denied.concat());
        }
        Tier::Baseline => {
            policy.egress = vec![
                at(Action::Accept, ClusterPort::Ports(Tcp, Some((34345, 34346)))),
                rule(Action::Deny, &[linux.clone(), everywhere()]),
            ];
            test.apply("nodes", policy);
            let allowed = [both(HARRY[0], Tcp, 34345, true), both(harry, Tcp, 34346, true)];
            test.sub_test("allow: node", allowed.concat());
            let denied = [both(harry, Udp, 34349, false), both(harry, Sctp, 34351, false)];
            test.sub_test("deny: node", denied.concat());
        }
    }
    test.cases
}
