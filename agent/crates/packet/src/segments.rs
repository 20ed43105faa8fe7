//! Cutting a super-packet into the packets it stands for.

use crate::headers::{Fragment, Headers, IpVersion};
use crate::meta::{Checksum, Gso, GsoKind, Meta};
use crate::protocol::{self, tcp_flag};
use crate::{bytes, checksum};

/// Why a packet cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The kind of the super-packet is not that of its headers, or it is a fragment.
    #[error("the kind of segmentation does not fit the headers")]
    Kind,
    /// A segment size of 0.
    #[error("segment size 0")]
    Size,
    /// The headers are not those of the packet.
    #[error("the packet is shorter than its headers say")]
    Truncated,
}

/// The packets that a super-packet stands for; of an ordinary packet, itself.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    meta: Meta,
    headers: Headers,
    /// Length of all headers.
    header_len: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    count: usize,
    /// A UDP datagram without checksum: its segments have none either.
    without_checksum: bool,
}

impl<'a> Segments<'a> {
    /// Takes a packet with what [`Headers::parse`] said of it.
    ///
    /// # Errors
    /// [`SegmentError`] if `meta` asks for what the packet cannot give.
    pub fn new(packet: &'a [u8], meta: &Meta, headers: &Headers) -> Result<Self, SegmentError> {
        let packet = packet.get(..headers.total_length).ok_or(SegmentError::Truncated)?;
        let mut segments = Self {
            packet,
            meta: *meta,
            headers: *headers,
            header_len: packet.len(),
            size: 0,
            count: 1,
            without_checksum: false,
        };
        if let Some(gso) = meta.gso {
            segments.cut(gso)?;
        }
        Ok(segments)
    }

    fn cut(&mut self, gso: Gso) -> Result<(), SegmentError> {
        let expected = match gso.kind {
            GsoKind::TcpV4 => (Some(IpVersion::V4), protocol::TCP),
            GsoKind::TcpV6 => (Some(IpVersion::V6), protocol::TCP),
            GsoKind::Udp => (None, protocol::UDP),
        };
        let is_version = expected.0.is_none_or(|version| version == self.headers.version);
        let is_whole = self.headers.fragment == Fragment::No;
        if !is_version || !is_whole || self.headers.protocol != expected.1 {
            return Err(SegmentError::Kind);
        }
        if gso.segment_size == 0 {
            return Err(SegmentError::Size);
        }
        self.header_len = usize::from(self.headers.payload_offset);
        let payload = self.packet.len().checked_sub(self.header_len);
        let payload = payload.ok_or(SegmentError::Truncated)?;
        self.size = usize::from(gso.segment_size);
        self.count = payload.div_ceil(self.size).max(1);
        let field = usize::from(self.headers.transport_offset) + 6;
        self.without_checksum = gso.kind == GsoKind::Udp
            && self.meta.checksum == Checksum::Complete
            && bytes::u16_at(self.packet, field) == Some(0);
        Ok(())
    }

    /// How many there are; at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of segment `k` with its headers, 0 if there is no such segment.
    #[must_use]
    pub fn len_of(&self, k: usize) -> usize {
        if k >= self.count { 0 } else { self.header_len + self.payload(k).len() }
    }

