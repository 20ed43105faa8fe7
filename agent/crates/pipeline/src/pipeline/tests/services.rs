//! What is sent to a Service, by whom, and how it comes back.

use weft_model::{DropReason, PluginMode};
use weft_packet::{Headers, Meta, Rewrite, rewrite};

use super::support::*;
use super::{dropped, peer, tun};
use crate::flow::FlowKey;
use crate::pipeline::{Action, AnswerTo};

/// Sends what is for [`SERVICE`] or port 30 080 of the host's stand-in to `backend`.
fn translating(backend: std::net::SocketAddr, source: Option<std::net::SocketAddr>) -> TestPlugin {
    let node_port = mapped(HOST_SOURCE.ip());
    TestPlugin::new("service", move |d, _| {
        let of_service = d.destination == mapped(SERVICE.ip()) && d.destination_port < 90;
        if !of_service && (d.destination, d.destination_port) != (node_port, 30_080) {
            return Verdict::Continue;
        }
        Verdict::Rewrite(RewriteFields {
            destination: Some(mapped(backend.ip())),
            destination_port: Some(backend.port()),
            source: source.map(|s| mapped(s.ip())),
            source_port: source.map(|s| s.port()),
        })
    })
    .mode(PluginMode::Flow)
}

fn key(packet: &[u8]) -> FlowKey {
    FlowKey::from(Headers::parse(packet, &Meta::default()).unwrap().five_tuple())
}

fn node_port() -> std::net::SocketAddr {
    (HOST_SOURCE.ip(), 30_080).into()
}

/// SVC-197: two connections whose translated tuples are the same both work.
#[test]
fn one_client_port_to_two_ports_of_one_backend_is_told_apart() {
    let mut node = node(vec![translating(REMOTE, None)]);
    let sent = [SERVICE, (SERVICE.ip(), 81).into()].map(|service| {
        let mut packet = tcp(POD, service, SYN);
        assert_eq!(tun(&mut node, &mut packet), Action::ToPeer(PEER));
        (service, key(&packet))
    });
    assert_eq!(sent[0].1.source(), POD);
    assert_ne!(sent[1].1.source(), POD);
    assert_eq!(sent[0].1.destination(), sent[1].1.destination());
    for (service, key_there) in sent {
        let mut answer = tcp(key_there.destination(), key_there.source(), SYN | ACK);
        assert_eq!(peer(&mut node, &mut answer), Action::ToTun);
        assert_eq!((key(&answer).source(), key(&answer).destination()), (service, POD));
    }
}

/// SVC-066: who comes from outside reaches a pod of another node, and the answer comes back this way.
#[test]
fn outsider_reaches_a_pod_of_another_node_under_the_nodes_address() {
    let source = (HOST.ip(), 0).into();
    let mut node = node(vec![translating(REMOTE, Some(source))]);
    let mut packet = tcp(WORLD, node_port(), SYN);
    assert_eq!(tun(&mut node, &mut packet), Action::ToPeer(PEER));
    let there = key(&packet);
    assert_eq!((there.source().ip(), there.destination()), (HOST.ip(), REMOTE));
    assert!(there.source().port() >= 61_000, "not a port that the host takes for itself");
    let mut answer = tcp(REMOTE, there.source(), SYN | ACK);
    assert_eq!(peer(&mut node, &mut answer), Action::ToTun);
    assert_eq!((key(&answer).source(), key(&answer).destination()), (node_port(), WORLD));
}

/// SVC-067: a pod of this node sees who the client is.
#[test]
fn outsider_keeps_his_address_towards_a_pod_of_this_node() {
    let mut node = node(vec![translating(POD2, None)]);
    let mut packet = tcp(WORLD, node_port(), SYN);
    assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
    assert_eq!((key(&packet).source(), key(&packet).destination()), (WORLD, POD2));
    let mut answer = tcp(POD2, WORLD, SYN | ACK);
    assert_eq!(tun(&mut node, &mut answer), Action::ToTun);
    assert_eq!((key(&answer).source(), key(&answer).destination()), (node_port(), WORLD));
}

