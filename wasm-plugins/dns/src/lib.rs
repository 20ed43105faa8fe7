//! The built-in plugin that answers queries for names of the cluster.
//!
//! It is configured with the messages of `weft/tables/v1/dns.proto`: all of them as `DnsTables`, and
//! later what changed. It stands after `service` and `policy`: a query to the cluster's DNS Service has
//! been sent on to the node's resolver by then, and is one that its sender's policies let pass. What is
//! of the cluster is answered here; everything else, and what is not whole, goes on to the resolver,
//! which answers by the same [`Zones`] and asks others.
//!
//! Names are those of Kubernetes DNS-Based Service Discovery, schema 1.1.0.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
mod answer;
mod config;
mod message;
mod name;
mod search;
mod service;
mod tables;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use domain::base::iana::{OptRcode, Rcode};
use domain::base::{Message, Rtype};
use weft_policy_sdk::flags;
use weft_policy_sdk::prelude::*;

pub use message::Transport;

use answer::{Resolution, resolve};
use message::{Received, ZoneData};
use name::LowerName;
use tables::Tables;

/// Where queries are sent to.
const PORT: u16 = 53;

/// What the cluster's names have.
#[derive(Debug, Default)]
pub struct Zones {
    tables: Tables,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered with this one.
    Reply(Vec<u8>),
    /// It is a query about what is not of the cluster.
    Elsewhere(Beyond),
    /// It is no query, and gets no answer.
    Nothing,
}

/// Which name to ask others for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// What the name that was asked for stands for, and that for the next, in wire form; the last is the one
    /// to ask for. If there is none, it is the name itself.
    pub names: Vec<Vec<u8>>,
    /// The name that was asked for is one of a search list, and stands for the next only if that is there:
    /// else the answer is the one without a client.
    pub searched: bool,
}

impl Zones {
    /// Takes a configuration. A full one replaces what is there.
    ///
    /// # Errors
    /// A line that names the field; nothing is changed then.
    pub fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        match config {
            Config::Full(bytes) => {
                let mut tables = Tables::default();
                tables.change(config::read(bytes)?);
                self.tables = tables;
            }
            Config::Delta(bytes) => self.tables.change(config::read(bytes)?),
        }
        Ok(())
    }

    /// Answers a message. `seed` chooses which of several addresses comes first. Where the client's search
    /// list leads is looked up if there is a client, and the configuration says so.
    #[must_use]
    pub fn answer(
        &self,
        message: &[u8],
        transport: Transport,
        client: Option<IpAddr>,
        seed: u64,
    ) -> Outcome {
        let query = match Received::read(message) {
            Received::Nothing => return Outcome::Nothing,
            Received::Refused(reply) => return Outcome::Reply(reply),
            Received::Query(query) => query,
        };
        let name = LowerName::new(query.question.qname());
        match self.resolve(&name, query.question.qtype(), client) {
            Resolution::Answer(mut answer) => {
                answer.rotate(seed);
                let ttl = self.tables.settings().ttl;
                let zone = ZoneData { ttl, serial: self.tables.changes() };
                Outcome::Reply(query.reply(&answer, transport, zone))
            }
            Resolution::Follow { names, searched } => {
                let names = names.into_iter().map(|n| n.into_octets()).collect();
                Outcome::Elsewhere(Beyond { names, searched })
            }
            Resolution::Elsewhere => Outcome::Elsewhere(Beyond::default()),
        }
    }

    /// What a client may ask, a second's worth at once; `None`: anything. Whoever answers keeps to it, with
    /// [`Self::refuse`] for the rest.
    #[must_use]
    pub fn client_limit(&self) -> Option<TokenBucket> {
        self.tables.settings().client_limit
    }

    /// Answers a message of a client that has asked too often.
    #[must_use]
    pub fn refuse(message: &[u8]) -> Outcome {
        match Received::read(message) {
            Received::Nothing => Outcome::Nothing,
            Received::Refused(reply) => Outcome::Reply(reply),
            Received::Query(query) => Outcome::Reply(query.refusal(OptRcode::REFUSED)),
        }
    }

    fn resolve(&self, name: &LowerName, rtype: Rtype, client: Option<IpAddr>) -> Resolution {
        let first = resolve(&self.tables, name, rtype);
        match (&first, client) {
            (Resolution::Answer(answer), Some(client)) if answer.rcode == Rcode::NXDOMAIN => {
                search::go_on(&self.tables, name, rtype, client).unwrap_or(first)
            }
            _ => first,
        }
    }
}

