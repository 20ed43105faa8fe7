//! How the control side and a worker reach each other: updates in, events out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::{mpsc, oneshot};
use weft_netio::{TunQueue, UdpSocket, Waker};
use weft_pipeline::Routes;
use weft_wasm_host::PluginInstance;

/// What a worker is to use from the next packet on; absent parts stay.
#[derive(Default)]
pub(crate) struct Update {
    /// Routes and the MTU of the tunnel.
    pub(crate) routes: Option<(Arc<Routes>, u16)>,
    /// The whole new set.
    pub(crate) plugins: Option<Vec<PluginInstance>>,
    pub(crate) tun: Option<TunEnd>,
    pub(crate) udp: Option<UdpSocket>,
    /// For one of the plugins in force.
    pub(crate) change: Option<Arc<PluginChange>>,
}

/// A change of a plugin's configuration, for the instances of all workers.
pub(crate) struct PluginChange {
    pub(crate) plugin: &'static str,
    pub(crate) config: Vec<u8>,
    pub(crate) revision: u64,
    /// Set by a worker whose instance did not take it.
    pub(crate) failed: AtomicBool,
}

/// A worker's end of a TUN device.
pub(crate) struct TunEnd {
    pub(crate) queue: TunQueue,
    /// Number of the device among those opened one after another.
    pub(crate) device: u64,
    /// The device takes UDP super-packets.
    pub(crate) merge_udp: bool,
}

/// What a worker tells the control side; rare.
#[derive(Debug)]
pub(crate) enum Event {
    /// The interface was deleted under the worker.
    TunDeleted { device: u64 },
    /// The interface was set down under the worker.
    TunDown,
    /// The worker cannot go on, or panicked: the process must end.
    Stopped { worker: usize, reason: String },
}

/// A worker as the control side sees it.
pub(crate) struct WorkerLink {
    updates: Sender<(Update, oneshot::Sender<()>)>,
    waker: Waker,
}

/// The worker's end.
pub(crate) struct ControlLink {
    updates: Receiver<(Update, oneshot::Sender<()>)>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

/// The worker has ended and will use nothing any more.
#[derive(Debug, thiserror::Error)]
#[error("a worker has ended: the datapath is about to stop")]
pub(crate) struct WorkerGone;

/// Makes both ends.
pub(crate) fn link(
    waker: Waker,
    events: mpsc::UnboundedSender<Event>,
) -> (WorkerLink, ControlLink) {
    let (sender, receiver) = channel();
    (WorkerLink { updates: sender, waker }, ControlLink { updates: receiver, events })
}

impl WorkerLink {
    /// Hands over `update`; the answer comes when the worker uses it.
    pub(crate) fn send(&self, update: Update) -> Result<oneshot::Receiver<()>, WorkerGone> {
        let (done, in_use) = oneshot::channel();
        self.updates.send((update, done)).map_err(|_| WorkerGone)?;
        self.waker.wake();
        Ok(in_use)
    }
}

impl ControlLink {
    /// Takes the updates that wait, in order. `apply` must put each to use before it returns.
    pub(crate) fn take(&self, mut apply: impl FnMut(Update)) {
        while let Ok((update, done)) = self.updates.try_recv() {
            apply(update);
            // Nobody waits any more: nothing is lost by that.
            let _ = done.send(());
        }
    }

    /// Tells the control side; if it is gone, the process is ending.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
