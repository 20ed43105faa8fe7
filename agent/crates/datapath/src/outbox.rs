//! Datagrams on their way out: equal-sized ones to one destination lie side by side, so that one
//! send (UDP_SEGMENT) hands the kernel the whole run.

use std::net::SocketAddr;

/// Datagrams of one run at most. Source: `UDP_MAX_SEGMENTS` of Linux before 6.9.
const RUN_MAX: usize = 64;
/// Bytes of one run at most: what a UDP packet over IPv6 or IPv4 carries.
const RUN_BYTES_MAX: usize = 65_535 - 40 - 8;

/// Datagrams that leave in one send.
pub(crate) struct Run<'a> {
    pub(crate) to: SocketAddr,
    pub(crate) bytes: &'a [u8],
    /// Length of every datagram but the last, which may be shorter.
    pub(crate) size: usize,
    pub(crate) count: usize,
}

/// The run that is being built.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    open: Option<Open>,
}

#[derive(Clone, Copy)]
struct Open {
    to: SocketAddr,
    size: usize,
    count: usize,
    /// A shorter datagram has ended it.
    closed: bool,
}

impl Outbox {
    /// Where the next datagram is appended; tell [`Self::added`] after.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes the last `len` bytes of the buffer as a datagram; sends the run before if the datagram
    /// does not belong to it.
    pub(crate) fn added(&mut self, to: SocketAddr, len: usize, send: &mut impl FnMut(Run<'_>)) {
        let before = self.bytes.len().saturating_sub(len);
        match &mut self.open {
            Some(open) if open.takes(to, len, before) => {
                open.count += 1;
                open.closed = len < open.size;
            }
            Some(_) => {
                self.send(before, send);
                self.bytes.drain(..before);
                self.open = Some(Open { to, size: len, count: 1, closed: false });
            }
            None => self.open = Some(Open { to, size: len, count: 1, closed: false }),
        }
    }

    /// Sends what is left.
    pub(crate) fn flush(&mut self, send: &mut impl FnMut(Run<'_>)) {
        self.send(self.bytes.len(), send);
        self.bytes.clear();
        self.open = None;
    }

    fn send(&self, end: usize, send: &mut impl FnMut(Run<'_>)) {
        let (Some(open), Some(bytes)) = (self.open, self.bytes.get(..end)) else { return };
        send(Run { to: open.to, bytes, size: open.size, count: open.count });
    }
}

impl Open {
    fn takes(&self, to: SocketAddr, len: usize, before: usize) -> bool {
        !self.closed
            && self.to == to
            && len <= self.size
            && self.count < RUN_MAX
            && before + len <= RUN_BYTES_MAX
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
            let end = outbox.buffer().len() + len;
            outbox.buffer().resize(end, 0);
            outbox.added(([10, 0, 0, 1], *port).into(), *len, &mut send);
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
    fn a_run_stays_within_what_the_kernel_takes() {
        let sent = runs(&[(1, 10); 100]);
        assert_eq!(sent, [(1, 10, 64, 640), (1, 10, 36, 360)]);
        assert!(runs(&[(1, 1400); 64]).iter().all(|r| r.3 <= RUN_BYTES_MAX));
    }
}
