//! The virtio-net header that goes before each packet of a TUN with `IFF_VNET_HDR`.

/// Length of [`VnetHeader`] on the wire: flags 1 + type 1 + four 16-bit fields.
pub const VNET_HEADER_LEN: usize = 10;

/// `struct virtio_net_hdr` in host byte order, virtio 1.2 section 5.1.6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`], [`VnetHeader::DATA_VALID`].
    pub flags: u8,
    /// One of `GSO_*`.
    pub gso_type: u8,
    /// Length of all headers of a super-packet, bytes; a hint.
    pub hdr_len: u16,
    /// Payload of each segment of a super-packet, bytes.
    pub gso_size: u16,
    /// Where the checksummed part begins, from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The transport checksum field holds the folded pseudo-header sum only.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified by the sender's side.
    pub const DATA_VALID: u8 = 2;
    /// A single packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP datagrams of equal size, either family (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    pub const GSO_UDP_L4: u8 = 5;
    /// Set beside a TCP type if the packet carries CWR. Not offered to the kernel, so never seen.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header as the kernel wrote it.
    #[must_use]
    pub fn parse(bytes: &[u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header as the kernel reads it.
    #[must_use]
    pub fn emit(&self) -> [u8; VNET_HEADER_LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}
