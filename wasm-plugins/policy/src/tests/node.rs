//! A node with the plugin: tables in short form, packets in, answers as a line of text.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use prost::Message;
use weft_pipeline::Plugin;
use weft_policy_sdk::{Config, Descriptor, flags};
use weft_policy_testing::{Answered, NativePlugin};
use weft_proto::tables::v1::policy_rule::Action;
use weft_proto::tables::v1::{
    IdentitySet, PolicyBlock, PolicyPort, PolicyProgram, PolicyRule, PolicySettings, PolicySubject,
    PolicyTables, Range,
};

use crate::Policies;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMP: u8 = 1;

/// Pods of the node with identities 1 and 2, in both families.
pub(super) const A: &str = "10.0.1.5";
pub(super) const B: &str = "10.0.1.6";
pub(super) const A6: &str = "fd00:1::5";
pub(super) const B6: &str = "fd00:1::6";
/// Pods of another node with identities 3 and 4.
pub(super) const C: &str = "10.0.2.5";
pub(super) const D: &str = "10.0.2.6";
pub(super) const C6: &str = "fd00:2::5";
/// Addresses of the node, of the other node, and of nobody here.
pub(super) const NODE: &str = "192.0.2.1";
pub(super) const NODE6: &str = "2001:db8::1";
pub(super) const OTHER_NODE: &str = "192.0.2.2";
pub(super) const WORLD: &str = "203.0.113.9";
pub(super) const WORLD6: &str = "2001:db8:9::1";

/// Programs of pod A.
pub(super) const INGRESS: u32 = 1;
pub(super) const EGRESS: u32 = 2;
/// Numbers of drops for them.
pub(super) const NOT_IN: u32 = 100;
pub(super) const NOT_OUT: u32 = 101;

pub(super) fn bytes(text: &str) -> Vec<u8> {
    bytes_of(text.parse().unwrap())
}

pub(super) fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn range(text: &str) -> Range {
    let (address, prefix) = text.split_once('/').unwrap();
    Range { address: bytes(address), prefix: prefix.parse().unwrap() }
}

/// Records of addresses of both families.
pub(super) fn addresses(all: &[(&str, u32)]) -> PolicyTables {
    let mut tables = PolicyTables::default();
    for (address, identity) in all {
        let address = bytes(address);
        let to =
            if address.len() == 4 { &mut tables.addresses_v4 } else { &mut tables.addresses_v6 };
        to.extend(address);
        to.extend(identity.to_be_bytes());
    }
    tables
}

/// The pods as above, where pod A is kept to the programs and set n has identity n.
pub(super) fn tables(programs: &[PolicyProgram]) -> PolicyTables {
    let pods = [(A, 1), (A6, 1), (B, 2), (B6, 2), (C, 3), (C6, 3), (D, 4)];
    let number = |n| if programs.iter().any(|program| program.number == n) { n } else { 0 };
    PolicyTables {
        settings: Some(PolicySettings {
            own_addresses: vec![bytes(NODE), bytes(NODE6)],
            ..PolicySettings::default()
        }),
        sets: (1..=4).map(|n| IdentitySet { number: n, identities: vec![n] }).collect(),
        programs: programs.to_vec(),
        subjects: vec![
            PolicySubject { identity: 1, ingress: number(INGRESS), egress: number(EGRESS) },
            PolicySubject { identity: 2, ingress: 0, egress: 0 },
        ],
        ..addresses(&pods)
    }
}

/// A program that isolates.
pub(super) fn isolated(number: u32, allowed: &[PolicyRule]) -> PolicyProgram {
    PolicyProgram { isolated: true, allowed: allowed.to_vec(), ..program(number) }
}

/// A program that does nothing.
pub(super) fn program(number: u32) -> PolicyProgram {
    let isolation = if number == INGRESS { NOT_IN } else { NOT_OUT };
    PolicyProgram { number, isolation, ..PolicyProgram::default() }
}

/// A rule for any peer and port.
pub(super) fn any() -> PolicyRule {
    PolicyRule { any_peer: true, ..PolicyRule::default() }
}

pub(super) fn sets(sets: &[u32]) -> PolicyRule {
    PolicyRule { sets: sets.to_vec(), ..PolicyRule::default() }
}

pub(super) fn blocks(blocks: &[(&str, &[&str])]) -> PolicyRule {
    let block = |(cidr, except): &(&str, &[&str])| PolicyBlock {
        range: Some(range(cidr)),
        except: except.iter().map(|text| range(text)).collect(),
    };
    PolicyRule { blocks: blocks.iter().map(block).collect(), ..PolicyRule::default() }
}

/// More about rules in short form.
pub(super) trait Build {
    fn port(self, protocol: u8, first: u16, last: u16) -> Self;
    fn acts(self, number: u32, action: Action) -> Self;
    fn watched(self) -> Self;
}

