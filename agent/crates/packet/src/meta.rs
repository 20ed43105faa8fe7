//! What a packet's bytes do not say.

/// State of the transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// The field holds the checksum.
    #[default]
    Complete,
    /// The field holds the folded sum of the pseudo-header only (virtio `NEEDS_CSUM`): who puts
    /// the packet on a wire adds what `start` and the bytes after it sum to, and inverts.
    Partial {
        /// Where summing starts: the transport header, in bytes from the IP header.
        start: u16,
        /// Where the field is, in bytes from `start`.
        offset: u16,
    },
}

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4 (TSO).
    TcpV4,
    /// TCP over IPv6 (TSO).
    TcpV6,
    /// UDP over either, each segment a datagram (USO, `GSO_UDP_L4`).
    Udp,
}

/// A packet that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gso {
    /// How it is cut.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last, which may have fewer. Not 0.
    pub segment_size: u16,
}

/// What a packet's bytes do not say. The default is an ordinary packet with complete checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meta {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Present if it is a super-packet.
    pub gso: Option<Gso>,
}

impl Meta {
    /// Whether the checksum of the transport header at `transport_offset` is partial.
    pub(crate) fn is_partial_at(&self, transport_offset: u16) -> bool {
        matches!(self.checksum, Checksum::Partial { start, .. } if start == transport_offset)
    }
}