/// SVC-067, SVC-132: a process of the host itself sees who the client is; its answers are led here.
#[test]
fn outsider_keeps_his_address_towards_the_host() {
    for client in [WORLD, PEER_HOST] {
        let mut node = node(vec![translating(HOST, None)]);
        let mut packet = tcp(client, node_port(), SYN);
        assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
        assert_eq!((key(&packet).source(), key(&packet).destination()), (client, HOST));
        let mut answer = tcp(HOST, client, SYN | ACK);
        assert_eq!(tun(&mut node, &mut answer), Action::ToTun, "by the way it came");
        assert_eq!((key(&answer).source(), key(&answer).destination()), (node_port(), client));
    }
}

/// Who speaks to the host, and to no Service, has no business in the fabric.
#[test]
fn outsider_does_not_reach_the_host_through_the_fabric() {
    let mut node = node(vec![translating(POD2, None)]);
    for to in [HOST, (HOST_SOURCE.ip(), 30_081).into()] {
        let spoofed = tun(&mut node, &mut tcp(WORLD, to, SYN));
        assert_eq!(spoofed, dropped(DropReason::SpoofedSource), "{to}");
    }
}

/// SVC-194: what the host's kernel says of a packet that it could not bring to a pod comes here under
/// the host's stand-in, and goes to who sent it, about what he sent.
#[test]
fn error_of_the_host_reaches_who_sent_to_a_service() {
    for (client, service) in [(WORLD, node_port()), (PEER_HOST, node_port()), (HOST, SERVICE)] {
        let mut node = node(vec![translating(POD2, None)]);
        assert_eq!(tun(&mut node, &mut udp(client, service)), Action::ToTun);
        let about = udp(client, POD2);
        let mut error = port_unreachable(HOST, client, &about);
        readdress(&mut error, HOST_SOURCE.ip());
        assert_eq!(tun(&mut node, &mut error), Action::ToTun);
        assert_eq!(error, port_unreachable(HOST, client, &udp(client, service)), "{client}");
    }
    // Of a peer's, by the mesh.
    let mut node = node(vec![]);
    assert_eq!(peer(&mut node, &mut udp(REMOTE, POD2)), Action::ToTun);
    let mut error = port_unreachable(HOST, REMOTE, &udp(REMOTE, POD2));
    let expected = error.clone();
    readdress(&mut error, HOST_SOURCE.ip());
    assert_eq!(tun(&mut node, &mut error), Action::ToPeer(PEER));
    assert_eq!(error, expected);
}

/// And what is about no flow that is known is brought to its sender as it is.
#[test]
fn error_of_the_host_about_nothing_known_reaches_its_receiver() {
    let mut node = node(vec![]);
    let mut error = port_unreachable(HOST, WORLD, &udp(WORLD, POD2));
    let expected = error.clone();
    readdress(&mut error, HOST_SOURCE.ip());
    assert_eq!(tun(&mut node, &mut error), Action::ToTun);
    assert_eq!(error, expected);
}

/// Sends a packet to another address.
fn readdress(packet: &mut [u8], to: std::net::IpAddr) {
    let mut headers = Headers::parse(packet, &Meta::default()).unwrap();
    let change = Rewrite { destination: Some(to), ..Rewrite::default() };
    rewrite(packet, &Meta::default(), &mut headers, &change).unwrap();
}

/// SVC-023, SVC-161: a backend on another host is reached by the host's own way, not the mesh.
#[test]
fn what_stands_for_the_host_never_leaves_it() {
    let mut node = node(vec![translating(PEER_HOST, Some(HOST_SOURCE))]);
    let mut packet = tcp(HOST, SERVICE, SYN);
    assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
    let there = key(&packet);
    assert_eq!((there.source().ip(), there.destination()), (HOST_SOURCE.ip(), PEER_HOST));
    let mut answer = tcp(PEER_HOST, there.source(), SYN | ACK);
    assert_eq!(tun(&mut node, &mut answer), Action::ToTun);
    assert_eq!((key(&answer).source(), key(&answer).destination()), (SERVICE, HOST));
}

