mod services;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use weft_abi::{RewriteFields, flags, protocols};
use weft_model::{HookPosition, OnFault, PluginMode};
use weft_packet::{Gso, GsoKind, Headers, icmp_error_inner};

use self::support::*;
use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn tun(node: &mut Node, packet: &mut [u8]) -> Action {
    node.handle_tun_input(packet, &mut Meta::default(), NOW)
}

fn peer(node: &mut Node, packet: &mut [u8]) -> Action {
    node.handle_network_input(PEER, packet, &mut Meta::default(), NOW)
}

fn dropped(reason: DropReason) -> Action {
    Action::Drop(reason)
}

fn to_backend() -> Verdict {
    let backend: [u8; 16] = match REMOTE.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    Verdict::Rewrite(RewriteFields {
        destination: Some(backend),
        destination_port: Some(REMOTE.port()),
        ..RewriteFields::default()
    })
}

#[test]
fn each_destination_gets_its_action() {
    let mut node = node(vec![]);
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, SYN)), Action::ToTun);
    assert_eq!(tun(&mut node, &mut tcp(POD, HOST, SYN)), Action::ToTun);
    assert_eq!(tun(&mut node, &mut tcp(HOST, POD, SYN)), Action::ToTun);
    assert_eq!(tun(&mut node, &mut tcp(POD, REMOTE, SYN)), Action::ToPeer(PEER));
    assert_eq!(tun(&mut node, &mut tcp(HOST, REMOTE, SYN)), Action::ToPeer(PEER));
    assert_eq!(tun(&mut node, &mut tcp(POD, WORLD, SYN)), Action::ToTun);
    assert_eq!(tun(&mut node, &mut tcp(WORLD, POD2, SYN)), Action::ToTun);
    assert_eq!(peer(&mut node, &mut tcp(REMOTE, POD2, SYN)), Action::ToTun);
    assert_eq!(peer(&mut node, &mut tcp(REMOTE, HOST, SYN)), Action::ToTun);
    for nowhere in ["10.1.1.99:80", "10.1.9.1:80", "224.0.0.5:80", "169.254.0.1:80"] {
        let mut packet = tcp(POD, nowhere.parse().unwrap(), SYN);
        assert_eq!(tun(&mut node, &mut packet), dropped(DropReason::NoRoute), "{nowhere}");
    }
    assert_eq!(node.counters().drops(DropReason::NoRoute), 4);
}

#[test]
fn spoofed_source_is_dropped_and_counted() {
    let mut node = node(vec![]);
    for liar in ["10.1.1.99:5", "10.1.2.7:5", "10.1.9.1:5", "127.0.0.1:5", "192.0.2.2:5"] {
        let mut packet = tcp(liar.parse().unwrap(), POD, SYN);
        assert_eq!(tun(&mut node, &mut packet), dropped(DropReason::SpoofedSource), "{liar}");
    }
    // The world may talk to pods here, not through this node to others.
    for beyond in [REMOTE, HOST, addr("198.51.100.9:80")] {
        assert_eq!(
            tun(&mut node, &mut tcp(WORLD, beyond, SYN)),
            dropped(DropReason::SpoofedSource)
        );
    }
    assert_eq!(node.counters().drops(DropReason::SpoofedSource), 8);
    assert!(node.stages.flows.is_empty());
}

#[test]
fn peer_is_never_forwarded_to_a_peer_or_the_world() {
    let mut node = node(vec![]);
    for beyond in [addr("10.1.2.9:80"), addr("10.1.3.1:80"), WORLD, addr("10.1.1.99:80")] {
        assert_eq!(peer(&mut node, &mut tcp(REMOTE, beyond, SYN)), dropped(DropReason::NoRoute));
    }
    // Nor by a plugin.
    let mut node =
        self::node(vec![TestPlugin::new("nat", |_, _| to_backend()).at(HookPosition::Both)]);
    assert_eq!(peer(&mut node, &mut tcp(OTHER_REMOTE, POD, SYN)), dropped(DropReason::NoRoute));
    assert!(node.stages.flows.is_empty());
}

