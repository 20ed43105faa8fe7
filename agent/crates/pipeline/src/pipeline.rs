//! A packet's way through one node. [`Stages::run`] is the whole of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_model::{DropReason, PeerId, Timestamp};
use weft_packet::{Headers, Meta};

use crate::counters::{Counters, PluginCounters};
use crate::dropped::DropLog;
use crate::flow::{Direction, FlowTable, Memory, NewFlow, Translator};
use crate::limit::AnswerLimit;
use crate::passage::{Flow, Passage};
use crate::plugin::Plugin;
use crate::plugins::{Plugins, Position, TooManyPlugins};
use crate::routes::{Routes, Target};
use crate::verdict::Stop;

/// How often expired flows are swept, by whichever worker comes first.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read from `weft0`: a local pod, the host, or the world.
    Tun,
    /// Decapsulated; the mesh has checked the source against the peer's AllowedIPs.
    Peer(PeerId),
}

/// Where an answer goes: back to where the packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTo {
    /// Write it to `weft0`.
    Tun,
    /// Encapsulate it for the peer.
    Peer(PeerId),
}

/// What to do with a packet, which has been edited in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write it to `weft0`.
    ToTun,
    /// Encapsulate it for the peer. Each segment fits the MTU.
    ToPeer(PeerId),
    /// IPv4, larger than the MTU and may be fragmented: cut it to [`Pipeline::mtu`], then as
    /// `ToPeer`. A super-packet must be segmented first.
    FragmentToPeer(PeerId),
    /// Forget it; it has been counted.
    Drop(DropReason),
    /// Forget it and send [`Pipeline::answer`], an ordinary packet with complete checksums.
    Answer {
        /// Where to.
        to: AnswerTo,
        /// Why the packet was dropped; `None` if a plugin replied to it.
        dropped: Option<DropReason>,
    },
}

/// One worker's pipeline: its plugin instances, and the tables it shares with others.
///
/// Extra calls of [`Self::poll_timeout`] and [`Self::handle_timeout`] are harmless; poll after
/// each batch.
pub struct Pipeline<P> {
    stages: Stages<P>,
    /// Of the packet that is handled; here, so that it is not made anew for each.
    memory: Memory,
    counters: Counters,
    next_sweep: Timestamp,
}

/// What a packet passes.
struct Stages<P> {
    flows: Arc<FlowTable>,
    routes: Arc<Routes>,
    mtu: u16,
    plugins: Plugins<P>,
    answer: Vec<u8>,
    limit: AnswerLimit,
}

impl<P: Plugin> Pipeline<P> {
    /// A pipeline without plugins. `mtu`: the largest packet a peer can be sent, in bytes.
    #[must_use]
    pub fn new(flows: Arc<FlowTable>, routes: Arc<Routes>, mtu: u16) -> Self {
        Self::with_log(flows, routes, mtu, Arc::default())
    }

    /// As [`Self::new`], with a log of what plugins drop that others have as well.
    #[must_use]
    pub fn with_log(
        flows: Arc<FlowTable>,
        routes: Arc<Routes>,
        mtu: u16,
        log: Arc<DropLog>,
    ) -> Self {
        Self {
            stages: Stages {
                plugins: Plugins::new(Arc::clone(&flows), log),
                flows,
                routes,
                mtu,
                answer: Vec::new(),
                limit: AnswerLimit::new(),
            },
            memory: Memory::EMPTY,
            counters: Counters::default(),
            next_sweep: Timestamp::ZERO,
        }
    }

    /// Swaps routes and MTU; flows stay.
    pub fn apply(&mut self, routes: Arc<Routes>, mtu: u16) {
        self.stages.routes = routes;
        self.stages.mtu = mtu;
    }

    /// Swaps the plugins, in any order; what flows hold for a plugin stays with its name. The ones
    /// in force until then are dropped.
    ///
    /// # Errors
    /// [`TooManyPlugins`] if there is no flow slot for one of them: [`crate::PLUGINS_MAX`] names
    /// may be in use by all workers of a table, those to be replaced included. Nothing is changed.
    pub fn set_plugins(&mut self, plugins: Vec<P>) -> Result<(), TooManyPlugins> {
        self.stages.plugins.set(plugins)
    }

