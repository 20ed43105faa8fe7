//! The built-in plugin that keeps pods to their network policies.
//!
//! It is configured with the messages of `weft/tables/v1/policy.proto`: all of them as
//! `PolicyTables`, and later what changed. It is asked once for each direction and position of a
//! flow, and again after each change: where a local pod sends, what may leave it is looked at,
//! where it receives, what may get in. Answers are judged as the flow's first packet would be now,
//! so that a flow that is no longer allowed ends in both directions at once.
//!
//! It stands after the plugin `service` and sees the backend that was chosen. What is denied is
//! dropped, with the number of the rule that decided, or of the isolation that no rule opened.
//!
//! What policies that are only watched would drop passes, and is told with the same numbers, once for
//! each flow at each of its ends.
//!
//! Names of hosts in rules are numbers, and so are names that pods have learned addresses by (see `names`):
//! the agent knows the names.
//!
//! [`explain`] asks the same tables by the same code why a connection passes or does not.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
mod blocks;
mod config;
pub mod explain;
mod hash;
mod memory;
mod names;
mod program;
mod rules;
mod sets;
mod tables;
#[cfg(test)]
mod tests;

use weft_policy_sdk::prelude::*;
use weft_policy_sdk::{Descriptor, flags};

use address::Address;
use memory::{Memory, is_news};
use program::{Judgement, Program};
use rules::{Asked, ServicePort};
use tables::Tables;

/// Number of a drop: nobody is known to have the address of this node's pod.
pub const UNKNOWN_POD: u32 = 1;
/// Number of a drop: the pod of this node is known, and not what it may send and get.
pub const UNKNOWN_SUBJECT: u32 = 2;

/// Numbers of drops below this are the plugin's own, others are of the configuration.
pub const OWN_NUMBERS: u32 = 16;

/// The plugin.
#[derive(Debug, Default)]
pub struct Policies {
    tables: Tables,
}

impl Filter for Policies {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        match config {
            Config::Full(bytes) => {
                let mut tables = Tables::default();
                tables.change(config::read(bytes)?)?;
                self.tables = tables;
            }
            Config::Delta(bytes) => self.tables.change(config::read(bytes)?)?,
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, _host: &Host) -> Verdict {
        let Some(end) = End::new(packet.descriptor(), flow.is_reply()) else {
            return Verdict::Continue;
        };
        match end.judge(&self.tables, flow) {
            Judgement::Drop(number) => Verdict::Drop(number),
            // Answers are judged as what they answer.
            Judgement::PassWatched(number)
                if !flow.is_reply() && is_news(flow, end.began, number) =>
            {
                Verdict::WouldDrop(number)
            }
            Judgement::Pass | Judgement::PassWatched(_) => Verdict::Continue,
        }
    }
}

/// By what one end of a flow is judged.
#[derive(Clone, Copy, Debug)]
enum Ground<'a> {
    /// The pod is not known, or not what it may: with the number of the drop.
    Unknown(u32),
    /// The pod talks to itself.
    Itself,
    /// The pod's own node began the flow.
    FromHost,
    /// Nothing restricts this direction of the pod.
    Unrestricted,
    Program {
        number: u32,
        program: &'a Program,
    },
}

/// A pod of this node as one end of a flow, and what its program is asked about.
#[derive(Clone, Copy, Debug)]
struct End {
    pod: Address,
    peer: Address,
    /// The pod began the flow: what may leave it counts, else what may get in.
    began: bool,
    /// The pod is about to send the packet.
    sends: bool,
    from_host: bool,
    to_local_pod: bool,
    protocol: u8,
    /// Where the flow's first packet went; of protocols without ports it means nothing.
    port: u16,
}

