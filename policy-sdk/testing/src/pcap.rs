//! Reads saved packets. Source: draft-ietf-opsawg-pcap, the classic format only.

use weft_model::Timestamp;

/// Why a file is no pcap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcapError {
    /// Another format, or none.
    #[error("not a pcap file; of a pcapng file, `tcpdump -r IN -w OUT` makes one")]
    Magic,
    /// Neither raw IP nor Ethernet nor Linux cooked capture.
    #[error("link type {0} is not read: capture Ethernet or raw IP")]
    LinkType(u32),
    /// Cut in the middle of a packet.
    #[error("the file is cut short")]
    Short,
}

/// The IP packets of a capture with their times. Frames of other protocols are left out.
///
/// # Errors
/// [`PcapError`] if the file cannot be read to its end.
pub fn packets_of_pcap(file: &[u8]) -> Result<Vec<(Timestamp, Vec<u8>)>, PcapError> {
    let (magic, _) = file.split_first_chunk::<4>().ok_or(PcapError::Magic)?;
    let (little, nanos) = match *magic {
        [0xd4, 0xc3, 0xb2, 0xa1] => (true, 1_000),
        [0xa1, 0xb2, 0xc3, 0xd4] => (false, 1_000),
        [0x4d, 0x3c, 0xb2, 0xa1] => (true, 1),
        [0xa1, 0xb2, 0x3c, 0x4d] => (false, 1),
        _ => return Err(PcapError::Magic),
    };
    let word = |offset: usize| -> Result<u32, PcapError> {
        let bytes = file.get(offset..).and_then(|b| b.first_chunk()).ok_or(PcapError::Short)?;
        Ok(if little { u32::from_le_bytes(*bytes) } else { u32::from_be_bytes(*bytes) })
    };
    let (link_header, type_offset) = match word(20)? & 0xffff {
        1 => (14, Some(12)),
        12 | 101 => (0, None),
        113 => (16, Some(14)),
        other => return Err(PcapError::LinkType(other)),
    };
    let (mut packets, mut at) = (Vec::new(), 24);
    while at < file.len() {
        let time = u64::from(word(at)?) * 1_000_000_000 + u64::from(word(at + 4)?) * nanos;
        let length = usize::try_from(word(at + 8)?).map_err(|_| PcapError::Short)?;
        let frame = file.get(at + 16..at + 16 + length).ok_or(PcapError::Short)?;
        let is_ip = type_offset
            .is_none_or(|o| matches!(frame.get(o..o + 2), Some([0x08, 0x00] | [0x86, 0xdd])));
        if let Some(packet) = frame.get(link_header..).filter(|_| is_ip) {
            packets.push((Timestamp(time), packet.to_vec()));
        }
        at += 16 + length;
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_packets_of_an_ethernet_capture_come_with_their_times() {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1];
        file.extend([0; 16]);
        file.extend([1, 0, 0, 0]);
        for kind in [[8, 0], [8, 6]] {
            file.extend([2, 0, 0, 0, 3, 0, 0, 0, 15, 0, 0, 0, 15, 0, 0, 0]);
            file.extend([0; 12]);
            file.extend(kind);
            file.push(0x45);
        }
        let packets = packets_of_pcap(&file);
        assert_eq!(packets, Ok(vec![(Timestamp(2_000_003_000), vec![0x45])]));
        assert_eq!(packets_of_pcap(&file[..50]), Err(PcapError::Short));
        assert_eq!(packets_of_pcap(b"nothing"), Err(PcapError::Magic));
    }
}
