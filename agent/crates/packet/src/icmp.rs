//! The packet that an ICMP error quotes.
//!
//! A quote begins with an IP header and may end anywhere after 8 bytes of transport header
//! (RFC 792; RFC 4443 quotes more), so less is checked than of a packet of its own.

use std::net::{IpAddr, Ipv4Addr};

use crate::checksum::Change;
use crate::five_tuple::FiveTuple;
use crate::headers::{self, Fragment, Headers, IpVersion, is_icmp};
use crate::meta::Meta;
use crate::rewrite::{self, Layout, Rewrite, RewriteError};
use crate::{bytes, extension, protocol};

/// Length of an ICMP error's own header; the quote follows.
const ICMP_HEADER_LEN: usize = 8;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Where its IP header starts, in bytes from the error's.
    pub offset: u16,
    /// Where its transport header starts, in bytes from the error's.
    pub transport_offset: u16,
    /// Its flow, in the direction in which it was sent; so the reverse of the flow that the error
    /// belongs to.
    pub five_tuple: FiveTuple,
    /// Whether it is a fragment; ports are 0 in a later one.
    pub fragment: Fragment,
    is_echo: bool,
}

/// Whether the packet is an ICMP error message, which quotes the packet it answers.
pub(crate) fn is_error(version: IpVersion, icmp_type: u8) -> bool {
    match version {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        IpVersion::V4 => matches!(icmp_type, 3 | 4 | 5 | 11 | 12),
        IpVersion::V6 => icmp_type < 128,
    }
}

/// The packet quoted by an ICMP error; `None` if it is none or the quote is not understood.
///
/// An IPv4 redirect counts as an error; an IPv6 one (137) does not, it is never routed.
#[must_use]
pub fn icmp_error_inner(packet: &[u8], headers: &Headers) -> Option<Inner> {
    let is_whole = headers.fragment == Fragment::No;
    if !headers.is_icmp() || !is_whole || !is_error(headers.version, headers.tcp_flags) {
        return None;
    }
    let offset = usize::from(headers.transport_offset) + ICMP_HEADER_LEN;
    let packet = packet.get(..headers.total_length)?;
    let quote = packet.get(offset..)?;
    let parsed = match headers.version {
        IpVersion::V4 => quote_v4(quote)?,
        IpVersion::V6 => quote_v6(quote)?,
    };
    let (source_port, destination_port, is_echo) = ports(quote, &parsed, headers.version)?;
    Some(Inner {
        offset: u16::try_from(offset).ok()?,
        transport_offset: u16::try_from(offset + parsed.transport).ok()?,
        five_tuple: FiveTuple {
            protocol: parsed.protocol,
            source: (parsed.source, source_port),
            destination: (parsed.destination, destination_port),
        },
        fragment: parsed.fragment,
        is_echo,
    })
}

struct Quote {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: usize,
    fragment: Fragment,
}

fn quote_v4(quote: &[u8]) -> Option<Quote> {
    let fixed = quote.first_chunk::<20>()?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    if fixed[0] >> 4 != 4 || header_len < 20 || header_len > quote.len() {
        return None;
    }
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let fragment = match ((field & 0x1fff) << 3, field & 0x2000 != 0) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First { id },
        (offset, _) => Fragment::Later { id, offset },
    };
    Some(Quote {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        protocol: fixed[9],
        transport: header_len,
        fragment,
    })
}

fn quote_v6(quote: &[u8]) -> Option<Quote> {
    let fixed = quote.first_chunk::<40>()?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let chain = extension::walk(quote, fixed[6], 40).ok()?;
    Some(Quote {
        source: headers::v6_address(fixed, 8),
        destination: headers::v6_address(fixed, 24),
        protocol: chain.protocol,
        transport: chain.offset,
        fragment: chain.fragment,
    })
}

/// Source port, destination port, and whether they are the identifier of an echo. `None` if the
/// quote ends before them.
fn ports(quote: &[u8], parsed: &Quote, version: IpVersion) -> Option<(u16, u16, bool)> {
    if matches!(parsed.fragment, Fragment::Later { .. }) {
        return Some((0, 0, false));
    }
    let at = parsed.transport;
    match parsed.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            Some((bytes::u16_at(quote, at)?, bytes::u16_at(quote, at + 2)?, false))
        }
        number if is_icmp(version, number) => {
            let [kind, _, _, _, a, b, _, _] = bytes::array(quote, at)?;
            let identifier = u16::from_be_bytes([a, b]);
            let is_echo = headers::is_echo(version, kind);
            Some(if is_echo { (identifier, identifier, true) } else { (0, 0, false) })
        }
        _ => Some((0, 0, false)),
    }
}

/// Translates the packet that an ICMP error quotes: its addresses and ports, its IP and transport
/// checksums as far as they are quoted, and the checksum of the error, all incrementally. The
/// error's own addresses are left to [`crate::rewrite()`].
///
/// # Errors
/// [`RewriteError`]; the packet is then unchanged. A quoted SCTP packet keeps its checksum, which
/// cannot be known from a part of it.
pub fn rewrite_icmp_error_inner(
    packet: &mut [u8],
    meta: &Meta,
    headers: &Headers,
    inner: &Inner,
    rewrite: &Rewrite,
) -> Result<(), RewriteError> {
    let packet = packet.get_mut(..headers.total_length).ok_or(RewriteError::Truncated)?;
    let is_later = matches!(inner.fragment, Fragment::Later { .. });
    let layout = Layout {
        version: headers.version,
        base: usize::from(inner.offset),
        transport: (!is_later).then_some(usize::from(inner.transport_offset)),
        protocol: inner.five_tuple.protocol,
        is_echo: inner.is_echo,
        partial: false,
    };
    let change = rewrite::edit(packet, &layout, rewrite)?;
    if change == Change::default() || meta.is_partial_at(headers.transport_offset) {
        return Ok(());
    }
    let at = usize::from(headers.transport_offset) + 2;
    let old = bytes::u16_at(packet, at).ok_or(RewriteError::Truncated)?;
    bytes::put(packet, at, change.apply_to_checksum(old).to_be_bytes())
        .ok_or(RewriteError::Truncated)
}
