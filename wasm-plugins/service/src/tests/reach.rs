//! Who reaches which backends, as whom, and who is refused.

use weft_policy_testing::NativeMap;
use weft_proto::tables::v1::{Range, ServiceSettings, ServiceTable, ServiceTables, backend};

use super::node::*;
use crate::{NO_LOCAL_ENDPOINT, NO_SERVICE, NO_SOURCE, OUTSIDE_SOURCE_RANGES};

const CLIENTS: [(u32, &str); 3] =
    [(POD, "10.0.1.5"), (HOST, "192.0.2.1"), (OUTSIDE, "203.0.113.9")];

/// A Service with all kinds of addresses, port 80 and node port 30080, one pod on each node.
fn everywhere(backends: &[(&str, u8)]) -> ServiceTable {
    service("ns/web")
        .at(ClusterIp, "10.96.0.1")
        .at(LoadBalancer, "198.51.100.1")
        .at(ExternalIp, "198.51.100.2")
        .port(TCP, 80, 30_080, backends)
        .port(UDP, 80, 30_080, backends)
        .port(SCTP, 80, 30_080, backends)
}

const LOCAL: &str = "10.0.1.7:8080";
const REMOTE: &str = "10.0.2.8:8080";
const CLUSTER_IP: &str = "10.96.0.1:80";
const BALANCER: &str = "198.51.100.1:80";
const EXTERNAL_IP: &str = "198.51.100.2:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const OTHER_NODE_PORT: &str = "192.0.2.2:30080";
const ALL: [&str; 4] = [CLUSTER_IP, BALANCER, EXTERNAL_IP, NODE_PORT];

fn internal_local(table: ServiceTable) -> ServiceTable {
    ServiceTable { internal_local: true, ..table }
}

fn external_local(table: ServiceTable) -> ServiceTable {
    ServiceTable { external_local: true, ..table }
}

fn drops() -> String {
    format!("drop {NO_LOCAL_ENDPOINT}")
}

/// SVC-020, SVC-022, SVC-061, SVC-066: of a pod's packets the source is kept.
#[test]
fn all_addresses_of_a_service_lead_to_all_backends() {
    for protocol in [TCP, UDP, SCTP] {
        let mut node = Node::new(&[everywhere(&[(LOCAL, READY), (REMOTE, READY)])]);
        for to in ALL.into_iter().chain([OTHER_NODE_PORT]) {
            let answers = node.spread_of(POD, protocol, "10.0.1.5", to);
            assert_eq!(answers, ["to 10.0.1.7:8080", "to 10.0.2.8:8080"], "{to}");
            let answers = node.spread_of(HOST, protocol, "10.0.1.1", to);
            assert_eq!(answers, ["to 10.0.1.7:8080", "to 10.0.2.8:8080"], "{to}");
        }
        for to in ALL {
            let answers = node.spread_of(OUTSIDE, protocol, "203.0.113.9", to);
            let remote = "to 10.0.2.8:8080 from 192.0.2.1:0";
            assert_eq!(answers, ["to 10.0.1.7:8080", remote], "{to}");
        }
    }
}

/// SVC-021
#[test]
fn protocols_on_one_port_are_apart() {
    let both = service("ns/dns").at(ClusterIp, "10.96.0.10");
    let both = both.ready(TCP, 53, 0, &["10.0.1.7:53"]).ready(UDP, 53, 0, &["10.0.1.8:53"]);
    let mut node = Node::new(&[both]);
    assert_eq!(node.spread(POD, "10.0.1.5", "10.96.0.10:53"), ["to 10.0.1.7:53"]);
    let udp = |node: &mut Node| node.spread_of(POD, UDP, "10.0.1.5", "10.96.0.10:53");
    assert_eq!(udp(&mut node), ["to 10.0.1.8:53"]);
    let one = service("ns/dns").at(ClusterIp, "10.96.0.10").ready(UDP, 53, 0, &["10.0.1.8:53"]);
    node.delta(&[one], &[]);
    assert_eq!(node.spread(POD, "10.0.1.5", "10.96.0.10:53"), ["reject 1"]);
    assert_eq!(udp(&mut node), ["to 10.0.1.8:53"]);
}