#[test]
fn translation_is_applied_and_reversed() {
    let mut node = node(vec![TestPlugin::new("service", |d, _| {
        if d.destination_port == SERVICE.port() { to_backend() } else { Verdict::Continue }
    })]);
    for flags in [SYN, ACK, ACK] {
        let mut packet = tcp(POD, SERVICE, flags);
        assert_eq!(tun(&mut node, &mut packet), Action::ToPeer(PEER));
        assert_eq!(packet, tcp(POD, REMOTE, flags));
        let mut packet = tcp(REMOTE, POD, flags | ACK);
        assert_eq!(peer(&mut node, &mut packet), Action::ToTun);
        assert_eq!(packet, tcp(SERVICE, POD, flags | ACK));
    }
    assert_eq!(node.stages.flows.len(), 1);
}

/// A pod may talk to a backend directly and through its Service from one port.
#[test]
fn direct_flow_beside_a_translated_one_gets_a_source_port_of_its_own() {
    let asked = Log::default();
    let log = asked.clone();
    let mut node = node(vec![
        TestPlugin::new("service", |d, _| {
            if d.destination_port == SERVICE.port() { to_backend() } else { Verdict::Continue }
        }),
        TestPlugin::new("watch", move |d, _| {
            log.note(d.destination_port, d.source_port);
            Verdict::Continue
        })
        .at(HookPosition::Both),
    ]);
    assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, SYN)), Action::ToPeer(PEER));
    let mut port = None;
    for flags in [SYN, ACK, ACK] {
        let mut direct = tcp(POD, REMOTE, flags);
        assert_eq!(tun(&mut node, &mut direct), Action::ToPeer(PEER));
        let sent = Headers::parse(&direct, &Meta::default()).unwrap().source_port;
        assert_ne!(sent, POD.port());
        assert_eq!(*port.get_or_insert(sent), sent);
        let own = SocketAddr::new(POD.ip(), sent);
        assert_eq!(direct, tcp(own, REMOTE, flags));
        let mut answer = tcp(REMOTE, own, flags | ACK);
        assert_eq!(peer(&mut node, &mut answer), Action::ToTun);
        assert_eq!(answer, tcp(REMOTE, POD, flags | ACK));
        // The Service's flow is as before.
        assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, ACK)), Action::ToPeer(PEER));
        let mut answer = tcp(REMOTE, POD, ACK);
        assert_eq!(peer(&mut node, &mut answer), Action::ToTun);
        assert_eq!(answer, tcp(SERVICE, POD, ACK));
    }
    assert_eq!(node.stages.flows.len(), 2);
    // Plugins see the ports that the pods see.
    let seen = asked.take();
    let ours = |(to, from): &(u16, u16)| [*to, *from].contains(&POD.port());
    assert!(seen.len() == 13 && seen.iter().all(ours), "{seen:?}");
}

#[test]
fn held_translation_outlives_its_plugin() {
    let mut node = node(vec![TestPlugin::new("service", |_, _| to_backend())]);
    assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, SYN)), Action::ToPeer(PEER));
    node.set_plugins(vec![]).unwrap();
    let mut packet = tcp(POD, SERVICE, ACK);
    assert_eq!(tun(&mut node, &mut packet), Action::ToPeer(PEER));
    assert_eq!(packet, tcp(POD, REMOTE, ACK));
}

#[test]
fn plugins_before_the_translator_see_the_service_those_after_it_the_backend() {
    let log = Log::default();
    let watch = |name, priority| {
        let log = log.clone();
        TestPlugin::new(name, move |d, _| {
            log.note(d.destination_port, d.source_port);
            Verdict::Continue
        })
        .priority(priority)
    };
    let nat = TestPlugin::new(
        "nat",
        |d, _| {
            if d.slot[0] == 0 { to_backend() } else { Verdict::Continue }
        },
    )
    .slot([1; 16]);
    let mut node = node(vec![watch("after", 2), nat.priority(1), watch("before", 0)]);
    for flags in [SYN, ACK] {
        assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, flags)), Action::ToPeer(PEER));
        let (s, r, p) = (SERVICE.port(), REMOTE.port(), POD.port());
        assert_eq!(log.take(), [(s, p), (r, p)]);
    }
}

