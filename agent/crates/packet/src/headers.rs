//! A packet's headers as plain values, checked once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::five_tuple::FiveTuple;
use crate::meta::{Checksum, Meta};
use crate::{bytes, checksum, extension, protocol};

/// Version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// A whole packet.
    No,
    /// The first fragment: it has the transport header, and not all of the payload.
    First {
        /// Identification; of 16 bits in IPv4.
        id: u32,
    },
    /// Any other: ports are unknown.
    Later {
        /// Identification; of 16 bits in IPv4.
        id: u32,
        /// Where its data belongs in the whole payload, in bytes. Not 0, a multiple of 8.
        offset: u16,
    },
}

/// What a packet's headers say. Offsets are bytes from the start of the IP header.
///
/// Made by [`Headers::parse`] only, and kept true by [`crate::rewrite()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Version of IP.
    pub version: IpVersion,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// Length of the packet with its IP header. Bytes of the slice beyond it are padding.
    pub total_length: usize,
    /// Where the transport header starts, or the data of a later fragment.
    pub transport_offset: u16,
    /// Where the transport payload starts; `transport_offset` if the protocol is not known.
    pub payload_offset: u16,
    /// Port of TCP, UDP, SCTP; identifier of an ICMP echo; else 0.
    pub source_port: u16,
    /// Port of TCP, UDP, SCTP; identifier of an ICMP echo; else 0.
    pub destination_port: u16,
    /// Flag byte of TCP ([`protocol::tcp_flag`]); type of ICMP; else 0.
    pub tcp_flags: u8,
    /// Code of ICMP; else 0.
    pub icmp_code: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Must not be fragmented: IPv4's flag; always true for IPv6.
    pub dont_fragment: bool,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
}

/// Why bytes are no packet that the fabric forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Neither version 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// Shorter than its headers say.
    #[error("shorter than its headers say")]
    Truncated,
    /// A header's length field is smaller than the header, or larger than the packet.
    #[error("a length field contradicts the packet")]
    Length,
    /// The IPv4 header checksum is wrong.
    #[error("wrong IPv4 header checksum")]
    HeaderChecksum,
    /// A hop-by-hop options header that is not the first.
    #[error("IPv6 extension headers out of order")]
    ExtensionOrder,
    /// More IPv6 extension headers than are followed.
    #[error("too many IPv6 extension headers")]
    TooManyExtensions,
    /// A routing header with segments left: deprecated for end nodes (RFC 5095).
    #[error("source-routed")]
    SourceRoute,
    /// Not a multiple of 8 bytes, past 65535 bytes, or over the TCP header (RFC 1858).
    #[error("illegal fragment")]
    BadFragment,
    /// The checksum's place, as told by the packet's meta-data, is not in the packet.
    #[error("partial checksum outside of the packet")]
    PartialChecksum,
}

impl Headers {
    /// Parses and checks a packet: lengths, fragment arithmetic, and the IPv4 header checksum if
    /// `meta` says that checksums are complete. The transport checksum is not verified.
    ///
    /// `packet` may be longer than the IP packet (padding of Ethernet); see `total_length`.
    ///
    /// # Errors
    /// [`ParseError`], one for each failing check.
    #[inline]
    pub fn parse(packet: &[u8], meta: &Meta) -> Result<Self, ParseError> {
        let headers = match packet.first().map(|byte| byte >> 4) {
            Some(4) => parse_v4(packet, meta),
            Some(6) => parse_v6(packet),
            Some(_) => Err(ParseError::Version),
            None => Err(ParseError::Truncated),
        }?;
        if let Checksum::Partial { start, offset } = meta.checksum {
            let end = usize::from(start) + usize::from(offset) + 2;
            if end > headers.total_length || start < headers.transport_offset {
                return Err(ParseError::PartialChecksum);
            }
        }
        Ok(headers)
    }

    /// The key of the packet's direction of its flow.
    #[must_use]
    #[inline]
    pub fn five_tuple(&self) -> FiveTuple {
        FiveTuple {
            protocol: self.protocol,
            source: (self.source, self.source_port),
            destination: (self.destination, self.destination_port),
        }
    }

