//! A node with the plugin: tables in short form, packets in, answers as a line of text.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use prost::Message;
use weft_pipeline::Plugin;
use weft_policy_sdk::{Config, Descriptor, flags};
use weft_policy_testing::{Answered, NativeMap, NativePlugin, Timestamp};
use weft_proto::tables::v1::{
    Frontend, NodePortAddresses, Range, ServicePortTable, ServiceSettings, ServiceTable,
    ServiceTables, backend, frontend,
};

use crate::Services;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

/// Flags of a packet from a pod of the node, from the node, and from elsewhere.
pub(super) const POD: u32 = flags::SOURCE_LOCAL_POD;
pub(super) const HOST: u32 = flags::SOURCE_HOST;
pub(super) const OUTSIDE: u32 = 0;

/// Bits of a backend that is ready: in every set.
pub(super) const READY: u8 = backend::CLUSTER | backend::LOCAL | backend::COUNTS;

pub(super) use frontend::Kind::{ClusterIp, ExternalIp, LoadBalancer};

pub(super) fn bytes(text: &str) -> Vec<u8> {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn range(text: &str) -> Range {
    let (address, prefix) = text.split_once('/').unwrap();
    Range { address: bytes(address), prefix: prefix.parse().unwrap() }
}

/// Node 1 is this one, node 2 another. Pods of node n are in 10.0.n.0/24 and fd00:n::/64.
pub(super) fn settings() -> ServiceSettings {
    let node = |node, addresses: &[&str]| NodePortAddresses {
        node,
        addresses: addresses.iter().map(|a| bytes(a)).collect(),
    };
    ServiceSettings {
        nodes: vec![node(1, &["192.0.2.1", "2001:db8::1"]), node(2, &["192.0.2.2", "2001:db8::2"])],
        own_node: 1,
        node_sources: vec![bytes("192.0.2.1"), bytes("2001:db8::1")],
        host_sources: vec![bytes("10.0.1.1"), bytes("fd00:1::1")],
        service_cidrs: vec![range("10.96.0.0/16"), range("fd00:96::/112")],
    }
}

pub(super) fn service(name: &str) -> ServiceTable {
    ServiceTable { name: name.to_owned(), ..ServiceTable::default() }
}

/// Bits of places, by the address: those of [`settings`].
fn place(address: IpAddr) -> (u16, u8) {
    let text = address.to_string();
    let starts = |starts: &[&str]| starts.iter().any(|start| text.starts_with(start));
    match () {
        () if text == "192.0.2.1" || text == "2001:db8::1" => (1, backend::HOST),
        () if text == "192.0.2.2" || text == "2001:db8::2" => (2, backend::ELSEWHERE),
        () if starts(&["10.0.1.", "fd00:1:"]) => (1, backend::LOCAL_POD),
        () if starts(&["10.0.2.", "fd00:2:"]) => (2, backend::REMOTE_POD),
        () => (0, backend::ELSEWHERE),
    }
}

/// Building of Services in short form.
pub(super) trait Build {
    fn at(self, kind: frontend::Kind, address: &str) -> Self;
    fn port(self, protocol: u8, port: u16, node_port: u16, backends: &[(&str, u8)]) -> Self;
    fn ready(self, protocol: u8, port: u16, node_port: u16, backends: &[&str]) -> Self;
}

impl Build for ServiceTable {
    fn at(mut self, kind: frontend::Kind, address: &str) -> Self {
        self.frontends.push(Frontend { kind: kind.into(), address: bytes(address) });
        self
    }

    /// Backends with their bits, but for place and node, which the address tells.
    fn port(mut self, protocol: u8, port: u16, node_port: u16, backends: &[(&str, u8)]) -> Self {
        let mut table = ServicePortTable {
            protocol: protocol.into(),
            port: port.into(),
            node_port: node_port.into(),
            ..ServicePortTable::default()
        };
        for (at, bits) in backends {
            let at: SocketAddr = at.parse().unwrap();
            let (node, place) = place(at.ip());
            let list = if at.is_ipv4() { &mut table.backends_v4 } else { &mut table.backends_v6 };
            list.extend(bytes(&at.ip().to_string()));
            list.extend(at.port().to_be_bytes());
            list.extend(node.to_be_bytes());
            list.push(bits | place);
        }
        self.ports.push(table);
        self
    }

    fn ready(self, protocol: u8, port: u16, node_port: u16, backends: &[&str]) -> Self {
        let backends: Vec<_> = backends.iter().map(|at| (*at, READY)).collect();
        self.port(protocol, port, node_port, &backends)
    }
}

/// A configuration with the usual settings.
pub(super) fn tables(services: &[ServiceTable]) -> ServiceTables {
    ServiceTables { settings: Some(settings()), services: services.to_vec(), removed: Vec::new() }
}

type FlowKey = (u8, SocketAddr, SocketAddr);

/// The plugin with the memory of flows that the fabric keeps: of a packet that goes on, and no
/// other.
pub(super) struct Node {
    pub(super) plugin: NativePlugin<Services>,
    flows: BTreeMap<FlowKey, [u8; 16]>,
    pub(super) now: Timestamp,
    pub(super) tcp_flags: u8,
}

impl Node {
    pub(super) fn new(services: &[ServiceTable]) -> Self {
        Self::with(&tables(services), NativeMap::default())
    }

    pub(super) fn with(tables: &ServiceTables, map: NativeMap) -> Self {
        Self {
            plugin: NativePlugin::with_map(tables.encode_to_vec(), map).unwrap(),
            flows: BTreeMap::new(),
            now: Timestamp(1_000_000_000),
            tcp_flags: 2,
        }
    }

    /// Replaces all.
    pub(super) fn full(&mut self, services: &[ServiceTable]) {
        self.plugin.configure(Config::Full(&tables(services).encode_to_vec())).unwrap();
    }

    /// Sets and removes Services.
    pub(super) fn delta(&mut self, services: &[ServiceTable], removed: &[&str]) {
        let tables = ServiceTables {
            settings: None,
            services: services.to_vec(),
            removed: removed.iter().map(|&name| name.to_owned()).collect(),
        };
        self.plugin.configure(Config::Delta(&tables.encode_to_vec())).unwrap();
    }

    /// Loses all flows.
    pub(super) fn forget(&mut self) {
        self.flows.clear();
    }

    /// The answer to a packet: `pass`, `drop N`, `reject N`, or `to ADDRESS:PORT` and, if the
    /// source is another then, `from ADDRESS:PORT`.
    pub(super) fn ask(&mut self, client: u32, protocol: u8, from: &str, to: &str) -> String {
        self.told(client, protocol, from.parse().unwrap(), to.parse().unwrap())
    }

    pub(super) fn told(
        &mut self,
        client: u32,
        protocol: u8,
        from: SocketAddr,
        to: SocketAddr,
    ) -> String {
        let flow = (protocol, from, to);
        let first = if self.flows.contains_key(&flow) { 0 } else { flags::FIRST };
        let told = Descriptor {
            flags: client | first | flags::EGRESS,
            slot: self.flows.get(&flow).copied().unwrap_or_default(),
            ..described(protocol, from, to, self.now, self.tcp_flags)
        };
        let outcome = self.plugin.on_packet(&told, &[0x45]).unwrap();
        let slot = outcome.slot.copied().unwrap_or(told.slot);
        let answer = Answered::from(outcome.verdict);
        if matches!(answer, Answered::Continue | Answered::Rewrite(_)) {
            self.flows.insert(flow, slot);
        }
        text(&answer)
    }

    /// Where 20 TCP connections of a client go, each place once.
    pub(super) fn spread(&mut self, client: u32, from: &str, to: &str) -> Vec<String> {
        self.spread_of(client, TCP, from, to)
    }

    pub(super) fn spread_of(
        &mut self,
        client: u32,
        protocol: u8,
        from: &str,
        to: &str,
    ) -> Vec<String> {
        let from: IpAddr = from.parse().unwrap();
        let to = to.parse().unwrap();
        let start = 20_000 + u16::try_from(self.flows.len()).unwrap();
        let answers = (start..start + 20)
            .map(|port| self.told(client, protocol, SocketAddr::new(from, port), to));
        let mut answers: Vec<_> = answers.collect();
        answers.sort();
        answers.dedup();
        answers
    }
}

pub(super) fn described(
    protocol: u8,
    from: SocketAddr,
    to: SocketAddr,
    now: Timestamp,
    tcp_flags: u8,
) -> Descriptor {
    Descriptor {
        source: mapped(from.ip()),
        destination: mapped(to.ip()),
        source_port: from.port(),
        destination_port: to.port(),
        protocol,
        ip_version: if from.is_ipv4() { 4 } else { 6 },
        tcp_flags: if protocol == TCP { tcp_flags } else { 0 },
        now: now.0,
        segments: 1,
        ..Descriptor::default()
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(super) fn text(answer: &Answered) -> String {
    let at = |address: Option<[u8; 16]>, port: Option<u16>| {
        let address = Ipv6Addr::from(address.unwrap()).to_canonical();
        SocketAddr::new(address, port.unwrap()).to_string()
    };
    match answer {
        Answered::Continue => "pass".to_owned(),
        Answered::Drop(reason) => format!("drop {reason}"),
        Answered::Reject(reason) => format!("reject {reason}"),
        Answered::Rewrite(to) => {
            let mut text = format!("to {}", at(to.destination, to.destination_port));
            if to.source.is_some() || to.source_port.is_some() {
                text += &format!(" from {}", at(to.source, to.source_port));
            }
            text
        }
        other => format!("{other:?}"),
    }
}