/// SVC-027: also of protocols that have no ports.
#[test]
fn what_a_service_does_not_serve_is_rejected() {
    let mut node = Node::new(&[everywhere(&[(LOCAL, READY)])]);
    for (client, from) in CLIENTS {
        let from = format!("{from}:1000");
        for to in ["10.96.0.1", "198.51.100.1", "198.51.100.2"] {
            assert_eq!(node.ask(client, TCP, &from, &format!("{to}:81")), "reject 1");
            assert_eq!(node.ask(client, TCP, &from, &format!("{to}:30080")), "reject 1");
            for protocol in [1, 47, 58] {
                assert_eq!(node.ask(client, protocol, &from, &format!("{to}:80")), "reject 1");
            }
        }
    }
}

/// SVC-028
#[test]
fn cluster_ip_that_nobody_has_is_dropped() {
    let mut node = Node::new(&[everywhere(&[(LOCAL, READY)])]);
    let dropped = format!("drop {NO_SERVICE}");
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "10.96.255.1:80"), dropped);
    assert_eq!(node.ask(POD, UDP, "[fd00:1::5]:1", "[fd00:96::ffff]:80"), dropped);
    assert_eq!(node.ask(POD, 1, "10.0.1.5:1", "10.96.255.1:1"), dropped);
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "10.97.0.1:80"), "pass");
    assert_eq!(node.ask(POD, UDP, "[fd00:1::5]:1", "[fd00:96::1:0]:80"), "pass");
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "10.0.2.9:80"), "pass");
}

/// SVC-029: source is masqueraded where the reply would not come back.
#[test]
fn cluster_ip_serves_clients_from_outside() {
    let mut node = Node::new(&[everywhere(&[(REMOTE, READY)])]);
    let answer = node.ask(OUTSIDE, TCP, "203.0.113.9:1", CLUSTER_IP);
    assert_eq!(answer, "to 10.0.2.8:8080 from 192.0.2.1:0");
}

/// Replies are the fabric's to translate.
#[test]
fn replies_pass() {
    use weft_pipeline::{Plugin, Verdict};
    use weft_policy_sdk::{Descriptor, flags};
    let mut node = Node::new(&[everywhere(&[(LOCAL, READY)])]);
    let (from, to) = ("10.0.1.7:8080".parse().unwrap(), CLUSTER_IP.parse().unwrap());
    let told = described(TCP, from, to, node.now, 0x12);
    let told = Descriptor { flags: POD | flags::REPLY | flags::FIRST, ..told };
    assert_eq!(node.plugin.on_packet(&told, &[0x45]).unwrap().verdict, Verdict::Continue);
}

/// SVC-063: of a node, only node ports of Services, and of others' only for own clients.
#[test]
fn other_traffic_of_nodes_is_left_alone() {
    let mut node = Node::new(&[everywhere(&[(LOCAL, READY)])]);
    for (client, from) in CLIENTS {
        let from = format!("{from}:1000");
        assert_eq!(node.ask(client, TCP, &from, "192.0.2.1:22"), "pass");
        assert_eq!(node.ask(client, TCP, &from, "192.0.2.1:30081"), "pass");
        assert_eq!(node.ask(client, TCP, &from, "203.0.113.77:30080"), "pass");
        assert_eq!(node.ask(client, 1, &from, "192.0.2.1:30080"), "pass");
    }
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", OTHER_NODE_PORT), "pass");
}

/// SVC-027, SVC-063: an address that a node has too keeps the node's own ports.
#[test]
fn node_whose_address_is_a_services_keeps_its_own_ports() {
    let table = service("ns/web").at(LoadBalancer, "192.0.2.1").ready(TCP, 80, 0, &[LOCAL]);
    let mut node = Node::new(&[table]);
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", "192.0.2.1:80"), "to 10.0.1.7:8080");
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", "192.0.2.1:22"), "pass");
}

