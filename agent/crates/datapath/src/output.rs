//! Where packets leave a worker: the TUN queue and, encapsulated, the UDP socket.
//!
//! A device or socket that takes nothing at the moment costs the packet and a count, never a wait.

use std::io::IoSlice;
use std::sync::Arc;

use weft_mesh::{Encapsulated, Mesh, Packets};
use weft_model::{DropReason, PeerId, Timestamp};
use weft_netio::{QueueError, TunQueue, UdpSocket};
use weft_packet::{Headers, Meta, Segments, fragment_ipv4};
use weft_pipeline::{Action, AnswerTo, Pipeline, Plugin};

use crate::counters::Counters;
use crate::outbox::{Outbox, Run};
use crate::vnet;

/// Room for one segment: no MTU is larger.
const SEGMENT_MAX: usize = 65_535;

pub(crate) struct Output {
    pub(crate) tun: Option<TunQueue>,
    pub(crate) udp: Option<UdpSocket>,
    /// What the TUN said last, for the loop to act on.
    pub(crate) tun_error: Option<QueueError>,
    mesh: Arc<Mesh>,
    counters: Arc<Counters>,
    outbox: Outbox,
    segment: Vec<u8>,
    fragment: Vec<u8>,
}

impl Output {
    pub(crate) fn new(mesh: Arc<Mesh>, counters: Arc<Counters>) -> Self {
        let segment = vec![0; SEGMENT_MAX];
        let outbox = Outbox::default();
        Self {
            tun: None,
            udp: None,
            tun_error: None,
            mesh,
            counters,
            outbox,
            segment,
            fragment: Vec::new(),
        }
    }

    /// Does what the pipeline decided.
    pub(crate) fn perform<P: Plugin>(
        &mut self,
        action: Action,
        (packet, meta): (&[u8], &Meta),
        pipeline: &Pipeline<P>,
        now: Timestamp,
    ) {
        let (answer, mtu) = (pipeline.answer(), pipeline.mtu());
        match action {
            Action::ToTun => self.write_tun(packet, meta),
            Action::ToPeer(peer) => self.send_to_peer(peer, packet, meta, now),
            Action::FragmentToPeer(peer) => self.send_fragments(peer, (packet, meta), mtu, now),
            Action::Drop(reason) => self.counters.dropped(reason, vnet::segments(packet, meta)),
            Action::Answer { to, dropped } => {
                if let Some(reason) = dropped {
                    self.counters.dropped(reason, vnet::segments(packet, meta));
                }
                match to {
                    AnswerTo::Tun => self.write_tun(answer, &Meta::default()),
                    AnswerTo::Peer(peer) => {
                        self.send_to_peer(peer, answer, &Meta::default(), now);
                    }
                }
            }
        }
    }

    /// Sends what lies in the outbox.
    pub(crate) fn flush(&mut self) {
        let Self { outbox, udp, counters, .. } = self;
        outbox.flush(&mut |run| send(udp.as_ref(), &run, counters));
    }

    /// Sends what the mesh has to say on its own: handshakes, keepalives, packets that waited.
    pub(crate) fn transmit(&mut self) {
        while let Some(transmit) = self.mesh.poll_transmit() {
            let size = transmit.bytes.len();
            let run = Run { to: transmit.to, bytes: &transmit.bytes, size, count: 1 };
            send(self.udp.as_ref(), &run, &self.counters);
        }
    }

    fn write_tun(&mut self, packet: &[u8], meta: &Meta) {
        let segments = vnet::segments(packet, meta);
        let Some(tun) = &self.tun else {
            return self.counters.dropped(DropReason::NotReady, segments);
        };
        match tun.write(&vnet::header(packet, meta), &[IoSlice::new(packet)]) {
            Ok(()) => self.counters.tun_out.add(segments, packet.len()),
            Err(error) => {
                self.counters.dropped(DropReason::WriteFailed, segments);
                self.tun_error = Some(error);
            }
        }
    }

    fn send_to_peer(&mut self, peer: PeerId, packet: &[u8], meta: &Meta, now: Timestamp) {
        let Some(segments) = segments(packet, meta) else {
            return self.counters.dropped(DropReason::Malformed, 1);
        };
        self.encapsulate(peer, &segments, now);
    }

    /// IPv4 without DF, larger than the tunnel carries: rare, so that a second parse is fine.
    fn send_fragments(
        &mut self,
        peer: PeerId,
        (packet, meta): (&[u8], &Meta),
        mtu: u16,
        now: Timestamp,
    ) {
        self.each_segment(packet, meta, |output, segment| {
            let complete = Meta::default();
            let mut scratch = std::mem::take(&mut output.fragment);
            let mut emit = |fragment: &[u8]| output.encapsulate(peer, &fragment, now);
            let cut = Headers::parse(segment, &complete).is_ok_and(|headers| {
                fragment_ipv4(segment, &complete, &headers, mtu, &mut scratch, &mut emit).is_ok()
            });
            output.fragment = scratch;
            if !cut {
                output.counters.dropped(DropReason::TooBig, 1);
            }
        });
    }

    fn each_segment(&mut self, packet: &[u8], meta: &Meta, mut emit: impl FnMut(&mut Self, &[u8])) {
        let Some(segments) = segments(packet, meta) else {
            return self.counters.dropped(DropReason::Malformed, 1);
        };
        let mut buffer = std::mem::take(&mut self.segment);
        for k in 0..segments.count() {
            let len = segments.write(k, &mut buffer);
            emit(self, buffer.get(..len).unwrap_or_default());
        }
        self.segment = buffer;
    }

    /// Packets are cut and sealed in the outbox itself: this is the only copy on their way out.
    fn encapsulate(&mut self, peer: PeerId, packets: &impl Packets, now: Timestamp) {
        let Self { outbox, udp, mesh, counters, .. } = self;
        let room = outbox.room(Mesh::room_for(packets));
        match mesh.encapsulate(peer, packets, room, now) {
            Encapsulated::Datagrams { to, len, size } => {
                outbox.added(to, (len, size), &mut |run| send(udp.as_ref(), &run, counters));
            }
            // The mesh counts what it drops itself.
            Encapsulated::Queued | Encapsulated::Dropped(_) => {}
        }
    }
}

/// What a packet stands for, as the packets that leave.
fn segments<'a>(packet: &'a [u8], meta: &Meta) -> Option<Segments<'a>> {
    let headers = Headers::parse(packet, meta).ok()?;
    Segments::new(packet, meta, &headers).ok()
}

/// Counts what the kernel took; what it did not take, because its buffer is full or the network
/// refuses, is dropped.
fn send(udp: Option<&UdpSocket>, run: &Run<'_>, counters: &Counters) {
    let Some(udp) = udp else { return counters.dropped(DropReason::NotReady, run.count) };
    let size = u16::try_from(run.size).ok().filter(|_| run.count > 1);
    let sent = match udp.send(run.to, run.bytes, size) {
        Ok(sent) => sent,
        Err(error) => {
            tracing::trace!(%error, to = %run.to, "datagrams not sent");
            0
        }
    };
    let count = if sent == run.bytes.len() { run.count } else { sent / run.size.max(1) };
    counters.mesh_out.add(count, sent);
    counters.dropped(DropReason::WriteFailed, run.count.saturating_sub(count));
}
