//! A node with two pods, packets, and a plugin made of a closure.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use etherparse::{IpFragOffset, Ipv4Header, PacketBuilder};
use weft_abi::protocols;
pub(super) use weft_abi::{Descriptor, RewriteFields};
use weft_model::{HookPosition, OnFault, PeerId, PluginMode};
pub(super) use weft_packet::protocol::tcp_flag::{ACK, RST, SYN};
use weft_packet::{Headers, Meta, Unreachable, icmp_unreachable};

use crate::flow::FlowTable;
use crate::plugin::{Interest, Outcome, Plugin, PluginFault};
use crate::routes::{Routes, RoutesConfig};

pub(super) type Node = super::super::Pipeline<TestPlugin>;

pub(super) const PEER: PeerId = PeerId(2);
pub(super) const MTU: u16 = 1420;

const fn v4(a: u8, b: u8, c: u8, d: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
}

const fn v6(a: u16, b: u16, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, b)), port)
}

pub(super) const POD: SocketAddr = v4(10, 1, 1, 5, 40_000);
pub(super) const POD2: SocketAddr = v4(10, 1, 1, 6, 8080);
pub(super) const HOST: SocketAddr = v4(192, 0, 2, 1, 10_250);
pub(super) const HOST_SOURCE: SocketAddr = v4(169, 254, 1, 9, 0);
pub(super) const PEER_HOST: SocketAddr = v4(192, 0, 2, 2, 10_250);
pub(super) const REMOTE: SocketAddr = v4(10, 1, 2, 7, 9376);
pub(super) const OTHER_REMOTE: SocketAddr = v4(10, 1, 2, 8, 7000);
pub(super) const SERVICE: SocketAddr = v4(10, 96, 0, 10, 80);
pub(super) const WORLD: SocketAddr = v4(198, 51, 100, 7, 443);
pub(super) const POD_V6: SocketAddr = v6(1, 5, 40_000);
pub(super) const HOST_V6: SocketAddr = v6(0xff, 1, 10_250);
pub(super) const REMOTE_V6: SocketAddr = v6(2, 7, 9376);

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// An address outside of the fabric.
pub(super) fn service(tail: [u8; 2], port: u16, is_v6: bool) -> SocketAddr {
    let ip = if is_v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from_be_bytes(tail)).into()
    } else {
        Ipv4Addr::new(10, 96, tail[0], tail[1]).into()
    };
    SocketAddr::new(ip, port)
}

pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(super) fn node(plugins: Vec<TestPlugin>) -> Node {
    let net = |n: &str| n.parse::<ipnet::IpNet>().unwrap();
    let routes = Routes::new(&RoutesConfig {
        host_addresses: vec![HOST.ip(), HOST_V6.ip()],
        local_subnets: vec![net("10.1.1.0/24"), net("fd00:1::/64")],
        local_pods: vec![POD.ip(), POD2.ip(), POD_V6.ip()],
        peers: vec![
            (PEER, vec![net("10.1.2.0/24"), net("192.0.2.2/32"), net("fd00:2::/64")]),
            (PeerId(3), vec![net("10.1.3.0/24")]),
        ],
        pod_cidrs: vec![net("10.1.0.0/16"), net("fd00::/16")],
        host_sources: vec![HOST_SOURCE.ip()],
    });
    let mut node = Node::new(Arc::new(FlowTable::new(100, 7)), Arc::new(routes), MTU);
    node.set_plugins(plugins).unwrap();
    node
}

/// `tcp`: its flags; `None` makes UDP.
pub(super) fn build(
    from: SocketAddr,
    to: SocketAddr,
    tcp: Option<u8>,
    payload: &[u8],
    dont_fragment: bool,
    ttl: u8,
) -> Vec<u8> {
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let mut header = Ipv4Header::new(0, ttl, 0.into(), a.octets(), b.octets()).unwrap();
            header.dont_fragment = dont_fragment;
            header.identification = 77;
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), ttl),
        _ => panic!("families differ"),
    };
    let mut out = Vec::new();
    match tcp {
        Some(flags) => {
            let mut step = builder.tcp(from.port(), to.port(), 1000, 512);
            step = if flags & SYN != 0 { step.syn() } else { step };
            step = if flags & ACK != 0 { step.ack(2000) } else { step };
            step = if flags & RST != 0 { step.rst() } else { step };
            step.write(&mut out, payload).unwrap();
        }
        None => builder.udp(from.port(), to.port()).write(&mut out, payload).unwrap(),
    }
    out
}

pub(super) fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    build(from, to, Some(flags), b"", true, 64)
}

pub(super) fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    build(from, to, None, b"question", true, 64)
}

/// `length` is that of the whole packet.
pub(super) fn sized_udp(
    from: SocketAddr,
    to: SocketAddr,
    length: usize,
    dont_fragment: bool,
) -> Vec<u8> {
    build(from, to, None, &vec![0x5a; length - 28], dont_fragment, 64)
}

pub(super) fn with_ttl(from: SocketAddr, to: SocketAddr, ttl: u8) -> Vec<u8> {
    build(from, to, None, b"", true, ttl)
}