/// SVC-060, SVC-062: at the address that stands for the host as well, which the kernel uses.
#[test]
fn node_port_is_served_at_each_address_of_the_node() {
    let table = service("ns/web").ready(TCP, 80, 30_080, &[LOCAL, "[fd00:1::7]:8080"]);
    let mut node = Node::new(&[table]);
    for to in ["192.0.2.1:30080", "10.0.1.1:30080"] {
        assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", to), "to 10.0.1.7:8080");
        assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", to), "to 10.0.1.7:8080");
    }
    for to in ["[2001:db8::1]:30080", "[fd00:1::1]:30080"] {
        assert_eq!(node.ask(HOST, TCP, "[fd00:1::1]:1", to), "to [fd00:1::7]:8080");
    }
}

/// SVC-064, SVC-065
#[test]
fn node_addresses_are_followed() {
    let table = service("ns/web").ready(TCP, 80, 30_080, &[LOCAL]);
    let mut node = Node::new(std::slice::from_ref(&table));
    let mut settings = settings();
    settings.nodes[0].addresses = vec![bytes("192.0.2.99")];
    let delta = ServiceTables { settings: Some(settings), ..ServiceTables::default() };
    let delta = prost::Message::encode_to_vec(&delta);
    node.plugin.configure(weft_policy_sdk::Config::Delta(&delta)).unwrap();
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "192.0.2.1:30080"), "pass");
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "192.0.2.99:30080"), "to 10.0.1.7:8080");
}

/// SVC-067, SVC-132
#[test]
fn external_policy_local_keeps_to_the_node_and_keeps_the_source() {
    let table = external_local(everywhere(&[(LOCAL, READY), (REMOTE, READY)]));
    let mut node = Node::new(&[table]);
    for to in [BALANCER, EXTERNAL_IP, NODE_PORT] {
        assert_eq!(node.spread(OUTSIDE, "203.0.113.9", to), ["to 10.0.1.7:8080"], "{to}");
    }
    assert_eq!(node.spread(OUTSIDE, "203.0.113.9", CLUSTER_IP).len(), 2);
}

fn restricted(ranges: &[&str]) -> ServiceTable {
    let source_ranges: Vec<Range> = ranges.iter().map(|text| range(text)).collect();
    ServiceTable { source_ranges, ..everywhere(&[(LOCAL, READY)]) }
}

/// SVC-068, SVC-087, SVC-090
#[test]
fn source_ranges_hold_for_the_load_balancer_and_for_everyone() {
    let outside = format!("drop {OUTSIDE_SOURCE_RANGES}");
    let mut node = Node::new(&[restricted(&["203.0.113.0/24", "10.0.1.4/31"])]);
    let to = "to 10.0.1.7:8080";
    for (client, from, answer) in [
        (OUTSIDE, "203.0.113.255:1", to),
        (OUTSIDE, "203.0.112.255:1", &outside),
        (POD, "10.0.1.5:1", to),
        (POD, "10.0.1.6:1", &outside),
        (HOST, "192.0.2.1:1", &outside),
    ] {
        assert_eq!(node.ask(client, TCP, from, BALANCER), answer, "{from}");
        for other in [CLUSTER_IP, EXTERNAL_IP, NODE_PORT] {
            assert_eq!(node.ask(client, TCP, from, other), to, "{from} {other}");
        }
    }
}

/// SVC-087: not even that there is no endpoint is told to who is outside.
#[test]
fn source_ranges_come_before_endpoints() {
    let mut table = restricted(&["203.0.113.0/24"]);
    table.ports = everywhere(&[]).ports;
    let mut node = Node::new(&[table]);
    let dropped = format!("drop {OUTSIDE_SOURCE_RANGES}");
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.112.1:1", BALANCER), dropped);
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.1:1", BALANCER), "reject 1");
}

/// SVC-088
#[test]
fn node_inside_the_ranges_reaches_the_load_balancer_under_any_of_its_addresses() {
    let mut node = Node::new(&[restricted(&["192.0.2.1/32"])]);
    let dropped = format!("drop {OUTSIDE_SOURCE_RANGES}");
    for from in ["192.0.2.1:1", "198.51.100.1:1", "10.0.1.1:1"] {
        assert_eq!(node.ask(HOST, TCP, from, BALANCER), "to 10.0.1.7:8080", "{from}");
    }
    for (client, from) in [(HOST, "192.0.2.9:3"), (POD, "198.51.100.1:3"), (POD, "10.0.1.5:3")] {
        assert_eq!(node.ask(client, TCP, from, BALANCER), dropped, "{from}");
    }
    node.delta(&[restricted(&["192.0.2.2/32"])], &[]);
    assert_eq!(node.ask(HOST, TCP, "198.51.100.1:2", BALANCER), dropped);
}