    /// The plugins in the order in which they are asked.
    pub fn plugins_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.stages.plugins.iter_mut()
    }

    /// Changes the plugin of that name where it is, such as its configuration; nothing happens if
    /// there is none.
    pub fn change_plugin(&mut self, name: &str, change: impl FnOnce(&mut P)) {
        self.stages.plugins.change(name, change);
    }

    /// What this worker counted for each plugin in force, in the order in which they are asked.
    pub fn plugin_counters(&self) -> impl Iterator<Item = (&str, &PluginCounters)> {
        self.stages.plugins.counters()
    }

    /// The largest packet a peer can be sent, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.stages.mtu
    }

    /// The packet of the last [`Action::Answer`].
    #[must_use]
    pub fn answer(&self) -> &[u8] {
        &self.stages.answer
    }

    /// What this worker counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Handles a packet read from `weft0`. `packet` starts at the IP header; it is edited in place,
    /// and is only worth anything if the action sends it.
    pub fn handle_tun_input(
        &mut self,
        packet: &mut [u8],
        meta: &mut Meta,
        now: Timestamp,
    ) -> Action {
        self.handle(Origin::Tun, packet, meta, now)
    }

    /// Handles a packet that `from` sent through the mesh, as [`Self::handle_tun_input`].
    pub fn handle_network_input(
        &mut self,
        from: PeerId,
        packet: &mut [u8],
        meta: &mut Meta,
        now: Timestamp,
    ) -> Action {
        self.handle(Origin::Peer(from), packet, meta, now)
    }

    /// Sweeps expired flows if it is time to.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if now >= self.next_sweep {
            self.stages.flows.expire_each(SWEEP_INTERVAL, now);
            self.next_sweep = now + SWEEP_INTERVAL;
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` while there are no flows.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        (!self.stages.flows.is_empty()).then_some(self.next_sweep)
    }

    fn handle(
        &mut self,
        from: Origin,
        packet: &mut [u8],
        meta: &mut Meta,
        now: Timestamp,
    ) -> Action {
        let Ok(mut headers) = Headers::parse(packet, meta) else {
            return self.count(Action::Drop(DropReason::Malformed));
        };
        let mut passage = Passage::new(from, packet, meta, &mut headers, &mut self.memory, now);
        self.counters.packets += u64::from(passage.segments());
        let action = match self.stages.run(&mut passage) {
            Ok(action) => action,
            Err(stop) => self.stages.stop(&mut passage, stop),
        };
        self.count(action)
    }

    #[inline]
    fn count(&mut self, action: Action) -> Action {
        match action {
            Action::Drop(reason) | Action::Answer { dropped: Some(reason), .. } => {
                self.counters.drop_one(reason);
            }
            Action::Answer { dropped: None, .. } => self.counters.replies += 1,
            Action::ToTun | Action::ToPeer(_) | Action::FragmentToPeer(_) => {}
        }
        action
    }
}

impl<P: Plugin> Stages<P> {
    fn run(&mut self, p: &mut Passage<'_>) -> Result<Action, Stop> {
        self.check_origin(p)?;
        self.follow_first_fragment(p)?;
        if let Some(target) = self.related_error(p)? {
            return self.deliver(p, target);
        }
        self.find_flow(p)?;
        p.reverse_destination()?;
        if self.enters(p) {
            self.plugins.ask(p, Position::Egress, &self.routes, &mut self.answer)?;
        }
        let mut target = self.route(p)?;
        if target == Target::LocalPod {
            self.plugins.ask(p, Position::Ingress, &self.routes, &mut self.answer)?;
        }
        p.translate()?;
        target = if p.destination_moved() { self.route(p)? } else { target };
        p.reverse_source()?;
        let action = self.deliver(p, target)?;
        self.keep_flow(p)?;
        Ok(action)
    }

    /// True if the packet enters the fabric here: from a pod, the host, or from outside to what may
    /// be a Service. What comes from outside to a pod meets its ingress plugins only.
    fn enters(&self, p: &mut Passage<'_>) -> bool {
        p.origin == Origin::Tun
            && (matches!(p.source, Target::LocalPod | Target::Host)
                || p.locate(&self.routes) != Target::LocalPod)
    }

    /// Nobody may speak for a pod that is not his, and nobody may use this node as a router
    /// between others.
    fn check_origin(&self, p: &mut Passage<'_>) -> Result<(), Stop> {
        if p.headers.hop_limit == 0 {
            return Err(DropReason::HopLimit.into());
        }
        match p.origin {
            Origin::Tun => {
                p.source = self.routes.target(p.headers.source);
                // A peer's addresses come in through the mesh, or not at all; but itself it may be
                // a client of a Service as any machine is.
                if matches!(p.source, Target::Peer(_))
                    && self.routes.is_peer_host(p.headers.source)
                    && p.locate(&self.routes) != Target::LocalPod
                {
                    p.source = Target::World;
                }
                if matches!(p.source, Target::None | Target::Peer(_)) {
                    let chatter = is_neighbour_chatter(p.headers);
                    let why = if chatter { DropReason::NoRoute } else { DropReason::SpoofedSource };
                    return Err(why.into());
                }
            }
            Origin::Peer(peer) => {
                p.source = Target::Peer(peer);
                if !matches!(p.locate(&self.routes), Target::LocalPod | Target::Host) {
                    return Err(DropReason::NoRoute.into());
                }
            }
        }
        Ok(())
    }

    fn follow_first_fragment(&self, p: &mut Passage<'_>) -> Result<(), Stop> {
        let Some(id) = p.later_fragment() else { return Ok(()) };
        let key = self.flows.resolve_fragment(&id, p.now).ok_or(DropReason::OrphanFragment)?;
        p.take_key(key);
        Ok(())
    }

    /// An ICMP error about a packet of a known flow passes as that flow, unasked.
    fn related_error(&self, p: &mut Passage<'_>) -> Result<Option<Target>, Stop> {
        let Some((inner, key)) = p.quoted(&self.routes)? else { return Ok(None) };
        p.flow = Flow::Untracked;
        let Some(found) = self.flows.find(&key, false, p.now, None) else { return Ok(None) };
        p.translate_error(&inner, key, found.target)?;
        p.error_direction = Some(found.direction);
        self.route(p).map(Some)
    }

    fn find_flow(&self, p: &mut Passage<'_>) -> Result<(), Stop> {
        if matches!(p.flow, Flow::Untracked) {
            *p.memory = Memory::EMPTY;
            return Ok(());
        }
        let memory = (&mut *p.memory, self.plugins.slots());
        match self.flows.find(&p.key, p.opens, p.now, Some(memory)) {
            Some(found) => {
                p.flow = Flow::Known(found);
                if !found.translator.is_some_and(|t| self.plugins.has(t)) {
                    p.translate()?;
                }
            }
            // Without its flow it would go out as it was sent.
            None if p.is_later_fragment() => return Err(DropReason::OrphanFragment.into()),
            None => {
                *p.memory = Memory::EMPTY;
                p.flow = Flow::New { translator: None };
            }
        }
        Ok(())
    }

    #[inline]
    fn route(&self, p: &mut Passage<'_>) -> Result<Target, Stop> {
        let target = p.route(&self.routes);
        if target == Target::None { Err(DropReason::NoRoute.into()) } else { Ok(target) }
    }

    /// Last checks, on the packet as it will go out.
    fn deliver(&self, p: &Passage<'_>, target: Target) -> Result<Action, Stop> {
        let reply = p.direction() == Direction::Reply;
        match (p.origin, target) {
            // No peer knows such an address: the host sends it, with an address of its own in its place.
            (_, Target::Peer(_))
                if self.routes.is_host_source(p.about.unwrap_or(p.headers.source)) =>
            {
                return Ok(Action::ToTun);
            }
            (_, Target::None) => return Err(DropReason::NoRoute.into()),
            (_, Target::LocalPod) | (Origin::Peer(_), Target::Host) => return Ok(Action::ToTun),
            // Only as the answer to what a translation sent to the peer.
            (Origin::Peer(_), Target::World) if reply => return Ok(Action::ToTun),
            (Origin::Peer(_), Target::World | Target::Peer(_)) => {
                return Err(DropReason::NoRoute.into());
            }
            (Origin::Tun, Target::Host | Target::World | Target::Peer(_)) => {}
        }
        let source =
            if p.has_wire_source() { p.source } else { self.routes.target(p.headers.source) };
        let ours = matches!(source, Target::LocalPod | Target::Host);
        match target {
            Target::Peer(peer) if ours => self.to_peer(p, peer),
            Target::Host | Target::World if ours || reply => Ok(Action::ToTun),
            // Somebody outside, to a Service that the host itself serves.
            Target::Host if !p.key.same_destination(&p.wire_key) => Ok(Action::ToTun),
            Target::Host | Target::World | Target::Peer(_) => Err(DropReason::SpoofedSource.into()),
            Target::LocalPod | Target::None => Err(DropReason::Internal.into()),
        }
    }

    fn to_peer(&self, p: &Passage<'_>, peer: PeerId) -> Result<Action, Stop> {
        if p.largest_segment() <= usize::from(self.mtu) {
            Ok(Action::ToPeer(peer))
        } else if p.headers.dont_fragment {
            Err(Stop::TooBig { mtu: self.mtu })
        } else {
            Ok(Action::FragmentToPeer(peer))
        }
    }

    /// Only a packet that goes on makes or refreshes a flow.
    fn keep_flow(&self, p: &mut Passage<'_>) -> Result<(), Stop> {
        let seen = p.seen();
        match &mut p.flow {
            Flow::Untracked => return Ok(()),
            Flow::New { translator } => {
                let translator = *translator;
                self.begin_flow(p, translator)?;
            }
            Flow::Known(found) => {
                if p.key != found.target {
                    let retargeted = self.flows.retarget(found, p.key, found.translator, p.now);
                    *found = retargeted.map_err(|_| DropReason::TranslationClash)?;
                }
                self.flows.commit(found, seen, p.memory, p.changed, p.now);
            }
        }
        if let Some(id) = p.first_fragment() {
            self.flows.remember_fragment(id, p.wire_key, p.now);
        }
        Ok(())
    }

    /// Makes the packet's flow. If its answers would be those of another flow, as those of a pod
    /// are that the sender talks to through a Service and directly, it gets a source port of its
    /// own.
    fn begin_flow(&self, p: &mut Passage<'_>, translator: Option<Translator>) -> Result<(), Stop> {
        let seen = p.seen();
        let new = |p: &Passage<'_>, translator| {
            let (original, target, memory) = (p.wire_key, p.key, &*p.memory);
            self.flows.insert(&NewFlow { original, target, translator, memory, seen }, p.now)
        };
        if new(p, translator).is_ok() {
            return Ok(());
        }
        let clash = DropReason::TranslationClash;
        // Another worker may have been faster with the same flow.
        if let Some(found) = self.flows.find(&p.wire_key, false, p.now, None) {
            if !found.target.same_destination(&p.key) {
                return Err(clash.into());
            }
            p.move_to(found.target)?;
            self.flows.commit(&found, seen, p.memory, p.changed, p.now);
            return Ok(());
        }
        let free = self.flows.with_free_source_port(p.key, p.now).ok_or(clash)?;
        p.move_to(free)?;
        new(p, translator.or(Some(Translator::PIPELINE))).map_err(|_| clash.into())
    }

    /// Makes the answer, if there is one, and keeps what plugins wrote about a known flow.
    fn stop(&mut self, p: &mut Passage<'_>, stop: Stop) -> Action {
        // Where a flow was to be sent to elsewhere, it is not, and who decided so has to be asked again.
        if let Flow::Known(found) = &p.flow
            && !p.leaves_target
        {
            self.flows.remember(found, p.memory, p.changed);
        }
        let to = match p.origin {
            Origin::Tun => AnswerTo::Tun,
            Origin::Peer(peer) => AnswerTo::Peer(peer),
        };
        let dropped = stop.reason();
        if let Some(answer) = stop.answer(p.headers.protocol)
            && !self.limit.take(answer, p.wire_key.source().ip(), p.now)
        {
            return Action::Drop(DropReason::NotTold);
        }
        if crate::verdict::answer(p, stop, &mut self.answer) {
            Action::Answer { to, dropped }
        } else {
            Action::Drop(dropped.unwrap_or(DropReason::PluginFault))
        }
    }
}

#[cfg(test)]
mod tests;

/// What the host's kernel says to the neighbours of any interface, the fabric's too: multicast
/// listener reports, router solicitations. Nobody lies there, and nobody is to hear it.
fn is_neighbour_chatter(headers: &Headers) -> bool {
    match headers.source {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => {
            (v6.is_unspecified() || v6.is_unicast_link_local())
                && headers.destination.is_multicast()
        }
    }
}
