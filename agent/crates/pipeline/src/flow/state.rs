//! What is known of a flow's life, and how long it may be silent.

use std::time::Duration;

use weft_packet::protocol::{self, tcp_flag as tcp};

/// SYN seen, no answer. Source: Linux `nf_conntrack_tcp_timeout_syn_sent`.
pub const TCP_SYN_SENT_TIMEOUT: Duration = Duration::from_secs(120);
/// SYN answered, handshake not complete. Source: Linux `nf_conntrack_tcp_timeout_syn_recv`.
pub const TCP_SYN_RECEIVED_TIMEOUT: Duration = Duration::from_secs(60);
/// First seen in the middle. Source: Linux `nf_conntrack_tcp_timeout_unacknowledged`.
pub const TCP_PICKED_UP_TIMEOUT: Duration = Duration::from_secs(300);
/// Handshake complete. RFC 5382 REQ-5 asks for at least 2 h 4 min; 24 h is what kube-proxy sets
/// (`conntrack.tcpEstablishedTimeout`).
pub const TCP_ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// One side has closed. Source: RFC 5382 REQ-5, transitory connection idle-timeout.
pub const TCP_FIN_TIMEOUT: Duration = Duration::from_secs(240);
/// Both sides have closed. Source: Linux `nf_conntrack_tcp_timeout_time_wait`.
pub const TCP_TIME_WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Reset. Source: Linux `nf_conntrack_tcp_timeout_close`.
pub const TCP_CLOSED_TIMEOUT: Duration = Duration::from_secs(10);
/// UDP in one direction only. Source: Linux `nf_conntrack_udp_timeout`.
pub const UDP_UNREPLIED_TIMEOUT: Duration = Duration::from_secs(30);
/// UDP in both directions. Source: RFC 4787 REQ-5, at least two minutes; Linux
/// `nf_conntrack_udp_timeout_stream` is the same.
pub const UDP_REPLIED_TIMEOUT: Duration = Duration::from_secs(120);
/// ICMP queries. Source: RFC 5508 REQ-1, at least 60 seconds.
pub const ICMP_TIMEOUT: Duration = Duration::from_secs(60);
/// Every other protocol. Source: Linux `nf_conntrack_generic_timeout`.
pub const OTHER_TIMEOUT: Duration = Duration::from_secs(600);
/// Later fragments after their first. Source: Linux `ipfrag_time`.
pub const FRAGMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which way a packet goes in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the flow's first packet.
    Original,
    /// Against it.
    Reply,
}

impl Direction {
    #[inline]
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// Not TCP: packets in one direction only.
    Unreplied = 0,
    /// Not TCP: packets in both directions.
    Replied = 1,
    /// TCP: SYN seen.
    SynSent = 2,
    /// TCP: SYN and ACK of the answer seen, or SYN in both directions.
    SynReceived = 3,
    /// TCP: its beginning was not seen, and no reply yet.
    PickedUp = 4,
    /// TCP: handshake complete.
    Established = 5,
    /// TCP: the original direction has closed.
    FinOriginal = 6,
    /// TCP: the reply direction has closed.
    FinReply = 7,
    /// TCP: both directions have closed.
    TimeWait = 8,
    /// TCP: reset.
    Closed = 9,
}

/// States with one timeout are one class, so that a list of a class in order of last use is in
/// order of expiry too.
pub(crate) const CLASSES: usize = 11;

impl FlowState {
    /// State after the first packet.
    pub(crate) fn first(protocol: u8, tcp_flags: u8) -> Self {
        if protocol != protocol::TCP {
            return Self::Unreplied;
        }
        match tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) {
            tcp::SYN => Self::SynSent,
            flags if flags & tcp::RST != 0 => Self::Closed,
            flags if flags & tcp::FIN != 0 => Self::FinOriginal,
            _ => Self::PickedUp,
        }
    }

    /// State after one more packet.
    #[inline]
    pub(crate) fn next(self, direction: Direction, tcp_flags: u8) -> Self {
        let reply = direction == Direction::Reply;
        match self {
            Self::Unreplied if reply => Self::Replied,
            Self::Unreplied | Self::Replied => self,
            _ if tcp_flags & tcp::RST != 0 => Self::Closed,
            Self::SynSent | Self::SynReceived if tcp_flags & tcp::SYN != 0 => {
                if reply {
                    Self::SynReceived
                } else {
                    self
                }
            }
            _ if tcp_flags & tcp::FIN != 0 => self.closed_by(direction),
            Self::SynReceived if tcp_flags & tcp::ACK != 0 && !reply => Self::Established,
            Self::PickedUp if reply => Self::Established,
            _ => self,
        }
    }

    fn closed_by(self, direction: Direction) -> Self {
        match (self, direction) {
            (Self::TimeWait | Self::Closed, _) => self,
            (Self::FinReply, Direction::Original) | (Self::FinOriginal, Direction::Reply) => {
                Self::TimeWait
            }
            (_, Direction::Original) => Self::FinOriginal,
            (_, Direction::Reply) => Self::FinReply,
        }
    }

    /// True if a SYN begins another connection with the same ports.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Closed)
    }

    /// Class of timeout: below [`CLASSES`].
    #[inline]
    pub(crate) fn class(self, protocol: u8) -> usize {
        match self {
            Self::Unreplied | Self::Replied => match protocol {
                protocol::UDP if self == Self::Unreplied => 0,
                protocol::UDP => 1,
                protocol::ICMP | protocol::ICMPV6 => 2,
                _ => 3,
            },
            Self::SynSent => 4,
            Self::SynReceived => 5,
            Self::PickedUp => 6,
            Self::Established => 7,
            Self::FinOriginal | Self::FinReply => 8,
            Self::TimeWait => 9,
            Self::Closed => 10,
        }
    }

    pub(crate) fn from_u8(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Unreplied,
            1 => Self::Replied,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::PickedUp,
            5 => Self::Established,
            6 => Self::FinOriginal,
            7 => Self::FinReply,
            8 => Self::TimeWait,
            9 => Self::Closed,
            _ => return None,
        })
    }

    /// Name for operators: stable.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::SynSent => "syn_sent",
            Self::SynReceived => "syn_received",
            Self::PickedUp => "picked_up",
            Self::Established => "established",
            Self::FinOriginal => "fin_original",
            Self::FinReply => "fin_reply",
            Self::TimeWait => "time_wait",
            Self::Closed => "closed",
        }
    }
}