/// SVC-089
#[test]
fn family_without_source_ranges_is_not_restricted() {
    let outside = format!("drop {OUTSIDE_SOURCE_RANGES}");
    let mut node = Node::new(&[restricted(&["2001:db8:5::/48"])]);
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", BALANCER), "to 10.0.1.7:8080");
    let table = service("ns/six").at(LoadBalancer, "2001:db8:9::1");
    let table = table.ready(TCP, 80, 0, &["[fd00:1::7]:8080"]);
    for (ranges, answer) in [
        (vec![range("203.0.113.0/24")], "to [fd00:1::7]:8080"),
        (vec![range("203.0.113.0/24"), range("2001:db8:5::/48")], &outside),
        (vec![range("::/0")], "to [fd00:1::7]:8080"),
    ] {
        node.delta(&[ServiceTable { source_ranges: ranges, ..table.clone() }], &[]);
        assert_eq!(node.ask(OUTSIDE, TCP, "[2001:db8:6::1]:1", "[2001:db8:9::1]:80"), answer);
        node.forget();
    }
    // All of IPv6 is nothing of IPv4.
    node.delta(&[restricted(&["::/0", "203.0.113.0/24"])], &[]);
    assert_eq!(node.ask(OUTSIDE, TCP, "203.0.112.9:1", BALANCER), outside);
}

/// SVC-094, SVC-095, SVC-135: and a node's clients of its own node port, section 20.
#[test]
fn own_clients_get_the_whole_cluster_whatever_the_external_policy() {
    let mut node = Node::new(&[external_local(everywhere(&[(REMOTE, READY)]))]);
    for (client, from) in [(POD, "10.0.1.5:1"), (HOST, "192.0.2.1:1")] {
        for to in [BALANCER, EXTERNAL_IP, NODE_PORT] {
            assert_eq!(node.ask(client, TCP, from, to), "to 10.0.2.8:8080", "{from} {to}");
        }
    }
}

/// SVC-120, SVC-121, SVC-124
#[test]
fn internal_policy_local_holds_for_the_cluster_ip_only() {
    let mut node = Node::new(&[internal_local(everywhere(&[(LOCAL, READY), (REMOTE, READY)]))]);
    for (client, from) in CLIENTS {
        assert_eq!(node.spread(client, from, CLUSTER_IP), ["to 10.0.1.7:8080"]);
        for to in [BALANCER, EXTERNAL_IP, NODE_PORT] {
            assert_eq!(node.spread(client, from, to).len(), 2, "{from} {to}");
        }
    }
}

/// SVC-122, SVC-123, SVC-130, SVC-131, SVC-173
#[test]
fn policy_local_without_a_local_backend_drops_or_rejects() {
    for (backends, answer) in [
        (&[(REMOTE, READY)][..], drops()),
        (&[], "reject 1".to_owned()),
        (&[(LOCAL, 0)], "reject 1".to_owned()),
    ] {
        let mut node = Node::new(&[internal_local(external_local(everywhere(backends)))]);
        for (client, from) in CLIENTS {
            assert_eq!(node.ask(client, TCP, &format!("{from}:1"), CLUSTER_IP), answer);
        }
        for to in [BALANCER, EXTERNAL_IP, NODE_PORT] {
            assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", to), answer, "{to}");
        }
    }
}

/// SVC-134
#[test]
fn policies_are_apart() {
    for (internal, external) in [(false, false), (false, true), (true, false), (true, true)] {
        let table = everywhere(&[(LOCAL, READY), (REMOTE, READY)]);
        let table = ServiceTable { internal_local: internal, external_local: external, ..table };
        let mut node = Node::new(&[table]);
        let expected = |local: bool| if local { 1 } else { 2 };
        assert_eq!(node.spread(POD, "10.0.1.5", CLUSTER_IP).len(), expected(internal));
        for to in [BALANCER, EXTERNAL_IP, NODE_PORT] {
            assert_eq!(node.spread(POD, "10.0.1.5", to).len(), 2);
            assert_eq!(node.spread(OUTSIDE, "203.0.113.9", to).len(), expected(external));
        }
    }
}

