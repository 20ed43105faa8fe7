//! As much of IP as the mesh needs: how long a packet is and who it says it is from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IP packet at the start of `bytes` without what follows it (padding), and its source.
/// `None` if it is neither IPv4 nor IPv6, is cut short, or says it is shorter than its header.
pub(crate) fn ip_packet(bytes: &[u8]) -> Option<(&[u8], IpAddr)> {
    let (length, source) = match bytes.first()? >> 4 {
        4 => {
            let header = bytes.first_chunk::<20>()?;
            let [_, _, l0, l1, .., a, b, c, d, _, _, _, _] = *header;
            let length = u16::from_be_bytes([l0, l1]).into();
            (length, IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        6 => {
            let (header, rest) = bytes.split_first_chunk::<8>()?;
            let [_, _, _, _, l0, l1, _, _] = *header;
            let addresses = rest.first_chunk::<32>()?;
            let source = addresses.first_chunk::<16>()?;
            let length = 40 + usize::from(u16::from_be_bytes([l0, l1]));
            (length, IpAddr::V6(Ipv6Addr::from(*source)))
        }
        _ => return None,
    };
    let packet = bytes.get(..length)?;
    has_header(packet, source).then_some((packet, source))
}

/// True if a packet from `source` is at least as long as the fixed header of its family.
pub(crate) fn has_header(packet: &[u8], source: IpAddr) -> bool {
    packet.len() >= if source.is_ipv4() { 20 } else { 40 }
}
