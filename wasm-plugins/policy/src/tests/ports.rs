//! Ports and protocols.

use std::net::SocketAddr;

use weft_policy_sdk::flags;
use weft_proto::tables::v1::PolicyRule;

use super::node::*;

fn node(rules: &[PolicyRule]) -> Node {
    Node::new(&[isolated(INGRESS, rules)])
}

/// Which of these get in, in order.
fn allowed(node: &mut Node, protocol: u8, ports: &[u16]) -> Vec<u16> {
    ports.iter().copied().filter(|port| node.enter(protocol, C, A, *port) == "pass").collect()
}

/// NP-040: the port where the packet goes, not the one that it comes from.
#[test]
fn number_is_the_destinations() {
    let mut node = node(&[any().port(TCP, 80, 80)]);
    assert_eq!(allowed(&mut node, TCP, &[79, 80, 81, 40_000]), [80]);
    let [from, to] = ["10.0.2.5:80", "10.0.1.5:40000"].map(|a| a.parse().unwrap());
    let told = flags::DESTINATION_LOCAL_POD;
    assert_eq!(node.ask(At::Ingress, told, TCP, from, to), format!("drop {NOT_IN}"));
}

/// NP-046
#[test]
fn ranges_include_both_ends() {
    let mut node = node(&[any().port(TCP, 53, 80).port(UDP, 80, 80), any().port(TCP, 90, 90)]);
    assert_eq!(allowed(&mut node, TCP, &[52, 53, 60, 80, 81, 89, 90, 91]), [53, 60, 80, 90]);
    assert_eq!(allowed(&mut node, UDP, &[53, 79, 80, 81, 90]), [80]);
}

/// NP-048, NP-049, NP-050
#[test]
fn rule_for_one_protocol_admits_no_other_and_isolates() {
    for (protocol, others) in [(TCP, [UDP, SCTP]), (UDP, [TCP, SCTP]), (SCTP, [TCP, UDP])] {
        let mut node = node(&[any().port(protocol, 80, 80)]);
        assert_eq!(allowed(&mut node, protocol, &[80, 81]), [80]);
        for other in others {
            assert!(allowed(&mut node, other, &[80, 81]).is_empty());
        }
    }
}

/// NP-051
#[test]
fn protocol_without_ports_admits_all_of_its_ports() {
    let mut node = node(&[any().port(UDP, 0, 0)]);
    let ports = [0, 1, 53, 65_535];
    assert_eq!(allowed(&mut node, UDP, &ports), ports);
    assert!(allowed(&mut node, TCP, &ports).is_empty());
    assert!(allowed(&mut node, SCTP, &ports).is_empty());
}

/// NP-053: what has no ports follows the peers of rules without ports.
#[test]
fn protocols_without_ports_need_a_rule_without_ports() {
    let every = any().port(TCP, 0, 0).port(UDP, 0, 0).port(SCTP, 0, 0);
    let mut node = node(&[every, sets(&[4])]);
    for protocol in [ICMP, 58, 47, 136] {
        assert_eq!(node.enter(protocol, C, A, 80), format!("drop {NOT_IN}"));
        assert_eq!(node.enter(protocol, D, A, 80), "pass");
    }
    assert_eq!(node.enter(TCP, C, A, 80), "pass");
}

/// NP-055: of a later fragment the ports are told that its first one had.
#[test]
fn fragments_have_the_ports_of_their_flow() {
    let mut node = node(&[any().port(UDP, 80, 80)]);
    let from: SocketAddr = "10.0.2.5:5000".parse().unwrap();
    for (port, answer) in [(80, "pass".to_owned()), (81, format!("drop {NOT_IN}"))] {
        let to = SocketAddr::new(A.parse().unwrap(), port);
        for fragment in [flags::FRAGMENT, flags::FRAGMENT | flags::LATER_FRAGMENT] {
            let told = flags::DESTINATION_LOCAL_POD | fragment;
            assert_eq!(node.ask(At::Ingress, told, UDP, from, to), answer);
        }
    }
}

/// NP-047: adjacent ports and the full range are one range, and a search does not miss what begins
/// far before.
#[test]
fn ranges_that_touch_and_overlap_are_one() {
    let mut rule = any();
    for port in (1000..3000).rev() {
        rule = rule.port(TCP, port, port);
    }
    let mut many = node(&[rule, any().port(TCP, 2000, 9000).port(TCP, 8000, 8001)]);
    let ports = [999, 1000, 2999, 3000, 8000, 8500, 9000, 9001];
    assert_eq!(allowed(&mut many, TCP, &ports), ports[1..7]);
    let mut rules = vec![any().port(TCP, 1, 65_535)];
    rules.extend((0..500).map(|n| sets(&[4]).port(TCP, 100 + n, 100 + n)));
    let mut nested = node(&rules);
    assert_eq!(allowed(&mut nested, TCP, &[0, 1, 100, 700, 65_535]), [1, 100, 700, 65_535]);
    assert!(allowed(&mut nested, UDP, &[1, 100]).is_empty());
}
