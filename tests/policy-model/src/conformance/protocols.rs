//! Rules in their order, and ports by number and by name, in one direction and of one protocol each.

use super::{
    CEDRIC, ConformanceCase, DRACO, GRYFFINDOR, HARRY, HUFFLEPUFF, LUNA, ORDERED, RAVENCLAW, Row,
    Test, by_name, ordered_rules, policy, port, probes, reorder, rules_mut,
};
use crate::Direction::{Egress, Ingress};
use crate::Protocol::{Sctp, Tcp, Udp};
use crate::{ClusterPolicy, ClusterPort, Direction, Protocol, Subject, Tier};

/// Two tests, one of each tier.
struct Both {
    name: &'static str,
    /// Of the policy in the Admin tier.
    priority: u32,
    direction: Direction,
    protocol: Protocol,
    /// The namespace whose pods are the subject.
    subject: &'static str,
    /// Of whom everything is accepted, denied and passed.
    all_of: &'static str,
    /// At which slytherin is denied and passed.
    port: u16,
    /// Who is denied but for a port.
    mostly_not: (&'static str, u16),
    /// What each of [`ORDERED`] tries.
    rows: [[Row; 2]; 6],
}

const ALL: [Both; 6] = [
    Both {
        name: "EgressTCP",
        priority: 6,
        direction: Egress,
        protocol: Tcp,
        subject: GRYFFINDOR,
        all_of: RAVENCLAW,
        port: 80,
        mostly_not: (HUFFLEPUFF, 8080),
        rows: [
            [(HARRY[0], LUNA[0], 80, true), (HARRY[1], LUNA[0], 8080, true)],
            [(HARRY[0], CEDRIC[1], 8080, true), (HARRY[1], CEDRIC[1], 80, false)],
            [(HARRY[0], LUNA[1], 80, false), (HARRY[1], LUNA[1], 8080, false)],
            [(HARRY[0], DRACO[0], 80, false), (HARRY[1], DRACO[0], 8080, true)],
            [(HARRY[0], LUNA[0], 80, true), (HARRY[1], LUNA[0], 8080, true)],
            [(HARRY[0], DRACO[0], 80, true), (HARRY[1], DRACO[0], 8080, true)],
        ],
    },
    Both {
        name: "EgressUDP",
        priority: 7,
        direction: Egress,
        protocol: Udp,
        subject: HUFFLEPUFF,
        all_of: RAVENCLAW,
        port: 5353,
        mostly_not: (GRYFFINDOR, 53),
        rows: [
            [(CEDRIC[0], LUNA[0], 53, true), (CEDRIC[1], LUNA[0], 5353, true)],
            [(CEDRIC[0], HARRY[1], 53, true), (CEDRIC[1], HARRY[1], 5353, false)],
            [(CEDRIC[0], LUNA[1], 53, false), (CEDRIC[1], LUNA[1], 5353, false)],
            [(CEDRIC[0], DRACO[0], 5353, false), (CEDRIC[1], DRACO[0], 53, true)],
            [(CEDRIC[0], LUNA[1], 5353, true), (CEDRIC[1], LUNA[1], 53, true)],
            [(CEDRIC[0], DRACO[0], 5353, true), (CEDRIC[1], DRACO[0], 53, true)],
        ],
    },
    Both {
        name: "EgressSCTP",
        priority: 8,
        direction: Egress,
        protocol: Sctp,
        subject: RAVENCLAW,
        all_of: GRYFFINDOR,
        port: 9003,
        mostly_not: (HUFFLEPUFF, 9003),
        rows: [
            [(LUNA[0], HARRY[0], 9003, true), (LUNA[1], HARRY[0], 9005, true)],
            [(LUNA[0], CEDRIC[1], 9003, true), (LUNA[1], CEDRIC[1], 9005, false)],
            [(LUNA[0], HARRY[1], 9003, false), (LUNA[1], HARRY[1], 9005, false)],
            [(LUNA[0], DRACO[0], 9003, false), (LUNA[1], DRACO[0], 9005, true)],
            [(LUNA[0], HARRY[1], 9003, true), (LUNA[1], HARRY[1], 9005, true)],
            [(LUNA[0], DRACO[0], 9003, true), (LUNA[1], DRACO[0], 9005, true)],
        ],
    },
    Both {
        name: "IngressTCP",
        priority: 3,
        direction: Ingress,
        protocol: Tcp,
        subject: GRYFFINDOR,
        all_of: RAVENCLAW,
        port: 80,
        mostly_not: (HUFFLEPUFF, 80),
        rows: [
            [(LUNA[0], HARRY[0], 80, true), (LUNA[1], HARRY[0], 8080, true)],
            [(CEDRIC[0], HARRY[1], 80, true), (CEDRIC[1], HARRY[1], 8080, false)],
            [(LUNA[0], HARRY[1], 80, false), (LUNA[1], HARRY[1], 8080, false)],
            [(DRACO[0], HARRY[0], 80, false), (DRACO[1], HARRY[0], 8080, true)],
            [(LUNA[0], HARRY[0], 80, true), (LUNA[1], HARRY[0], 8080, true)],
            [(DRACO[0], HARRY[0], 80, true), (DRACO[1], HARRY[0], 8080, true)],
        ],
    },
    Both {
        name: "IngressUDP",
        priority: 4,
        direction: Ingress,
        protocol: Udp,
        subject: HUFFLEPUFF,
        all_of: RAVENCLAW,
        port: 5353,
        mostly_not: (GRYFFINDOR, 53),
        rows: [
            [(LUNA[0], CEDRIC[0], 53, true), (LUNA[1], CEDRIC[0], 5353, true)],
            [(HARRY[0], CEDRIC[1], 53, true), (HARRY[1], CEDRIC[1], 5353, false)],
            [(LUNA[0], CEDRIC[1], 53, false), (LUNA[1], CEDRIC[1], 5353, false)],
            [(DRACO[0], CEDRIC[0], 5353, false), (DRACO[1], CEDRIC[0], 53, true)],
            [(LUNA[0], CEDRIC[1], 5353, true), (LUNA[1], CEDRIC[1], 53, true)],
            [(DRACO[0], CEDRIC[0], 5353, true), (DRACO[1], CEDRIC[0], 53, true)],
        ],
    },
    Both {
        name: "IngressSCTP",
        priority: 5,
        direction: Ingress,
        protocol: Sctp,
        subject: RAVENCLAW,
        all_of: GRYFFINDOR,
        port: 9003,
        mostly_not: (HUFFLEPUFF, 9003),
        rows: [
            [(HARRY[0], LUNA[0], 9003, true), (HARRY[1], LUNA[0], 9005, true)],
            [(CEDRIC[0], LUNA[1], 9003, true), (CEDRIC[1], LUNA[1], 9005, false)],
            [(HARRY[0], LUNA[1], 9003, false), (HARRY[1], LUNA[1], 9005, false)],
            [(DRACO[0], LUNA[0], 9003, false), (DRACO[1], LUNA[0], 9005, true)],
            [(HARRY[0], LUNA[1], 9003, true), (HARRY[1], LUNA[1], 9005, true)],
            [(DRACO[0], LUNA[0], 9003, true), (DRACO[1], LUNA[0], 9005, true)],
        ],
    },
];

impl Both {
    fn policy(&self, tier: Tier) -> ClusterPolicy {
        let priority = if tier == Tier::Admin { self.priority } else { 10 };
        let mut policy = policy(tier, priority, Subject::Namespaces(by_name(self.subject)));
        let at = |number| [port(self.protocol, number)];
        let (other, but) = self.mostly_not;
        *rules_mut(&mut policy, self.direction) =
            ordered_rules(tier, self.all_of, &at(self.port), (other, &at(but)));
        policy
    }