    /// Length of the transport payload in bytes.
    #[must_use]
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.total_length.saturating_sub(usize::from(self.payload_offset))
    }

    /// Whether it is ICMP of the packet's own IP version.
    #[must_use]
    #[inline]
    pub fn is_icmp(&self) -> bool {
        is_icmp(self.version, self.protocol)
    }
}

#[inline]
pub(crate) fn is_icmp(version: IpVersion, protocol: u8) -> bool {
    match version {
        IpVersion::V4 => protocol == protocol::ICMP,
        IpVersion::V6 => protocol == protocol::ICMPV6,
    }
}

/// Whether both port numbers of a message are its identifier.
#[inline]
pub(crate) fn is_echo(version: IpVersion, icmp_type: u8) -> bool {
    match version {
        IpVersion::V4 => matches!(icmp_type, 0 | 8),
        IpVersion::V6 => matches!(icmp_type, 128 | 129),
    }
}

#[inline]
fn parse_v4(packet: &[u8], meta: &Meta) -> Result<Headers, ParseError> {
    let fixed = packet.first_chunk::<20>().ok_or(ParseError::Truncated)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_len < 20 || total_length < header_len {
        return Err(ParseError::Length);
    }
    let packet = packet.get(..total_length).ok_or(ParseError::Truncated)?;
    if meta.checksum == Checksum::Complete && !v4_header_is_valid(packet, fixed, header_len) {
        return Err(ParseError::HeaderChecksum);
    }
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let (offset, more) = ((field & 0x1fff) << 3, field & 0x2000 != 0);
    let fragment = match (offset, more) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First { id },
        (offset, _) => Fragment::Later { id, offset },
    };
    let transport_offset = bytes::low16(header_len);
    let ip = Ip { version: IpVersion::V4, protocol: fixed[9], transport_offset, fragment, more };
    let transport = transport(&ip, packet)?;
    Ok(Headers {
        version: IpVersion::V4,
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        protocol: fixed[9],
        total_length,
        transport_offset,
        payload_offset: transport.payload_offset,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        tcp_flags: transport.flags,
        icmp_code: transport.code,
        hop_limit: fixed[8],
        fragment,
        dont_fragment: field & 0x4000 != 0,
        traffic_class: fixed[1],
    })
}

#[inline]
fn v4_header_is_valid(packet: &[u8], fixed: &[u8; 20], header_len: usize) -> bool {
    if header_len == 20 {
        return checksum::sum(fixed) == 0xffff;
    }
    packet.get(..header_len).is_some_and(|header| checksum::sum(header) == 0xffff)
}

#[inline]
fn parse_v6(packet: &[u8]) -> Result<Headers, ParseError> {
    let fixed = packet.first_chunk::<40>().ok_or(ParseError::Truncated)?;
    let total_length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let packet = packet.get(..total_length).ok_or(ParseError::Truncated)?;
    let chain = extension::walk(packet, fixed[6], 40)?;
    let transport_offset = u16::try_from(chain.offset).map_err(|_| ParseError::Length)?;
    let ip = Ip {
        version: IpVersion::V6,
        protocol: chain.protocol,
        transport_offset,
        fragment: chain.fragment,
        more: chain.more_fragments,
    };
    let transport = transport(&ip, packet)?;
    Ok(Headers {
        version: IpVersion::V6,
        source: v6_address(fixed, 8),
        destination: v6_address(fixed, 24),
        protocol: chain.protocol,
        total_length,
        transport_offset,
        payload_offset: transport.payload_offset,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        tcp_flags: transport.flags,
        icmp_code: transport.code,
        hop_limit: fixed[7],
        fragment: chain.fragment,
        dont_fragment: true,
        traffic_class: (fixed[0] << 4) | (fixed[1] >> 4),
    })
}

#[inline]
pub(crate) fn v6_address(header: &[u8; 40], at: usize) -> IpAddr {
    bytes::array::<16>(header, at).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from).into()
}

