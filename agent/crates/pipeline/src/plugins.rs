//! One worker's plugins: who is asked about which packet, and what their verdicts do to it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use weft_abi::{Descriptor, RewriteFields, flags, protocols};
use weft_model::{DropReason, HookPosition, OnFault, PluginMode};
use weft_packet::{Rewrite, protocol};

use crate::counters::PluginCounters;
use crate::dropped::{DropLog, Told};
use crate::flow::{Direction, FlowKey, FlowTable, Judged, PLUGINS_MAX, Slots, Translator};
use crate::passage::{Flow, Passage};
use crate::plugin::{Interest, Outcome, Plugin, Verdict};
use crate::routes::Routes;
use crate::verdict::Stop;

/// No slot is free for a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {PLUGINS_MAX} plugins: unload one first")]
pub struct TooManyPlugins;

/// Where on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Egress,
    Ingress,
}

/// What a plugin's verdict means for the plugins after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Ask,
    SkipRest,
}

struct Slotted<P> {
    plugin: P,
    interest: Interest,
    slot: u8,
    counters: PluginCounters,
    /// For the log, which has it once for all entries.
    name: Arc<str>,
    log: Arc<DropLog>,
}

/// Sorted by priority, then name. Gives its flow slots back when dropped.
pub(crate) struct Plugins<P> {
    flows: Arc<FlowTable>,
    list: Vec<Slotted<P>>,
    /// A bit for each flow slot in use here.
    slots: Slots,
    log: Arc<DropLog>,
}

impl<P: Plugin> Plugins<P> {
    pub(crate) fn new(flows: Arc<FlowTable>, log: Arc<DropLog>) -> Self {
        Self { flows, list: Vec::new(), slots: 0, log }
    }

    pub(crate) fn set(&mut self, plugins: Vec<P>) -> Result<(), TooManyPlugins> {
        let mut next = Self::new(Arc::clone(&self.flows), Arc::clone(&self.log));
        for plugin in plugins {
            let interest = plugin.interest().clone();
            let slot = self.flows.acquire_slot(&interest.name).ok_or(TooManyPlugins)?;
            next.slots |= 1 << slot;
            next.list.push(Slotted {
                name: interest.name.as_str().into(),
                log: Arc::clone(&self.log),
                counters: PluginCounters::default(),
                plugin,
                interest,
                slot,
            });
        }
        next.list.sort_by(|a, b| {
            (a.interest.priority, &a.interest.name).cmp(&(b.interest.priority, &b.interest.name))
        });
        *self = next;
        Ok(())
    }

    /// Asks the plugins of a position in turn, and applies a held translation where the plugin
    /// that made it stands.
    pub(crate) fn ask(
        &mut self,
        p: &mut Passage<'_>,
        position: Position,
        routes: &Routes,
        answer: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        if self.list.is_empty() {
            return Ok(());
        }
        p.locate(routes);
        let translator = match &p.flow {
            Flow::Known(found) => found.translator,
            Flow::New { .. } | Flow::Untracked => None,
        };
        let here = translator.filter(|t| t.ingress == (position == Position::Ingress));
        let mut told = p.describe(position);
        let Self { flows, list, slots, .. } = self;
        for plugin in list.iter_mut().filter(|s| s.stands_at(position)) {
            let before = p.key;
            let next = plugin.judge(p, &mut told, position, flows, answer)?;
            if std::mem::take(&mut p.retargeted) {
                // What others said of it was about another backend.
                let others = *slots & !(1 << plugin.slot);
                p.memory.forget_verdicts(others);
                p.changed |= others;
            }
            if here.is_some_and(|t| t.slot == plugin.slot) {
                p.translate()?;
            }
            if p.key != before {
                p.locate(routes);
                told = p.describe(position);
            }
            if next == Next::SkipRest {
                break;
            }
        }
        if here.is_some() {
            p.translate()?;
        }
        Ok(())
    }
}

impl<P: Plugin> Plugins<P> {
    /// Changes the plugin of that name, if it is in force.
    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut P)) {
        if let Some(slotted) = self.list.iter_mut().find(|s| s.interest.name == name) {
            change(&mut slotted.plugin);
            slotted.interest.revision = slotted.plugin.interest().revision;
        }
    }
}

