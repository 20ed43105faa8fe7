//! A packet as a plugin sees it.

use std::net::{IpAddr, Ipv6Addr};

use weft_abi::{Descriptor, flags};

use crate::udp;

/// What comes after the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6.
    Icmp,
    /// SCTP.
    Sctp,
    /// Another one, by its IANA number.
    Other(u8),
}

/// A packet: what its headers say, and as many of its bytes as the manifest's window asks for.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    descriptor: &'a Descriptor,
    window: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `window` starts at the IP header.
    #[must_use]
    pub fn new(descriptor: &'a Descriptor, window: &'a [u8]) -> Self {
        Self { descriptor, window }
    }

    /// All that the host told of the packet.
    #[must_use]
    pub fn descriptor(&self) -> &'a Descriptor {
        self.descriptor
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        Ipv6Addr::from(self.descriptor.source).to_canonical()
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        Ipv6Addr::from(self.descriptor.destination).to_canonical()
    }

    /// Source port; zero where the protocol has none, the identifier of an ICMP echo.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.descriptor.source_port
    }

    /// Destination port; zero where the protocol has none, the identifier of an ICMP echo.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        self.descriptor.destination_port
    }

    /// What comes after the IP header and its extensions.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.descriptor.protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            1 | 58 => Protocol::Icmp,
            132 => Protocol::Sctp,
            other => Protocol::Other(other),
        }
    }

    /// Length of the packet in bytes from its IP header; of a super-packet, all of it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.descriptor.length
    }

    /// Never: a packet has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets it counts for on the wire: over 1 for a super-packet.
    #[must_use]
    pub fn segments(&self) -> u16 {
        self.descriptor.segments.max(1)
    }

    /// The bytes shown, from the IP header on: all of the packet, or as many as the window holds.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.window
    }

    /// The payload after the transport header, as far as it is shown; empty in a later fragment.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        if self.is(flags::LATER_FRAGMENT) {
            return &[];
        }
        self.window.get(usize::from(self.descriptor.payload_offset)..).unwrap_or_default()
    }

    /// True if the window does not hold all of the packet.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        usize::try_from(self.descriptor.length).is_ok_and(|length| self.window.len() < length)
    }

    /// The sequence number of a TCP segment, if it is shown.
    #[must_use]
    pub fn tcp_sequence(&self) -> Option<u32> {
        if self.protocol() != Protocol::Tcp || self.is(flags::LATER_FRAGMENT) {
            return None;
        }
        let offset = usize::from(self.descriptor.transport_offset) + 4;
        let bytes = self.window.get(offset..offset + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// A packet that answers this one, a UDP datagram, with `payload`: from where it was sent, to where
    /// it came from. For [`crate::Verdict::Reply`]. `None` if it is no datagram, or if the answer
    /// would be longer than a packet can be.
    #[must_use]
    pub fn udp_reply(&self, payload: &[u8]) -> Option<Vec<u8>> {
        if self.protocol() != Protocol::Udp || self.is(flags::LATER_FRAGMENT) {
            return None;
        }
        udp::datagram(
            (self.destination(), self.destination_port()),
            (self.source(), self.source_port()),
            payload,
        )
    }

    /// The TCP flags byte; zero for other protocols.
    #[must_use]
    pub fn tcp_flags(&self) -> u8 {
        if self.protocol() == Protocol::Tcp { self.descriptor.tcp_flags } else { 0 }
    }

    /// Any of these bits of [`flags`] is set.
    #[must_use]
    pub fn is(&self, flags: u32) -> bool {
        self.descriptor.flags & flags != 0
    }

    /// Asked where a pod or the host sends; else where a pod is about to receive.
    #[must_use]
    pub fn is_egress(&self) -> bool {
        self.is(flags::EGRESS)
    }

    /// Nanoseconds since boot: the only clock a plugin has.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.descriptor.now
    }
}