#[test]
fn icmp_error_about_a_translated_packet_is_translated() {
    let mut node = node(vec![TestPlugin::new("service", |_, _| to_backend())]);
    assert_eq!(tun(&mut node, &mut udp(POD, SERVICE)), Action::ToPeer(PEER));
    // From the backend itself, and from a router on the way.
    for (from, shown_from) in [(REMOTE, SERVICE), (OTHER_REMOTE, OTHER_REMOTE)] {
        let mut error = port_unreachable(from, POD, &udp(POD, REMOTE));
        assert_eq!(peer(&mut node, &mut error), Action::ToTun);
        assert_eq!(error, port_unreachable(shown_from, POD, &udp(POD, SERVICE)));
    }
    // About nothing known: an ordinary packet, untouched.
    let stranger = udp(POD, OTHER_REMOTE);
    let mut error = port_unreachable(REMOTE, POD, &stranger);
    assert_eq!(peer(&mut node, &mut error), Action::ToTun);
    assert_eq!(error, port_unreachable(REMOTE, POD, &stranger));
    assert_eq!(node.stages.flows.len(), 1);
}

#[test]
fn fragments_follow_their_first() {
    let mut node = node(vec![TestPlugin::new("service", |_, _| to_backend())]);
    let [mut first, mut later] = fragments(POD, SERVICE, 7);
    assert_eq!(tun(&mut node, &mut later.clone()), dropped(DropReason::OrphanFragment));
    assert_eq!(tun(&mut node, &mut first), Action::ToPeer(PEER));
    assert_eq!(tun(&mut node, &mut later), Action::ToPeer(PEER));
    let expected = fragments(POD, REMOTE, 7);
    // The transport checksum is that of the whole datagram, translated.
    assert_eq!([first, later], expected);
    let [_, mut other] = fragments(POD, SERVICE, 8);
    assert_eq!(tun(&mut node, &mut other), dropped(DropReason::OrphanFragment));
}

#[test]
fn fragment_of_a_dropped_first_is_dropped() {
    let mut node = node(vec![TestPlugin::new("no", |_, _| Verdict::Drop(3))]);
    let [mut first, mut later] = fragments(POD, REMOTE, 7);
    assert_eq!(tun(&mut node, &mut first), dropped(DropReason::Plugin));
    assert_eq!(tun(&mut node, &mut later), dropped(DropReason::OrphanFragment));
    assert_eq!(node.plugin_counters().next().unwrap().1.dropped, 1);
}

#[test]
fn reject_tells_the_sender_about_the_packet_as_he_sent_it() {
    let no = |d: &Descriptor, _: &[u8]| {
        if d.destination_port == REMOTE.port() { Verdict::Reject(1) } else { to_backend() }
    };
    // The same plugin at both priorities: the first translates, the second rejects.
    let plugins = vec![TestPlugin::new("a", no), TestPlugin::new("b", no).priority(1)];
    let mut node = node(plugins);
    let answer = Action::Answer { to: AnswerTo::Tun, dropped: Some(DropReason::PluginReject) };
    assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, SYN)), answer);
    let reset = Headers::parse(node.answer(), &Meta::default()).unwrap();
    assert_eq!(reset.tcp_flags, RST | ACK);
    assert_eq!((reset.source, reset.source_port), (SERVICE.ip(), SERVICE.port()));
    assert_eq!((reset.destination, reset.destination_port), (POD.ip(), POD.port()));

    let sent = udp(POD, SERVICE);
    assert_eq!(tun(&mut node, &mut sent.clone()), answer);
    let error = Headers::parse(node.answer(), &Meta::default()).unwrap();
    assert_eq!((error.tcp_flags, error.icmp_code, error.source), (3, 3, SERVICE.ip()));
    assert_eq!(&node.answer()[28..], sent);
    assert!(node.stages.flows.is_empty());
    assert_eq!(node.counters().drops(DropReason::PluginReject), 2);

    let mut reset = tcp(POD, SERVICE, RST);
    assert_eq!(tun(&mut node, &mut reset), dropped(DropReason::PluginReject));
}

