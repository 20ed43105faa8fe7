//! Packets that wait for a handshake.

use std::collections::VecDeque;
use std::time::Duration;

use weft_model::Timestamp;

/// Most packets that wait for one peer.
pub(crate) const PACKETS_MAX: usize = 256;
/// Most bytes that wait for one peer: a few super-packets' worth of segments.
pub(crate) const BYTES_MAX: usize = 512 * 1024;

/// How long a packet waits. A sender repeats itself sooner; what is older would only be a burst of
/// duplicates when a peer comes back.
pub(crate) const PACKET_TTL: Duration = Duration::from_secs(10);

/// A queue bounded in packets, bytes and age. The oldest make room for the newest.
#[derive(Debug, Default)]
pub(crate) struct PacketQueue {
    packets: VecDeque<(Timestamp, Vec<u8>)>,
    bytes: usize,
}

impl PacketQueue {
    /// Keeps a packet; how many older ones had to go for it.
    pub(crate) fn push(&mut self, packet: Vec<u8>, now: Timestamp) -> usize {
        self.bytes += packet.len();
        self.packets.push_back((now, packet));
        self.drop_while(|queue, _| queue.packets.len() > PACKETS_MAX || queue.bytes > BYTES_MAX)
    }

    /// Forgets packets that waited too long; how many that were.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) -> usize {
        self.drop_while(|_, since| now.since(since) >= PACKET_TTL)
    }

    /// The oldest packet.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Forgets everything; how many packets that were.
    pub(crate) fn clear(&mut self) -> usize {
        self.drop_while(|_, _| true)
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    fn drop_while(&mut self, condition: impl Fn(&Self, Timestamp) -> bool) -> usize {
        let mut dropped = 0;
        while let Some((since, _)) = self.packets.front()
            && condition(self, *since)
        {
            self.pop();
            dropped += 1;
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    #[test]
    fn queue_is_bounded_in_packets_and_in_bytes_and_keeps_the_newest() {
        let mut queue = PacketQueue::default();
        let dropped: usize = (0..1000).map(|_| queue.push(vec![0; 100], NOW)).sum();
        assert_eq!((dropped, queue.len()), (1000 - PACKETS_MAX, PACKETS_MAX));
        assert_eq!(queue.clear(), PACKETS_MAX);
        for length in 0..1000 {
            queue.push(vec![0; 64_001 + length], NOW);
        }
        assert_eq!(queue.len(), BYTES_MAX / 65_000);
        assert_eq!(std::iter::from_fn(|| queue.pop()).last().unwrap().len(), 65_000);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn packets_do_not_wait_for_ever() {
        let mut queue = PacketQueue::default();
        queue.push(vec![1], NOW);
        queue.push(vec![2], NOW + Duration::from_secs(5));
        assert_eq!(queue.handle_timeout(NOW + Duration::from_secs(9)), 0);
        assert_eq!(queue.handle_timeout(NOW + Duration::from_secs(10)), 1);
        assert_eq!(queue.pop(), Some(vec![2]));
    }
}