/// SVC-060: another node itself is a client as any machine is; of a pod it is none, past the mesh.
#[test]
fn another_node_reaches_a_node_port_and_no_pod_past_the_mesh() {
    let mut node = node(vec![translating(POD2, None)]);
    let mut packet = tcp(PEER_HOST, node_port(), SYN);
    assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
    let mut answer = tcp(POD2, PEER_HOST, SYN | ACK);
    assert_eq!(tun(&mut node, &mut answer), Action::ToTun, "by the way it came");
    assert_eq!(key(&answer).source(), node_port());
    let spoofed = tun(&mut node, &mut tcp(PEER_HOST, POD, SYN));
    assert_eq!(spoofed, dropped(DropReason::SpoofedSource));
    let of_its_pods = tun(&mut node, &mut tcp(REMOTE, node_port(), SYN));
    assert_eq!(of_its_pods, dropped(DropReason::SpoofedSource));
}

/// SVC-166, SVC-167: a pod that is chosen for its own connection sees somebody else.
#[test]
fn pod_reaches_itself_through_a_service() {
    let backend = (POD.ip(), 8080).into();
    let mut node = node(vec![translating(backend, Some((HOST.ip(), 0).into()))]);
    let mut packet = tcp(POD, SERVICE, SYN);
    assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
    let there = key(&packet);
    assert_eq!((there.source().ip(), there.destination()), (HOST.ip(), backend));
    let mut answer = tcp(backend, there.source(), SYN | ACK);
    assert_eq!(tun(&mut node, &mut answer), Action::ToTun);
    assert_eq!((key(&answer).source(), key(&answer).destination()), (SERVICE, POD));
}

/// SVC-180: the flow of a client that keeps its port goes to the backend that the plugin says now.
#[test]
fn datagrams_go_to_another_backend_when_the_plugin_says_so() {
    let mut node = node(vec![translating(REMOTE, None)]);
    let mut packet = udp(POD, SERVICE);
    assert_eq!(tun(&mut node, &mut packet), Action::ToPeer(PEER));
    node.set_plugins(vec![translating(POD2, None).revision(2)]).unwrap();
    let mut packet = udp(POD, SERVICE);
    assert_eq!(tun(&mut node, &mut packet), Action::ToTun);
    assert_eq!(key(&packet).destination(), POD2);
    let mut answer = udp(POD2, POD);
    assert_eq!(tun(&mut node, &mut answer), Action::ToTun);
    assert_eq!(key(&answer).source(), SERVICE);
}

/// DNS-125: what a plugin answers on its way to another backend keeps the flow where it was, so the one who sent
/// it there is asked again for the next packet.
#[test]
fn flow_whose_packet_goes_no_further_is_judged_again() {
    let mut node = node(vec![translating(REMOTE, None)]);
    assert_eq!(tun(&mut node, &mut udp(POD, SERVICE)), Action::ToPeer(PEER));
    for stopped in [Verdict::Reply(udp(POD2, POD)), Verdict::Drop(1)] {
        let stopping = TestPlugin::new("last", move |d, _| {
            let moved = d.destination == mapped(POD2.ip());
            if moved { stopped.clone() } else { Verdict::Continue }
        });
        let elsewhere = translating(POD2, None).revision(2);
        node.set_plugins(vec![elsewhere, stopping.priority(1).mode(PluginMode::Flow)]).unwrap();
        for _ in 0..4 {
            let action = tun(&mut node, &mut udp(POD, SERVICE));
            assert!(
                matches!(action, Action::Answer { dropped: None, .. })
                    || action == dropped(DropReason::Plugin),
                "{action:?}"
            );
        }
    }
    // And it is where it was for who sends it nowhere else.
    node.set_plugins(vec![translating(REMOTE, None).revision(3)]).unwrap();
    assert_eq!(tun(&mut node, &mut udp(POD, SERVICE)), Action::ToPeer(PEER));
}

/// SVC-170: who comes from outside is told in the name of whom he asked.
#[test]
fn outsider_is_told_that_nobody_is_there() {
    let mut node = node(vec![TestPlugin::new("service", |_, _| Verdict::Reject(1))]);
    let action = tun(&mut node, &mut tcp(WORLD, node_port(), SYN));
    let why = Some(DropReason::PluginReject);
    assert_eq!(action, Action::Answer { to: AnswerTo::Tun, dropped: why });
    let told = key(node.answer());
    assert_eq!((told.source(), told.destination()), (node_port(), WORLD));
}