    /// Payload of segment `k`.
    fn payload(&self, k: usize) -> &'a [u8] {
        let payload = self.packet.get(self.header_len..).unwrap_or(&[]);
        let start = (k * self.size).min(payload.len());
        let end = (start + self.size).min(payload.len());
        payload.get(start..end).unwrap_or(&[])
    }

    /// Writes segment `k` to the start of `out`: lengths, identification, sequence number, flags
    /// and every checksum complete. Returns its length, or 0 if there is no such segment or `out`
    /// is shorter than [`Segments::len_of`].
    pub fn write(&self, k: usize, out: &mut [u8]) -> usize {
        let len = self.len_of(k);
        let Some(out) = out.get_mut(..len) else {
            return 0;
        };
        let (Some(headers), Some((to_headers, to_payload))) =
            (self.packet.get(..self.header_len), out.split_at_mut_checked(self.header_len))
        else {
            return 0;
        };
        to_headers.copy_from_slice(headers);
        let done = if self.meta.gso.is_none() {
            to_payload.copy_from_slice(self.payload(k));
            complete(out, self.meta.checksum, &self.headers)
        } else {
            let sum = checksum::copy(self.payload(k), to_payload);
            self.finish(k, out, sum)
        };
        done.map_or(0, |()| len)
    }

    /// `payload` is the sum of the segment's payload.
    fn finish(&self, k: usize, out: &mut [u8], payload: u16) -> Option<()> {
        match self.headers.version {
            IpVersion::V4 => self.finish_v4(k, out)?,
            IpVersion::V6 => {
                bytes::put(out, 4, bytes::low16(out.len() - 40).to_be_bytes())?;
            }
        }
        let start = usize::from(self.headers.transport_offset);
        let segment = out.get_mut(start..)?;
        if self.headers.protocol == protocol::TCP {
            self.finish_tcp(k, segment)?;
        } else {
            bytes::put(segment, 4, bytes::low16(segment.len()).to_be_bytes())?;
        }
        self.finish_checksum(segment, payload)
    }

    fn finish_v4(&self, k: usize, out: &mut [u8]) -> Option<()> {
        bytes::put(out, 2, bytes::low16(out.len()).to_be_bytes())?;
        let id = bytes::u16_at(out, 4)?.wrapping_add(bytes::low16(k));
        bytes::put(out, 4, id.to_be_bytes())?;
        bytes::put(out, 10, [0, 0])?;
        let header = out.get(..usize::from(self.headers.transport_offset))?;
        let sum = checksum::full(header);
        bytes::put(out, 10, sum.to_be_bytes())
    }

    fn finish_tcp(&self, k: usize, segment: &mut [u8]) -> Option<()> {
        let sequence = bytes::u32_at(segment, 4)?;
        let sequence = sequence.wrapping_add(bytes::low32(k * self.size));
        bytes::put(segment, 4, sequence.to_be_bytes())?;
        let flags = segment.get_mut(13)?;
        if k + 1 != self.count {
            *flags &= !(tcp_flag::FIN | tcp_flag::PSH);
        }
        if k != 0 {
            *flags &= !tcp_flag::CWR;
        }
        Some(())
    }

    fn finish_checksum(&self, segment: &mut [u8], payload: u16) -> Option<()> {
        if self.without_checksum {
            return Some(());
        }
        let headers = &self.headers;
        let at = protocol::checksum_offset(headers.protocol)?;
        bytes::put(segment, at, [0, 0])?;
        let (source, destination) = (headers.source, headers.destination);
        let pseudo = checksum::pseudo(source, destination, headers.protocol, segment.len());
        // TCP and UDP headers have an even length, so the sums add up as they are.
        let header_len = headers.payload_offset.checked_sub(headers.transport_offset)?;
        let header = checksum::sum(segment.get(..usize::from(header_len))?);
        let value = !checksum::add(pseudo, checksum::add(header, payload));
        let is_udp = headers.protocol == protocol::UDP;
        let value = if is_udp { checksum::udp_field(value) } else { value };
        bytes::put(segment, at, value.to_be_bytes())
    }
}

/// Completes a partial checksum in place, and says so in `meta`.
///
/// For ordinary packets; a super-packet has no checksum of its own and is left as it is, as is a
/// packet whose checksum is complete.
pub fn complete_checksum(packet: &mut [u8], meta: &mut Meta, headers: &Headers) {
    let Some(packet) = packet.get_mut(..headers.total_length) else {
        return;
    };
    if meta.gso.is_none() && complete(packet, meta.checksum, headers).is_some() {
        meta.checksum = Checksum::Complete;
    }
}

fn complete(packet: &mut [u8], state: Checksum, headers: &Headers) -> Option<()> {
    let Checksum::Partial { start, offset } = state else {
        return Some(());
    };
    let covered = packet.get_mut(usize::from(start)..)?;
    let value = checksum::full(covered);
    let is_udp = headers.protocol == protocol::UDP && start == headers.transport_offset;
    let value = if is_udp { checksum::udp_field(value) } else { value };
    bytes::put(covered, usize::from(offset), value.to_be_bytes())
}