#[test]
fn flood_of_refused_packets_is_answered_now_and_then_and_every_drop_is_counted() {
    let mut node = node(vec![TestPlugin::new("no", |_, _| Verdict::Reject(1))]);
    let told = Action::Answer { to: AnswerTo::Tun, dropped: Some(DropReason::PluginReject) };
    let mut send =
        |packet: &[u8], now| node.handle_tun_input(&mut packet.to_vec(), &mut Meta::default(), now);
    // A thousand datagrams in ten seconds: the burst, and one each second.
    let moments = (0..1000).map(|n| NOW + Duration::from_millis(10) * n);
    let answers: Vec<_> = moments.map(|now| send(&udp(POD, REMOTE), now)).collect();
    assert_eq!(answers.iter().filter(|a| **a == told).count(), 6 + 9);
    let silent = answers.iter().filter(|a| **a == dropped(DropReason::NotTold)).count();
    assert_eq!(silent, 1000 - 15);
    let later = NOW + Duration::from_secs(10);
    // Neither others nor those who wait for a reset notice.
    assert_eq!(send(&udp(POD2, REMOTE), later), told);
    for _ in 0..1000 {
        assert_eq!(send(&tcp(POD, REMOTE, SYN), later), told);
    }
    assert_eq!(send(&tcp(POD, REMOTE, SYN), later), dropped(DropReason::NotTold));
    assert_eq!(send(&tcp(POD, REMOTE, SYN), later + Duration::from_millis(1)), told);
    assert_eq!(node.counters().drops(DropReason::NotTold), 985 + 1);
    assert_eq!(node.counters().drops(DropReason::PluginReject), 15 + 1 + 1001);
    assert_eq!(node.plugin_counters().next().unwrap().1.rejected, 1000 + 1 + 1002);
}

#[test]
fn replies_of_plugins_are_not_limited() {
    let dns = TestPlugin::new("dns", |_, _| Verdict::Reply(udp(REMOTE, POD)));
    let mut node = node(vec![dns]);
    let reply = Action::Answer { to: AnswerTo::Tun, dropped: None };
    (0..2000).for_each(|_| assert_eq!(tun(&mut node, &mut udp(POD, REMOTE)), reply));
}

#[test]
fn reply_of_a_plugin_comes_from_where_the_packet_was_sent() {
    let nat = TestPlugin::new("nat", |_, _| to_backend());
    let dns = TestPlugin::new("dns", |_, _| Verdict::Reply(udp(REMOTE, POD))).priority(1);
    let mut node = node(vec![nat, dns]);
    let action = tun(&mut node, &mut udp(POD, SERVICE));
    assert_eq!(action, Action::Answer { to: AnswerTo::Tun, dropped: None });
    assert_eq!(node.answer(), udp(SERVICE, POD));
    assert_eq!(node.counters().replies, 1);

    let astray = TestPlugin::new("dns", |_, _| Verdict::Reply(udp(SERVICE, POD2)));
    node.set_plugins(vec![astray]).unwrap();
    assert_eq!(tun(&mut node, &mut udp(POD, SERVICE)), dropped(DropReason::PluginFault));
}

#[test]
fn accept_skips_the_rest_of_the_position_only() {
    let yes = TestPlugin::new("yes", |_, _| Verdict::Accept).at(HookPosition::Egress);
    let no = TestPlugin::new("no", |_, _| Verdict::Drop(1)).priority(1);
    let mut node = node(vec![no.clone().at(HookPosition::Egress), yes.clone()]);
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, SYN)), Action::ToTun);
    node.set_plugins(vec![no.at(HookPosition::Both), yes]).unwrap();
    assert_eq!(tun(&mut node, &mut tcp(POD, REMOTE, SYN)), Action::ToPeer(PEER));
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, SYN)), dropped(DropReason::Plugin));
}

#[test]
fn fault_drops_or_skips_as_the_plugin_says() {
    let broken = TestPlugin::new("broken", |_, _| Verdict::Fault);
    let mut node = node(vec![broken.clone()]);
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, SYN)), dropped(DropReason::PluginFault));
    node.set_plugins(vec![broken.on_fault(OnFault::Skip)]).unwrap();
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, SYN)), Action::ToTun);
    assert_eq!(node.plugin_counters().next().unwrap().1.faults, 1);
    // A translation that cannot be is a fault as well.
    let wrong = TestPlugin::new("wrong", |_, _| {
        let destination = Some("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        Verdict::Rewrite(RewriteFields { destination, ..RewriteFields::default() })
    });
    node.set_plugins(vec![wrong]).unwrap();
    assert_eq!(tun(&mut node, &mut tcp(POD, POD2, ACK)), dropped(DropReason::PluginFault));
}

