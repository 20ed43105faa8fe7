//! Framing of WireGuard messages. Source: WireGuard paper, section 5.4.

use weft_aead::TAG_LEN;
use weft_model::overhead;

/// Bytes that encapsulation adds to a packet: [`DATA_HEADER_LEN`] before it, [`TAG_LEN`] behind.
pub(crate) const OVERHEAD: usize = overhead::WIREGUARD as usize;
/// Type and reserved 4, receiver index 4, counter 8.
pub(crate) const DATA_HEADER_LEN: usize = 4 + 4 + 8;
/// First and second MAC of a handshake message.
pub(crate) const MACS_LEN: usize = 16 + 16;
/// Noise part of an initiation: ephemeral key 32, static key 32 + 16, timestamp 12 + 16.
pub(crate) const INITIATION_NOISE_LEN: usize = 32 + (32 + TAG_LEN) + (12 + TAG_LEN);
/// Noise part of a response: ephemeral key 32, nothing 0 + 16.
pub(crate) const RESPONSE_NOISE_LEN: usize = 32 + TAG_LEN;
/// Type, sender index, Noise part, MACs.
pub(crate) const INITIATION_LEN: usize = 4 + 4 + INITIATION_NOISE_LEN + MACS_LEN;
/// Type, sender index, receiver index, Noise part, MACs.
pub(crate) const RESPONSE_LEN: usize = 4 + 4 + 4 + RESPONSE_NOISE_LEN + MACS_LEN;
/// Type, receiver index, nonce 24, cookie 16 + 16.
pub(crate) const COOKIE_REPLY_LEN: usize = 4 + 4 + 24 + (16 + TAG_LEN);

pub(crate) const TYPE_INITIATION: [u8; 4] = [1, 0, 0, 0];
pub(crate) const TYPE_RESPONSE: [u8; 4] = [2, 0, 0, 0];
pub(crate) const TYPE_COOKIE: [u8; 4] = [3, 0, 0, 0];
pub(crate) const TYPE_DATA: [u8; 4] = [4, 0, 0, 0];

/// What a datagram is by its framing. `receiver` is the index its receiver gave out, `sender` the
/// one to answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation { sender: u32 },
    Response { sender: u32, receiver: u32 },
    Cookie { receiver: u32 },
    Data { receiver: u32, counter: u64 },
}

/// Reads the framing: type, reserved bytes, length. `None` if it is no WireGuard message.
#[inline]
pub(crate) fn classify(datagram: &[u8]) -> Option<Message> {
    let word = |at| word(datagram, at);
    match (*datagram.first_chunk::<4>()?, datagram.len()) {
        (TYPE_DATA, OVERHEAD..) => {
            let counter = u64::from_le_bytes(*datagram.get(8..)?.first_chunk()?);
            Some(Message::Data { receiver: word(4)?, counter })
        }
        (TYPE_INITIATION, INITIATION_LEN) => Some(Message::Initiation { sender: word(4)? }),
        (TYPE_RESPONSE, RESPONSE_LEN) => {
            Some(Message::Response { sender: word(4)?, receiver: word(8)? })
        }
        (TYPE_COOKIE, COOKIE_REPLY_LEN) => Some(Message::Cookie { receiver: word(4)? }),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}
