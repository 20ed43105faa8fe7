//! VXLAN framing: the 8-byte header and the inner Ethernet header. Source: RFC 7348 section 5.

use weft_model::{MacAddr, Vni};

use crate::bytes;
use crate::headers::IpVersion;

/// Length of the VXLAN header in bytes.
pub const HEADER_LEN: usize = 8;
/// Length of an Ethernet header without tags in bytes.
pub const ETHERNET_LEN: usize = 14;
/// What a packet grows by inside the UDP datagram.
pub const OVERHEAD: usize = HEADER_LEN + ETHERNET_LEN;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// The I flag: the VNI is valid. Other bits are ignored on receipt.
const FLAG_VNI: u8 = 0x08;

/// What a VXLAN datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The network.
    pub vni: Vni,
    /// Inner Ethernet source.
    pub source: MacAddr,
    /// Inner Ethernet destination.
    pub destination: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// What follows the Ethernet header, padding included.
    pub payload: &'a [u8],
}

/// Why a datagram is no VXLAN frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VxlanError {
    /// Shorter than both headers.
    #[error("shorter than a VXLAN and an Ethernet header")]
    Truncated,
    /// The I flag is not set.
    #[error("the VNI flag is not set")]
    Flags,
    /// VNI 0.
    #[error("VNI 0")]
    Vni,
    /// The inner frame has a VLAN tag, which is dropped (RFC 7348 section 6.1).
    #[error("the inner frame has a VLAN tag")]
    Tagged,
}

/// Reads a UDP payload.
///
/// # Errors
/// [`VxlanError`], one for each failing check.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<Frame<'_>, VxlanError> {
    let (header, payload) =
        datagram.split_first_chunk::<OVERHEAD>().ok_or(VxlanError::Truncated)?;
    let [flags, _, _, _, v0, v1, v2, _, d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
        *header;
    if flags & FLAG_VNI == 0 {
        return Err(VxlanError::Flags);
    }
    let vni = Vni::try_new(u32::from_be_bytes([0, v0, v1, v2])).map_err(|_| VxlanError::Vni)?;
    let ethertype = u16::from_be_bytes([t0, t1]);
    if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
        return Err(VxlanError::Tagged);
    }
    Ok(Frame {
        vni,
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        ethertype,
        payload,
    })
}

/// The bytes that go before an IP packet.
#[must_use]
#[inline]
pub fn header(vni: Vni, source: MacAddr, destination: MacAddr, ethertype: u16) -> [u8; OVERHEAD] {
    let [_, v0, v1, v2] = vni.get().to_be_bytes();
    let [d0, d1, d2, d3, d4, d5] = destination.0;
    let [s0, s1, s2, s3, s4, s5] = source.0;
    let [t0, t1] = ethertype.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, v0, v1, v2, 0, d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}

/// Appends a VXLAN payload that carries an IP packet of `version` to `out`.
#[inline]
pub fn emit(
    vni: Vni,
    source: MacAddr,
    destination: MacAddr,
    version: IpVersion,
    packet: &[u8],
    out: &mut Vec<u8>,
) {
    let ethertype = match version {
        IpVersion::V4 => ETHERTYPE_IPV4,
        IpVersion::V6 => ETHERTYPE_IPV6,
    };
    out.extend_from_slice(&header(vni, source, destination, ethertype));
    out.extend_from_slice(packet);
}

impl<'a> Frame<'a> {
    /// The IP packet it carries, if it is one: EtherType and version agree.
    #[must_use]
    pub fn ip_packet(&self) -> Option<&'a [u8]> {
        let version = bytes::u8_at(self.payload, 0)? >> 4;
        let expected = match self.ethertype {
            ETHERTYPE_IPV4 => 4,
            ETHERTYPE_IPV6 => 6,
            _ => return None,
        };
        (version == expected).then_some(self.payload)
    }
}
