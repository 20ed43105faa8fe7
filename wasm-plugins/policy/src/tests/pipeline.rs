//! Behind the plugin `service` in a real pipeline: what each of them is told and keeps.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;
use weft_model::{DropReason, PeerId, Timestamp};
use weft_packet::{Headers, Meta};
use weft_pipeline::{
    Action, FlowTable, Interest, Outcome, Pipeline, Plugin, PluginFault, Routes, RoutesConfig,
};
use weft_policy_sdk::{Config, Descriptor};
use weft_policy_testing::{NativePlugin, tcp, udp};
use weft_proto::tables::v1::policy_rule::Action::Deny;
use weft_proto::tables::v1::{
    Frontend, PolicyProgram, ServicePortTable, ServiceSettings, ServiceTable, ServiceTables,
    backend, frontend,
};
use weft_service::Services;

use super::node::*;
use crate::Policies;

const NOW: Timestamp = Timestamp(1_000_000_000);
const SYN: u8 = 2;
const ACK: u8 = 0x10;
const SERVICE: &str = "10.96.0.1";
const DROPPED: Action = Action::Drop(DropReason::Plugin);

/// One of the two, at its place.
enum BuiltIn {
    Service(Box<NativePlugin<Services>>, Interest),
    Policy(Box<NativePlugin<Policies>>, Interest),
}

impl Plugin for BuiltIn {
    fn interest(&self) -> &Interest {
        match self {
            Self::Service(_, interest) | Self::Policy(_, interest) => interest,
        }
    }

    fn on_packet(&mut self, told: &Descriptor, packet: &[u8]) -> Result<Outcome<'_>, PluginFault> {
        match self {
            Self::Service(plugin, _) => plugin.on_packet(told, packet),
            Self::Policy(plugin, _) => plugin.on_packet(told, packet),
        }
    }
}

/// A Service with this backend.
fn services(to: &str) -> ServiceTables {
    let to: SocketAddr = to.parse().unwrap();
    let local = to.ip().to_string().starts_with("10.0.1.");
    let place = if local { backend::LOCAL_POD } else { backend::REMOTE_POD };
    let record = [
        bytes_of(to.ip()),
        to.port().to_be_bytes().to_vec(),
        vec![0, 1, backend::CLUSTER | backend::LOCAL | backend::COUNTS | place],
    ];
    let port = |protocol| ServicePortTable {
        protocol,
        port: 80,
        backends_v4: record.concat(),
        ..ServicePortTable::default()
    };
    ServiceTables {
        settings: Some(ServiceSettings {
            own_node: 1,
            node_sources: vec![bytes(NODE)],
            ..ServiceSettings::default()
        }),
        services: vec![ServiceTable {
            name: "ns/a".to_owned(),
            frontends: vec![Frontend {
                kind: frontend::Kind::ClusterIp.into(),
                address: bytes(SERVICE),
            }],
            ports: vec![port(6), port(17)],
            ..ServiceTable::default()
        }],
        removed: Vec::new(),
    }
}

fn node(backend: &str, programs: &[PolicyProgram]) -> Pipeline<BuiltIn> {
    let net = |text: &str| text.parse().unwrap();
    let routes = Routes::new(&RoutesConfig {
        host_addresses: vec![NODE.parse().unwrap()],
        local_subnets: vec![net("10.0.1.0/24")],
        local_pods: [A, B].map(|a| a.parse().unwrap()).to_vec(),
        peers: vec![(PeerId(2), vec![net("10.0.2.0/24"), net("192.0.2.2/32")])],
        pod_cidrs: vec![net("10.0.0.0/16")],
        host_sources: Vec::new(),
    });
    let mut node = Pipeline::new(Arc::new(FlowTable::new(100, 7)), Arc::new(routes), 1420);
    let service = NativePlugin::new(services(backend).encode_to_vec()).unwrap();
    let policy = NativePlugin::new(tables(programs).encode_to_vec()).unwrap();
    let at = |plugin: &dyn Plugin, priority| Interest { priority, ..plugin.interest().clone() };
    let (first, second) = (at(&service, 1), at(&policy, 2));
    let plugins =
        vec![BuiltIn::Service(Box::new(service), first), BuiltIn::Policy(Box::new(policy), second)];
    node.set_plugins(plugins).unwrap();
    node
}

