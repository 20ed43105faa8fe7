//! What the mesh asks of a VXLAN frame; the framing itself is in `weft-packet`.

use std::net::IpAddr;

use weft_model::{MacAddr, Vni};
use weft_packet::vxlan;

use crate::ip::ip_packet;

/// Bytes before the inner IP packet: VXLAN header 8, Ethernet header 14.
pub(crate) const HEADER_LEN: usize = vxlan::OVERHEAD;

/// Fills the header of a frame whose IP packet is in place; false if that is neither IPv4 nor IPv6.
pub(crate) fn put_header(
    vni: Vni,
    source: MacAddr,
    destination: MacAddr,
    frame: &mut [u8],
) -> bool {
    let Some((header, packet)) = frame.split_first_chunk_mut::<HEADER_LEN>() else { return false };
    let ethertype = match packet.first().map(|byte| byte >> 4) {
        Some(4) => vxlan::ETHERTYPE_IPV4,
        Some(6) => vxlan::ETHERTYPE_IPV6,
        Some(_) | None => return false,
    };
    *header = vxlan::header(vni, source, destination, ethertype);
    true
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

/// Reads a frame; `None` unless flags, VNI and EtherType are ours and a whole IP packet is inside.
pub(crate) fn parse(vni: Vni, datagram: &[u8]) -> Option<Frame<'_>> {
    let frame = vxlan::parse(datagram).ok().filter(|frame| frame.vni == vni)?;
    let (inner, source_address) = ip_packet(frame.ip_packet()?)?;
    let vxlan::Frame { destination, source, .. } = frame;
    Some(Frame { destination, source, inner, source_address })
}
