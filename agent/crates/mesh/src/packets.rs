//! What [`crate::Mesh::encapsulate`] takes: packets that are written where they are sealed.

use weft_packet::Segments;

/// Packets of one flow for one peer, in order, all of one length but the last, which may be
/// shorter.
pub trait Packets {
    /// How many there are; at least 1.
    fn count(&self) -> usize;

    /// Length of packet `k` in bytes.
    fn len_of(&self, k: usize) -> usize;

    /// Writes packet `k` to `out`, which has its length. False if it cannot be written.
    fn write(&self, k: usize, out: &mut [u8]) -> bool;
}

impl Packets for Segments<'_> {
    fn count(&self) -> usize {
        self.count()
    }

    fn len_of(&self, k: usize) -> usize {
        self.len_of(k)
    }

    fn write(&self, k: usize, out: &mut [u8]) -> bool {
        self.write(k, out) == out.len()
    }
}

/// One packet, sent as it is.
impl Packets for &[u8] {
    fn count(&self) -> usize {
        1
    }

    fn len_of(&self, _: usize) -> usize {
        self.len()
    }

    fn write(&self, _: usize, out: &mut [u8]) -> bool {
        out.copy_from_slice(self);
        true
    }
}
