//! Merging the packets of a batch into super-packets (GRO).
//!
//! A packet is appended to the one before it only if cutting the result gives both back byte for
//! byte, so a receiver cannot tell. Packets of a flow leave in the order in which they came.

use crate::five_tuple::FiveTuple;
use crate::headers::{Fragment, Headers, IpVersion};
use crate::meta::{Checksum, Gso, GsoKind, Meta};
use crate::protocol::{self, tcp_flag};
use crate::{bytes, checksum};

/// Greatest length of a super-packet, as of any IPv4 packet.
const SUPER_PACKET_MAX: usize = 65_535;
/// Datagrams in a UDP super-packet; what the kernel accepts (`UDP_MAX_SEGMENTS`).
const UDP_SEGMENTS_MAX: usize = 128;

/// Flags that a TCP segment with data may have and be merged.
const MERGEABLE_FLAGS: u8 =
    tcp_flag::ACK | tcp_flag::PSH | tcp_flag::FIN | tcp_flag::ECE | tcp_flag::CWR;
/// Flags that only the last segment of a super-packet has.
const LAST_FLAGS: u8 = tcp_flag::PSH | tcp_flag::FIN;

/// Collects packets and gives them back merged.
///
/// Owns its buffers and reuses them: at steady state nothing is allocated.
#[derive(Debug)]
pub struct Merger {
    merge_udp: bool,
    /// In order of their first packets; those from `used` on are spare buffers.
    slots: Vec<Slot>,
    used: usize,
    /// Slots that may still grow, at most one of each flow.
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    flow: FiveTuple,
    slot: usize,
}

#[derive(Debug, Default)]
struct Slot {
    packet: Vec<u8>,
    /// Present if other packets may be or have been merged into it.
    run: Option<Run>,
}

/// What the next packet of a super-packet must look like.
#[derive(Clone, Copy, Debug)]
struct Run {
    headers: Headers,
    /// Payload bytes of each segment.
    size: usize,
    count: usize,
    next_id: u16,
    next_sequence: u32,
    /// Flags of the last segment.
    last_flags: u8,
}

impl Merger {
    /// `merge_udp`: datagrams are merged as well, which only a device that takes USO can undo.
    #[must_use]
    pub fn new(merge_udp: bool) -> Self {
        Self { merge_udp, slots: Vec::new(), used: 0, open: Vec::new() }
    }

    /// Number of packets that [`Merger::flush`] would emit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Takes the next packet of the batch; its checksums are complete. Bytes beyond the IP packet
    /// are cut off. What is no legal packet is passed through as it is.
    pub fn push(&mut self, packet: &[u8]) {
        let Ok(headers) = Headers::parse(packet, &Meta::default()) else {
            self.open.clear();
            self.store(packet, None);
            return;
        };
        let packet = packet.get(..headers.total_length).unwrap_or(packet);
        if headers.fragment != Fragment::No {
            // Ports of a fragment are unknown, so it may belong to any flow.
            self.open.clear();
            self.store(packet, None);
            return;
        }
        let flow = headers.five_tuple();
        let position = self.open.iter().rposition(|open| open.flow == flow);
        let run = self.start(packet, &headers);
        match (position, run) {
            (None, None) => self.store(packet, None),
            (None, Some(run)) => self.begin(packet, run, flow),
            (Some(position), None) => {
                self.open.swap_remove(position);
                self.store(packet, None);
            }
            (Some(position), Some(run)) => self.join(packet, run, position),
        }
    }

    /// Hands every packet to `emit`, in order of the first of each, and is empty afterwards.
    ///
    /// A super-packet has a partial checksum and [`Meta::gso`]; others are as they came, complete.
    pub fn flush(&mut self, emit: &mut dyn FnMut(&mut [u8], Meta)) {
        self.open.clear();
        for slot in self.slots.iter_mut().take(self.used) {
            let meta = match slot.run {
                Some(run) if run.count > 1 => finish(&mut slot.packet, &run),
                Some(_) | None => Some(Meta::default()),
            };
            emit(&mut slot.packet, meta.unwrap_or_default());
        }
        self.used = 0;
    }

