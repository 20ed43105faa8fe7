//! Which segments can end a connection: of its sequence numbers as much as that takes.
//!
//! A receiver ignores a reset or a FIN that is not where it is in the stream (RFC 5961), and so must
//! whoever remembers the connection for it: forgotten, it would go on untranslated.

use weft_packet::protocol::tcp_flag as tcp;

use super::state::Direction;

/// The largest window (RFC 7323, 2.3).
const WINDOW_MAX: u32 = 1 << 30;

/// What a segment says of its place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    /// Bytes of data; of a super-packet those of all its segments.
    pub(crate) length: u32,
}

/// How far a connection has come, by direction. `None` is what was not heard of, as after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// What follows the last byte that was sent.
    next: [Option<u32>; 2],
    /// What was acknowledged last by those who send in this direction.
    acknowledged: [Option<u32>; 2],
}

impl Progress {
    /// Takes note of a segment, and returns its flags without those that its receiver ignores.
    #[inline]
    pub(crate) fn heed(&mut self, direction: Direction, flags: u8, numbers: Numbers) -> u8 {
        let (own, other) = (direction.index(), 1 - direction.index());
        let begins = flags & tcp::SYN != 0;
        if begins && flags & (tcp::ACK | tcp::RST | tcp::FIN) == tcp::ACK {
            // The answer of who opens a connection anew with the same ports.
            *self = Self::default();
        } else if begins && self.next[own].is_some() {
            return flags;
        }
        if let (Some(from), Some(next)) = (self.acknowledged[other], self.next[own]) {
            let since = |number: u32| number.wrapping_sub(from);
            // A reset speaks of what was sent, or of what it answers.
            let last = if flags & tcp::RST != 0 { since(next) } else { WINDOW_MAX - 1 };
            if since(numbers.sequence) > last {
                return flags & !(tcp::RST | tcp::FIN);
            }
        }
        let phantom = u32::from(begins) + u32::from(flags & tcp::FIN != 0);
        let end = numbers.sequence.wrapping_add(numbers.length).wrapping_add(phantom);
        if self.next[own].is_none_or(|next| is_after(end, next)) {
            self.next[own] = Some(end);
        }
        let acknowledgement = numbers.acknowledgement;
        let was_sent = self.next[other].is_none_or(|next| !is_after(acknowledgement, next));
        let news = self.acknowledged[own].is_none_or(|last| is_after(acknowledgement, last));
        if flags & tcp::ACK != 0 && was_sent && news {
            self.acknowledged[own] = Some(acknowledgement);
        }
        flags
    }
}

/// In a space of numbers that has no end.
#[inline]
fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: Direction = Direction::Original;
    const R: Direction = Direction::Reply;
    const CLIENT: u32 = u32::MAX - 10;
    const SERVER: u32 = 7_000;

    /// A connection whose client has sent 100 bytes, and whose server 50 that are acknowledged and 20
    /// that are not.
    fn open() -> Progress {
        let mut progress = Progress::default();
        for (direction, flags, sequence, acknowledgement, length) in [
            (O, tcp::SYN, CLIENT - 1, 0, 0),
            (R, tcp::SYN | tcp::ACK, SERVER - 1, CLIENT, 0),
            (O, tcp::ACK, CLIENT, SERVER, 100),
            (R, tcp::ACK, SERVER, CLIENT.wrapping_add(100), 50),
            (O, tcp::ACK, CLIENT.wrapping_add(100), SERVER + 50, 0),
            (R, tcp::ACK, SERVER + 50, CLIENT.wrapping_add(100), 20),
        ] {
            let numbers = Numbers { sequence, acknowledgement, length };
            assert_eq!(progress.heed(direction, flags, numbers), flags);
        }
        progress
    }

    fn of_server(sequence: u32) -> Numbers {
        Numbers { sequence, acknowledgement: CLIENT.wrapping_add(100), length: 0 }
    }

    #[test]
    fn reset_counts_from_what_is_acknowledged_to_what_was_sent() {
        for (sequence, counts) in
            [(49, false), (50, true), (70, true), (71, false), (1 << 30, false), (1 << 31, false)]
        {
            let heeded = open().heed(R, tcp::RST, of_server(SERVER + sequence));
            assert_eq!(heeded == tcp::RST, counts, "{sequence}");
        }
        // Both ends have such a place.
        let numbers = |sequence| Numbers { sequence, acknowledgement: SERVER, length: 0 };
        assert_eq!(open().heed(O, tcp::RST, numbers(CLIENT.wrapping_add(100))), tcp::RST);
        assert_eq!(open().heed(O, tcp::RST, numbers(CLIENT)), 0);
    }

    #[test]
    fn fin_counts_within_the_largest_window() {
        let fin = tcp::FIN | tcp::ACK;
        for (sequence, heeded) in [(0, tcp::ACK), (50, fin), (90, fin), (1 << 31, tcp::ACK)] {
            assert_eq!(open().heed(R, fin, of_server(SERVER + sequence)), heeded, "{sequence}");
        }
    }

    #[test]
    fn what_is_far_away_moves_nothing() {
        let mut progress = open();
        let far = Numbers { length: 100, ..of_server(SERVER + (1 << 31)) };
        progress.heed(R, tcp::ACK, far);
        progress.heed(R, tcp::SYN, of_server(SERVER + 900));
        // Nobody has sent what this acknowledges.
        progress.heed(
            O,
            tcp::ACK,
            Numbers {
                sequence: CLIENT.wrapping_add(100),
                acknowledgement: SERVER + 9_000,
                length: 0,
            },
        );
        assert_eq!(progress, open());
    }

    #[test]
    fn connection_that_is_not_known_from_its_beginning_can_be_reset() {
        let mut progress = Progress::default();
        assert_eq!(progress.heed(R, tcp::RST, of_server(9)), tcp::RST);
        let mut progress = Progress::default();
        progress.heed(R, tcp::ACK, of_server(SERVER));
        assert_eq!(progress.heed(R, tcp::RST, of_server(9)), tcp::RST);
    }

    #[test]
    fn next_connection_with_the_same_ports_has_numbers_of_its_own() {
        let mut progress = open();
        let (client, server) = (40_000_000, 90_000_000);
        let syn = Numbers { sequence: client - 1, acknowledgement: 0, length: 0 };
        progress.heed(O, tcp::SYN, syn);
        let both = Numbers { sequence: server - 1, acknowledgement: client, length: 0 };
        progress.heed(R, tcp::SYN | tcp::ACK, both);
        let ack = Numbers { sequence: client, acknowledgement: server, length: 0 };
        progress.heed(O, tcp::ACK, ack);
        assert_eq!(progress.heed(O, tcp::RST, ack), tcp::RST);
        let old = of_server(SERVER + 70);
        assert_eq!(progress.heed(R, tcp::RST, old), 0);
    }
}
