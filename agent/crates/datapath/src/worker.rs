//! The loop of one worker: what happens to every packet of the node, in order.
//!
//! A worker owns a queue of the TUN device, a UDP socket, a pipeline with plugin instances of its
//! own, and its buffers; a packet never changes threads. Each turn takes a bounded batch from the
//! interface and one from the network, so that neither starves the other, and then whatever is due.
//! Nothing here waits but the poller, and nothing allocates once the buffers have grown.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_mesh::Received;
use weft_model::{DropReason, PeerId, Timestamp};
use weft_netio::{Events, Poller, QueueError, Readiness, TunQueue, clock};
use weft_packet::Merger;
use weft_pipeline::Pipeline;
use weft_wasm_host::{ConfigureKind, PluginInstance};

use crate::counters::Counters;
use crate::link::{ControlLink, Event, Update};
use crate::output::Output;
use crate::placement::{Placement, Turn};
use crate::shared::Shared;
use crate::vnet;

/// Super-packets taken from the interface in one turn: at most 2 MiB.
const TUN_BATCH: usize = 32;
/// Receives in one turn: as many single datagrams as a super-packet is made of, where the underlay
/// does not bring them merged. What one turn brings is merged together.
const UDP_BATCH: usize = 64;
/// Bytes after which a turn ends, where it does: few enough to stay in the second-level cache.
const UDP_BATCH_BYTES: usize = 256 * 1024;
/// Longest sleep of worker 0, which drives the timers: another worker may have made one earlier.
const TICK: Duration = Duration::from_millis(100);
/// Shortest time between two reports that the interface is down.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// A super-packet and its virtio header.
const BUFFER_LEN: usize = 65_536 + 64;

const TUN: u64 = 0;
const UDP: u64 = 1;

