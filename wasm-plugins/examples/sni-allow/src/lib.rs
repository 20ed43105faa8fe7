//! Lets pods open TLS connections to named servers only.
//!
//! ```text
//! # exact names, or `*.` for every name below; as many as there are, in one line or more
//! allow = example.com, *.example.org
//! # ports that are looked at; default 443
//! ports = 443, 8443
//! # what is not TLS there, or was under way before the plugin came: reject (default) or allow
//! other = reject
//! ```
//!
//! Reads the server name from the ClientHello; a client that lies about the name is believed. One that is split over segments is put together in
//! the map; its first segments pass, as a server cannot answer before the last. The flow's slot
//! holds the sequence number that comes next, and the decision once there is one.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod hello;
mod names;
mod stream;
#[cfg(test)]
mod tests;

use weft_policy_sdk::prelude::*;

use crate::hello::{Hello, read_hello};
use crate::names::Patterns;
use crate::stream::{Held, Segment, Slot, Stage};

/// Numbers of the verdicts in counters and logs.
mod reason {
    /// The name is not on the list.
    pub(super) const NAME: u32 = 2;
    /// The ClientHello names no server.
    pub(super) const NO_NAME: u32 = 3;
    /// Not TLS.
    pub(super) const NOT_TLS: u32 = 4;
    /// A ClientHello longer than anyone sends.
    pub(super) const TOO_LONG: u32 = 5;
    /// No room to put a split ClientHello together.
    pub(super) const NO_ROOM: u32 = 6;
    /// A segment that came before its time; TCP sends it again.
    pub(super) const OUT_OF_ORDER: u32 = 7;
    /// A ClientHello that is none.
    pub(super) const MALFORMED: u32 = 8;
}

const SYN: u8 = 2;
const RST: u8 = 4;
/// Where TLS is unless the configuration says otherwise.
const HTTPS: u16 = 443;

/// The filter.
#[derive(Debug, Default)]
pub struct SniAllow {
    allowed: Patterns,
    /// Empty: [`HTTPS`].
    ports: Vec<u16>,
    allow_other: bool,
}

impl Filter for SniAllow {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        for line in config.lines()? {
            match line? {
                ("allow", list) => {
                    list.split(',').try_for_each(|name| self.allowed.add(name.trim()))?;
                }
                ("ports", list) => {
                    for port in list.split(',').map(str::trim) {
                        let port = port.parse().ok().filter(|p| *p > 0);
                        let bad = || format!("ports `{list}`: expected numbers from 1 to 65535");
                        self.ports.push(port.ok_or_else(bad)?);
                    }
                }
                ("other", "reject") => self.allow_other = false,
                ("other", "allow") => self.allow_other = true,
                ("other", other) => {
                    return Err(format!("other `{other}`: expected `reject` or `allow`"));
                }
                (key, _) => {
                    return Err(format!("unknown key `{key}`: expected `allow`, `ports`, `other`"));
                }
            }
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, host: &Host) -> Verdict {
        if flow.is_reply() || !self.watches(packet.destination_port()) {
            return Verdict::Continue;
        }
        let Some(sequence) = packet.tcp_sequence() else { return Verdict::Continue };
        let flags = packet.tcp_flags();
        let mut slot = Slot::from_bytes(flow.slot());
        // A SYN that comes again finds the stream further on, and must not take it back.
        if flags & SYN != 0 && !slot.began_with(sequence) {
            slot = Slot::opened(sequence);
            flow.set_slot(slot.to_bytes());
        }
        match slot.stage {
            Stage::Allowed => Verdict::Continue,
            // The reset that our own answer makes the client send.
            Stage::Denied(_) if flags & RST != 0 => Verdict::Continue,
            Stage::Denied(reason) => Verdict::Reject(reason),
            Stage::Unseen => self.decide(slot, flow, Err(reason::NOT_TLS)),
            Stage::Open { .. } if packet.payload().is_empty() => Verdict::Continue,
            Stage::Open { next, held } => self.read(packet, slot, Held { next, held }, flow, host),
        }
    }
}

impl SniAllow {
    fn watches(&self, port: u16) -> bool {
        if self.ports.is_empty() { port == HTTPS } else { self.ports.contains(&port) }
    }

    /// Goes on with the ClientHello of a flow that is not decided yet.
    fn read(
        &self,
        packet: &Packet,
        slot: Slot,
        held: Held,
        flow: &mut Flow,
        host: &Host,
    ) -> Verdict {
        let text = match held.take(packet, host) {
            Segment::Seen => return Verdict::Continue,
            Segment::Early => return Verdict::Drop(reason::OUT_OF_ORDER),
            Segment::NoRoom => return self.decide(slot, flow, Err(reason::NO_ROOM)),
            Segment::Text(text) => text,
        };
        let decision = match read_hello(&text) {
            Hello::Incomplete => match held.keep(packet, &text, host) {
                Some(Held { next, held }) => {
                    flow.set_slot(slot.at(Stage::Open { next, held }).to_bytes());
                    return Verdict::Continue;
                }
                None => Err(reason::NO_ROOM),
            },
            Hello::Name(name) if self.allowed.matches(&name) => Ok(()),
            Hello::Name(_) => Err(reason::NAME),
            Hello::NoName => Err(reason::NO_NAME),
            Hello::NotTls => Err(reason::NOT_TLS),
            Hello::Malformed => Err(reason::MALFORMED),
            Hello::TooLong => Err(reason::TOO_LONG),
        };
        held.forget(packet, host);
        self.decide(slot, flow, decision)
    }

    fn decide(&self, slot: Slot, flow: &mut Flow, decision: Result<(), u32>) -> Verdict {
        let denied = decision.err().filter(|r| *r != reason::NOT_TLS || !self.allow_other);
        flow.set_slot(slot.at(denied.map_or(Stage::Allowed, Stage::Denied)).to_bytes());
        denied.map_or(Verdict::Continue, Verdict::Reject)
    }
}

export_plugin!(
    SniAllow,
    protocols: protocols::TCP,
    capabilities: capability::MAP,
    window: 4096 + 160,
    map_entries: 16_384,
);