#[test]
fn flow_mode_asks_once_for_each_direction_and_after_a_change() {
    let log = Log::default();
    let plugin = |revision, verdict: Verdict| {
        let log = log.clone();
        TestPlugin::new("policy", move |d, _| {
            log.note(
                u16::from(d.flags & flags::REPLY != 0),
                u16::from(d.flags & flags::FIRST != 0),
            );
            verdict.clone()
        })
        .mode(PluginMode::Flow)
        .revision(revision)
    };
    let mut node = node(vec![plugin(1, Verdict::Continue)]);
    let exchange = |node: &mut Node| {
        let out = tun(node, &mut tcp(POD, POD2, SYN));
        (out, tun(node, &mut tcp(POD2, POD, SYN | ACK)))
    };
    assert_eq!(exchange(&mut node), (Action::ToTun, Action::ToTun));
    assert_eq!(log.take(), [(0, 1), (1, 1)]);
    exchange(&mut node);
    assert_eq!(log.take(), []);
    node.set_plugins(vec![plugin(2, Verdict::Continue)]).unwrap();
    exchange(&mut node);
    exchange(&mut node);
    assert_eq!(log.take(), [(0, 0), (1, 0)]);
    // Revoked: live flows are cut, every time.
    node.set_plugins(vec![plugin(3, Verdict::Drop(0))]).unwrap();
    let cut = dropped(DropReason::Plugin);
    assert_eq!(exchange(&mut node), (cut, cut));
    assert_eq!(exchange(&mut node), (cut, cut));
    assert_eq!(log.take().len(), 4);
}

#[test]
fn plugin_that_asks_again_sees_the_next_packet_of_the_flow() {
    let log = Log::default();
    let noted = log.clone();
    let plugin = TestPlugin::new("look", move |d, _| {
        noted.note(0, u16::from(d.flags & flags::FIRST != 0));
        Verdict::Continue
    });
    let mut node = node(vec![plugin.mode(PluginMode::Flow).asking_again()]);
    for _ in 0..3 {
        assert!(matches!(tun(&mut node, &mut udp(POD, REMOTE)), Action::ToPeer(_)));
    }
    assert_eq!(log.take(), [(0, 1), (0, 0), (0, 0)]);
}

#[test]
fn slot_survives_a_replace_by_name() {
    let counting = |revision| {
        TestPlugin::new("count", |_, _| Verdict::Continue).counting_slot().revision(revision)
    };
    let mut node = node(vec![counting(1)]);
    tun(&mut node, &mut udp(POD, REMOTE));
    node.set_plugins(vec![TestPlugin::new("other", |_, _| Verdict::Continue), counting(2)])
        .unwrap();
    peer(&mut node, &mut udp(REMOTE, POD));
    tun(&mut node, &mut udp(POD, REMOTE));
    let slot = node.plugins_mut().find(|p| p.interest().name == "count").unwrap().last_slot;
    // Egress, then nothing at ingress of the reply for an egress plugin, then egress.
    assert_eq!(slot[0], 1);
}

#[test]
fn one_plugin_too_many_is_refused_and_the_others_stay() {
    let plugin = |n: u8| TestPlugin::new(&format!("p{n}"), |_, _| Verdict::Continue);
    let most = u8::try_from(crate::PLUGINS_MAX).unwrap();
    let mut node = node((0..most).map(plugin).collect());
    assert_eq!(node.set_plugins((1..most + 2).map(plugin).collect()), Err(TooManyPlugins));
    assert_eq!(node.plugins_mut().count(), crate::PLUGINS_MAX);
    assert_eq!(node.set_plugins((0..most).map(plugin).collect()), Ok(()));
}

#[test]
fn plugin_is_shown_only_the_protocols_it_wants() {
    let plugin = TestPlugin::new("tcp", |_, _| Verdict::Drop(0)).protocols(protocols::TCP);
    let mut node = node(vec![plugin]);
    assert_eq!(tun(&mut node, &mut udp(POD, REMOTE)), Action::ToPeer(PEER));
    assert_eq!(tun(&mut node, &mut tcp(POD, REMOTE, SYN)), dropped(DropReason::Plugin));
}

