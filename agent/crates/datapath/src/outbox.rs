//! Datagrams on their way out: equal-sized ones to one destination lie side by side, so that one
//! send (UDP_SEGMENT) hands the kernel the whole run. They are sealed where they lie.

use std::net::SocketAddr;

/// Datagrams that a run is filled up to; a super-packet may have more, which the socket cuts.
/// Source: `UDP_MAX_SEGMENTS` of Linux before 6.9.
const RUN_MAX: usize = 64;
/// Bytes that a run is filled up to: what a UDP packet over IPv6 or IPv4 carries.
const RUN_BYTES_MAX: usize = 65_535 - 40 - 8;

/// Datagrams that leave in one send.
pub(crate) struct Run<'a> {
    pub(crate) to: SocketAddr,
    pub(crate) bytes: &'a [u8],
    /// Length of every datagram but the last, which may be shorter.
    pub(crate) size: usize,
    pub(crate) count: usize,
}

/// The run that is being built, at the start of a buffer that is as long as it ever had to be.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    used: usize,
    open: Option<Open>,
}

#[derive(Clone, Copy)]
struct Open {
    to: SocketAddr,
    size: usize,
    count: usize,
}

impl Outbox {
    /// Where the next datagrams are written, `len` bytes; tell [`Self::added`] after.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.used..end).unwrap_or_default()
    }

    /// Takes the first `len` bytes of the room as datagrams of `size` bytes, the last of which may
    /// be shorter; sends the run before if they do not belong to it, and theirs once it is over.
    pub(crate) fn added(
        &mut self,
        to: SocketAddr,
        (len, size): (usize, usize),
        send: &mut impl FnMut(Run<'_>),
    ) {
        let count = len.div_ceil(size.max(1));
        // A shorter one may end a run, but nothing longer or further follows it.
        let joins = |open: &Open| {
            open.to == to
                && (open.size == size || (count == 1 && len < open.size))
                && open.count + count <= RUN_MAX
                && self.used + len <= RUN_BYTES_MAX
        };
        match &mut self.open {
            Some(open) if joins(open) => open.count += count,
            Some(_) => {
                let start = self.used;
                self.send(send);
                self.bytes.copy_within(start..start + len, 0);
                self.open = Some(Open { to, size, count });
            }
            None => self.open = Some(Open { to, size, count }),
        }
        self.used += len;
        let over = |open: Open| {
            let ended = self.used < open.size * open.count;
            ended || open.count >= RUN_MAX || self.used + open.size > RUN_BYTES_MAX
        };
        if self.open.is_some_and(over) {
            self.send(send);
        }
    }

    /// Sends what is left.
    pub(crate) fn flush(&mut self, send: &mut impl FnMut(Run<'_>)) {
        self.send(send);
    }

    fn send(&mut self, send: &mut impl FnMut(Run<'_>)) {
        let used = std::mem::take(&mut self.used);
        let (Some(open), Some(bytes)) = (self.open.take(), self.bytes.get(..used)) else { return };
        send(Run { to: open.to, bytes, size: open.size, count: open.count });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sent = Vec<(u16, usize, usize, usize)>;

    fn runs(datagrams: &[(u16, usize)]) -> Sent {
        let mut sent = Sent::new();
        let mut send = |r: Run<'_>| sent.push((r.to.port(), r.size, r.count, r.bytes.len()));
        let mut outbox = Outbox::default();
        for (port, len) in datagrams {
            assert_eq!(outbox.room(*len).len(), *len);
            outbox.added(([10, 0, 0, 1], *port).into(), (*len, *len), &mut send);
        }
        outbox.flush(&mut send);
        sent
    }

    #[test]
    fn equal_datagrams_to_one_destination_leave_in_one_send() {
        assert_eq!(runs(&[(1, 100), (1, 100), (1, 40)]), [(1, 100, 3, 240)]);
    }

    #[test]
    fn a_shorter_datagram_ends_the_run_and_a_longer_one_starts_another() {
        assert_eq!(runs(&[(1, 100), (1, 40), (1, 40)]), [(1, 100, 2, 140), (1, 40, 1, 40)]);
        assert_eq!(runs(&[(1, 40), (1, 100)]), [(1, 40, 1, 40), (1, 100, 1, 100)]);
    }

    #[test]
    fn another_destination_starts_another_run() {
        assert_eq!(runs(&[(1, 100), (2, 100)]), [(1, 100, 1, 100), (2, 100, 1, 100)]);
    }

    #[test]
    fn bytes_leave_as_they_were_written() {
        let mut sent = Vec::new();
        let mut send = |r: Run<'_>| sent.push(r.bytes.to_vec());
        let mut outbox = Outbox::default();
        for (port, byte, len, size) in [(1, 1, 300, 100), (2, 2, 250, 100), (2, 3, 40, 40)] {
            outbox.room(len).fill(byte);
            outbox.added(([10, 0, 0, 1], port).into(), (len, size), &mut send);
        }
        outbox.flush(&mut send);
        assert_eq!(sent, [vec![1; 300], vec![2; 250], vec![3; 40]]);
    }

    #[test]
    fn datagrams_of_a_super_packet_stay_together_however_many_they_are() {
        let (mut sent, mut outbox) = (Vec::new(), Outbox::default());
        let mut send = |r: Run<'_>| sent.push((r.size, r.count, r.bytes.len()));
        outbox.room(70 * 1000 + 10);
        outbox.added(([10, 0, 0, 1], 1).into(), (70 * 1000 + 10, 1000), &mut send);
        outbox.flush(&mut send);
        assert_eq!(sent, [(1000, 71, 70_010)]);
    }

    #[test]
    fn a_run_stays_within_what_the_kernel_takes() {
        let sent = runs(&[(1, 10); 100]);
        assert_eq!(sent, [(1, 10, 64, 640), (1, 10, 36, 360)]);
        assert!(runs(&[(1, 1400); 64]).iter().all(|r| r.3 <= RUN_BYTES_MAX));
    }
}
