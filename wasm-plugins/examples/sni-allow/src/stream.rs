//! How far a flow's ClientHello has come: in the slot where it stands, in the map its bytes.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use weft_policy_sdk::{Host, Packet};

use crate::hello::HELLO_MAX;

/// Bytes of the stream in one entry of the map.
const CHUNK: usize = 256;
/// A client that has not sent its ClientHello whole by then is denied.
const HELLO_TTL: Duration = Duration::from_secs(30);

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// No SYN was seen.
    Unseen,
    /// The first `held` bytes are in the map, and `next` is the sequence number after them.
    Open { next: u32, held: u16 },
    /// Decided.
    Allowed,
    /// Decided, and why.
    Denied(u32),
}

/// What a segment brings.
pub(crate) enum Segment {
    /// Nothing new.
    Seen,
    /// It leaves a gap.
    Early,
    /// The stream from its start to the end of this segment, [`HELLO_MAX`] bytes at most.
    Text(Vec<u8>),
    /// What came before is gone.
    NoRoom,
}

impl Stream {
    pub(crate) fn started(next: u32) -> Self {
        Self::Open { next, held: 0 }
    }

    /// Kind 1, one byte unused, `held` 2, number 4, rest zero.
    pub(crate) fn to_slot(self) -> [u8; 16] {
        let (kind, held, number) = match self {
            Self::Unseen => (0, 0, 0),
            Self::Open { next, held } => (1, held, next),
            Self::Allowed => (2, 0, 0),
            Self::Denied(reason) => (3, 0, reason),
        };
        let mut slot = [0; 16];
        slot[0] = kind;
        slot[2..4].copy_from_slice(&held.to_le_bytes());
        slot[4..8].copy_from_slice(&number.to_le_bytes());
        slot
    }

    pub(crate) fn from_slot(slot: [u8; 16]) -> Self {
        let [kind, _, h0, h1, n0, n1, n2, n3, ..] = slot;
        let (held, number) = (u16::from_le_bytes([h0, h1]), u32::from_le_bytes([n0, n1, n2, n3]));
        match kind {
            1 => Self::Open { next: number, held },
            2 => Self::Allowed,
            3 => Self::Denied(number),
            _ => Self::Unseen,
        }
    }

    fn held(self) -> usize {
        match self {
            Self::Open { held, .. } => usize::from(held),
            Self::Unseen | Self::Allowed | Self::Denied(_) => 0,
        }
    }

    /// Puts a segment after what is held.
    pub(crate) fn take(self, packet: &Packet, host: &Host) -> Segment {
        let (Self::Open { next, held }, Some(sequence)) = (self, packet.tcp_sequence()) else {
            return Segment::Seen;
        };
        // Half of the sequence space is behind, half ahead (RFC 9293 section 3.4).
        let behind = next.wrapping_sub(sequence);
        if behind > u32::MAX / 2 {
            return Segment::Early;
        }
        let new = usize::try_from(behind).ok().and_then(|b| packet.payload().get(b..));
        let Some(new) = new.filter(|new| !new.is_empty()) else { return Segment::Seen };
        let mut text = Vec::with_capacity(usize::from(held) + new.len());
        for chunk in 0..usize::from(held).div_ceil(CHUNK) {
            match host.map().get(&key(packet, chunk)) {
                Some(bytes) => text.extend_from_slice(&bytes),
                None => return Segment::NoRoom,
            }
        }
        if text.len() != usize::from(held) {
            return Segment::NoRoom;
        }
        text.extend_from_slice(new);
        text.truncate(HELLO_MAX);
        Segment::Text(text)
    }

    /// Stores a text that is not whole yet; `None` if there is no room.
    pub(crate) fn keep(self, packet: &Packet, text: &[u8], host: &Host) -> Option<Self> {
        let Self::Open { next, held } = self else { return None };
        let unchanged = usize::from(held) / CHUNK;
        for (number, chunk) in text.chunks(CHUNK).enumerate().skip(unchanged) {
            host.map().put(&key(packet, number), chunk, Some(HELLO_TTL)).ok()?;
        }
        let new = u16::try_from(text.len().checked_sub(usize::from(held))?).ok()?;
        Some(Self::Open { next: next.wrapping_add(u32::from(new)), held: held + new })
    }

    /// Removes what is held.
    pub(crate) fn forget(self, packet: &Packet, host: &Host) {
        for chunk in 0..self.held().div_ceil(CHUNK) {
            host.map().remove(&key(packet, chunk));
        }
    }
}

/// Addresses 32, ports 4, number of the chunk 1.
fn key(packet: &Packet, chunk: usize) -> [u8; 37] {
    let address = |address: IpAddr| -> Ipv6Addr {
        match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
    };
    let mut key = [0; 37];
    key[..16].copy_from_slice(&address(packet.source()).octets());
    key[16..32].copy_from_slice(&address(packet.destination()).octets());
    key[32..34].copy_from_slice(&packet.source_port().to_be_bytes());
    key[34..36].copy_from_slice(&packet.destination_port().to_be_bytes());
    key[36] = u8::try_from(chunk).unwrap_or(u8::MAX);
    key
}