impl<P> Plugins<P> {
    /// What they dropped of late.
    #[cfg(test)]
    pub(crate) fn log(&self) -> &DropLog {
        &self.log
    }

    /// The flow slots of the plugins in force, a bit for each.
    #[inline]
    pub(crate) fn slots(&self) -> Slots {
        self.slots
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.list.iter_mut().map(|s| &mut s.plugin)
    }

    pub(crate) fn counters(&self) -> impl Iterator<Item = (&str, &PluginCounters)> {
        self.list.iter().map(|s| (s.interest.name.as_str(), &s.counters))
    }

    /// True if who translated a flow still is where it was.
    pub(crate) fn has(&self, translator: Translator) -> bool {
        if translator == Translator::PIPELINE {
            return true;
        }
        let position = if translator.ingress { Position::Ingress } else { Position::Egress };
        self.list.iter().any(|s| s.slot == translator.slot && s.stands_at(position))
    }
}

impl<P> Drop for Plugins<P> {
    fn drop(&mut self) {
        self.list.iter().for_each(|s| self.flows.release_slot(s.slot));
    }
}

impl<P> Slotted<P> {
    #[inline]
    fn stands_at(&self, position: Position) -> bool {
        match self.interest.position {
            HookPosition::Both => true,
            HookPosition::Egress => position == Position::Egress,
            HookPosition::Ingress => position == Position::Ingress,
        }
    }
}

impl<P: Plugin> Slotted<P> {
    /// Asks, unless the plugin does not want to see the packet or has judged its flow.
    fn judge(
        &mut self,
        p: &mut Passage<'_>,
        told: &mut Descriptor,
        position: Position,
        flows: &FlowTable,
        answer: &mut Vec<u8>,
    ) -> Result<Next, Stop> {
        if self.interest.protocols & protocol_bit(p.headers.protocol) == 0 {
            return Ok(Next::Ask);
        }
        let (slot, revision) = (self.slot, self.interest.revision);
        let way = way(p.direction(), position);
        if self.interest.mode == PluginMode::Flow && p.memory.judged(slot, way, revision) {
            let accepted = p.memory.accepted(slot, way);
            return Ok(if accepted { Next::SkipRest } else { Next::Ask });
        }
        self.counters.asked += 1;
        let held = p.memory.slot(slot);
        told.slot = held;
        told.flags &= !flags::FIRST;
        if !p.memory.shown(slot, way) {
            told.flags |= flags::FIRST;
        }
        let packet = p.packet.get(..p.headers.total_length).unwrap_or(p.packet);
        let outcome = match self.plugin.on_packet(told, packet) {
            Ok(outcome) => outcome,
            Err(_) => return fault(&self.interest, &mut self.counters),
        };
        if let Some(bytes) = outcome.slot
            && *bytes != held
        {
            p.memory.set_slot(slot, *bytes);
            p.changed |= 1 << slot;
        }
        if let Verdict::Drop(number) | Verdict::WouldDrop(number) = outcome.verdict {
            let passed = matches!(outcome.verdict, Verdict::WouldDrop(_));
            self.log.note(p, Told { plugin: &self.name, number, passed }, position);
        }
        let (place, again) = ((slot, position), outcome.again);
        let done = carry_out(p, outcome, place, flows, &mut self.counters, answer)?;
        let Some(next) = done else { return fault(&self.interest, &mut self.counters) };
        let judged = match next {
            _ if again => Judged::Packet,
            Next::Ask => Judged::Flow,
            Next::SkipRest => Judged::FlowAccepted,
        };
        if p.memory.judge(slot, way, revision, judged) {
            p.changed |= 1 << slot;
        }
        Ok(next)
    }
}