/// SVC-136
#[test]
fn other_nodes_node_port_has_that_nodes_local_set() {
    let mut node = Node::new(&[external_local(everywhere(&[(LOCAL, READY), (REMOTE, READY)]))]);
    for (client, from) in [(POD, "10.0.1.5"), (HOST, "10.0.1.1")] {
        assert_eq!(node.spread(client, from, OTHER_NODE_PORT), ["to 10.0.2.8:8080"]);
    }
    for (backends, answer) in [(&[(LOCAL, READY)][..], drops()), (&[], "reject 1".to_owned())] {
        node.delta(&[external_local(everywhere(backends))], &[]);
        assert_eq!(node.ask(POD, TCP, "10.0.1.5:9", OTHER_NODE_PORT), answer);
    }
}

/// SVC-140, SVC-141: the agent says which backends are in which set; they are apart.
#[test]
fn sets_of_the_cluster_and_of_the_node_are_apart() {
    // A local pod that terminates, and a ready one of the other node.
    let local = (LOCAL, backend::LOCAL | backend::COUNTS);
    let table = internal_local(external_local(everywhere(&[local, (REMOTE, READY)])));
    let mut node = Node::new(&[table]);
    assert_eq!(node.spread(POD, "10.0.1.5", CLUSTER_IP), ["to 10.0.1.7:8080"]);
    assert_eq!(node.spread(POD, "10.0.1.5", BALANCER), ["to 10.0.2.8:8080"]);
    assert_eq!(node.spread(OUTSIDE, "203.0.113.9", NODE_PORT), ["to 10.0.1.7:8080"]);
    // Both terminate: both sets fall back.
    let serving = backend::CLUSTER | backend::LOCAL | backend::COUNTS;
    node.delta(&[everywhere(&[(LOCAL, serving), (REMOTE, serving)])], &[]);
    assert_eq!(node.spread(POD, "10.0.1.5", CLUSTER_IP).len(), 2);
}

/// SVC-142, SVC-172: what is in no set gets nothing, whether or not it counts.
#[test]
fn backend_of_no_set_is_no_fallback() {
    let mut node = Node::new(&[everywhere(&[(LOCAL, 0)])]);
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", CLUSTER_IP), "reject 1");
    node.delta(&[everywhere(&[(LOCAL, backend::COUNTS)])], &[]);
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", CLUSTER_IP), drops());
}

/// SVC-160, SVC-161, SVC-023, SVC-067: sources of what goes to addresses of nodes. A client outside keeps
/// its own towards the host itself.
#[test]
fn backends_that_are_no_pods_are_reached_with_a_source_that_comes_back() {
    for (backend, own) in [("192.0.2.1:6443", true), ("192.0.2.2:6443", false)] {
        let mut node = Node::new(&[everywhere(&[(backend, READY)])]);
        for to in ALL {
            let kept = format!("to {backend}");
            let masqueraded = format!("to {backend} from 10.0.1.1:0");
            assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", to), kept, "{own}");
            assert_eq!(node.ask(HOST, TCP, "192.0.2.1:1", to), masqueraded, "{own}");
            let outside = if own { &kept } else { &masqueraded };
            assert_eq!(node.ask(OUTSIDE, TCP, "203.0.113.9:1", to), *outside, "{own}");
        }
    }
}

/// SVC-162, SVC-163: an endpoint of no node is in no node's set.
#[test]
fn backend_of_no_node_is_for_the_cluster_only() {
    let mut node = Node::new(&[internal_local(everywhere(&[("203.0.113.80:80", READY)]))]);
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", BALANCER), "to 203.0.113.80:80");
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", CLUSTER_IP), drops());
    // Not even on a node that does not know its own index.
    let mut settings = settings();
    settings.own_node = 0;
    let tables = ServiceTables {
        settings: Some(settings),
        ..tables(&[internal_local(everywhere(&[("203.0.113.80:80", READY)]))])
    };
    let mut node = Node::with(&tables, NativeMap::default());
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", CLUSTER_IP), drops());
}