    /// What could follow `packet` if it is the first of a run; `None` if it is not to be merged.
    fn start(&self, packet: &[u8], headers: &Headers) -> Option<Run> {
        let size = headers.payload_len();
        if size == 0 || !self.takes(packet, headers) {
            return None;
        }
        if !checksum::transport_is_valid(packet, headers) {
            return None;
        }
        let start = usize::from(headers.transport_offset);
        let (sequence, flags) = match headers.protocol {
            protocol::TCP => (bytes::u32_at(packet, start + 4)?, headers.tcp_flags),
            _ => (0, 0),
        };
        let id = match headers.version {
            IpVersion::V4 => bytes::u16_at(packet, 4)?,
            IpVersion::V6 => 0,
        };
        Some(Run {
            headers: *headers,
            size,
            count: 1,
            next_id: id.wrapping_add(1),
            next_sequence: sequence.wrapping_add(bytes::low32(size)),
            last_flags: flags,
        })
    }

    fn takes(&self, packet: &[u8], headers: &Headers) -> bool {
        let start = usize::from(headers.transport_offset);
        match headers.protocol {
            protocol::TCP => {
                let flags = headers.tcp_flags;
                flags & tcp_flag::ACK != 0 && flags & !MERGEABLE_FLAGS == 0
            }
            protocol::UDP => {
                let len = bytes::u16_at(packet, start + 4).map(usize::from);
                let has_checksum = bytes::u16_at(packet, start + 6) != Some(0);
                self.merge_udp && has_checksum && len == Some(headers.total_length - start)
            }
            _ => false,
        }
    }

    /// Appends `packet` to the open slot of its flow, or puts it into a slot of its own.
    fn join(&mut self, packet: &[u8], next: Run, position: usize) {
        let Some(open) = self.open.get_mut(position) else {
            return;
        };
        let slot = self.slots.get_mut(open.slot);
        let joined = slot.and_then(|slot| slot.append(packet, &next));
        match joined {
            Some(true) => {}
            Some(false) => {
                self.open.swap_remove(position);
            }
            None => {
                let flow = open.flow;
                self.open.swap_remove(position);
                self.begin(packet, next, flow);
            }
        }
    }

    fn begin(&mut self, packet: &[u8], run: Run, flow: FiveTuple) {
        if run.last_flags & LAST_FLAGS == 0 {
            self.open.push(Open { flow, slot: self.used });
        }
        self.store(packet, Some(run));
    }

    fn store(&mut self, packet: &[u8], run: Option<Run>) {
        if self.used == self.slots.len() {
            self.slots.push(Slot::default());
        }
        if let Some(slot) = self.slots.get_mut(self.used) {
            slot.packet.clear();
            slot.packet.extend_from_slice(packet);
            slot.run = run;
            self.used += 1;
        }
    }
}

impl Slot {
    /// Appends the payload of `packet` if it continues the run: `Some(true)` if more may follow,
    /// `Some(false)` if it is the last. `None` if it does not, and nothing is changed.
    fn append(&mut self, packet: &[u8], next: &Run) -> Option<bool> {
        let run = self.run.as_mut()?;
        let payload = packet.get(usize::from(next.headers.payload_offset)..)?;
        let fits = self.packet.len() + payload.len() <= SUPER_PACKET_MAX;
        if !fits || payload.len() > run.size || !continues(&self.packet, run, packet, next) {
            return None;
        }
        if self.packet.capacity() < SUPER_PACKET_MAX {
            self.packet.reserve(SUPER_PACKET_MAX - self.packet.len());
        }
        self.packet.extend_from_slice(payload);
        run.count += 1;
        run.next_id = next.next_id;
        run.next_sequence = next.next_sequence;
        run.last_flags = next.last_flags;
        let is_full = run.headers.protocol == protocol::UDP && run.count == UDP_SEGMENTS_MAX;
        let is_last = payload.len() < run.size || next.last_flags & LAST_FLAGS != 0;
        Some(!is_last && !is_full)
    }
}

