//! Packets made in answer to another: ICMP errors and TCP resets.
//!
//! Each builder returns `false`, with `out` empty, where an answer is not allowed: in reply to an
//! ICMP error or redirect, to a packet sent to or from a multicast, broadcast, loopback or
//! unspecified address, to a fragment other than the first, to a reset. The rate of answers is the
//! caller's to limit (RFC 4443 section 2.4 f).
//!
//! Sources: RFC 1122 section 3.2.2, RFC 1812 section 4.3.2, RFC 4443 section 2.4, RFC 9293
//! section 3.10.7.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::headers::{Fragment, Headers, IpVersion};
use crate::icmp::is_error;
use crate::protocol::{self, tcp_flag};
use crate::{bytes, checksum};

/// Greatest length of an ICMPv4 error with its IP header, in bytes (RFC 1812 section 4.3.2.3).
pub const IPV4_ERROR_MAX: usize = 576;
/// Greatest length of an ICMPv6 error with its IP header, in bytes (RFC 4443 section 2.4 c).
pub const IPV6_ERROR_MAX: usize = 1280;

const HOP_LIMIT: u8 = 64;
/// Precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
const ERROR_TYPE_OF_SERVICE: u8 = 0xc0;
const ICMP_HEADER_LEN: usize = 8;
const TCP_HEADER_LEN: usize = 20;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// Why a packet cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// No route.
    Network,
    /// A route, and no such host.
    Host,
    /// Nobody listens.
    Port,
    /// Policy forbids it.
    Prohibited,
}

impl Unreachable {
    fn code(self, version: IpVersion) -> u8 {
        match (version, self) {
            (IpVersion::V4, Self::Network) => 0,
            (IpVersion::V4, Self::Host) => 1,
            (IpVersion::V4, Self::Port) => 3,
            (IpVersion::V4, Self::Prohibited) => 13,
            (IpVersion::V6, Self::Network) => 0,
            (IpVersion::V6, Self::Prohibited) => 1,
            (IpVersion::V6, Self::Host) => 3,
            (IpVersion::V6, Self::Port) => 4,
        }
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    code: u8,
    /// The second word of the header.
    rest: [u8; 4],
    /// Packet too big is sent for multicast as well (RFC 4443 section 2.4 e.3).
    multicast: bool,
}

/// Makes a destination-unreachable error about `packet`, sent by `from`.
///
/// `from` is of the packet's family: a node's own address, or the packet's destination where the
/// fabric speaks for it. `out` is replaced. Returns whether there is an answer.
#[must_use]
pub fn icmp_unreachable(
    packet: &[u8],
    headers: &Headers,
    from: IpAddr,
    why: Unreachable,
    out: &mut Vec<u8>,
) -> bool {
    let kind = match headers.version {
        IpVersion::V4 => 3,
        IpVersion::V6 => 1,
    };
    let message = Message { kind, code: why.code(headers.version), rest: [0; 4], multicast: false };
    icmp_error(packet, headers, from, message, out)
}

/// Makes a packet-too-big error (IPv4: fragmentation needed, RFC 1191) that asks for packets of
/// up to `mtu` bytes. See [`icmp_unreachable`].
#[must_use]
pub fn packet_too_big(
    packet: &[u8],
    headers: &Headers,
    from: IpAddr,
    mtu: u16,
    out: &mut Vec<u8>,
) -> bool {
    let [high, low] = mtu.to_be_bytes();
    let (kind, code, multicast) = match headers.version {
        IpVersion::V4 => (3, 4, false),
        IpVersion::V6 => (2, 0, true),
    };
    let message = Message { kind, code, rest: [0, 0, high, low], multicast };
    icmp_error(packet, headers, from, message, out)
}

/// Makes a time-exceeded error: the hop limit ran out. See [`icmp_unreachable`].
#[must_use]
pub fn time_exceeded(packet: &[u8], headers: &Headers, from: IpAddr, out: &mut Vec<u8>) -> bool {
    let kind = match headers.version {
        IpVersion::V4 => 11,
        IpVersion::V6 => 3,
    };
    let message = Message { kind, code: 0, rest: [0; 4], multicast: false };
    icmp_error(packet, headers, from, message, out)
}

fn icmp_error(
    packet: &[u8],
    headers: &Headers,
    from: IpAddr,
    message: Message,
    out: &mut Vec<u8>,
) -> bool {
    out.clear();
    let Some(packet) = packet.get(..headers.total_length) else {
        return false;
    };
    let is_later = matches!(headers.fragment, Fragment::Later { .. });
    let to_many = is_to_many(headers.destination) && !message.multicast;
    let of_family = from.is_ipv4() == headers.source.is_ipv4();
    let about_error = headers.is_icmp() && is_error_or_redirect(headers);
    if is_later || to_many || !of_family || about_error || !is_one_host(headers.source) {
        return false;
    }
    let (max, header_len) = match headers.version {
        IpVersion::V4 => (IPV4_ERROR_MAX, 20),
        IpVersion::V6 => (IPV6_ERROR_MAX, 40),
    };
    let room = max - header_len - ICMP_HEADER_LEN;
    let quote = packet.get(..room).unwrap_or(packet);
    let (number, traffic_class) = match headers.version {
        IpVersion::V4 => (protocol::ICMP, ERROR_TYPE_OF_SERVICE),
        IpVersion::V6 => (protocol::ICMPV6, 0),
    };
    let len = ICMP_HEADER_LEN + quote.len();
    push_ip_header(out, from, headers.source, number, traffic_class, len);
    out.extend_from_slice(&[message.kind, message.code, 0, 0]);
    out.extend_from_slice(&message.rest);
    out.extend_from_slice(quote);
    let pseudo = match headers.version {
        IpVersion::V4 => 0,
        IpVersion::V6 => checksum::pseudo(from, headers.source, number, len),
    };
    finish(out, header_len, 2, pseudo)
}

fn is_error_or_redirect(headers: &Headers) -> bool {
    let is_v6_redirect = headers.version == IpVersion::V6 && headers.tcp_flags == 137;
    is_error(headers.version, headers.tcp_flags) || is_v6_redirect
}

/// Makes the reset that refuses `packet`, a TCP segment, in the name of its destination.
///
/// `out` is replaced. Returns whether there is an answer; there is none to a fragment, whose
/// sequence length is not known.
#[must_use]
pub fn tcp_reset(packet: &[u8], headers: &Headers, out: &mut Vec<u8>) -> bool {
    out.clear();
    let is_segment = headers.protocol == protocol::TCP && headers.fragment == Fragment::No;
    let is_reset = headers.tcp_flags & tcp_flag::RST != 0;
    let answerable = is_one_host(headers.source) && !is_to_many(headers.destination);
    if !is_segment || is_reset || !answerable {
        return false;
    }
    let at = usize::from(headers.transport_offset);
    let (Some(sequence), Some(acknowledged)) =
        (bytes::u32_at(packet, at + 4), bytes::u32_at(packet, at + 8))
    else {
        return false;
    };
    let (from, to) = (headers.destination, headers.source);
    push_ip_header(out, from, to, protocol::TCP, 0, TCP_HEADER_LEN);
    let (sequence, acknowledged, flags) = if headers.tcp_flags & tcp_flag::ACK != 0 {
        (acknowledged, 0, tcp_flag::RST)
    } else {
        (0, sequence.wrapping_add(sequence_len(headers)), tcp_flag::RST | tcp_flag::ACK)
    };
    let header_len = out.len();
    out.extend_from_slice(&headers.destination_port.to_be_bytes());
    out.extend_from_slice(&headers.source_port.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend_from_slice(&acknowledged.to_be_bytes());
    out.extend_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
    let pseudo = checksum::pseudo(from, to, protocol::TCP, TCP_HEADER_LEN);
    finish(out, header_len, 16, pseudo)
}

/// SEG.LEN: SYN and FIN count as one each.
fn sequence_len(headers: &Headers) -> u32 {
    let control = (headers.tcp_flags & (tcp_flag::SYN | tcp_flag::FIN)).count_ones();
    bytes::low32(headers.payload_len()) + control
}

/// Whether an address is not that of one receiver.
fn is_to_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unspecified(),
    }
}

