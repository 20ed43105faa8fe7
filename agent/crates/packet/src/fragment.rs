//! IPv4 fragmentation. Source: RFC 791 section 3.2.

use crate::headers::{Fragment, Headers, IpVersion};
use crate::meta::{Checksum, Meta};
use crate::{bytes, checksum};

/// Why a packet is not fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// IPv6 packets are fragmented by their sender only.
    #[error("not IPv4")]
    NotIpv4,
    /// The sender forbids it.
    #[error("must not be fragmented")]
    DontFragment,
    /// A super-packet, or one with a partial checksum: segment or complete it first.
    #[error("the checksum is not complete")]
    NotComplete,
    /// Less than a header and 8 bytes fit.
    #[error("the MTU leaves no room for data")]
    Mtu,
    /// The headers are not those of the packet.
    #[error("the packet is shorter than its headers say")]
    Truncated,
}

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
/// Bit of an option's type: the option is in every fragment.
const OPTION_COPIED: u8 = 0x80;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;

/// Cuts a packet into fragments of at most `mtu` bytes and hands each to `emit`, first to last.
/// One that fits is handed over as it is. A fragment can be cut further.
///
/// `scratch` is overwritten; reuse it from call to call.
///
/// # Errors
/// [`FragmentError`]; nothing has been emitted then.
pub fn fragment_ipv4(
    packet: &[u8],
    meta: &Meta,
    headers: &Headers,
    mtu: u16,
    scratch: &mut Vec<u8>,
    emit: &mut dyn FnMut(&[u8]),
) -> Result<(), FragmentError> {
    let packet = packet.get(..headers.total_length).ok_or(FragmentError::Truncated)?;
    if headers.version != IpVersion::V4 {
        return Err(FragmentError::NotIpv4);
    }
    if meta.gso.is_some() || meta.checksum != Checksum::Complete {
        return Err(FragmentError::NotComplete);
    }
    if packet.len() <= usize::from(mtu) {
        emit(packet);
        return Ok(());
    }
    if headers.dont_fragment {
        return Err(FragmentError::DontFragment);
    }
    let header_len = usize::from(headers.transport_offset);
    let (header, mut data) = packet.split_at_checked(header_len).ok_or(FragmentError::Truncated)?;
    let room = usize::from(mtu).checked_sub(header_len).ok_or(FragmentError::Mtu)?;
    if room < 8 {
        return Err(FragmentError::Mtu);
    }
    let more_after = bytes::u16_at(header, 6).unwrap_or(0) & MORE_FRAGMENTS != 0;
    let mut offset = match headers.fragment {
        Fragment::Later { offset, .. } => usize::from(offset),
        Fragment::No | Fragment::First { .. } => 0,
    };
    let mut is_first = true;
    while !data.is_empty() {
        let is_last = data.len() <= room;
        let len = if is_last { data.len() } else { room & !7 };
        let (now, rest) = data.split_at_checked(len).ok_or(FragmentError::Truncated)?;
        scratch.clear();
        scratch.extend_from_slice(header);
        if !is_first {
            blank_options(scratch.get_mut(20..).unwrap_or_default());
        }
        scratch.extend_from_slice(now);
        let flags = if is_last && !more_after { 0 } else { MORE_FRAGMENTS };
        let units = bytes::low16(offset / 8) & OFFSET_MASK;
        finish(scratch, header_len, flags | units).ok_or(FragmentError::Truncated)?;
        emit(scratch);
        offset += len;
        data = rest;
        is_first = false;
    }
    Ok(())
}

fn finish(fragment: &mut [u8], header_len: usize, field: u16) -> Option<()> {
    bytes::put(fragment, 2, bytes::low16(fragment.len()).to_be_bytes())?;
    bytes::put(fragment, 6, field.to_be_bytes())?;
    bytes::put(fragment, 10, [0, 0])?;
    let sum = checksum::full(fragment.get(..header_len)?);
    bytes::put(fragment, 10, sum.to_be_bytes())
}

/// Blanks the options that are in the first fragment only; the header keeps its length. Malformed
/// options end the list.
fn blank_options(mut options: &mut [u8]) {
    while let Some(kind) = options.first().copied() {
        let len = match kind {
            OPTION_END => return,
            OPTION_NOP => 1,
            _ => options.get(1).copied().map_or(0, usize::from).max(2),
        };
        let Some((option, rest)) = options.split_at_mut_checked(len) else {
            return;
        };
        if kind & OPTION_COPIED == 0 {
            option.fill(OPTION_NOP);
        }
        options = rest;
    }
}
