//! Packets that wait for a handshake.

use std::collections::VecDeque;

/// Most packets that wait for one peer.
pub(crate) const PACKETS_MAX: usize = 256;
/// Most bytes that wait for one peer: a few super-packets' worth of segments.
pub(crate) const BYTES_MAX: usize = 512 * 1024;

/// A queue bounded in packets and bytes. What does not fit is refused, so that the packets of a
/// flow which did fit stay without a gap.
#[derive(Debug, Default)]
pub(crate) struct PacketQueue {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl PacketQueue {
    /// Keeps a copy; false if there is no room.
    pub(crate) fn push(&mut self, packet: &[u8]) -> bool {
        let room = self.packets.len() < PACKETS_MAX && self.bytes + packet.len() <= BYTES_MAX;
        if room {
            self.bytes += packet.len();
            self.packets.push_back(packet.to_vec());
        }
        room
    }

    /// The oldest packet.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Forgets everything; how many packets that were.
    pub(crate) fn clear(&mut self) -> usize {
        self.bytes = 0;
        let packets = self.packets.len();
        self.packets.clear();
        packets
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_is_bounded_in_packets_and_in_bytes() {
        let mut queue = PacketQueue::default();
        assert_eq!((0..1000).filter(|_| queue.push(&[0; 100])).count(), PACKETS_MAX);
        assert_eq!(queue.clear(), PACKETS_MAX);
        assert_eq!((0..1000).filter(|_| queue.push(&[0; 65_000])).count(), BYTES_MAX / 65_000);
        assert!(queue.pop().is_some());
        assert!(queue.push(&[0; 65_000]));
    }
}