/// One UDP datagram in two fragments.
pub(super) fn fragments(from: SocketAddr, to: SocketAddr, id: u16) -> [Vec<u8>; 2] {
    let whole = build(from, to, None, &[7; 64], false, 64);
    let (IpAddr::V4(a), IpAddr::V4(b)) = (from.ip(), to.ip()) else { panic!() };
    [(20..60, 0, true), (60..whole.len(), 5, false)].map(|(range, offset, more)| {
        let payload = &whole[range];
        let length = u16::try_from(payload.len()).unwrap();
        let mut header = Ipv4Header::new(length, 64, 17.into(), a.octets(), b.octets()).unwrap();
        header.identification = id;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut out = Vec::new();
        header.write(&mut out).unwrap();
        out.extend_from_slice(payload);
        out
    })
}

/// `from` says that `about` found nobody.
pub(super) fn port_unreachable(from: SocketAddr, to: SocketAddr, about: &[u8]) -> Vec<u8> {
    let headers = Headers::parse(about, &Meta::default()).unwrap();
    let mut out = Vec::new();
    assert!(icmp_unreachable(about, &headers, from.ip(), Unreachable::Port, &mut out));
    assert_eq!(headers.source, to.ip());
    out
}

/// What a plugin was shown, in order.
#[derive(Clone, Default)]
pub(super) struct Log(Rc<RefCell<Vec<(u16, u16)>>>);

impl Log {
    pub(super) fn note(&self, a: u16, b: u16) {
        self.0.borrow_mut().push((a, b));
    }

    pub(super) fn take(&self) -> Vec<(u16, u16)> {
        self.0.take()
    }
}

/// A verdict that owns its packet.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Continue,
    Accept,
    Drop(u32),
    Reject(u32),
    Rewrite(RewriteFields),
    Reply(Vec<u8>),
    WouldDrop(u32),
    Fault,
}

type Rule = dyn Fn(&Descriptor, &[u8]) -> Verdict;

#[derive(Clone)]
pub(super) struct TestPlugin {
    interest: Interest,
    rule: Rc<Rule>,
    slot: Option<[u8; 16]>,
    counts: bool,
    again: bool,
    pub(super) last_slot: [u8; 16],
    reply: Vec<u8>,
    rewrite: RewriteFields,
}

impl TestPlugin {
    /// At egress, first in order, asked about every packet, dropping on a fault.
    pub(super) fn new(name: &str, rule: impl Fn(&Descriptor, &[u8]) -> Verdict + 'static) -> Self {
        let interest = Interest {
            name: name.into(),
            position: HookPosition::Egress,
            priority: 0,
            protocols: protocols::ALL,
            mode: PluginMode::Packet,
            on_fault: OnFault::Drop,
            revision: 1,
        };
        Self {
            interest,
            rule: Rc::new(rule),
            slot: None,
            counts: false,
            again: false,
            last_slot: [0; 16],
            reply: Vec::new(),
            rewrite: RewriteFields::default(),
        }
    }

    pub(super) fn at(mut self, position: HookPosition) -> Self {
        self.interest.position = position;
        self
    }

    pub(super) fn priority(mut self, priority: i32) -> Self {
        self.interest.priority = priority;
        self
    }

    pub(super) fn protocols(mut self, protocols: u8) -> Self {
        self.interest.protocols = protocols;
        self
    }

    pub(super) fn mode(mut self, mode: PluginMode) -> Self {
        self.interest.mode = mode;
        self
    }

    pub(super) fn on_fault(mut self, on_fault: OnFault) -> Self {
        self.interest.on_fault = on_fault;
        self
    }

    pub(super) fn revision(mut self, revision: u64) -> Self {
        self.interest.revision = revision;
        self
    }

    /// Writes this slot with each answer.
    pub(super) fn slot(mut self, slot: [u8; 16]) -> Self {
        self.slot = Some(slot);
        self
    }

    /// Wants to see the next packet too.
    pub(super) fn asking_again(mut self) -> Self {
        self.again = true;
        self
    }

    /// Adds one to the first byte of its slot with each answer.
    pub(super) fn counting_slot(mut self) -> Self {
        self.counts = true;
        self
    }
}

impl Plugin for TestPlugin {
    fn interest(&self) -> &Interest {
        &self.interest
    }

    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault> {
        use crate::plugin::Verdict as V;
        self.last_slot = descriptor.slot;
        if self.counts {
            let mut next = descriptor.slot;
            next[0] += 1;
            self.slot = Some(next);
        }
        let verdict = match (self.rule)(descriptor, packet) {
            Verdict::Continue => V::Continue,
            Verdict::Accept => V::Accept,
            Verdict::Drop(code) => V::Drop(code),
            Verdict::Reject(code) => V::Reject(code),
            Verdict::Rewrite(fields) => {
                self.rewrite = fields;
                V::Rewrite(&self.rewrite)
            }
            Verdict::Reply(packet) => {
                self.reply = packet;
                V::Reply(&self.reply)
            }
            Verdict::WouldDrop(code) => V::WouldDrop(code),
            Verdict::Fault => return Err(PluginFault::Trap),
        };
        Ok(Outcome { verdict, slot: self.slot.as_ref(), again: self.again })
    }
}