/// Does what the verdict says; `None` if that cannot be done.
#[inline]
fn carry_out(
    p: &mut Passage<'_>,
    outcome: Outcome<'_>,
    place: (u8, Position),
    flows: &FlowTable,
    counters: &mut PluginCounters,
    answer: &mut Vec<u8>,
) -> Result<Option<Next>, Stop> {
    match outcome.verdict {
        Verdict::Continue | Verdict::WouldDrop(_) => Ok(Some(Next::Ask)),
        Verdict::Accept => Ok(Some(Next::SkipRest)),
        Verdict::Drop(_) => {
            counters.dropped += 1;
            Err(Stop::Drop(DropReason::Plugin))
        }
        Verdict::Reject(code) => {
            counters.rejected += 1;
            Err(Stop::Reject { code })
        }
        Verdict::Rewrite(fields) => {
            let done = translate(p, fields, place, flows);
            counters.rewritten += u64::from(done.is_some());
            Ok(done)
        }
        Verdict::Reply(packet) => {
            counters.replied += 1;
            answer.clear();
            answer.extend_from_slice(packet);
            Err(Stop::Reply)
        }
    }
}

fn fault(interest: &Interest, counters: &mut PluginCounters) -> Result<Next, Stop> {
    counters.faults += 1;
    match interest.on_fault {
        OnFault::Drop => Err(Stop::Drop(DropReason::PluginFault)),
        OnFault::Skip => Ok(Next::Ask),
    }
}

/// Translates a packet of the original direction and notes who did it first.
fn translate(
    p: &mut Passage<'_>,
    fields: &RewriteFields,
    (slot, position): (u8, Position),
    flows: &FlowTable,
) -> Option<Next> {
    let change = Rewrite {
        source: fields.source.map(address),
        destination: fields.destination.map(address),
        source_port: fields.source_port.filter(|port| *port != 0),
        destination_port: fields.destination_port,
    };
    let me = Translator { slot, ingress: position == Position::Ingress };
    match &mut p.flow {
        Flow::Untracked => return None,
        Flow::New { translator } => {
            translator.get_or_insert(me);
        }
        Flow::Known(found) => {
            if found.direction == Direction::Reply {
                return None;
            }
            // The flow follows its first packet, whole or in fragments.
            let later = p.later_fragment().is_some();
            if later || agrees(&change, found_target(p)?) {
                p.translate().ok()?;
                return Some(Next::Ask);
            }
            (p.retargeted, p.leaves_target) = (true, true);
            if let Flow::Known(found) = &mut p.flow {
                let plugin = found.translator.filter(|t| *t != Translator::PIPELINE);
                found.translator = plugin.or(Some(me));
            }
        }
    }
    p.apply(&change).ok()?;
    // Two flows of one sender may be sent to one place, and answers must tell them apart.
    if fields.source_port == Some(0) || flows.is_taken(&p.key, p.now) {
        p.move_to(flows.with_free_source_port(p.key, p.now)?).ok()?;
    }
    Some(Next::Ask)
}

fn found_target(p: &Passage<'_>) -> Option<FlowKey> {
    match &p.flow {
        Flow::Known(found) => Some(found.target),
        Flow::New { .. } | Flow::Untracked => None,
    }
}

/// True if a tuple has every field that is asked for.
fn agrees(change: &Rewrite, target: FlowKey) -> bool {
    let (source, destination) = (target.source(), target.destination());
    change.source.is_none_or(|a| a == source.ip())
        && change.destination.is_none_or(|a| a == destination.ip())
        && change.source_port.is_none_or(|p| p == source.port())
        && change.destination_port.is_none_or(|p| p == destination.port())
}

fn address(mapped: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(mapped).to_canonical()
}

/// Number of a direction at a position, below 4.
#[inline]
fn way(direction: Direction, position: Position) -> u8 {
    let direction = match direction {
        Direction::Original => 0,
        Direction::Reply => 2,
    };
    match position {
        Position::Egress => direction,
        Position::Ingress => direction + 1,
    }
}

#[inline]
fn protocol_bit(number: u8) -> u8 {
    match number {
        protocol::TCP => protocols::TCP,
        protocol::UDP => protocols::UDP,
        protocol::ICMP | protocol::ICMPV6 => protocols::ICMP,
        protocol::SCTP => protocols::SCTP,
        _ => protocols::OTHER,
    }
}