impl End {
    /// `None` if the packet is none of a local pod, at this position.
    #[inline]
    fn new(told: &Descriptor, is_reply: bool) -> Option<Self> {
        let sends = told.flags & flags::EGRESS != 0;
        let local = if sends { flags::SOURCE_LOCAL_POD } else { flags::DESTINATION_LOCAL_POD };
        if told.flags & local == 0 {
            return None;
        }
        let source = Address::from_mapped(told.source);
        let destination = Address::from_mapped(told.destination);
        let (pod, peer) = if sends { (source, destination) } else { (destination, source) };
        Some(Self {
            pod,
            peer,
            began: sends != is_reply,
            sends,
            from_host: told.flags & flags::SOURCE_HOST != 0,
            to_local_pod: told.flags & flags::DESTINATION_LOCAL_POD != 0,
            protocol: told.protocol,
            port: if is_reply { told.source_port } else { told.destination_port },
        })
    }

    fn judge(&self, tables: &Tables, flow: &mut Flow) -> Judgement {
        match self.ground(tables, flow) {
            Ground::Unknown(number) => Judgement::Drop(number),
            Ground::Itself | Ground::FromHost | Ground::Unrestricted => Judgement::Pass,
            Ground::Program { program, .. } => {
                let asked = self.asked(tables);
                match self.began && program.has_names() {
                    true => names::judge(program, &asked, flow),
                    false => program.judge(&asked),
                }
            }
        }
    }

    /// By what it is judged.
    #[inline]
    fn ground<'a>(&self, tables: &'a Tables, flow: &mut Flow) -> Ground<'a> {
        let reaches_itself = self.reaches_itself(tables, flow);
        let pod = if reaches_itself && self.sends { self.peer } else { self.pod };
        let Some(identity) = tables.identity(pod) else { return Ground::Unknown(UNKNOWN_POD) };
        let Some(subject) = tables.subject(identity) else {
            return Ground::Unknown(UNKNOWN_SUBJECT);
        };
        if reaches_itself {
            return Ground::Itself;
        }
        if self.is_from_host(tables) {
            return Ground::FromHost;
        }
        let number = if self.began { subject.egress } else { subject.ingress };
        if number == 0 {
            return Ground::Unrestricted;
        }
        // A subject without its program is refused with its configuration.
        match tables.program(number) {
            Some(program) => Ground::Program { number, program },
            None => Ground::Unknown(UNKNOWN_SUBJECT),
        }
    }

    #[inline]
    fn asked<'a>(&self, tables: &'a Tables) -> Asked<'a> {
        let port = if self.began { tables.judged_port(self.peer, self.port) } else { self.port };
        Asked {
            peer: self.peer,
            to_own_node: self.began && tables.is_own(self.peer),
            sets: tables.sets_of(self.peer),
            names: if self.began { tables.names_of(self.pod, self.peer) } else { &[] },
            service: ServicePort::new(self.protocol, port),
        }
    }

    /// True if the pod talks to itself.
    ///
    /// Through a Service it does so under an address of the node: only then does what a pod sends
    /// come from there. The flow remembers where that went, so that there it is known again.
    fn reaches_itself(&self, tables: &Tables, flow: &mut Flow) -> bool {
        if flow.is_reply() {
            return self.pod == self.peer;
        }
        let remembered = Memory::of(flow);
        if !self.sends {
            return self.pod == self.peer || remembered == Memory::ReachesItself(self.pod);
        }
        let translated = self.to_local_pod && tables.is_own(self.pod);
        match remembered {
            _ if translated => Memory::ReachesItself(self.peer).keep(flow),
            Memory::ReachesItself(_) => Memory::Nothing.keep(flow),
            Memory::Nothing | Memory::Judged(_) => {}
        }
        translated || self.pod == self.peer
    }

    /// True for what a pod's own node sends it, which is always allowed.
    ///
    /// What only has the node's address, and does not come from it, is not the node's; answers are
    /// those of flows that were asked about.
    fn is_from_host(&self, tables: &Tables) -> bool {
        !self.began && (self.sends || self.from_host) && tables.is_own(self.peer)
    }
}

export_plugin!(
    Policies,
    name: "policy",
    hooks: hooks::EGRESS | hooks::INGRESS,
    protocols: protocols::ALL,
    per_flow: true,
);
