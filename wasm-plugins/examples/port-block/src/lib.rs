//! Blocks traffic to a list of ports.
//!
//! ```text
//! # protocol/port or protocol/first-last, as many as there are, in one line or more;
//! # `block =` may be left out
//! block = tcp/80, udp/53, tcp/8000-8100
//! # drop (silent) or reject (TCP reset, ICMP), which is the default
//! action = reject
//! ```
//!
//! Asked once for each flow and again when the list changes, so a new entry cuts live flows.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use weft_policy_sdk::prelude::*;

#[cfg(test)]
mod tests;

/// Number of the verdict in counters and logs.
const BLOCKED: u32 = 2;

/// The filter.
#[derive(Debug, Default)]
pub struct PortBlock {
    blocked: Vec<Range>,
    silent: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl Filter for PortBlock {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        let lines = config.text()?.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=').unwrap_or(("block", line));
            match (key.trim(), value.trim()) {
                ("block", list) => {
                    for entry in list.split(',') {
                        self.blocked.push(Range::parse(entry.trim())?);
                    }
                }
                ("action", "drop") => self.silent = true,
                ("action", "reject") => self.silent = false,
                ("action", other) => {
                    return Err(format!("action `{other}`: expected `drop` or `reject`"));
                }
                (key, _) => return Err(format!("unknown key `{key}`: expected `block`, `action`")),
            }
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, _host: &Host) -> Verdict {
        // The port of a reply is the client's own.
        if flow.is_reply() {
            return Verdict::Continue;
        }
        let (protocol, port) = (packet.protocol(), packet.destination_port());
        let hit = |r: &Range| r.protocol == protocol && (r.first..=r.last).contains(&port);
        match (self.blocked.iter().any(hit), self.silent) {
            (false, _) => Verdict::Continue,
            (true, true) => Verdict::Drop(BLOCKED),
            (true, false) => Verdict::Reject(BLOCKED),
        }
    }
}

impl Range {
    fn parse(entry: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("`{entry}`: {why}, as in `tcp/80` or `udp/8000-8100`");
        let (protocol, ports) =
            entry.split_once('/').ok_or_else(|| bad("expected protocol/port"))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(bad("the protocol is `tcp`, `udp` or `sctp`")),
        };
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(bad("a port is 1 to 65535")),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(bad("the first port is above the last"));
        }
        Ok(Self { protocol, first, last })
    }
}

export_plugin!(
    PortBlock,
    hooks: hooks::EGRESS | hooks::INGRESS,
    protocols: protocols::TCP | protocols::UDP | protocols::SCTP,
    per_flow: true,
);