/// The plugin.
#[derive(Debug, Default)]
pub struct Dns {
    zones: Zones,
}

impl Filter for Dns {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        self.zones.configure(config)
    }

    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, host: &Host) -> Verdict {
        if !self.is_asked(packet) || flow.is_reply() {
            return Verdict::Continue;
        }
        let passed = self.is_passed(packet);
        let limit = self.zones.client_limit();
        if passed && limit.is_none() {
            return Verdict::Continue;
        }
        // The next packet of the flow may be about another name, or one too many.
        flow.ask_again();
        let over = limit.is_some_and(|limit| is_over(limit, packet, host));
        if packet.is_cut() || packet.is(flags::FRAGMENT) || packet.segments() > 1 {
            return if over { Verdict::Drop(TOO_MANY) } else { Verdict::Continue };
        }
        let seed = packet.now() ^ u64::from(packet.source_port()) << 32;
        let client = Some(packet.source());
        let outcome = match (over, passed) {
            (true, _) => Zones::refuse(packet.payload()),
            (false, true) => return Verdict::Continue,
            (false, false) => {
                self.zones.answer(packet.payload(), Transport::Udp, client, mix(seed))
            }
        };
        match outcome {
            Outcome::Reply(reply) => {
                let number = reply_number(&reply);
                let reply = packet.udp_reply(&reply);
                reply.map_or(Verdict::Continue, |packet| Verdict::Reply(packet, number))
            }
            Outcome::Elsewhere(_) => Verdict::Continue,
            Outcome::Nothing => Verdict::Drop(NO_QUERY),
        }
    }
}

/// Number of a drop: what was sent to the resolver is no query.
pub const NO_QUERY: u32 = 1;
/// Number of a drop: its sender has asked too often, and cannot be answered.
pub const TOO_MANY: u32 = 2;

/// Counts the packet's queries as its sender's. While there is no room to count, nobody is limited.
fn is_over(limit: TokenBucket, packet: &Packet, host: &Host) -> bool {
    let queries = limit.draw(u64::from(packet.segments()));
    matches!(host.map().take(&packet.descriptor().source, &[queries]), Ok(false))
}

impl Dns {
    fn is_asked(&self, packet: &Packet) -> bool {
        packet.protocol() == Protocol::Udp
            && packet.destination_port() == PORT
            && self.zones.tables.settings().resolvers.contains(&packet.destination())
    }

    /// True if what the client is told is the resolver's to say.
    fn is_passed(&self, packet: &Packet) -> bool {
        let passed = &self.zones.tables.settings().passed_clients;
        !passed.is_empty() && passed.binary_search(&packet.source()).is_ok()
    }
}

/// What a reply is counted by: the type that was asked for in the second byte, 0 for one that is seldom,
/// and the status in the first.
fn reply_number(reply: &[u8]) -> u32 {
    let Ok(message) = Message::from_slice(reply) else { return 0 };
    let question = message.sole_question().ok();
    let rtype = question.map_or(0, |q| u32::from(q.qtype().to_int()));
    let rtype = if rtype < RTYPE_MAX { rtype } else { 0 };
    rtype << 8 | u32::from(message.header().rcode().to_int())
}

/// Types from this number on are counted together.
const RTYPE_MAX: u32 = 256;

/// Every bit of the number changes half of the result's.
fn mix(number: u64) -> u64 {
    let z = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 1
}

export_plugin!(
    Dns,
    name: "dns",
    hooks: hooks::EGRESS,
    protocols: protocols::UDP,
    per_flow: true,
    capabilities: capability::REPLY | capability::MAP,
    window: 1536,
    map_entries: 16_384,
);
