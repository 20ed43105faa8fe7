//! A flow as a fixed-size record, so that it outlives the process.
//!
//! All numbers are little-endian. A record whose checksum is wrong was being written when the
//! process ended, and is ignored.

use weft_model::Timestamp;

use super::key::{FlowKey, fold};
use super::memory::{Memory, PLUGINS_MAX, SLOT_LEN, SlotOwners};
use super::sequence::Progress;
use super::shard::{Flow, Traffic, Translator};
use super::state::FlowState;

/// Bytes of a record: header 8, keys 2 x 37 and 6 spare, times 2 x 8, traffic 4 x 8, plugins
/// 10 x (owner 8, slot 16, seen 8), checksum 8.
pub const RECORD_LEN: usize = CHECKSUM_AT + 8;

const MAGIC: [u8; 4] = *b"WFL1";
const PLUGINS_AT: usize = 136;
const PLUGIN_LEN: usize = 8 + SLOT_LEN + 8;
const CHECKSUM_AT: usize = PLUGINS_AT + PLUGINS_MAX * PLUGIN_LEN;
const NO_TRANSLATOR: u8 = 0xff;

/// Why a record is no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Never written, or erased.
    #[error("empty")]
    Empty,
    /// Written by another version of Weft.
    #[error("of another version")]
    Version,
    /// Torn: the checksum is wrong.
    #[error("torn")]
    Checksum,
    /// Whole, and yet no flow.
    #[error("no flow")]
    Contents,
    /// Its flow has expired.
    #[error("expired")]
    Expired,
    /// The table has a flow with one of its tuples.
    #[error("a flow with one of its tuples is in the table")]
    Clash,
}

pub(crate) fn encode(flow: &Flow, owners: &SlotOwners, out: &mut [u8; RECORD_LEN]) {
    out.fill(0);
    out[0..4].copy_from_slice(&MAGIC);
    out[4] = flow.state as u8;
    out[5] = flow.translator.map_or(NO_TRANSLATOR, |t| t.slot);
    out[6] = u8::from(flow.translator.is_some_and(|t| t.ingress));
    out[8..45].copy_from_slice(&flow.original.to_bytes());
    out[48..85].copy_from_slice(&flow.reply.to_bytes());
    let [original, reply] = flow.traffic;
    let numbers = [
        flow.created.0,
        flow.last_seen.0,
        original.packets,
        original.bytes,
        reply.packets,
        reply.bytes,
    ];
    for (i, number) in numbers.iter().enumerate() {
        put(out, 88 + 8 * i, *number);
    }
    for plugin in 0..PLUGINS_MAX {
        let at = PLUGINS_AT + PLUGIN_LEN * plugin;
        put(out, at, owners.name(plugin));
        out[at + 8..at + 8 + SLOT_LEN].copy_from_slice(flow.memory.kept_slot(plugin));
        put(out, at + 8 + SLOT_LEN, u64::from(flow.memory.kept_seen(plugin)));
    }
    let checksum = checksum(out);
    put(out, CHECKSUM_AT, checksum);
}

pub(crate) fn decode(record: &[u8; RECORD_LEN], owners: &SlotOwners) -> Result<Flow, RecordError> {
    if record[0..4] == [0; 4] {
        return Err(RecordError::Empty);
    }
    if get(record, CHECKSUM_AT) != checksum(record) {
        return Err(RecordError::Checksum);
    }
    if record[0..4] != MAGIC {
        return Err(RecordError::Version);
    }
    let state = FlowState::from_u8(record[4]).ok_or(RecordError::Contents)?;
    let key = |at: usize| {
        let mut bytes = [0; FlowKey::LEN];
        bytes.copy_from_slice(&record[at..at + FlowKey::LEN]);
        FlowKey::from_bytes(&bytes)
    };
    let (original, reply) = (key(8), key(48));
    if original.protocol() != reply.protocol() {
        return Err(RecordError::Contents);
    }
    let traffic = |at| Traffic { packets: get(record, at), bytes: get(record, at + 8) };
    let mut memory = Memory::EMPTY;
    let own = Translator::PIPELINE;
    let mut translator = (record[5] == own.slot).then_some(own);
    for plugin in 0..PLUGINS_MAX {
        let at = PLUGINS_AT + PLUGIN_LEN * plugin;
        let Some(slot) = owners.recall(get(record, at)) else { continue };
        let mut bytes = [0; SLOT_LEN];
        bytes.copy_from_slice(&record[at + 8..at + 8 + SLOT_LEN]);
        let seen = u16::from_le_bytes([record[at + 8 + SLOT_LEN], record[at + 9 + SLOT_LEN]]);
        memory.restore(slot, bytes, seen);
        if usize::from(record[5]) == plugin {
            let slot = u8::try_from(slot).unwrap_or(NO_TRANSLATOR);
            translator = Some(Translator { slot, ingress: record[6] != 0 });
        }
    }
    Ok(Flow {
        original,
        reply,
        state,
        progress: Progress::default(),
        translator,
        created: Timestamp(get(record, 88)),
        last_seen: Timestamp(get(record, 96)),
        traffic: [traffic(104), traffic(120)],
        memory,
    })
}

fn put(out: &mut [u8; RECORD_LEN], at: usize, number: u64) {
    out[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

fn get(record: &[u8; RECORD_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Of every byte before [`CHECKSUM_AT`].
fn checksum(record: &[u8; RECORD_LEN]) -> u64 {
    (0..CHECKSUM_AT / 8).fold(0x5765_6674_466c_6f77, |sum: u64, i| {
        fold(sum.rotate_left(5) ^ get(record, 8 * i), 0x9e37_79b9_7f4a_7c15).wrapping_add(sum)
    })
}