#[test]
fn too_big_for_the_tunnel_is_told_or_fragmented() {
    let mut node = node(vec![TestPlugin::new("service", |_, _| to_backend())]);
    let sent = sized_udp(POD, SERVICE, 1600, true);
    let answer = Action::Answer { to: AnswerTo::Tun, dropped: Some(DropReason::TooBig) };
    assert_eq!(tun(&mut node, &mut sent.clone()), answer);
    let error = Headers::parse(node.answer(), &Meta::default()).unwrap();
    assert_eq!((error.tcp_flags, error.icmp_code, error.source), (3, 4, SERVICE.ip()));
    assert_eq!(u16::from_be_bytes([node.answer()[26], node.answer()[27]]), MTU);
    let inner = icmp_error_inner(node.answer(), &error).unwrap();
    assert_eq!(inner.five_tuple.destination, (SERVICE.ip(), SERVICE.port()));

    let mut sent = sized_udp(POD, SERVICE, 1600, false);
    assert_eq!(tun(&mut node, &mut sent), Action::FragmentToPeer(PEER));
    assert_eq!(tun(&mut node, &mut sized_udp(POD, POD2, 1600, true)), answer, "translated as well");
    node.set_plugins(vec![]).unwrap();
    assert_eq!(tun(&mut node, &mut sized_udp(POD, HOST, 1600, true)), Action::ToTun);
}

#[test]
fn super_packet_passes_if_its_segments_fit() {
    let mut node = node(vec![]);
    let mut handle = |segment_size| {
        let mut meta =
            Meta { gso: Some(Gso { kind: GsoKind::Udp, segment_size }), ..Meta::default() };
        node.handle_tun_input(&mut sized_udp(POD, REMOTE, 9000, true), &mut meta, NOW)
    };
    assert_eq!(handle(MTU - 28), Action::ToPeer(PEER));
    let told = Action::Answer { to: AnswerTo::Tun, dropped: Some(DropReason::TooBig) };
    assert_eq!(handle(MTU - 27), told);
    let mut packets = 0;
    node.stages.flows.for_each(NOW, &mut |f| packets += f.traffic[0].packets);
    assert_eq!(packets, u64::from((9000 - 28_u16).div_ceil(MTU - 28)));
}

#[test]
fn malformed_and_worn_out_packets_are_dropped() {
    let mut node = node(vec![]);
    let mut packet = tcp(POD, REMOTE, SYN);
    assert_eq!(tun(&mut node, &mut packet[..30]), dropped(DropReason::Malformed));
    assert_eq!(tun(&mut node, &mut []), dropped(DropReason::Malformed));
    assert_eq!(tun(&mut node, &mut with_ttl(POD, REMOTE, 0)), dropped(DropReason::HopLimit));
}

#[test]
fn idle_flows_are_swept() {
    let mut node = node(vec![]);
    assert_eq!(node.poll_timeout(), None);
    tun(&mut node, &mut udp(POD, REMOTE));
    assert!(node.poll_timeout().is_some());
    node.handle_timeout(NOW + Duration::from_secs(29));
    assert_eq!(node.stages.flows.len(), 1);
    node.handle_timeout(NOW + Duration::from_secs(31));
    assert_eq!((node.stages.flows.len(), node.poll_timeout()), (0, None));
}

