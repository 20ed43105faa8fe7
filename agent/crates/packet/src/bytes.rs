//! Checked reads and writes of big-endian numbers at an offset.

#[inline]
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[inline]
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Writes `value` at `at`, or nothing if it does not fit.
#[must_use]
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<N>()? = value;
    Some(())
}

/// Low 16 bits: for lengths that were checked against an IP packet's, and for modular arithmetic.
#[inline]
pub(crate) fn low16(value: usize) -> u16 {
    (value & 0xffff) as u16
}

/// Low 32 bits, for sequence numbers and lengths.
pub(crate) fn low32(value: usize) -> u32 {
    (value & 0xffff_ffff) as u32
}