fn policies(node: &mut Pipeline<BuiltIn>, programs: &[PolicyProgram]) {
    node.change_plugin("policy", |plugin| {
        let BuiltIn::Policy(plugin, interest) = plugin else { panic!() };
        let tables = tables(programs).encode_to_vec();
        plugin.configure(Config::Full(&tables)).unwrap();
        interest.revision += 1;
    });
}

/// What becomes of a packet from a pod or the host, and its addresses then.
fn send(node: &mut Pipeline<BuiltIn>, mut packet: Vec<u8>) -> (Action, SocketAddr, SocketAddr) {
    let action = node.handle_tun_input(&mut packet, &mut Meta::default(), NOW);
    let sent = Headers::parse(&packet, &Meta::default()).unwrap();
    let at = |ip, port| SocketAddr::new(ip, port);
    (action, at(sent.source, sent.source_port), at(sent.destination, sent.destination_port))
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// NP-062, NP-073: to the Service, back from the backend, and again after a change.
#[test]
fn pod_that_may_nothing_reaches_itself_through_its_service() {
    let closed = [isolated(INGRESS, &[]), isolated(EGRESS, &[])];
    let mut node = node("10.0.1.5:8080", &closed);
    let (client, service) = (format!("{A}:40000"), format!("{SERVICE}:80"));
    for flags in [SYN, ACK, ACK] {
        let (action, from, to) = send(&mut node, tcp(&client, &service).flags(flags).build());
        assert_eq!((action, from.ip(), to), (Action::ToTun, at(NODE, 0).ip(), at(A, 8080)));
        let answer = tcp(&to.to_string(), &from.to_string()).flags(flags | ACK).build();
        let expected = (Action::ToTun, at(SERVICE, 80), at(A, 40_000));
        assert_eq!(send(&mut node, answer), expected);
        policies(&mut node, &closed);
    }
    let (action, ..) = send(&mut node, tcp(&client, &format!("{B}:80")).flags(SYN).build());
    assert_eq!(action, DROPPED);
}

/// NP-065: another pod's Service that the first pod may not reach.
#[test]
fn service_of_another_pod_is_no_way_round() {
    let mut node = node("10.0.1.5:8080", &[isolated(INGRESS, &[])]);
    let packet = || tcp(&format!("{B}:40000"), &format!("{SERVICE}:80")).flags(SYN).build();
    assert_eq!(send(&mut node, packet()).0, DROPPED);
    policies(&mut node, &[isolated(INGRESS, &[sets(&[2]).port(TCP, 8080, 8080)])]);
    assert_eq!(send(&mut node, packet()).0, Action::ToTun);
}

/// NP-035, NP-040, NP-070: what the Service chose counts, and not the Service.
#[test]
fn backend_and_its_port_are_judged() {
    let to = |rules: &[_]| {
        let mut node = node("10.0.2.5:8080", &[isolated(EGRESS, rules)]);
        send(&mut node, tcp(&format!("{A}:40000"), &format!("{SERVICE}:80")).flags(SYN).build()).0
    };
    assert_eq!(to(&[sets(&[3]).port(TCP, 8080, 8080)]), Action::ToPeer(PeerId(2)));
    assert_eq!(to(&[sets(&[3]).port(TCP, 80, 80)]), DROPPED);
    assert_eq!(to(&[blocks(&[("10.96.0.0/16", &[])])]), DROPPED);
    assert_eq!(to(&[blocks(&[("10.0.2.5/32", &[])])]), Action::ToPeer(PeerId(2)));
}

/// NP-093: both directions of an open flow, and back again.
#[test]
fn open_flow_ends_in_both_directions() {
    let rule = sets(&[3]).port(UDP, 8080, 8080);
    let mut node = node("10.0.2.5:8080", &[isolated(EGRESS, std::slice::from_ref(&rule))]);
    let packet = || udp(&format!("{A}:40000"), &format!("{SERVICE}:80")).payload(b"x").build();
    let answer = |node: &mut Pipeline<BuiltIn>| {
        let mut packet = udp(&format!("{C}:8080"), &format!("{A}:40000")).payload(b"x").build();
        node.handle_network_input(PeerId(2), &mut packet, &mut Meta::default(), NOW)
    };
    let ends = |node: &mut Pipeline<BuiltIn>| (send(node, packet()).0, answer(node));
    let open = (Action::ToPeer(PeerId(2)), Action::ToTun);
    assert_eq!(ends(&mut node), open);
    policies(&mut node, &[isolated(EGRESS, &[])]);
    assert_eq!(answer(&mut node), DROPPED);
    assert_eq!(ends(&mut node), (DROPPED, DROPPED));
    policies(&mut node, &[isolated(EGRESS, &[rule])]);
    assert_eq!(ends(&mut node), open);
}

/// NP-061, NP-064: by where a packet comes from.
#[test]
fn host_is_not_another_node() {
    let mut node = node("10.0.2.5:8080", &[isolated(INGRESS, &[])]);
    let packet = |from: &str| tcp(&format!("{from}:40000"), &format!("{A}:80")).flags(SYN).build();
    assert_eq!(send(&mut node, packet(NODE)).0, Action::ToTun);
    assert_eq!(send(&mut node, packet(WORLD)).0, DROPPED);
    for from in [OTHER_NODE, C] {
        let action =
            node.handle_network_input(PeerId(2), &mut packet(from), &mut Meta::default(), NOW);
        assert_eq!(action, DROPPED);
    }
}

/// NP-063, NP-142: directly and through a Service, on an open flow and from the start.
#[test]
fn own_node_is_closed_by_a_tier_and_not_by_isolation() {
    let mut node = node(&format!("{NODE}:8080"), &[isolated(EGRESS, &[])]);
    let direct = || udp(&format!("{A}:40000"), &format!("{NODE}:8080")).payload(b"x").build();
    let through = || udp(&format!("{A}:40001"), &format!("{SERVICE}:80")).payload(b"x").build();
    let answer = || udp(&format!("{NODE}:8080"), &format!("{A}:40000")).payload(b"x").build();
    let all =
        |node: &mut Pipeline<BuiltIn>| [direct(), through(), answer()].map(|p| send(node, p).0);
    assert_eq!(all(&mut node), [Action::ToTun; 3]);
    let deny = blocks(&[("192.0.2.1/32", &[])]).acts(20, Deny);
    policies(&mut node, &[PolicyProgram { admin: vec![deny], ..isolated(EGRESS, &[]) }]);
    assert_eq!(all(&mut node), [DROPPED; 3]);
    // What the node begins is another flow.
    let from_node = tcp(&format!("{NODE}:40000"), &format!("{A}:80")).flags(SYN).build();
    assert_eq!(send(&mut node, from_node).0, Action::ToTun);
    policies(&mut node, &[isolated(EGRESS, &[])]);
    assert_eq!(all(&mut node), [Action::ToTun; 3]);
}

/// NP-071: a flow that moves to another backend is asked about anew.
#[test]
fn flow_that_moves_to_a_denied_backend_ends() {
    let mut node = node("10.0.2.5:8080", &[isolated(EGRESS, &[sets(&[3])])]);
    let packet = || udp(&format!("{A}:40000"), &format!("{SERVICE}:80")).payload(b"x").build();
    assert_eq!(send(&mut node, packet()).0, Action::ToPeer(PeerId(2)));
    node.change_plugin("service", |plugin| {
        let BuiltIn::Service(plugin, interest) = plugin else { panic!() };
        let tables = services("10.0.2.6:8080").encode_to_vec();
        plugin.configure(Config::Full(&tables)).unwrap();
        interest.revision += 1;
    });
    assert_eq!(send(&mut node, packet()).0, DROPPED);
}