proptest! {
    #[test]
    fn translate_then_reverse_is_the_identity(
        source in any::<[u8; 2]>(),
        fields in any::<(Option<u16>, Option<u16>, bool, bool)>(),
        ports in (1u16.., 1u16..),
        v6 in any::<bool>(),
        is_tcp in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (source_port, destination_port, source_moves, destination_moves) = fields;
        let client = if v6 { POD_V6.ip() } else { POD.ip() };
        let client = std::net::SocketAddr::new(client, ports.0);
        let service = service(source, ports.1, v6);
        let (host, remote) = if v6 { (HOST_V6, REMOTE_V6) } else { (HOST, REMOTE) };
        let change = RewriteFields {
            source: source_moves.then(|| mapped(host.ip())),
            destination: Some(mapped(remote.ip())).filter(|_| destination_moves),
            source_port,
            destination_port,
        };
        let mut node = node(vec![TestPlugin::new("nat", move |d, _| {
            if d.flags & flags::REPLY == 0 { Verdict::Rewrite(change) } else { Verdict::Continue }
        })]);
        let sent = build(client, service, is_tcp.then_some(SYN), &payload, false, 64);
        let mut out = sent.clone();
        let action = tun(&mut node, &mut out);
        let to_peer = destination_moves;
        prop_assert_eq!(action, if to_peer { Action::ToPeer(PEER) } else { Action::ToTun });
        let h = Headers::parse(&out, &Meta::default()).unwrap();
        let from = std::net::SocketAddr::new(h.source, h.source_port);
        let to = std::net::SocketAddr::new(h.destination, h.destination_port);
        prop_assert_eq!(&out, &build(from, to, is_tcp.then_some(SYN), &payload, false, 64));
        // What comes back is what the client would get from the service itself.
        let mut back = build(to, from, is_tcp.then_some(SYN | ACK), &payload, false, 64);
        let action = if to_peer { peer(&mut node, &mut back) } else { tun(&mut node, &mut back) };
        prop_assert_eq!(action, Action::ToTun);
        prop_assert_eq!(back, build(service, client, is_tcp.then_some(SYN | ACK), &payload, false, 64));
    }
}

/// NP-113: both ends of the connection as it began, where it was sent to, and the pod's direction.
#[test]
fn what_a_plugin_drops_is_noted_with_both_ends() {
    let mut node = node(vec![
        TestPlugin::new("service", |d, _| {
            if d.destination_port == SERVICE.port() { to_backend() } else { Verdict::Continue }
        }),
        TestPlugin::new("watch", |d, _| {
            let egress = d.flags & flags::EGRESS != 0;
            if egress { Verdict::Drop(7) } else { Verdict::Continue }
        })
        .at(HookPosition::Both),
    ]);
    for _ in 0..3 {
        assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, SYN)), dropped(DropReason::Plugin));
    }
    // An answer that may not leave is the connection's that it answers.
    assert_eq!(peer(&mut node, &mut tcp(REMOTE, POD2, SYN)), Action::ToTun);
    assert_eq!(tun(&mut node, &mut tcp(POD2, REMOTE, SYN | ACK)), dropped(DropReason::Plugin));
    let (_, mut noted) = node.stages.plugins.log().since(0);
    noted.sort_by_key(|entry| std::cmp::Reverse(entry.count));
    let [out, back] = noted.try_into().unwrap();
    assert_eq!((out.key.source, out.key.destination), (POD.ip(), REMOTE.ip()));
    assert_eq!((out.key.port, out.key.ingress, out.key.number), (REMOTE.port(), false, 7));
    assert_eq!((&*out.key.plugin, out.sent_to, out.count), ("watch", Some(SERVICE), 3));
    assert_eq!((back.key.source, back.key.destination), (REMOTE.ip(), POD2.ip()));
    assert_eq!((back.key.port, back.key.ingress), (POD2.port(), true));
    assert_eq!(back.sent_to, None);
}

/// NP-113: it goes on, to further plugins too; a flow is noted once if the plugin is asked once.
#[test]
fn what_a_plugin_would_drop_passes_and_is_noted() {
    let mut node = node(vec![
        TestPlugin::new("watch", |_, _| Verdict::WouldDrop(7)).mode(PluginMode::Flow).priority(1),
        TestPlugin::new("last", |d, _| match d.destination_port {
            port if port == REMOTE.port() => Verdict::Continue,
            _ => Verdict::Drop(8),
        })
        .priority(2),
    ]);
    for _ in 0..3 {
        assert!(matches!(tun(&mut node, &mut tcp(POD, REMOTE, SYN)), Action::ToPeer(_)));
    }
    assert_eq!(tun(&mut node, &mut tcp(POD, SERVICE, SYN)), dropped(DropReason::Plugin));
    let (_, mut noted) = node.stages.plugins.log().since(0);
    noted.sort_by_key(|entry| (entry.key.number, entry.key.destination));
    let told: Vec<_> =
        noted.iter().map(|e| (e.key.number, e.key.passed, e.key.destination, e.count)).collect();
    let mut expected =
        vec![(7, true, REMOTE.ip(), 1), (7, true, SERVICE.ip(), 1), (8, false, SERVICE.ip(), 1)];
    expected.sort_unstable();
    assert_eq!(told, expected);
}
