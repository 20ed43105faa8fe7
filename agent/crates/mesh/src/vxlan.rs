//! What the mesh asks of a VXLAN frame; the framing itself is in `weft-packet`.

use std::net::IpAddr;

use weft_model::{MacAddr, Vni};
use weft_packet::{IpVersion, vxlan};

use crate::ip::ip_packet;

/// Bytes before the inner IP packet: VXLAN header 8, Ethernet header 14.
pub(crate) const HEADER_LEN: usize = vxlan::OVERHEAD;

/// Appends one frame with `inner` in it to `out` and returns its length; `None` if `inner` is
/// neither IPv4 nor IPv6, and `out` is as before.
pub(crate) fn emit(
    vni: Vni,
    source: MacAddr,
    destination: MacAddr,
    inner: &[u8],
    out: &mut Vec<u8>,
) -> Option<usize> {
    let version = match inner.first()? >> 4 {
        4 => IpVersion::V4,
        6 => IpVersion::V6,
        _ => return None,
    };
    let start = out.len();
    vxlan::emit(vni, source, destination, version, inner, out);
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

/// Reads a frame; `None` unless flags, VNI and EtherType are ours and a whole IP packet is inside.
pub(crate) fn parse(vni: Vni, datagram: &[u8]) -> Option<Frame<'_>> {
    let frame = vxlan::parse(datagram).ok().filter(|frame| frame.vni == vni)?;
    let (inner, source_address) = ip_packet(frame.ip_packet()?)?;
    let vxlan::Frame { destination, source, .. } = frame;
    Some(Frame { destination, source, inner, source_address })
}
