//! Translation of addresses and ports in place.

use std::net::IpAddr;

use crate::checksum::{self, Change};
use crate::headers::{Fragment, Headers, IpVersion, is_echo, is_icmp};
use crate::meta::Meta;
use crate::{bytes, protocol};

/// New addresses and ports; `None` leaves a field as it is.
///
/// The identifier of an ICMP echo is both of its ports: `source_port` is taken, else
/// `destination_port`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// New source address.
    pub source: Option<IpAddr>,
    /// New destination address.
    pub destination: Option<IpAddr>,
    /// New source port.
    pub source_port: Option<u16>,
    /// New destination port.
    pub destination_port: Option<u16>,
}

impl Rewrite {
    /// What takes a packet of flow `from` to flow `to`; fields that are equal stay untouched.
    #[must_use]
    pub fn between(from: &crate::FiveTuple, to: &crate::FiveTuple) -> Self {
        Self {
            source: (from.source.0 != to.source.0).then_some(to.source.0),
            destination: (from.destination.0 != to.destination.0).then_some(to.destination.0),
            source_port: (from.source.1 != to.source.1).then_some(to.source.1),
            destination_port: (from.destination.1 != to.destination.1).then_some(to.destination.1),
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a packet was not translated. It is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// An IPv6 address for an IPv4 packet, or the other way round.
    #[error("address of the other IP version")]
    Family,
    /// The headers are not those of the packet.
    #[error("the packet is shorter than its headers say")]
    Truncated,
    /// The checksum of a fragmented SCTP packet covers data that is in other fragments.
    #[error("port of a fragmented SCTP packet")]
    FragmentedSctp,
}

/// Where things are that a translation touches: in a packet, or in one quoted by an ICMP error.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) version: IpVersion,
    /// Start of the IP header in the slice.
    pub(crate) base: usize,
    /// Start of the transport header in the slice; `None` if it is not there (later fragment).
    pub(crate) transport: Option<usize>,
    pub(crate) protocol: u8,
    pub(crate) is_echo: bool,
    /// The transport checksum field holds the pseudo-header sum only.
    pub(crate) partial: bool,
}

impl Layout {
    fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }

    /// Offset of the transport checksum in the slice.
    fn checksum_at(&self) -> Option<usize> {
        // The other version's ICMP is opaque.
        let is_foreign = matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
            && !is_icmp(self.version, self.protocol);
        if is_foreign {
            return None;
        }
        Some(self.transport? + protocol::checksum_offset(self.protocol)?)
    }
}

/// Translates a packet, with incremental checksums (RFC 1624), and `headers` with it.
///
/// A complete transport checksum is patched for addresses and ports, a partial one for addresses
/// only; a UDP checksum of 0 stays 0; later fragments have their addresses changed only; SCTP's
/// CRC32c does not cover addresses and is patched for ports. What was wrong before stays wrong.
///
/// # Errors
/// [`RewriteError`]; the packet is then unchanged.
pub fn rewrite(
    packet: &mut [u8],
    meta: &Meta,
    headers: &mut Headers,
    rewrite: &Rewrite,
) -> Result<(), RewriteError> {
    let packet = packet.get_mut(..headers.total_length).ok_or(RewriteError::Truncated)?;
    let first = !matches!(headers.fragment, Fragment::Later { .. });
    let layout = Layout {
        version: headers.version,
        base: 0,
        transport: first.then_some(usize::from(headers.transport_offset)),
        protocol: headers.protocol,
        is_echo: is_icmp(headers.version, headers.protocol)
            && is_echo(headers.version, headers.tcp_flags),
        partial: meta.is_partial_at(headers.transport_offset),
    };
    let changes_ports = rewrite.source_port.is_some_and(|port| port != headers.source_port)
        || rewrite.destination_port.is_some_and(|port| port != headers.destination_port);
    let is_sctp = headers.protocol == protocol::SCTP && first && changes_ports;
    if is_sctp && headers.fragment != Fragment::No {
        return Err(RewriteError::FragmentedSctp);
    }
    let crc = if is_sctp && !layout.partial { sctp_crc(packet, headers) } else { None };
    edit(packet, &layout, rewrite)?;
    if let Some(before) = crc {
        patch_sctp_crc(packet, headers, before).ok_or(RewriteError::Truncated)?;
    }
    update(headers, &layout, rewrite);
    Ok(())
}

