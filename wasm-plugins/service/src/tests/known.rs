//! What becomes of flows when the configuration changes.

use weft_proto::tables::v1::{ServiceTable, backend};

use super::node::*;

const CLIENT: &str = "10.0.1.5:5000";
const AT: &str = "10.96.0.1:53";
const A: &str = "10.0.2.8:53";
const B: &str = "10.0.2.9:53";

fn named(name: &str, backends: &[(&str, u8)]) -> ServiceTable {
    let table = service(name).at(ClusterIp, "10.96.0.1").at(LoadBalancer, "198.51.100.1");
    table
        .port(UDP, 53, 30_053, backends)
        .port(TCP, 53, 30_053, backends)
        .port(SCTP, 53, 30_053, backends)
}

fn dns(backends: &[(&str, u8)]) -> ServiceTable {
    named("ns/dns", backends)
}

/// A node with a UDP flow of the client to each address, all of them to A.
fn started() -> Node {
    let mut node = Node::new(&[dns(&[(A, READY)])]);
    for to in [AT, "198.51.100.1:53", "192.0.2.1:30053"] {
        assert_eq!(node.ask(POD, UDP, CLIENT, to), "to 10.0.2.8:53");
        assert_eq!(node.ask(POD, UDP, CLIENT, to), "pass", "asked again, it stays");
    }
    node
}

