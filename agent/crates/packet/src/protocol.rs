//! Numbers of IP protocols and of the fields in their headers.

/// ICMP, RFC 792.
pub const ICMP: u8 = 1;
/// TCP, RFC 9293.
pub const TCP: u8 = 6;
/// UDP, RFC 768.
pub const UDP: u8 = 17;
/// DCCP, RFC 4340; its checksum covers the addresses.
pub const DCCP: u8 = 33;
/// ICMP for IPv6, RFC 4443.
pub const ICMPV6: u8 = 58;
/// IPv6: nothing follows.
pub const NO_NEXT_HEADER: u8 = 59;
/// SCTP, RFC 9260.
pub const SCTP: u8 = 132;
/// UDP-Lite, RFC 3828; its checksum covers the addresses.
pub const UDP_LITE: u8 = 136;

/// Bits of a TCP header's flag byte.
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
    /// ECN echo, RFC 3168.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced, RFC 3168.
    pub const CWR: u8 = 0x80;
}

/// Offset of the 16-bit Internet checksum in the transport header.
#[must_use]
pub fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP | UDP_LITE | DCCP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// Whether the transport checksum covers the addresses (a pseudo-header).
#[must_use]
pub fn covers_addresses(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | UDP_LITE | DCCP | ICMPV6)
}
