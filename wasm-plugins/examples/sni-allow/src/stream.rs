//! How far a flow's ClientHello has come: in the slot where it stands, in the map its bytes.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use weft_policy_sdk::{Host, Packet};

use crate::SYN;
use crate::hello::HELLO_MAX;

/// Bytes of the stream in one entry of the map.
const CHUNK: usize = 256;
/// A client that has not sent its ClientHello whole by then is denied.
const HELLO_TTL: Duration = Duration::from_secs(30);

/// What the slot of a flow holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Sequence number of the SYN; no meaning if none was seen.
    syn: u32,
    pub(crate) stage: Stage,
}

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No SYN was seen.
    Unseen,
    /// The first `held` bytes are in the map, and `next` is the sequence number after them.
    Open { next: u32, held: u16 },
    /// Decided.
    Allowed,
    /// Decided, and why.
    Denied(u32),
}

impl Slot {
    /// A connection that begins with this SYN.
    pub(crate) fn opened(syn: u32) -> Self {
        Self { syn, stage: Stage::Open { next: syn.wrapping_add(1), held: 0 } }
    }

    /// The same connection, further on.
    pub(crate) fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    pub(crate) fn began_with(self, syn: u32) -> bool {
        self.stage != Stage::Unseen && self.syn == syn
    }

    /// Stage 1, one byte unused, `held` 2, `next` or reason 4, SYN 4, rest zero.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let (kind, held, number) = match self.stage {
            Stage::Unseen => (0, 0, 0),
            Stage::Open { next, held } => (1, held, next),
            Stage::Allowed => (2, 0, 0),
            Stage::Denied(reason) => (3, 0, reason),
        };
        let mut slot = [0; 16];
        slot[0] = kind;
        slot[2..4].copy_from_slice(&held.to_le_bytes());
        slot[4..8].copy_from_slice(&number.to_le_bytes());
        slot[8..12].copy_from_slice(&self.syn.to_le_bytes());
        slot
    }

    pub(crate) fn from_bytes(slot: [u8; 16]) -> Self {
        let [kind, _, h0, h1, n0, n1, n2, n3, s0, s1, s2, s3, ..] = slot;
        let (held, number) = (u16::from_le_bytes([h0, h1]), u32::from_le_bytes([n0, n1, n2, n3]));
        let stage = match kind {
            1 => Stage::Open { next: number, held },
            2 => Stage::Allowed,
            3 => Stage::Denied(number),
            _ => Stage::Unseen,
        };
        Self { syn: u32::from_le_bytes([s0, s1, s2, s3]), stage }
    }
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

/// How much of the ClientHello is in the map; see [`Stage::Open`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) next: u32,
    pub(crate) held: u16,
}

impl Held {
    /// Puts a segment after what is held.
    pub(crate) fn take(self, packet: &Packet, host: &Host) -> Segment {
        let Some(sequence) = packet.tcp_sequence() else { return Segment::Seen };
        // A SYN counts as the byte before the payload it brings.
        let sequence = sequence.wrapping_add(u32::from(packet.tcp_flags() & SYN != 0));
        // Half of the sequence space is behind, half ahead (RFC 9293 section 3.4).
        let behind = self.next.wrapping_sub(sequence);
        if behind > u32::MAX / 2 {
            return Segment::Early;
        }
        let new = usize::try_from(behind).ok().and_then(|b| packet.payload().get(b..));
        let Some(new) = new.filter(|new| !new.is_empty()) else { return Segment::Seen };
        let mut text = Vec::with_capacity(usize::from(self.held) + new.len());
        for chunk in 0..self.chunks() {
            match host.map().get(&key(packet, chunk)) {
                Some(bytes) => text.extend_from_slice(&bytes),
                None => return Segment::NoRoom,
            }
        }
        if text.len() != usize::from(self.held) {
            return Segment::NoRoom;
        }
        text.extend_from_slice(new);
        text.truncate(HELLO_MAX);
        Segment::Text(text)
    }

    /// Stores a text that is not whole yet; `None` if there is no room.
    pub(crate) fn keep(self, packet: &Packet, text: &[u8], host: &Host) -> Option<Self> {
        let unchanged = usize::from(self.held) / CHUNK;
        for (number, chunk) in text.chunks(CHUNK).enumerate().skip(unchanged) {
            host.map().put(&key(packet, number), chunk, Some(HELLO_TTL)).ok()?;
        }
        let new = u16::try_from(text.len().checked_sub(usize::from(self.held))?).ok()?;
        Some(Self { next: self.next.wrapping_add(u32::from(new)), held: self.held + new })
    }

    /// Removes what is held.
    pub(crate) fn forget(self, packet: &Packet, host: &Host) {
        for chunk in 0..self.chunks() {
            host.map().remove(&key(packet, chunk));
        }
    }

    fn chunks(self) -> usize {
        usize::from(self.held).div_ceil(CHUNK)
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
