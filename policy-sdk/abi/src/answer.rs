//! What a plugin answers.

/// Bit of the packet call's return value: the plugin wrote an [`Answer`]. Most packets get a bare
/// verdict, and the host reads no answer then.
pub const ANSWERED: i32 = 1 << 8;

/// Bit of the packet call's return value: the plugin is to be asked about the next packet of the flow
/// as well, although its manifest says [`crate::Manifest::per_flow`].
pub const ASK_AGAIN: i32 = 1 << 9;

/// Return value of the packet call, without [`ANSWERED`] and [`ASK_AGAIN`]. Any other number is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum VerdictCode {
    /// Ask the next plugin.
    Continue = 0,
    /// Let it pass and ask no further plugin at this position.
    Accept = 1,
    /// Drop it silently. [`Answer::reason`] is counted.
    Drop = 2,
    /// Drop it and tell the sender: TCP reset, else ICMP administratively prohibited or, with
    /// [`Answer::reason`] 1, port unreachable.
    Reject = 3,
    /// Translate the flow as [`Answer::rewrite`] says and go on with the next plugin.
    Rewrite = 4,
    /// Send the packet in the window, [`Answer::reply_len`] bytes, back to the sender instead.
    Reply = 5,
    /// As [`VerdictCode::Continue`], for a packet that would be dropped if the plugin did not only
    /// watch. [`Answer::reason`] is counted and logged as that of a drop.
    WouldDrop = 6,
}

impl VerdictCode {
    /// The code of a return value without its bits.
    #[must_use]
    #[inline]
    pub fn from_i32(code: i32) -> Option<Self> {
        Some(match code {
            0 => Self::Continue,
            1 => Self::Accept,
            2 => Self::Drop,
            3 => Self::Reject,
            4 => Self::Rewrite,
            5 => Self::Reply,
            6 => Self::WouldDrop,
            _ => return None,
        })
    }
}

/// Which fields a rewrite changes. Addresses are IPv4-mapped for IPv4 and must be of the packet's
/// family. The host holds the translation with the flow, applies it to every later packet and
/// reverses it for replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteFields {
    /// New source address.
    pub source: Option<[u8; 16]>,
    /// New destination address.
    pub destination: Option<[u8; 16]>,
    /// New source port; 0: any that no other flow to the destination has.
    pub source_port: Option<u16>,
    /// New destination port.
    pub destination_port: Option<u16>,
}

/// The answer beside the return value; all zero if [`ANSWERED`] is not set there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The plugin's own number for why, for counters and logs.
    pub reason: u32,
    /// New value of the flow slot.
    pub slot: Option<[u8; 16]>,
    /// For [`VerdictCode::Rewrite`].
    pub rewrite: RewriteFields,
    /// For [`VerdictCode::Reply`]: length of the packet in the window.
    pub reply_len: u32,
}

/// An answer that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// A bit that this version does not know.
    UnknownFields(u32),
}

const HAS_SLOT: u32 = 1 << 0;
const HAS_SOURCE: u32 = 1 << 1;
const HAS_DESTINATION: u32 = 1 << 2;
const HAS_SOURCE_PORT: u32 = 1 << 3;
const HAS_DESTINATION_PORT: u32 = 1 << 4;
const KNOWN: u32 = (1 << 5) - 1;

impl Answer {
    /// Bytes in the exchange area: present 4, reason 4, reply length 4, ports 2 + 2, slot 16,
    /// source 16, destination 16.
    pub const LEN: usize = 64;

    /// Writes the layout.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut present = 0;
        let fields = &self.rewrite;
        let addresses = [
            (HAS_SLOT, self.slot, 16),
            (HAS_SOURCE, fields.source, 32),
            (HAS_DESTINATION, fields.destination, 48),
        ];
        for (bit, value, offset) in addresses {
            if let Some(value) = value {
                present |= bit;
                bytes[offset..offset + 16].copy_from_slice(&value);
            }
        }
        let ports = [
            (HAS_SOURCE_PORT, fields.source_port, 12),
            (HAS_DESTINATION_PORT, fields.destination_port, 14),
        ];
        for (bit, value, offset) in ports {
            if let Some(value) = value {
                present |= bit;
                bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[0..4].copy_from_slice(&present.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.reason.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.reply_len.to_le_bytes());
        bytes
    }

    /// Reads the layout.
    ///
    /// # Errors
    /// [`AnswerError::UnknownFields`] if it claims fields of a later version.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, AnswerError> {
        let word =
            |o: usize| u32::from_le_bytes([bytes[o], bytes[o + 1], bytes[o + 2], bytes[o + 3]]);
        let present = word(0);
        if present & !KNOWN != 0 {
            return Err(AnswerError::UnknownFields(present & !KNOWN));
        }
        let address = |bit, offset: usize| {
            let mut value = [0; 16];
            value.copy_from_slice(&bytes[offset..offset + 16]);
            (present & bit != 0).then_some(value)
        };
        let port = |bit, offset: usize| {
            (present & bit != 0).then(|| u16::from_le_bytes([bytes[offset], bytes[offset + 1]]))
        };
        Ok(Self {
            reason: word(4),
            slot: address(HAS_SLOT, 16),
            rewrite: RewriteFields {
                source: address(HAS_SOURCE, 32),
                destination: address(HAS_DESTINATION, 48),
                source_port: port(HAS_SOURCE_PORT, 12),
                destination_port: port(HAS_DESTINATION_PORT, 14),
            },
            reply_len: word(8),
        })
    }
}