/// Whether `packet` differs from the packets of the run only where cutting makes it differ.
fn continues(first: &[u8], run: &Run, packet: &[u8], next: &Run) -> bool {
    let transport = usize::from(run.headers.transport_offset);
    let is_same_shape = run.headers.transport_offset == next.headers.transport_offset
        && run.headers.payload_offset == next.headers.payload_offset;
    if !is_same_shape {
        return false;
    }
    let same = |from: usize, to: usize| first.get(from..to) == packet.get(from..to);
    let ip = match run.headers.version {
        // All but total length, identification and checksum.
        IpVersion::V4 => {
            let id = next.next_id.wrapping_sub(1);
            id == run.next_id && same(0, 2) && same(6, 10) && same(12, transport)
        }
        // All but payload length.
        IpVersion::V6 => same(0, 4) && same(6, transport),
    };
    let ports = same(transport, transport + 4);
    if !ip || !ports {
        return false;
    }
    run.headers.protocol == protocol::UDP || continues_tcp(run, next, same)
}

fn continues_tcp(run: &Run, next: &Run, same: impl Fn(usize, usize) -> bool) -> bool {
    let transport = usize::from(run.headers.transport_offset);
    let options_end = usize::from(run.headers.payload_offset);
    let sequence = next.next_sequence.wrapping_sub(bytes::low32(next.size));
    // CWR is in the first segment only.
    let first_flags = run.headers.tcp_flags & !tcp_flag::CWR;
    let flags = next.headers.tcp_flags & !LAST_FLAGS;
    sequence == run.next_sequence
        && flags == first_flags
        // Acknowledgement, data offset and reserved bits.
        && same(transport + 8, transport + 13)
        // Window.
        && same(transport + 14, transport + 16)
        // Urgent pointer and options.
        && same(transport + 18, options_end)
}

/// Makes the first packet's headers those of the super-packet.
fn finish(packet: &mut [u8], run: &Run) -> Option<Meta> {
    let transport = usize::from(run.headers.transport_offset);
    let total = packet.len();
    match run.headers.version {
        IpVersion::V4 => {
            bytes::put(packet, 2, bytes::low16(total).to_be_bytes())?;
            bytes::put(packet, 10, [0, 0])?;
            let sum = checksum::full(packet.get(..transport)?);
            bytes::put(packet, 10, sum.to_be_bytes())?;
        }
        IpVersion::V6 => bytes::put(packet, 4, bytes::low16(total - 40).to_be_bytes())?,
    }
    let (headers, len) = (&run.headers, total - transport);
    let kind = match (headers.protocol, headers.version) {
        (protocol::UDP, _) => {
            bytes::put(packet, transport + 4, bytes::low16(len).to_be_bytes())?;
            GsoKind::Udp
        }
        (_, IpVersion::V4) => GsoKind::TcpV4,
        (_, IpVersion::V6) => GsoKind::TcpV6,
    };
    if headers.protocol == protocol::TCP {
        let flags = headers.tcp_flags | (run.last_flags & LAST_FLAGS);
        bytes::put(packet, transport + 13, [flags])?;
    }
    let offset = protocol::checksum_offset(headers.protocol)?;
    let pseudo = checksum::pseudo(headers.source, headers.destination, headers.protocol, len);
    bytes::put(packet, transport + offset, pseudo.to_be_bytes())?;
    Some(Meta {
        checksum: Checksum::Partial {
            start: headers.transport_offset,
            offset: bytes::low16(offset),
        },
        gso: Some(Gso { kind, segment_size: bytes::low16(run.size) }),
    })
}