/// SVC-166, SVC-167, SVC-168
#[test]
fn pod_that_reaches_itself_comes_from_the_node() {
    let mut node = Node::new(&[everywhere(&[(LOCAL, READY)])]);
    for protocol in [TCP, UDP, SCTP] {
        for to in ALL.into_iter().chain([OTHER_NODE_PORT]) {
            let answers = node.spread_of(POD, protocol, "10.0.1.7", to);
            assert_eq!(answers, ["to 10.0.1.7:8080 from 192.0.2.1:0"]);
        }
    }
    node.delta(&[everywhere(&[(LOCAL, READY), (REMOTE, READY)])], &[]);
    let answers = node.spread(POD, "10.0.1.7", CLUSTER_IP);
    assert_eq!(answers, ["to 10.0.1.7:8080 from 192.0.2.1:0", "to 10.0.2.8:8080"]);
}

/// What needs another source is not sent out with one that replies would miss.
#[test]
fn packet_is_dropped_if_its_source_is_not_configured() {
    let backends = [(LOCAL, READY), (REMOTE, READY), ("192.0.2.1:80", READY)];
    let mut settings = settings();
    settings.node_sources = vec![bytes("2001:db8::1")];
    settings.host_sources = Vec::new();
    let tables = ServiceTables { settings: Some(settings), ..tables(&[everywhere(&backends)]) };
    let mut node = Node::with(&tables, NativeMap::default());
    let dropped = format!("drop {NO_SOURCE}");
    let (local, remote, own) = ("to 10.0.1.7:8080", "to 10.0.2.8:8080", "to 192.0.2.1:80");
    assert_eq!(node.spread(OUTSIDE, "203.0.113.9", CLUSTER_IP), [dropped.as_str(), local, own]);
    assert_eq!(node.spread(HOST, "192.0.2.1", CLUSTER_IP), [dropped.as_str(), local, remote]);
    assert_eq!(node.spread(POD, "10.0.1.7", CLUSTER_IP)[0], dropped);
}

/// SVC-170, SVC-171
#[test]
fn service_without_endpoints_rejects_everyone() {
    let mut node = Node::new(&[everywhere(&[])]);
    for (client, from) in CLIENTS {
        for protocol in [TCP, UDP, SCTP] {
            for to in ALL {
                let answer = node.ask(client, protocol, &format!("{from}:1"), to);
                assert_eq!(answer, "reject 1", "{from} {to}");
            }
        }
    }
}

/// SVC-174
#[test]
fn first_endpoint_serves_the_next_attempt() {
    let mut node = Node::new(&[everywhere(&[])]);
    for protocol in [TCP, UDP] {
        assert_eq!(node.ask(POD, protocol, "10.0.1.5:1", CLUSTER_IP), "reject 1");
    }
    node.delta(&[everywhere(&[(LOCAL, READY)])], &[]);
    for protocol in [TCP, UDP] {
        assert_eq!(node.ask(POD, protocol, "10.0.1.5:1", CLUSTER_IP), "to 10.0.1.7:8080");
    }
}

/// SVC-200, SVC-201
#[test]
fn each_port_reaches_its_own_target_port() {
    let table = service("ns/web")
        .at(ClusterIp, "10.96.0.1")
        .ready(TCP, 80, 30_080, &["10.0.1.7:8080", "10.0.2.8:9090"])
        .ready(TCP, 443, 30_443, &["10.0.1.7:8443"]);
    let mut node = Node::new(&[table]);
    let plain = ["to 10.0.1.7:8080", "to 10.0.2.8:9090"];
    assert_eq!(node.spread(POD, "10.0.1.5", "10.96.0.1:80"), plain);
    assert_eq!(node.spread(POD, "10.0.1.5", "192.0.2.1:30080"), plain);
    assert_eq!(node.spread(POD, "10.0.1.5", "10.96.0.1:443"), ["to 10.0.1.7:8443"]);
    assert_eq!(node.spread(POD, "10.0.1.5", "192.0.2.1:30443"), ["to 10.0.1.7:8443"]);
}

