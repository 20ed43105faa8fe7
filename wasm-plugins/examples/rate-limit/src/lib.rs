//! Limits what each pod of the node may send.
//!
//! ```text
//! # for each source address; either or both
//! packets_per_second = 10000
//! bytes_per_second = 12500000
//! # what may come at once; default: a second's worth
//! burst_packets = 20000
//! burst_bytes = 25000000
//! # once there are more pods than room to count them: `drop` (default) or `pass`
//! when_full = drop
//! ```
//!
//! The buckets are in the plugin's map, so the limit holds for all workers together and outlives a
//! new configuration.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use weft_policy_sdk::prelude::*;
use weft_policy_sdk::{Draw, MapError, flags};

#[cfg(test)]
mod tests;

/// Number of the verdict in counters and logs: over the limit.
const OVER_LIMIT: u32 = 2;
/// Number of the verdict in counters and logs: no room to count.
const NO_ROOM: u32 = 3;

/// The filter.
#[derive(Debug, Default)]
pub struct RateLimit {
    packets: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    pass_when_full: bool,
}

impl Filter for RateLimit {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        let (mut packets, mut bytes) = ([None; 2], [None; 2]);
        for line in config.lines()? {
            match line? {
                ("packets_per_second", n) => packets[0] = Some(number("packets_per_second", n)?),
                ("burst_packets", n) => packets[1] = Some(number("burst_packets", n)?),
                ("bytes_per_second", n) => bytes[0] = Some(number("bytes_per_second", n)?),
                ("burst_bytes", n) => bytes[1] = Some(number("burst_bytes", n)?),
                ("when_full", "drop") => self.pass_when_full = false,
                ("when_full", "pass") => self.pass_when_full = true,
                ("when_full", other) => {
                    return Err(format!("when_full `{other}`: expected `drop` or `pass`"));
                }
                (key, _) => {
                    return Err(format!(
                        "unknown key `{key}`: expected `packets_per_second`, `burst_packets`, \
                         `bytes_per_second`, `burst_bytes`, `when_full`"
                    ));
                }
            }
        }
        self.packets = bucket("packets", packets)?;
        self.bytes = bucket("bytes", bytes)?;
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, _flow: &mut Flow, host: &Host) -> Verdict {
        if !packet.is(flags::SOURCE_LOCAL_POD) {
            return Verdict::Continue;
        }
        let packets = |bucket: TokenBucket| bucket.draw(u64::from(packet.segments()));
        let bytes = |bucket: TokenBucket| bucket.draw(u64::from(packet.len()));
        // What one of two limits stops is not to be counted by the other.
        let taken = match (self.packets, self.bytes) {
            (None, None) => return Verdict::Continue,
            (Some(limit), None) => take(packet, host, &[packets(limit)]),
            (None, Some(limit)) => take(packet, host, &[bytes(limit)]),
            (Some(first), Some(second)) => take(packet, host, &[packets(first), bytes(second)]),
        };
        match taken {
            Ok(true) => Verdict::Continue,
            Ok(false) => Verdict::Drop(OVER_LIMIT),
            Err(MapError::Full | MapError::TooLong) if self.pass_when_full => Verdict::Continue,
            Err(MapError::Full | MapError::TooLong) => Verdict::Drop(NO_ROOM),
        }
    }
}

/// From the buckets of the packet's source.
fn take(packet: &Packet, host: &Host, draws: &[Draw]) -> Result<bool, MapError> {
    host.map().take(&packet.descriptor().source, draws)
}

fn number(key: &str, text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{key} `{text}`: expected a number above zero")),
    }
}

fn bucket(what: &str, [rate, burst]: [Option<u64>; 2]) -> Result<Option<TokenBucket>, String> {
    match (rate, burst) {
        (Some(rate), burst) => Ok(Some(TokenBucket::new(rate, burst.unwrap_or(rate)))),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(format!("burst_{what} without {what}_per_second")),
    }
}

export_plugin!(RateLimit, capabilities: capability::MAP, map_entries: 16_384);
