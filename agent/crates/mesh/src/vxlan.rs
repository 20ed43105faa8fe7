//! VXLAN frames: outer header, inner Ethernet header, inner IP packet. Source: RFC 7348.

use std::net::IpAddr;

use weft_model::{MacAddr, Vni, overhead};

use crate::ip::ip_packet;

/// Bytes before the inner IP packet: VXLAN header 8, Ethernet header 14.
pub(crate) const HEADER_LEN: usize = overhead::VXLAN as usize;
/// The I flag: the VNI is valid. The other flags are reserved and ignored on receipt.
const FLAG_VNI: u8 = 0x08;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Appends one frame with `inner` in it to `out` and returns its length; `None` if `inner` is
/// neither IPv4 nor IPv6, and `out` is as before.
pub(crate) fn emit(
    vni: Vni,
    source: MacAddr,
    destination: MacAddr,
    inner: &[u8],
    out: &mut Vec<u8>,
) -> Option<usize> {
    let ethertype = match inner.first()? >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return None,
    };
    let start = out.len();
    out.extend_from_slice(&[FLAG_VNI, 0, 0, 0]);
    out.extend_from_slice(&(vni.get() << 8).to_be_bytes());
    out.extend_from_slice(&destination.0);
    out.extend_from_slice(&source.0);
    out.extend_from_slice(&ethertype);
    out.extend_from_slice(inner);
    Some(out.len() - start)
}

/// A frame of our VNI, for a VTEP.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    /// The IP packet without Ethernet padding; its version agrees with the EtherType.
    pub(crate) inner: &'a [u8],
    pub(crate) source_address: IpAddr,
}

/// Reads a frame; `None` unless flags, VNI and EtherType are ours and an IP packet is inside.
/// Frames with a VLAN tag are not (RFC 7348 section 6.1).
pub(crate) fn parse(vni: Vni, datagram: &[u8]) -> Option<Frame<'_>> {
    let (header, rest) = datagram.split_first_chunk::<8>()?;
    let [flags, _, _, _, v0, v1, v2, _] = *header;
    if flags & FLAG_VNI == 0 || u32::from_be_bytes([0, v0, v1, v2]) != vni.get() {
        return None;
    }
    let (destination, rest) = rest.split_first_chunk::<6>()?;
    let (source, rest) = rest.split_first_chunk::<6>()?;
    let (ethertype, rest) = rest.split_first_chunk::<2>()?;
    let (inner, address) = ip_packet(rest)?;
    let expected = if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    (*ethertype == expected).then_some(Frame {
        destination: MacAddr(*destination),
        source: MacAddr(*source),
        inner,
        source_address: address,
    })
}