    fn cases(&self, tier: Tier) -> Vec<ConformanceCase> {
        let mut test = Test::new(tier, self.name);
        let mut policy = self.policy(tier);
        for (sub_test, rows) in ORDERED.into_iter().zip(&self.rows) {
            if tier == Tier::Baseline && sub_test.starts_with("pass") {
                continue;
            }
            reorder(sub_test, rules_mut(&mut policy, self.direction));
            test.apply("of-protocol", policy.clone());
            test.sub_test(sub_test, probes(self.protocol, rows));
        }
        test.cases
    }

    /// With a port's name in the last rule but one, which accepts.
    fn named(&self, tier: Tier, test: &str, port: &str, rows: [Row; 2]) -> Vec<ConformanceCase> {
        let mut test = Test::new(tier, test);
        let mut policy = self.policy(tier);
        for rule in rules_mut(&mut policy, self.direction).iter_mut().rev().skip(1).take(1) {
            rule.ports = vec![ClusterPort::Named(port.to_owned())];
        }
        test.apply("of-protocol", policy);
        test.sub_test("allow: named port", probes(self.protocol, &rows));
        test.cases
    }
}

/// By number.
pub(super) fn all(tier: Tier) -> Vec<ConformanceCase> {
    ALL.iter().flat_map(|both| both.cases(tier)).collect()
}

/// By name: `web` is TCP 80 and `dns` is UDP 53.
pub(super) fn named(tier: Tier) -> Vec<ConformanceCase> {
    let [egress_tcp, egress_udp, _, ingress_tcp, ingress_udp, _] = &ALL;
    let (egress, ingress) = ("EgressNamedPort", "IngressNamedPort");
    let web = |from: [_; 2], to| [(from[0], to, 80, true), (from[1], to, 8080, false)];
    let dns = |from: [_; 2], to| [(from[0], to, 53, true), (from[1], to, 5353, false)];
    let both = match tier {
        Tier::Admin => [
            egress_tcp.named(tier, egress, "web", web(HARRY, CEDRIC[1])),
            ingress_udp.named(tier, ingress, "dns", dns(HARRY, CEDRIC[1])),
        ],
        Tier::Baseline => [
            egress_udp.named(tier, egress, "dns", dns(CEDRIC, HARRY[1])),
            ingress_tcp.named(tier, ingress, "web", web(CEDRIC, HARRY[1])),
        ],
    };
    both.concat()
}