pub(crate) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    control: ControlLink,
    poller: Poller,
    pipeline: Pipeline<PluginInstance>,
    merger: Merger,
    output: Output,
    /// Which of the devices opened one after another `output` has a queue of.
    device: u64,
    /// When the interface was last reported to be down.
    reported: Timestamp,
    placement: Placement,
    /// What was read from the TUN, or received and decrypted in place.
    buffer: Vec<u8>,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        control: ControlLink,
        poller: Poller,
    ) -> Self {
        Self {
            index,
            control,
            poller,
            pipeline: shared.new_pipeline(),
            merger: Merger::new(false),
            device: 0,
            reported: Timestamp::ZERO,
            output: Output::new(Arc::clone(&shared.mesh), Arc::clone(&counters)),
            placement: Placement::default(),
            buffer: vec![0; BUFFER_LEN],
            counters,
            shared,
        }
    }

    /// Turns until the poller fails, which ends the process.
    pub(crate) fn run(&mut self) -> io::Error {
        let mut events = Events::default();
        loop {
            if let Err(error) = self.poller.wait(&mut events, self.sleep()) {
                return error;
            }
            if events.woken() {
                self.take_updates();
            }
            let ready = |token| events.iter().any(|e| e.token == token && e.readable);
            let now = clock::now();
            let mut turn = Turn { now, ended: now, packets: 0, bytes: 0, sender: None };
            if ready(TUN) {
                self.read_tun(&mut turn);
            }
            if ready(UDP) {
                self.read_network(&mut turn);
            }
            if self.index == 0 {
                self.shared.mesh.handle_timeout(now);
                self.pipeline.handle_timeout(now);
            }
            self.output.transmit();
            self.shared.flows.write_through();
            self.report_interface(now);
            turn.ended = clock::now();
            self.placement.turn(turn);
        }
    }

    /// Interface -> pipeline -> interface or network. A super-packet passes in one piece.
    fn read_tun(&mut self, turn: &mut Turn) {
        let now = turn.now;
        turn.sender = self.output.tun.as_ref().and_then(TunQueue::last_sender);
        for _ in 0..TUN_BATCH {
            let Some(tun) = &self.output.tun else { break };
            let (range, header) = match tun.read(&mut self.buffer) {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(error) => {
                    self.output.tun_error = Some(error);
                    break;
                }
            };
            let packet = self.buffer.get_mut(range).unwrap_or_default();
            turn.packets += 1;
            turn.bytes += packet.len();
            let Some(mut meta) = vnet::meta(&header) else {
                self.counters.dropped(DropReason::Malformed, 1);
                continue;
            };
            self.counters.tun_in.add(vnet::segments(packet, &meta), packet.len());
            let action = self.pipeline.handle_tun_input(packet, &mut meta, now);
            self.output.perform(action, (packet, &meta), &self.pipeline, now);
        }
        self.output.flush();
    }

    /// Network -> decapsulation -> merge -> pipeline -> interface.
    ///
    /// Packets of one peer are merged first, and the pipeline runs once for each merged packet.
    fn read_network(&mut self, turn: &mut Turn) {
        let now = turn.now;
        let mut merging = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        let shared = Arc::clone(&self.shared);
        let mut reception = shared.mesh.reception(now);
        let mut bytes = 0;
        for _ in 0..UDP_BATCH {
            if bytes >= UDP_BATCH_BYTES {
                break;
            }
            let Some(udp) = &self.output.udp else { break };
            let received = match udp.recv(&mut buffer) {
                Ok(Some(received)) => received,
                Ok(None) => break,
                Err(error) => {
                    // An earlier send came back as an ICMP error: nothing that a tunnel acts on.
                    tracing::trace!(%error, "receive failed");
                    break;
                }
            };
            let datagrams = received.len.div_ceil(received.segment_size.max(1));
            self.counters.mesh_in.add(datagrams, received.len);
            bytes += received.len;
            turn.packets += 1;
            for datagram in received.split(&mut buffer) {
                match reception.open(received.from, datagram) {
                    Received::Packet { peer, range } => {
                        if merging.is_some_and(|other| other != peer) {
                            self.deliver(merging, now);
                        }
                        merging = Some(peer);
                        self.merger.push(datagram.get(range).unwrap_or_default());
                    }
                    // The mesh counts what it drops itself.
                    Received::Nothing | Received::Dropped(_) => {}
                }
            }
        }
        drop(reception);
        turn.bytes += bytes;
        self.buffer = buffer;
        self.deliver(merging, now);
        self.output.flush();
    }

    /// Takes what was merged of one peer through the pipeline.
    fn deliver(&mut self, from: Option<PeerId>, now: Timestamp) {
        let Some(peer) = from else { return };
        let Self { merger, pipeline, output, .. } = self;
        merger.flush(&mut |packet, mut meta| {
            let action = pipeline.handle_network_input(peer, packet, &mut meta, now);
            output.perform(action, (packet, &meta), pipeline, now);
        });
    }

    /// How long the poller may wait: worker 0 drives the timers of all, the others have none.
    fn sleep(&self) -> Option<Duration> {
        if self.index != 0 {
            return None;
        }
        let due = [self.shared.mesh.poll_timeout(), self.pipeline.poll_timeout()];
        let first = due.into_iter().flatten().min();
        Some(first.map_or(TICK, |at| at.since(clock::now()).min(TICK)))
    }

    fn take_updates(&mut self) {
        let Self { control, poller, pipeline, merger, output, device, .. } = self;
        control.take(|update| {
            let Update { routes, plugins, tun, udp, change } = update;
            if let Some((routes, mtu)) = routes {
                pipeline.apply(routes, mtu);
            }
            if let Some(plugins) = plugins {
                // The control side never asks for more plugins than there are slots.
                if let Err(error) = pipeline.set_plugins(plugins) {
                    tracing::error!(%error, "the plugins in use stay");
                }
            }
            if let Some(change) = change {
                pipeline.change_plugin(change.plugin, |plugin| {
                    let kind = ConfigureKind::Delta;
                    if let Err(error) = plugin.configure(kind, &change.config, change.revision) {
                        tracing::warn!(%error, "a change of a plugin's configuration is not taken");
                        change.failed.store(true, Ordering::Relaxed);
                    }
                });
            }
            // A descriptor that is closed leaves the poller by itself.
            if let Some(tun) = tun {
                watch(poller, &tun.queue, TUN);
                // Empty between two turns.
                *merger = Merger::new(tun.merge_udp);
                output.tun_error = None;
                output.tun = Some(tun.queue);
                *device = tun.device;
            }
            if let Some(udp) = udp {
                watch(poller, &udp, UDP);
                output.udp = Some(udp);
            }
        });
    }

    /// A deleted interface is given up and reported, so that a new one comes; one that is down is
    /// reported.
    fn report_interface(&mut self, now: Timestamp) {
        let device = self.device;
        match self.output.tun_error.take() {
            Some(QueueError::Deleted) => {
                self.output.tun = None;
                self.control.tell(Event::TunDeleted { device });
            }
            Some(QueueError::Down) if now.since(self.reported) < REPORT_INTERVAL => {}
            Some(QueueError::Down) => {
                self.reported = now;
                self.control.tell(Event::TunDown);
            }
            Some(error) => tracing::trace!(%error, "interface refused a packet"),
            None => {}
        }
    }
}

fn watch(poller: &Poller, fd: &impl std::os::fd::AsFd, token: u64) {
    if let Err(error) = poller.add(fd, token, Readiness::Read) {
        tracing::error!(%error, "a descriptor cannot be polled");
    }
}
