//! Asks a plugin about packets, as the pipeline would, and keeps the flows' slots.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use weft_abi::{Descriptor, RewriteFields, flags, protocols};
use weft_model::Timestamp;
use weft_packet::{Fragment, Headers, IpVersion, Meta};
use weft_pipeline::{Plugin, Verdict};

/// What a plugin answered, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The manifest does not ask for packets of this protocol, or it is no packet.
    NotAsked,
    /// Ask the next.
    Continue,
    /// Let it pass.
    Accept,
    /// Drop.
    Drop(u32),
    /// Drop and tell.
    Reject(u32),
    /// Translate.
    Rewrite(RewriteFields),
    /// Answer with this packet.
    Reply(Vec<u8>),
    /// Let it pass and tell.
    WouldDrop(u32),
    /// The call failed.
    Fault,
}

/// How often a plugin answered what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(verdict, n)| writeln!(f, "{n:>10} {verdict}"))
    }
}

/// A plugin, the slots of the flows it has seen, and a clock that stands until it is set.
///
/// Every packet counts as one that a pod of this node sends.
#[derive(Debug)]
pub struct Bench<P> {
    plugin: P,
    /// By what the first packet of the flow went from and to.
    flows: BTreeMap<(u8, SocketAddr, SocketAddr), FlowState>,
    now: Timestamp,
}

#[derive(Clone, Copy, Debug, Default)]
struct FlowState {
    slot: [u8; 16],
    /// Whether the plugin was shown a packet, in the original and in the reply direction.
    shown: [bool; 2],
}

impl<P: Plugin> Bench<P> {
    /// Starts a second after boot.
    pub fn new(plugin: P) -> Self {
        Self { plugin, flows: BTreeMap::new(), now: Timestamp(1_000_000_000) }
    }

    /// Sets the clock.
    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// What the clock says.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The plugin.
    pub fn plugin(&self) -> &P {
        &self.plugin
    }

    /// Asks about a packet that starts at its IP header. A plugin with a manifest that says "per
    /// flow" is asked each time here.
    pub fn ask(&mut self, packet: &[u8]) -> Answered {
        let Ok(headers) = Headers::parse(packet, &Meta::default()) else {
            return Answered::NotAsked;
        };
        if self.plugin.interest().protocols & protocol_bit(headers.protocol) == 0 {
            return Answered::NotAsked;
        }
        let source = SocketAddr::new(headers.source, headers.source_port);
        let destination = SocketAddr::new(headers.destination, headers.destination_port);
        let (original, reversed) =
            ((headers.protocol, source, destination), (headers.protocol, destination, source));
        let reply = !self.flows.contains_key(&original) && self.flows.contains_key(&reversed);
        let flow = self.flows.entry(if reply { reversed } else { original }).or_default();
        let shown = &mut flow.shown[usize::from(reply)];
        let first = !std::mem::replace(shown, true);
        let descriptor = describe(&headers, flow.slot, reply, first, self.now);
        match self.plugin.on_packet(&descriptor, packet) {
            Ok(outcome) => {
                flow.slot = outcome.slot.copied().unwrap_or(flow.slot);
                Answered::from(outcome.verdict)
            }
            Err(_) => Answered::Fault,
        }
    }

    /// Asks about each packet at its time (nanoseconds) and counts the answers.
    pub fn replay(&mut self, packets: impl IntoIterator<Item = (Timestamp, Vec<u8>)>) -> Counts {
        let mut counts = Counts::default();
        for (at, packet) in packets {
            self.now = at;
            *counts.0.entry(self.ask(&packet).name()).or_default() += 1;
        }
        counts
    }
}

fn describe(
    headers: &Headers,
    slot: [u8; 16],
    reply: bool,
    first: bool,
    now: Timestamp,
) -> Descriptor {
    let later = matches!(headers.fragment, Fragment::Later { .. });
    let marks = [
        (flags::EGRESS, true),
        (flags::SOURCE_LOCAL_POD, true),
        (flags::REPLY, reply),
        (flags::FIRST, first),
        (flags::FRAGMENT, headers.fragment != Fragment::No),
        (flags::LATER_FRAGMENT, later),
    ];
    Descriptor {
        length: u32::try_from(headers.total_length).unwrap_or(u32::MAX),
        flags: marks.iter().filter(|(_, set)| *set).fold(0, |all, (bit, _)| all | bit),
        transport_offset: headers.transport_offset,
        payload_offset: headers.payload_offset,
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        ip_version: if headers.version == IpVersion::V4 { 4 } else { 6 },
        protocol: headers.protocol,
        tcp_flags: headers.tcp_flags,
        icmp_code: headers.icmp_code,
        source: mapped(headers.source),
        destination: mapped(headers.destination),
        now: now.0,
        slot,
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

fn protocol_bit(protocol: u8) -> u8 {
    match protocol {
        6 => protocols::TCP,
        17 => protocols::UDP,
        1 | 58 => protocols::ICMP,
        132 => protocols::SCTP,
        _ => protocols::OTHER,
    }
}

impl From<Verdict<'_>> for Answered {
    fn from(verdict: Verdict<'_>) -> Self {
        match verdict {
            Verdict::Continue => Self::Continue,
            Verdict::Accept => Self::Accept,
            Verdict::Drop(reason) => Self::Drop(reason),
            Verdict::Reject(reason) => Self::Reject(reason),
            Verdict::Rewrite(fields) => Self::Rewrite(*fields),
            Verdict::Reply(packet) => Self::Reply(packet.to_vec()),
            Verdict::WouldDrop(reason) => Self::WouldDrop(reason),
        }
    }
}

impl Answered {
    fn name(&self) -> &'static str {
        match self {
            Self::NotAsked => "not asked",
            Self::Continue => "continue",
            Self::Accept => "accept",
            Self::Drop(_) => "drop",
            Self::Reject(_) => "reject",
            Self::Rewrite(_) => "rewrite",
            Self::Reply(_) => "reply",
            Self::WouldDrop(_) => "would drop",
            Self::Fault => "fault",
        }
    }
}
