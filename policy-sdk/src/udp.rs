//! Datagrams.

use std::net::IpAddr;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;

/// An IP packet with a UDP datagram, checksums included. `None` if the families differ, or if it would be
/// longer than a packet can be.
pub(crate) fn datagram(
    (source, source_port): (IpAddr, u16),
    (destination, destination_port): (IpAddr, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let (mut packet, addresses) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = length.checked_add(20)?.to_be_bytes();
            let mut header = [0_u8; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&total);
            // Whole: it is never longer than what it answers allows.
            header[6] = 0x40;
            header[8..10].copy_from_slice(&[HOP_LIMIT, UDP]);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = fold(sum(0, &header)).to_be_bytes();
            header[10..12].copy_from_slice(&checksum);
            (header.to_vec(), 12)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0_u8; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header[6..8].copy_from_slice(&[UDP, HOP_LIMIT]);
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            (header, 8)
        }
        _ => return None,
    };
    let start = packet.len();
    packet.reserve(usize::from(length));
    for field in [source_port, destination_port, length, 0] {
        packet.extend_from_slice(&field.to_be_bytes());
    }
    packet.extend_from_slice(payload);
    // The pseudo header: addresses, length and protocol. What follows the addresses is the datagram.
    let pseudo = u32::from(length) + u32::from(UDP);
    let checksum = match fold(sum(pseudo, packet.get(addresses..)?)) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet.get_mut(start + 6..start + 8)?.copy_from_slice(&checksum.to_be_bytes());
    Some(packet)
}

/// Adds up words in network order.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    sum + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