/// SVC-180: and the next time it stays there.
#[test]
fn udp_flow_moves_when_its_backend_is_gone() {
    let mut node = started();
    node.delta(&[dns(&[(B, READY)])], &[]);
    for to in [AT, "198.51.100.1:53", "192.0.2.1:30053"] {
        assert_eq!(node.ask(POD, UDP, CLIENT, to), "to 10.0.2.9:53");
        assert_eq!(node.ask(POD, UDP, CLIENT, to), "pass");
    }
    node.delta(&[dns(&[(B, READY), (A, READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass", "it does not move back");
}

/// SVC-181: from before there was an endpoint, or a Service at all.
#[test]
fn udp_client_that_starts_first_is_served_when_the_first_endpoint_comes() {
    let mut node = Node::new(&[]);
    let balancer = "198.51.100.1:53";
    assert_eq!(node.ask(POD, UDP, CLIENT, balancer), "pass");
    node.delta(&[dns(&[])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, balancer), "reject 1");
    node.delta(&[dns(&[(A, READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, balancer), "to 10.0.2.8:53");
    assert_eq!(node.ask(POD, UDP, CLIENT, balancer), "pass");
}

/// SVC-182
#[test]
fn udp_flow_does_not_move_to_an_endpoint_that_is_not_ready() {
    let mut node = started();
    node.delta(&[dns(&[])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass");
    // An endpoint that is not ready is not in the table, or in no set.
    node.delta(&[dns(&[(B, 0)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass");
    node.delta(&[dns(&[(B, READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "to 10.0.2.9:53");
}

/// SVC-183
#[test]
fn udp_flow_stays_with_a_backend_that_serves() {
    let mut node = started();
    for bits in [backend::COUNTS, 0, backend::LOCAL | backend::COUNTS] {
        node.delta(&[dns(&[(A, bits), (B, READY)])], &[]);
        assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass");
    }
    // Another port of the same pod is another backend.
    node.delta(&[dns(&[("10.0.2.8:54", READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "to 10.0.2.8:54");
}

/// SVC-184: and by a Service that is gone.
#[test]
fn udp_flow_stays_if_there_is_no_other_backend() {
    let mut node = started();
    node.delta(&[dns(&[])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass");
    node.delta(&[], &["ns/dns"]);
    for to in [AT, "198.51.100.1:53", "192.0.2.1:30053"] {
        assert_eq!(node.ask(POD, UDP, CLIENT, to), "pass");
    }
}

/// SVC-185
#[test]
fn only_flows_of_the_changed_port_move() {
    let other = || service("ns/other").at(LoadBalancer, "198.51.100.1").ready(UDP, 54, 0, &[A]);
    let mut node = started();
    node.delta(&[other()], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, "198.51.100.1:54"), "to 10.0.2.8:53");
    node.delta(&[dns(&[(B, READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, "198.51.100.1:54"), "pass");
    assert_eq!(node.ask(POD, UDP, CLIENT, "198.51.100.1:53"), "to 10.0.2.9:53");
}

/// SVC-186
#[test]
fn udp_flow_recovers_with_a_new_local_endpoint() {
    let local = |backends| ServiceTable { internal_local: true, ..dns(backends) };
    let mut node = Node::new(&[local(&[("10.0.1.7:53", READY)])]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "to 10.0.1.7:53");
    node.delta(&[local(&[(A, READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "pass", "the only one is not local");
    node.delta(&[local(&[(A, READY), ("10.0.1.9:53", READY)])], &[]);
    assert_eq!(node.ask(POD, UDP, CLIENT, AT), "to 10.0.1.9:53");
}

/// SVC-187, SVC-190, SVC-191, SVC-043
#[test]
fn connections_stay_whatever_happens() {
    for protocol in [TCP, SCTP] {
        let mut node = Node::new(&[dns(&[(A, READY)])]);
        assert_eq!(node.ask(POD, protocol, CLIENT, AT), "to 10.0.2.8:53");
        node.tcp_flags = 0x18;
        for services in [vec![dns(&[(B, READY)])], vec![dns(&[])], vec![], vec![dns(&[(B, READY)])]]
        {
            node.full(&services);
            assert_eq!(node.ask(POD, protocol, CLIENT, AT), "pass");
        }
    }
}

/// A connection from before there was a Service at its address is not the Service's; one that is
/// yet to be opened is.
#[test]
fn connection_from_before_the_service_stays_untranslated() {
    let mut node = Node::new(&[]);
    let balancer = "198.51.100.1:53";
    for protocol in [TCP, SCTP] {
        assert_eq!(node.ask(POD, protocol, CLIENT, balancer), "pass");
    }
    node.delta(&[dns(&[(A, READY)])], &[]);
    node.tcp_flags = 0x10;
    for protocol in [TCP, SCTP] {
        assert_eq!(node.ask(POD, protocol, CLIENT, balancer), "pass");
    }
    node.tcp_flags = 2;
    assert_eq!(node.ask(POD, TCP, CLIENT, balancer), "to 10.0.2.8:53");
}

/// SVC-137
#[test]
fn external_policy_that_changes_moves_no_flow() {
    let mut node = Node::new(&[dns(&[(A, READY)])]);
    for protocol in [TCP, UDP] {
        let answer = node.ask(OUTSIDE, protocol, "203.0.113.9:1", "198.51.100.1:53");
        assert_eq!(answer, "to 10.0.2.8:53 from 192.0.2.1:0");
    }
    node.delta(&[ServiceTable { external_local: true, ..dns(&[(A, READY)]) }], &[]);
    for protocol in [TCP, UDP] {
        assert_eq!(node.ask(OUTSIDE, protocol, "203.0.113.9:1", "198.51.100.1:53"), "pass");
    }
}

/// SVC-030
#[test]
fn address_that_another_service_gets_leads_to_that_one() {
    let mut node = Node::new(&[dns(&[(A, READY)])]);
    assert_eq!(node.spread(POD, "10.0.1.5", AT), ["to 10.0.2.8:53"]);
    node.delta(&[], &["ns/dns"]);
    assert_eq!(node.spread(POD, "10.0.1.5", AT), ["drop 4"]);
    node.delta(&[named("ns/another", &[(B, READY)])], &[]);
    assert_eq!(node.spread(POD, "10.0.1.5", AT), ["to 10.0.2.9:53"]);
    // At once as well.
    node.delta(&[dns(&[(A, READY)])], &["ns/another"]);
    assert_eq!(node.spread(POD, "10.0.1.5", AT), ["to 10.0.2.8:53"]);
}