fn update(headers: &mut Headers, layout: &Layout, rewrite: &Rewrite) {
    headers.source = rewrite.source.unwrap_or(headers.source);
    headers.destination = rewrite.destination.unwrap_or(headers.destination);
    if layout.transport.is_none() {
        return;
    }
    if layout.is_echo {
        let identifier = rewrite.source_port.or(rewrite.destination_port);
        headers.source_port = identifier.unwrap_or(headers.source_port);
        headers.destination_port = headers.source_port;
    } else if layout.has_ports() {
        headers.source_port = rewrite.source_port.unwrap_or(headers.source_port);
        headers.destination_port = rewrite.destination_port.unwrap_or(headers.destination_port);
    }
}

/// Edits addresses, ports and the checksums of this packet; returns how the sum of all edited
/// bytes changed, which is what an enclosing checksum has to be patched by.
pub(crate) fn edit(
    packet: &mut [u8],
    layout: &Layout,
    rewrite: &Rewrite,
) -> Result<Change, RewriteError> {
    let mut all = Change::default();
    check(packet, layout, rewrite)?;
    let addresses = edit_addresses(packet, layout, rewrite, &mut all);
    let ports = edit_ports(packet, layout, rewrite, &mut all);
    patch_transport(packet, layout, addresses, ports, &mut all);
    Ok(all)
}

/// Everything that can fail, before the first byte is changed.
fn check(packet: &[u8], layout: &Layout, rewrite: &Rewrite) -> Result<(), RewriteError> {
    let fits = |address: Option<IpAddr>| {
        address.is_none_or(|a| a.is_ipv4() == (layout.version == IpVersion::V4))
    };
    if !fits(rewrite.source) || !fits(rewrite.destination) {
        return Err(RewriteError::Family);
    }
    let header_len = match layout.version {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    };
    let ports_len = match layout.transport {
        Some(start) if layout.is_echo => start + 8,
        Some(start) if layout.has_ports() => start + 4,
        _ => 0,
    };
    if packet.len() < (layout.base + header_len).max(ports_len) {
        return Err(RewriteError::Truncated);
    }
    Ok(())
}

fn edit_addresses(
    packet: &mut [u8],
    layout: &Layout,
    rewrite: &Rewrite,
    all: &mut Change,
) -> Change {
    let mut change = Change::default();
    let (source_at, destination_at) = match layout.version {
        IpVersion::V4 => (12, 16),
        IpVersion::V6 => (8, 24),
    };
    for (address, at) in [(rewrite.source, source_at), (rewrite.destination, destination_at)] {
        match address {
            Some(IpAddr::V4(a)) => replace(packet, layout.base + at, a.octets(), &mut change),
            Some(IpAddr::V6(a)) => replace(packet, layout.base + at, a.octets(), &mut change),
            None => {}
        }
    }
    merge(all, change);
    if layout.version == IpVersion::V4 && change != Change::default() {
        let at = layout.base + 10;
        if let Some(old) = bytes::u16_at(packet, at) {
            replace(packet, at, change.apply_to_checksum(old).to_be_bytes(), all);
        }
    }
    change
}

fn edit_ports(packet: &mut [u8], layout: &Layout, rewrite: &Rewrite, all: &mut Change) -> Change {
    let mut change = Change::default();
    let Some(start) = layout.transport else {
        return change;
    };
    if layout.is_echo {
        if let Some(identifier) = rewrite.source_port.or(rewrite.destination_port) {
            replace(packet, start + 4, identifier.to_be_bytes(), &mut change);
        }
    } else if layout.has_ports() {
        if let Some(port) = rewrite.source_port {
            replace(packet, start, port.to_be_bytes(), &mut change);
        }
        if let Some(port) = rewrite.destination_port {
            replace(packet, start + 2, port.to_be_bytes(), &mut change);
        }
    }
    merge(all, change);
    change
}

