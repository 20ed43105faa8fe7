//! Packets for tests.

use std::net::{IpAddr, SocketAddr};

/// Builds one packet, from its IP header on, with right lengths and IPv4 header checksum. The
/// transport checksum is left zero: plugins are not shown packets by their checksum.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    flags: u8,
    sequence: u32,
    payload: Vec<u8>,
}

/// A TCP segment with ACK set.
///
/// # Panics
/// If an address is none, as all of these.
#[must_use]
#[expect(clippy::expect_used, reason = "for tests")]
pub fn tcp(source: &str, destination: &str) -> PacketBuilder {
    PacketBuilder {
        source: source.parse().expect("an address and a port"),
        destination: destination.parse().expect("an address and a port"),
        protocol: 6,
        flags: 0x10,
        sequence: 0,
        payload: Vec::new(),
    }
}

/// A UDP datagram.
///
/// # Panics
/// If an address is none.
#[must_use]
pub fn udp(source: &str, destination: &str) -> PacketBuilder {
    PacketBuilder { protocol: 17, ..tcp(source, destination) }
}

/// An SCTP packet with an INIT chunk before its payload.
///
/// # Panics
/// If an address is none.
#[must_use]
pub fn sctp(source: &str, destination: &str) -> PacketBuilder {
    PacketBuilder { protocol: 132, ..tcp(source, destination) }
}

impl PacketBuilder {
    /// Sets the TCP flags byte.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Sets the TCP sequence number.
    #[must_use]
    pub fn sequence(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The packet. Of both families, the source's counts.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let length = |header: usize| u16::try_from(transport.len() + header).unwrap_or(u16::MAX);
        let mut packet = Vec::new();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [high, low] = length(20).to_be_bytes();
                packet.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = header_checksum(&packet).to_be_bytes();
                packet.splice(10..12, sum);
            }
            (source, destination) => {
                let octets = |a: IpAddr| match a {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                let [high, low] = length(0).to_be_bytes();
                packet.extend([0x60, 0, 0, 0, high, low, self.protocol, 64]);
                packet.extend(octets(source));
                packet.extend(octets(destination));
            }
        }
        packet.extend(transport);
        packet
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        match self.protocol {
            6 => {
                bytes.extend(self.sequence.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            132 => {
                // Verification tag and checksum; INIT, 20 bytes: tag, window, streams, first TSN.
                bytes.extend([0; 8]);
                bytes.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 9]);
            }
            _ => {
                let length = u16::try_from(self.payload.len() + 8).unwrap_or(u16::MAX);
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
            }
        }
        bytes.extend(&self.payload);
        bytes
    }
}

fn header_checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
