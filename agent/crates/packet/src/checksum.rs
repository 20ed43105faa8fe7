//! The Internet checksum, whole and incremental, and SCTP's CRC32c.
//!
//! A *sum* is the one's complement sum folded to 16 bits; a *checksum* is its complement. The sum
//! of anything that has a byte other than 0 is in 1..=0xffff.
//!
//! Sources: RFC 1071, RFC 1624 (incremental, equation 3), RFC 9260 appendix A (CRC32c).

use std::net::IpAddr;

use crate::headers::Headers;
use crate::{bytes, protocol};

/// One's complement sum of `bytes` as big-endian 16-bit words; an odd last byte is padded with 0.
#[must_use]
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on byte order but for a final swap (RFC 1071 section 2 B), and
    // 32-bit words in 64-bit lanes are what the compiler vectorizes.
    let (words, rest) = bytes.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    fold(total, rest)
}

/// Copies `from` to `to`, which has its length, and returns its sum: one walk over both.
#[must_use]
#[inline]
pub(crate) fn copy(from: &[u8], to: &mut [u8]) -> u16 {
    let ((words, rest), (to_words, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    let mut total: u64 = 0;
    for (to, from) in to_words.iter_mut().zip(words) {
        *to = *from;
        total += u64::from(u32::from_ne_bytes(*from));
    }
    for (to, from) in to_rest.iter_mut().zip(rest) {
        *to = *from;
    }
    fold(total, rest)
}

/// The sum of 32-bit words that add up to `total` and fewer than 4 bytes behind them.
#[inline]
fn fold(mut total: u64, rest: &[u8]) -> u16 {
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_ne_bytes(last));
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    u16::from_be((total & 0xffff) as u16)
}

/// One's complement addition of two sums.
#[must_use]
#[inline]
pub fn add(a: u16, b: u16) -> u16 {
    let (total, carry) = a.overflowing_add(b);
    total + u16::from(carry)
}

/// Checksum of `bytes`: what an IPv4 header or an ICMP message holds when its field counts as 0.
#[must_use]
#[inline]
pub fn full(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). `len` is the length of
/// transport header and payload in bytes.
#[must_use]
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    let addresses = add(address_sum(source), address_sum(destination));
    let len = bytes::low32(len).to_be_bytes();
    add(add(addresses, u16::from(protocol)), sum(&len))
}

pub(crate) fn address_sum(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    }
}

/// The difference that edits make to a sum.
///
/// Edits must be of whole 16-bit words at even offsets from where the sum starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u16);

impl Change {
    /// Notes that `old` became `new`.
    #[inline]
    pub fn replace(&mut self, old: &[u8], new: &[u8]) {
        self.replace_sum(sum(old), sum(new));
    }

    /// Notes that words with the sum `old` became words with the sum `new`.
    #[inline]
    pub fn replace_sum(&mut self, old: u16, new: u16) {
        self.0 = add(self.0, add(!old, new));
    }

    /// The checksum after the edits: RFC 1624 equation 3.
    #[must_use]
    #[inline]
    pub fn apply_to_checksum(self, checksum: u16) -> u16 {
        !add(!checksum, self.0)
    }

    /// The sum after the edits; a partial checksum field is one.
    #[must_use]
    #[inline]
    pub fn apply_to_sum(self, sum: u16) -> u16 {
        add(sum, self.0)
    }
}

/// A UDP checksum as it is sent: 0 would mean that there is none (RFC 768).
#[must_use]
#[inline]
pub fn udp_field(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Whether the transport checksum of an unfragmented packet is right.
///
/// True where there is nothing to check: protocols without one and UDP over IPv4 without one.
/// UDP over IPv6 must have one (RFC 8200 section 8.1).
#[must_use]
pub fn transport_is_valid(packet: &[u8], headers: &Headers) -> bool {
    let start = usize::from(headers.transport_offset);
    let Some(mut segment) = packet.get(start..headers.total_length) else {
        return false;
    };
    if headers.protocol == protocol::SCTP {
        return sctp_is_valid(segment);
    }
    let Some(field) = protocol::checksum_offset(headers.protocol) else {
        return true;
    };
    if headers.protocol == protocol::UDP {
        if bytes::u16_at(segment, field) == Some(0) {
            return headers.source.is_ipv4();
        }
        let len = usize::from(bytes::u16_at(segment, 4).unwrap_or(0));
        let Some(datagram) = segment.get(..len) else {
            return false;
        };
        segment = datagram;
    }
    let pseudo = if protocol::covers_addresses(headers.protocol) {
        pseudo(headers.source, headers.destination, headers.protocol, segment.len())
    } else {
        0
    };
    add(pseudo, sum(segment)) == 0xffff
}

fn sctp_is_valid(packet: &[u8]) -> bool {
    let (Some(before), Some(field), Some(after)) =
        (packet.get(..8), bytes::array::<4>(packet, 8), packet.get(12..))
    else {
        return false;
    };
    let crc = Crc32c::new().update(before).update(&[0; 4]).update(after).finish();
    crc.to_le_bytes() == field
}

/// CRC32c over an SCTP packet whose checksum field counts as 0.
#[must_use]
pub(crate) fn sctp(packet: &[u8]) -> Option<u32> {
    let (before, after) = (packet.get(..8)?, packet.get(12..)?);
    Some(Crc32c::new().update(before).update(&[0; 4]).update(after).finish())
}

/// Castagnoli's CRC, as SCTP uses it; sent in little-endian order.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

const CRC32C_POLYNOMIAL: u32 = 0x82f6_3b78;

const fn crc32c_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ CRC32C_POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
}

static CRC32C_TABLE: [u32; 256] = crc32c_table();

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(u32::MAX)
    }

    /// With `bytes` appended.
    #[must_use]
    pub fn update(self, bytes: &[u8]) -> Self {
        let step = |crc: u32, byte: &u8| {
            let index = (crc as u8) ^ byte;
            CRC32C_TABLE.get(usize::from(index)).copied().unwrap_or(0) ^ (crc >> 8)
        };
        Self(bytes.iter().fold(self.0, step))
    }

    /// The value.
    #[must_use]
    pub fn finish(self) -> u32 {
        !self.0
    }
}