/// What the transport header depends on.
struct Ip {
    version: IpVersion,
    protocol: u8,
    transport_offset: u16,
    fragment: Fragment,
    /// Whether other fragments follow.
    more: bool,
}

/// What the transport header says, as [`Headers`] has it.
#[derive(Clone, Copy, Default)]
struct Transport {
    source_port: u16,
    destination_port: u16,
    flags: u8,
    code: u8,
    payload_offset: u16,
}

/// `packet` ends where the IP header says.
#[inline]
fn transport(ip: &Ip, packet: &[u8]) -> Result<Transport, ParseError> {
    if ip.fragment != Fragment::No {
        check_fragment(ip, packet.len())?;
        if matches!(ip.fragment, Fragment::Later { .. }) {
            return Ok(Transport { payload_offset: ip.transport_offset, ..Transport::default() });
        }
    }
    let start = usize::from(ip.transport_offset);
    let segment = packet.get(start..).ok_or(ParseError::Truncated)?;
    let (header_len, transport) = match ip.protocol {
        protocol::TCP => tcp(segment)?,
        protocol::UDP => udp(segment, ip.fragment == Fragment::No)?,
        protocol::SCTP => {
            let fixed = segment.first_chunk::<12>().ok_or(ParseError::Truncated)?;
            (12, with_ports([fixed[0], fixed[1], fixed[2], fixed[3]]))
        }
        number if is_icmp(ip.version, number) => icmp(segment, ip.version)?,
        _ => (0, Transport::default()),
    };
    let payload_offset = u16::try_from(start + header_len).map_err(|_| ParseError::Length)?;
    Ok(Transport { payload_offset, ..transport })
}

/// Fragments must fit each other, the whole must fit an IP packet, and none may write over the
/// ports or flags that were judged with the first one.
fn check_fragment(ip: &Ip, total_length: usize) -> Result<(), ParseError> {
    let data = total_length.saturating_sub(usize::from(ip.transport_offset));
    let offset = match ip.fragment {
        Fragment::Later { offset, .. } => offset,
        Fragment::No | Fragment::First { .. } => 0,
    };
    let over_tcp_header = ip.protocol == protocol::TCP && (1..20).contains(&offset);
    let uneven = ip.more && !data.is_multiple_of(8);
    if data == 0 || uneven || over_tcp_header || usize::from(offset) + data > 65_535 {
        return Err(ParseError::BadFragment);
    }
    Ok(())
}

#[inline]
fn with_ports([a, b, c, d]: [u8; 4]) -> Transport {
    Transport {
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        ..Transport::default()
    }
}

#[inline]
fn tcp(segment: &[u8]) -> Result<(usize, Transport), ParseError> {
    let fixed = segment.first_chunk::<20>().ok_or(ParseError::Truncated)?;
    let header_len = usize::from(fixed[12] >> 4) * 4;
    if header_len < 20 || header_len > segment.len() {
        return Err(ParseError::Length);
    }
    let ports = with_ports([fixed[0], fixed[1], fixed[2], fixed[3]]);
    Ok((header_len, Transport { flags: fixed[13], ..ports }))
}

/// `is_whole`: not a fragment, so the datagram's length can be checked.
#[inline]
fn udp(segment: &[u8], is_whole: bool) -> Result<(usize, Transport), ParseError> {
    let fixed = segment.first_chunk::<8>().ok_or(ParseError::Truncated)?;
    let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if len < 8 || (len > segment.len() && is_whole) {
        return Err(ParseError::Length);
    }
    Ok((8, with_ports([fixed[0], fixed[1], fixed[2], fixed[3]])))
}

#[inline]
fn icmp(segment: &[u8], version: IpVersion) -> Result<(usize, Transport), ParseError> {
    let fixed = segment.first_chunk::<8>().ok_or(ParseError::Truncated)?;
    let identifier = if is_echo(version, fixed[0]) { [fixed[4], fixed[5]] } else { [0; 2] };
    let ports = with_ports([identifier[0], identifier[1], identifier[0], identifier[1]]);
    Ok((8, Transport { flags: fixed[0], code: fixed[1], ..ports }))
}