/// Whether an address names one host that an answer could reach.
fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets() < [224, 0, 0, 0] && !is_local_v4(a),
        IpAddr::V6(a) => !a.is_multicast() && !is_local_v6(a),
    }
}

fn is_local_v4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.octets().first() == Some(&0)
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

fn push_ip_header(
    out: &mut Vec<u8>,
    from: IpAddr,
    to: IpAddr,
    number: u8,
    traffic_class: u8,
    len: usize,
) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x45, traffic_class]);
            out.extend_from_slice(&bytes::low16(len + 20).to_be_bytes());
            // Identification 0 is fine for what is never fragmented (RFC 6864).
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&DONT_FRAGMENT);
            out.extend_from_slice(&[HOP_LIMIT, number, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            let sum = checksum::full(out);
            // The header was just written, so the place is there.
            let _ = bytes::put(out, 10, sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend_from_slice(&[0x60 | (traffic_class >> 4), traffic_class << 4, 0, 0]);
            out.extend_from_slice(&bytes::low16(len).to_be_bytes());
            out.extend_from_slice(&[number, HOP_LIMIT]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}

/// Writes the transport checksum `field` bytes into what starts at `start`.
fn finish(out: &mut Vec<u8>, start: usize, field: usize, pseudo: u16) -> bool {
    let done = out.get_mut(start..).and_then(|segment| {
        let value = !checksum::add(pseudo, checksum::sum(segment));
        bytes::put(segment, field, value.to_be_bytes())
    });
    if done.is_none() {
        out.clear();
    }
    done.is_some()
}