/// SVC-210, SVC-211, SVC-212
#[test]
fn families_are_apart() {
    let two = |backends| {
        let table = service("ns/web").at(ClusterIp, "10.96.0.1").at(ClusterIp, "fd00:96::1");
        table.ready(TCP, 80, 30_080, backends)
    };
    let mut node = Node::new(&[two(&["[fd00:2::8]:80"])]);
    let ask = |node: &mut Node, four: &str, six: &str| {
        let to = |node: &mut Node, from, to: &str| {
            node.forget();
            node.ask(POD, TCP, from, to)
        };
        assert_eq!(to(node, "10.0.1.5:1", "10.96.0.1:80"), four);
        assert_eq!(to(node, "10.0.1.5:1", "192.0.2.1:30080"), four);
        assert_eq!(to(node, "[fd00:1::5]:1", "[fd00:96::1]:80"), six);
    };
    ask(&mut node, "reject 1", "to [fd00:2::8]:80");
    node.delta(&[two(&["10.0.1.7:80"])], &[]);
    ask(&mut node, "to 10.0.1.7:80", "reject 1");
    let one = service("ns/web").at(ClusterIp, "10.96.0.1").ready(TCP, 80, 30_080, &["10.0.1.7:80"]);
    node.delta(&[one], &[]);
    ask(&mut node, "to 10.0.1.7:80", &format!("drop {NO_SERVICE}"));
}

/// SVC-213
#[test]
fn all_of_it_holds_without_ipv4() {
    let mut settings = settings();
    settings.node_sources = vec![bytes("2001:db8::1")];
    settings.host_sources = vec![bytes("fd00:1::1")];
    let backends = ["[fd00:1::7]:80", "[fd00:2::8]:80", "[2001:db8::1]:80"];
    let table = service("ns/web").at(ClusterIp, "fd00:96::1").at(LoadBalancer, "2001:db8:9::1");
    let table = external_local(table.ready(TCP, 80, 30_080, &backends));
    let tables = ServiceTables { settings: Some(settings), ..tables(&[table]) };
    let mut node = Node::with(&tables, NativeMap::default());
    let (own, local, remote) = ("to [2001:db8::1]:80", "to [fd00:1::7]:80", "to [fd00:2::8]:80");
    let own_from = "to [2001:db8::1]:80 from [fd00:1::1]:0";
    assert_eq!(node.spread(POD, "fd00:1::5", "[fd00:96::1]:80"), [own, local, remote]);
    for to in ["[2001:db8:9::1]:80", "[2001:db8::1]:30080"] {
        assert_eq!(node.spread(OUTSIDE, "2001:db8:6::1", to), [own, local]);
        assert_eq!(node.spread(HOST, "fd00:1::1", to), [own_from, local, remote]);
    }
    let hairpin = "to [fd00:1::7]:80 from [2001:db8::1]:0";
    assert_eq!(node.spread(POD, "fd00:1::7", "[fd00:96::1]:80"), [own, hairpin, remote]);
    assert_eq!(node.spread(POD, "fd00:1::5", "[2001:db8::2]:30080"), [remote]);
}

fn with_settings(change: impl FnOnce(&mut ServiceSettings)) -> Node {
    let mut tables = tables(&[everywhere(&[(LOCAL, READY)])]);
    change(tables.settings.as_mut().unwrap());
    Node::with(&tables, NativeMap::default())
}

/// SVC-028: all of IPv6 is nothing of IPv4.
#[test]
fn range_of_one_family_holds_nothing_of_the_other() {
    let mut node = with_settings(|settings| settings.service_cidrs = vec![range("::/0")]);
    assert_eq!(node.ask(POD, TCP, "10.0.1.5:1", "10.96.255.1:80"), "pass");
    let dropped = format!("drop {NO_SERVICE}");
    assert_eq!(node.ask(POD, TCP, "[fd00:1::5]:1", "[fd00:77::1]:80"), dropped);
}

/// SVC-063: of an address that two nodes claim, this node's claim counts here.
#[test]
fn own_address_is_own_though_another_node_claims_it() {
    for other in [0, 1] {
        let mut node = with_settings(|settings| {
            let own = settings.nodes[0].addresses.clone();
            settings.nodes[1].addresses = own;
            settings.nodes.rotate_left(other);
        });
        let answer = node.ask(OUTSIDE, TCP, "203.0.113.9:1", NODE_PORT);
        assert_eq!(answer, "to 10.0.1.7:8080", "{other}");
    }
}