/// How long a flow of a class may be silent, in nanoseconds.
pub(crate) const CLASS_TIMEOUTS: [u64; CLASSES] = nanoseconds([
    UDP_UNREPLIED_TIMEOUT,
    UDP_REPLIED_TIMEOUT,
    ICMP_TIMEOUT,
    OTHER_TIMEOUT,
    TCP_SYN_SENT_TIMEOUT,
    TCP_SYN_RECEIVED_TIMEOUT,
    TCP_PICKED_UP_TIMEOUT,
    TCP_ESTABLISHED_TIMEOUT,
    TCP_FIN_TIMEOUT,
    TCP_TIME_WAIT_TIMEOUT,
    TCP_CLOSED_TIMEOUT,
]);

/// Once, not for each packet.
const fn nanoseconds(timeouts: [Duration; CLASSES]) -> [u64; CLASSES] {
    let mut nanoseconds = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        nanoseconds[class] = timeouts[class].as_secs() * 1_000_000_000;
        class += 1;
    }
    nanoseconds
}

/// True if the packet opens a TCP connection: SYN without ACK, RST or FIN.
#[inline]
pub(crate) fn opens(protocol: u8, tcp_flags: u8) -> bool {
    protocol == protocol::TCP && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: Direction = Direction::Original;
    const R: Direction = Direction::Reply;

    fn walk(steps: &[(Direction, u8)]) -> FlowState {
        let (_, first) = steps[0];
        let start = FlowState::first(protocol::TCP, first);
        steps[1..].iter().fold(start, |state, (direction, flags)| state.next(*direction, *flags))
    }

    #[test]
    fn handshake_establishes() {
        let (syn, both, ack) = (tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK);
        assert_eq!(walk(&[(O, syn)]), FlowState::SynSent);
        assert_eq!(walk(&[(O, syn), (O, syn)]), FlowState::SynSent);
        assert_eq!(walk(&[(O, syn), (R, both)]), FlowState::SynReceived);
        assert_eq!(walk(&[(O, syn), (R, both), (R, ack)]), FlowState::SynReceived);
        assert_eq!(walk(&[(O, syn), (R, both), (O, ack)]), FlowState::Established);
    }

    #[test]
    fn both_sides_must_close() {
        let open = [(O, tcp::SYN), (R, tcp::SYN | tcp::ACK), (O, tcp::ACK)];
        let fin = tcp::FIN | tcp::ACK;
        let after = |steps: &[(Direction, u8)]| walk(&[&open, steps].concat());
        assert_eq!(after(&[(R, fin)]), FlowState::FinReply);
        assert_eq!(after(&[(R, fin), (R, fin), (O, tcp::ACK)]), FlowState::FinReply);
        assert_eq!(after(&[(R, fin), (O, fin)]), FlowState::TimeWait);
        assert_eq!(after(&[(O, tcp::RST)]), FlowState::Closed);
    }

    #[test]
    fn connection_seen_from_the_middle_needs_both_directions() {
        assert_eq!(walk(&[(O, tcp::ACK)]), FlowState::PickedUp);
        assert_eq!(walk(&[(O, tcp::ACK), (O, tcp::ACK)]), FlowState::PickedUp);
        assert_eq!(walk(&[(O, tcp::ACK), (R, tcp::ACK)]), FlowState::Established);
    }

    #[test]
    fn every_state_survives_its_number() {
        for code in 0..10 {
            assert_eq!(FlowState::from_u8(code).map(|s| s as u8), Some(code));
        }
        assert_eq!(FlowState::from_u8(10), None);
    }
}