fn patch_transport(
    packet: &mut [u8],
    layout: &Layout,
    addresses: Change,
    ports: Change,
    all: &mut Change,
) {
    let Some(at) = layout.checksum_at() else {
        return;
    };
    // A quoted packet may end before its checksum.
    let Some(old) = bytes::u16_at(packet, at) else {
        return;
    };
    let mut change =
        if protocol::covers_addresses(layout.protocol) { addresses } else { Change::default() };
    let new = if layout.partial {
        change.apply_to_sum(old)
    } else {
        merge(&mut change, ports);
        let is_udp = layout.protocol == protocol::UDP;
        if is_udp && old == 0 {
            return;
        }
        let new = change.apply_to_checksum(old);
        if is_udp || (new == 0 && is_all_zero(packet, layout, at)) {
            checksum::udp_field(new)
        } else {
            new
        }
    };
    replace(packet, at, new.to_be_bytes(), all);
}

/// Whether a message has nothing but zeros around its checksum: an ICMP echo reply may. Its sum is
/// then 0 and not 0xffff, the one case that RFC 1624's equation does not tell apart.
fn is_all_zero(packet: &[u8], layout: &Layout, checksum_at: usize) -> bool {
    let start = layout.transport.unwrap_or(checksum_at);
    let zeros = |range: Option<&[u8]>| range.is_some_and(|r| r.iter().all(|byte| *byte == 0));
    layout.protocol == protocol::ICMP
        && zeros(packet.get(start..checksum_at))
        && zeros(packet.get(checksum_at + 2..))
}

fn merge(into: &mut Change, change: Change) {
    if change != Change::default() {
        into.replace_sum(0xffff, change.apply_to_sum(0));
    }
}

/// Replaces bytes whose place has been checked.
fn replace<const N: usize>(packet: &mut [u8], at: usize, new: [u8; N], change: &mut Change) {
    if let Some(place) = packet.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        change.replace(place, &new);
        *place = new;
    }
}

fn sctp_crc(packet: &[u8], headers: &Headers) -> Option<u32> {
    checksum::sctp(packet.get(usize::from(headers.transport_offset)..)?)
}

/// CRC32c is linear: the field changes by what the CRC of the bytes changed by.
fn patch_sctp_crc(packet: &mut [u8], headers: &Headers, before: u32) -> Option<()> {
    let after = sctp_crc(packet, headers)?;
    let at = usize::from(headers.transport_offset) + 8;
    let old = u32::from_le_bytes(bytes::array(packet, at)?);
    bytes::put(packet, at, (old ^ before ^ after).to_le_bytes())
}

/// Takes one from the hop limit, with the IPv4 header checksum.
///
/// Returns `false` and changes nothing if the packet must not be forwarded: the limit is 0 or 1.
#[must_use]
pub fn decrement_hop_limit(packet: &mut [u8], headers: &mut Headers) -> bool {
    if headers.hop_limit <= 1 {
        return false;
    }
    let limit = headers.hop_limit - 1;
    let done = match headers.version {
        IpVersion::V6 => bytes::put(packet, 7, [limit]),
        IpVersion::V4 => (|| {
            let mut change = Change::default();
            let number = bytes::u8_at(packet, 9)?;
            change.replace(&[headers.hop_limit, number], &[limit, number]);
            let old = bytes::u16_at(packet, 10)?;
            bytes::put(packet, 8, [limit])?;
            bytes::put(packet, 10, change.apply_to_checksum(old).to_be_bytes())
        })(),
    };
    if done.is_some() {
        headers.hop_limit = limit;
    }
    done.is_some()
}
