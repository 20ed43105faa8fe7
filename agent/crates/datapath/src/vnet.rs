//! Between the TUN's virtio-net header and the packet's own meta data.

use weft_netio::VnetHeader;
use weft_packet::{Checksum, Gso, GsoKind, Meta};

/// Bytes of a UDP header.
const UDP_HEADER_LEN: u16 = 8;
/// Offset of the data offset in a TCP header.
const TCP_DATA_OFFSET: u16 = 12;

/// What the kernel said of a packet; `None` if it is of a kind that was never offered.
pub(crate) fn meta(header: &VnetHeader) -> Option<Meta> {
    let kind = match header.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => None,
        VnetHeader::GSO_TCPV4 => Some(GsoKind::TcpV4),
        VnetHeader::GSO_TCPV6 => Some(GsoKind::TcpV6),
        VnetHeader::GSO_UDP_L4 => Some(GsoKind::Udp),
        _ => return None,
    };
    let checksum = if header.flags & VnetHeader::NEEDS_CSUM == 0 {
        Checksum::Complete
    } else {
        Checksum::Partial { start: header.csum_start, offset: header.csum_offset }
    };
    let gso = kind.map(|kind| Gso { kind, segment_size: header.gso_size });
    Some(Meta { checksum, gso })
}

/// What the kernel is told of a packet: a super-packet stays whole, a partial checksum is left for
/// whoever needs it complete.
pub(crate) fn header(packet: &[u8], meta: &Meta) -> VnetHeader {
    let mut header = VnetHeader::default();
    if let Checksum::Partial { start, offset } = meta.checksum {
        header.flags = VnetHeader::NEEDS_CSUM;
        header.csum_start = start;
        header.csum_offset = offset;
    }
    if let Some(gso) = meta.gso {
        header.gso_type = match gso.kind {
            GsoKind::TcpV4 => VnetHeader::GSO_TCPV4,
            GsoKind::TcpV6 => VnetHeader::GSO_TCPV6,
            GsoKind::Udp => VnetHeader::GSO_UDP_L4,
        };
        header.gso_size = gso.segment_size;
        header.hdr_len = header.csum_start + transport_header_len(packet, header.csum_start, gso);
    }
    header
}

/// Packets that a wire would carry for this one.
pub(crate) fn segments(packet: &[u8], meta: &Meta) -> usize {
    let Some(gso) = meta.gso else { return 1 };
    let headers = usize::from(header(packet, meta).hdr_len);
    let payload = packet.len().saturating_sub(headers);
    payload.div_ceil(usize::from(gso.segment_size).max(1)).max(1)
}

fn transport_header_len(packet: &[u8], transport: u16, gso: Gso) -> u16 {
    match gso.kind {
        GsoKind::Udp => UDP_HEADER_LEN,
        GsoKind::TcpV4 | GsoKind::TcpV6 => {
            let offset = usize::from(transport + TCP_DATA_OFFSET);
            packet.get(offset).map_or(0, |byte| u16::from(byte >> 4) * 4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packet_survives_the_header() {
        let mut packet = vec![0; 40 + 3000];
        packet[20 + 12] = 5 << 4;
        let meta_in = Meta {
            checksum: Checksum::Partial { start: 20, offset: 16 },
            gso: Some(Gso { kind: GsoKind::TcpV4, segment_size: 1400 }),
        };
        let header = header(&packet, &meta_in);
        assert_eq!(header.hdr_len, 40);
        let meta_out = meta(&header).unwrap();
        assert_eq!(meta_out.gso.unwrap().segment_size, 1400);
        assert!(matches!(meta_out.checksum, Checksum::Partial { start: 20, offset: 16 }));
        assert_eq!(segments(&packet, &meta_out), 3);
    }

    #[test]
    fn a_kind_that_was_not_offered_is_none() {
        assert!(meta(&VnetHeader { gso_type: 3, ..VnetHeader::default() }).is_none());
    }
}
