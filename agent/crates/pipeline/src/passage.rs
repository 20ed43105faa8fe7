//! One packet on its way, with what is known of it so far.

use std::net::IpAddr;

use weft_abi::{Descriptor, flags};
use weft_model::{DropReason, Timestamp};
use weft_packet::{
    Fragment, Headers, Inner, IpVersion, Meta, Rewrite, RewriteError, icmp_error_inner, protocol,
    rewrite, rewrite_icmp_error_inner,
};

use crate::flow::{
    Direction, FlowKey, Found, FragmentId, Memory, Numbers, Seen, Slots, Translator, opens,
};
use crate::pipeline::Origin;
use crate::plugins::Position;
use crate::routes::{Routes, Target};
use crate::verdict::Stop;

/// The packet's flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow {
    /// Of none: an ICMP error about nothing known.
    Untracked,
    /// It begins one.
    New {
        /// The first plugin that translated it.
        translator: Option<Translator>,
    },
    Known(Found),
}

pub(crate) struct Passage<'p> {
    pub(crate) origin: Origin,
    pub(crate) packet: &'p mut [u8],
    pub(crate) meta: &'p Meta,
    /// As the packet is: kept true by every rewrite.
    pub(crate) headers: &'p mut Headers,
    /// The packet's tuple as it is; a later fragment has the ports of its first.
    pub(crate) key: FlowKey,
    /// As it came.
    pub(crate) wire_key: FlowKey,
    /// The packet's destination has changed since the last routing decision.
    moved: bool,
    /// The plugin that was asked last has sent its flow elsewhere than it was.
    pub(crate) retargeted: bool,
    /// Some plugin has.
    pub(crate) leaves_target: bool,
    pub(crate) source: Target,
    /// `None` also if it is not looked up yet.
    destination: Target,
    pub(crate) flow: Flow,
    /// What the flow holds for the plugins in force; of others it may be anything.
    pub(crate) memory: &'p mut Memory,
    /// Plugin slots of `memory` that are to be kept.
    pub(crate) changed: Slots,
    pub(crate) opens: bool,
    /// For an ICMP error: the way it goes in the flow that it is about.
    pub(crate) error_direction: Option<Direction>,
    /// For an ICMP error: whom the packet that it is about was sent to.
    pub(crate) about: Option<IpAddr>,
    pub(crate) now: Timestamp,
}

impl From<RewriteError> for Stop {
    fn from(_: RewriteError) -> Self {
        Self::Drop(DropReason::Internal)
    }
}

impl<'p> Passage<'p> {
    /// `headers` are what the packet says.
    #[inline]
    pub(crate) fn new(
        origin: Origin,
        packet: &'p mut [u8],
        meta: &'p Meta,
        headers: &'p mut Headers,
        memory: &'p mut Memory,
        now: Timestamp,
    ) -> Self {
        let key = FlowKey::from(headers.five_tuple());
        Self {
            origin,
            packet,
            meta,
            key,
            wire_key: key,
            moved: false,
            retargeted: false,
            leaves_target: false,
            source: Target::None,
            destination: Target::None,
            flow: Flow::New { translator: None },
            memory,
            changed: 0,
            opens: opens(headers.protocol, headers.tcp_flags),
            error_direction: None,
            about: None,
            headers,
            now,
        }
    }

    /// True if it still says that it comes from where it did.
    #[inline]
    pub(crate) fn has_wire_source(&self) -> bool {
        self.key.same_source(&self.wire_key)
    }

    /// Number of packets that a super-packet stands for; 1 for an ordinary one.
    #[inline]
    pub(crate) fn segments(&self) -> u32 {
        let Some(gso) = self.meta.gso else { return 1 };
        let count = self.headers.payload_len().div_ceil(usize::from(gso.segment_size).max(1));
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
    }

    /// Length of the largest IP packet it will be on a wire.
    #[inline]
    pub(crate) fn largest_segment(&self) -> usize {
        let headers = usize::from(self.headers.payload_offset);
        match self.meta.gso {
            Some(gso) => (headers + usize::from(gso.segment_size)).min(self.headers.total_length),
            None => self.headers.total_length,
        }
    }