impl Build for PolicyRule {
    fn port(mut self, protocol: u8, first: u16, last: u16) -> Self {
        let (first, last) = (first.into(), last.into());
        self.ports.push(PolicyPort { protocol: protocol.into(), first, last });
        self
    }

    fn acts(mut self, number: u32, action: Action) -> Self {
        self.number = number;
        self.set_action(action);
        self
    }

    fn watched(mut self) -> Self {
        self.watched = true;
        self
    }
}

/// Where on its way a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Egress,
    Ingress,
}

type FlowKey = (u8, SocketAddr, SocketAddr);

/// The plugin with the memory of flows that the fabric keeps.
pub(super) struct Node {
    pub(super) plugin: NativePlugin<Policies>,
    flows: BTreeMap<FlowKey, [u8; 16]>,
    /// Numbers that something passed with as what would be dropped, in their order.
    pub(super) would_drop: Vec<u32>,
}

impl Node {
    pub(super) fn new(programs: &[PolicyProgram]) -> Self {
        Self::with(&tables(programs))
    }

    pub(super) fn with(tables: &PolicyTables) -> Self {
        let plugin = NativePlugin::new(tables.encode_to_vec()).unwrap();
        Self { plugin, flows: BTreeMap::new(), would_drop: Vec::new() }
    }

    pub(super) fn full(&mut self, tables: &PolicyTables) {
        self.plugin.configure(Config::Full(&tables.encode_to_vec())).unwrap();
    }

    pub(super) fn delta(&mut self, tables: &PolicyTables) {
        self.plugin.configure(Config::Delta(&tables.encode_to_vec())).unwrap();
    }

    /// The answer to a first packet that leaves a pod of the node: `pass` or `drop N`.
    pub(super) fn leave(&mut self, protocol: u8, from: &str, to: &str, port: u16) -> String {
        self.both_ways(At::Egress, protocol, from, to, port)
    }

    /// The answer to a first packet that gets to a pod of the node.
    pub(super) fn enter(&mut self, protocol: u8, from: &str, to: &str, port: u16) -> String {
        self.both_ways(At::Ingress, protocol, from, to, port)
    }

    /// As the first packet of a flow, and, which has to be the same, as an answer to it (NP-060).
    fn both_ways(&mut self, at: At, protocol: u8, from: &str, to: &str, port: u16) -> String {
        let from = SocketAddr::new(from.parse().unwrap(), 40_000);
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let answer = self.ask(at, place(at, from.ip(), to.ip()), protocol, from, to);
        let back = if at == At::Egress { At::Ingress } else { At::Egress };
        let flags = place(back, to.ip(), from.ip()) | flags::REPLY;
        assert_eq!(self.ask(back, flags, protocol, to, from), answer, "the way back");
        answer
    }

    /// Loses all flows.
    pub(super) fn forget(&mut self) {
        self.flows.clear();
    }

    /// The answer to a packet with these flags.
    pub(super) fn ask(
        &mut self,
        at: At,
        told: u32,
        protocol: u8,
        from: SocketAddr,
        to: SocketAddr,
    ) -> String {
        let key =
            if told & flags::REPLY != 0 { (protocol, to, from) } else { (protocol, from, to) };
        let told = Descriptor {
            flags: told | if at == At::Egress { flags::EGRESS } else { 0 },
            source: mapped(from.ip()),
            destination: mapped(to.ip()),
            source_port: from.port(),
            destination_port: to.port(),
            protocol,
            ip_version: if from.is_ipv4() { 4 } else { 6 },
            segments: 1,
            slot: self.flows.get(&key).copied().unwrap_or_default(),
            ..Descriptor::default()
        };
        let outcome = self.plugin.on_packet(&told, &[0x45]).unwrap();
        let slot = outcome.slot.copied().unwrap_or(told.slot);
        let mut answer = Answered::from(outcome.verdict);
        if let Answered::WouldDrop(number) = answer {
            self.would_drop.push(number);
            answer = Answered::Continue;
        }
        if answer == Answered::Continue {
            self.flows.insert(key, slot);
        }
        match answer {
            Answered::Continue => "pass".to_owned(),
            Answered::Drop(number) => format!("drop {number}"),
            other => format!("{other:?}"),
        }
    }
}

/// What the fabric tells of where addresses are.
pub(super) fn place(at: At, from: IpAddr, to: IpAddr) -> u32 {
    let is_pod = |address: IpAddr| {
        let text = address.to_string();
        text.starts_with("10.0.1.") || text.starts_with("fd00:1:")
    };
    let is_host = [NODE, NODE6].map(|a| a.parse::<IpAddr>().unwrap()).contains(&from);
    let mark = |bit, set| if set { bit } else { 0 };
    mark(flags::SOURCE_LOCAL_POD, is_pod(from))
        | mark(flags::DESTINATION_LOCAL_POD, is_pod(to))
        | mark(flags::SOURCE_HOST, is_host)
        | mark(flags::FROM_MESH, at == At::Ingress && !is_pod(from) && !is_host)
}

pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