    #[inline]
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            packets: self.segments(),
            bytes: u64::try_from(self.headers.total_length).unwrap_or(u64::MAX),
            tcp_flags: (!self.is_later_fragment()).then_some(self.headers.tcp_flags),
            numbers: self.numbers(),
        }
    }

    #[inline]
    fn numbers(&self) -> Option<Numbers> {
        if self.headers.protocol != protocol::TCP || self.is_later_fragment() {
            return None;
        }
        let at = usize::from(self.headers.transport_offset) + 4;
        let [a, b, c, d, e, f, g, h] = *self.packet.get(at..)?.first_chunk()?;
        Some(Numbers {
            sequence: u32::from_be_bytes([a, b, c, d]),
            acknowledgement: u32::from_be_bytes([e, f, g, h]),
            length: u32::try_from(self.headers.payload_len()).unwrap_or(u32::MAX),
        })
    }

    #[inline]
    pub(crate) fn direction(&self) -> Direction {
        match (&self.flow, self.error_direction) {
            (_, Some(direction)) => direction,
            (Flow::Known(found), None) => found.direction,
            (Flow::Untracked | Flow::New { .. }, None) => Direction::Original,
        }
    }

    #[inline]
    pub(crate) fn is_later_fragment(&self) -> bool {
        matches!(self.headers.fragment, Fragment::Later { .. })
    }

    #[inline]
    pub(crate) fn later_fragment(&self) -> Option<FragmentId> {
        match self.headers.fragment {
            Fragment::Later { id, .. } => Some(self.fragment_id(id)),
            Fragment::No | Fragment::First { .. } => None,
        }
    }

    #[inline]
    pub(crate) fn first_fragment(&self) -> Option<FragmentId> {
        match self.headers.fragment {
            Fragment::First { id } => Some(self.fragment_id(id)),
            Fragment::No | Fragment::Later { .. } => None,
        }
    }

    fn fragment_id(&self, id: u32) -> FragmentId {
        FragmentId {
            source: self.wire_key.source().ip(),
            destination: self.wire_key.destination().ip(),
            id,
            protocol: self.headers.protocol,
        }
    }

    /// Where the packet goes, as it is.
    #[inline]
    pub(crate) fn locate(&mut self, routes: &Routes) -> Target {
        // A destination that is nowhere is looked up again, which nothing depends on.
        if self.destination == Target::None {
            self.destination = routes.target(self.headers.destination);
        }
        self.destination
    }

    /// As [`Self::locate`], for a routing decision.
    #[inline]
    pub(crate) fn route(&mut self, routes: &Routes) -> Target {
        self.moved = false;
        self.locate(routes)
    }

    /// Gives a later fragment the tuple of its first.
    pub(crate) fn take_key(&mut self, key: FlowKey) {
        self.key = key;
        self.wire_key = key;
    }

    /// True if the destination is another than the one that was routed.
    #[inline]
    pub(crate) fn destination_moved(&self) -> bool {
        self.moved
    }

    /// Brings the packet to another tuple.
    #[inline]
    pub(crate) fn move_to(&mut self, key: FlowKey) -> Result<(), RewriteError> {
        if key == self.key { Ok(()) } else { self.rewrite_to(key) }
    }

    /// Most packets are not translated.
    #[inline(never)]
    fn rewrite_to(&mut self, key: FlowKey) -> Result<(), RewriteError> {
        let change = self.key.rewrite_to(key);
        rewrite(self.packet, self.meta, self.headers, &change)?;
        self.set_key(key);
        Ok(())
    }

    /// Applies what a plugin asks for; the tuple is what the packet then says.
    pub(crate) fn apply(&mut self, change: &Rewrite) -> Result<(), RewriteError> {
        rewrite(self.packet, self.meta, self.headers, change)?;
        self.set_key(FlowKey::from(self.headers.five_tuple()));
        Ok(())
    }

    fn set_key(&mut self, key: FlowKey) {
        if !self.key.same_destination(&key) {
            self.destination = Target::None;
            self.moved = true;
        }
        self.key = key;
    }

    /// Applies the translation that the flow holds, if it is not yet. Idempotent.
    #[inline]
    pub(crate) fn translate(&mut self) -> Result<(), Stop> {
        if let Flow::Known(found) = &self.flow
            && found.direction == Direction::Original
            && self.key == self.wire_key
        {
            self.move_to(found.target)?;
        }
        Ok(())
    }

    /// A reply reaches who sent the first packet; its source is reversed last, so that plugins see
    /// the same two ends in both directions.
    #[inline]
    pub(crate) fn reverse_destination(&mut self) -> Result<(), Stop> {
        match &self.flow {
            Flow::Known(found) if found.direction == Direction::Reply => {
                self.move_to(self.key.with_destination_of(found.target))?;
            }
            Flow::Known(_) | Flow::New { .. } | Flow::Untracked => {}
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn reverse_source(&mut self) -> Result<(), Stop> {
        match &self.flow {
            Flow::Known(found) if found.direction == Direction::Reply => {
                self.move_to(found.target)?;
            }
            Flow::Known(_) | Flow::New { .. } | Flow::Untracked => {}
        }
        Ok(())
    }

    /// Brings the packet back to what it was when it came.
    pub(crate) fn restore(&mut self) -> Result<(), RewriteError> {
        self.move_to(self.wire_key)
    }

    /// For an ICMP error: the packet it quotes, and the tuple that goes the error's way. `None` if
    /// the error does not go to the sender of the quoted packet.
    #[inline]
    pub(crate) fn quoted(&mut self, routes: &Routes) -> Result<Option<(Inner, FlowKey)>, Stop> {
        if !matches!(self.headers.protocol, protocol::ICMP | protocol::ICMPV6) {
            return Ok(None);
        }
        self.quoted_by_icmp(routes)
    }

    #[inline(never)]
    fn quoted_by_icmp(&mut self, routes: &Routes) -> Result<Option<(Inner, FlowKey)>, Stop> {
        let Some(inner) = icmp_error_inner(self.packet, self.headers) else { return Ok(None) };
        self.flow = Flow::Untracked;
        let key = FlowKey::from(inner.five_tuple.reversed());
        let sender = key.destination().ip();
        // The host leads its errors here under that address, whoever they are for.
        if self.source == Target::Host && routes.is_host_source(self.headers.destination) {
            self.apply(&Rewrite { destination: Some(sender), ..Rewrite::default() })?;
        }
        Ok((sender == self.headers.destination).then_some((inner, key)))
    }

    /// Translates an ICMP error about a flow as the flow's packets that go from `key` to `target`.
    pub(crate) fn translate_error(
        &mut self,
        inner: &Inner,
        key: FlowKey,
        target: FlowKey,
    ) -> Result<(), Stop> {
        self.about = Some(target.source().ip());
        if key == target {
            return Ok(());
        }
        let change = key.reversed().rewrite_to(target.reversed());
        rewrite_icmp_error_inner(self.packet, self.meta, self.headers, inner, &change)?;
        // Of the error itself the ends that are ends of the flow; a router in between stays.
        let from_end = self.headers.source == key.source().ip();
        self.apply(&Rewrite {
            source: if from_end { change.destination } else { None },
            destination: change.source,
            ..Rewrite::default()
        })?;
        Ok(())
    }

    /// What every plugin at the position is told; its slot, and whether it is the first packet that
    /// it is shown, are its own.
    #[inline]
    pub(crate) fn describe(&self, position: Position) -> Descriptor {
        let h = &*self.headers;
        let (source, destination) = self.key.mapped_addresses();
        let (source_port, destination_port) = self.key.ports();
        let mark = |bit, set| if set { bit } else { 0 };
        Descriptor {
            length: u32::try_from(h.total_length).unwrap_or(u32::MAX),
            window: 0,
            flags: mark(flags::REPLY, self.direction() == Direction::Reply)
                | mark(flags::EGRESS, position == Position::Egress)
                | mark(flags::SOURCE_LOCAL_POD, self.source == Target::LocalPod)
                | mark(flags::DESTINATION_LOCAL_POD, self.destination == Target::LocalPod)
                | mark(flags::FROM_MESH, self.origin != Origin::Tun)
                | mark(flags::LATER_FRAGMENT, self.is_later_fragment())
                | mark(flags::FRAGMENT, h.fragment != Fragment::No)
                | mark(flags::SOURCE_HOST, self.source == Target::Host),
            segment_size: self.meta.gso.map_or(0, |g| g.segment_size),
            transport_offset: h.transport_offset,
            payload_offset: h.payload_offset,
            source_port,
            destination_port,
            ip_version: match h.version {
                IpVersion::V4 => 4,
                IpVersion::V6 => 6,
            },
            protocol: h.protocol,
            tcp_flags: h.tcp_flags,
            icmp_code: h.icmp_code,
            source,
            destination,
            now: self.now.0,
            slot: [0; 16],
            segments: u16::try_from(self.segments()).unwrap_or(u16::MAX),
        }
    }
}
