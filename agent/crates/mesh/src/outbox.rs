//! What the mesh wants to send or tell on its own account, waiting to be polled.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use weft_model::PeerId;

/// Most datagrams that wait; a flood of handshakes cannot take more memory than this.
const TRANSMITS_MAX: usize = 8192;
/// Most events that wait; the oldest go first.
const EVENTS_MAX: usize = 1024;

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Destination. IPv4 addresses are never in IPv6-mapped form.
    pub to: SocketAddr,
    /// The UDP payload.
    pub bytes: Vec<u8>,
}

/// Something an operator may care about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A handshake is complete and confirmed: packets flow under new keys.
    HandshakeCompleted {
        /// With whom.
        peer: PeerId,
        /// This node sent the initiation.
        initiator: bool,
    },
    /// Attempts were given up for lack of an answer; traffic to the peer starts them again.
    HandshakeTimedOut {
        /// With whom.
        peer: PeerId,
        /// Packets dropped for lack of a session since the last one was made.
        dropped: usize,
    },
    /// An authenticated datagram of the peer came from a new address, which is used from here on.
    EndpointChanged {
        /// Who moved.
        peer: PeerId,
        /// The address before.
        from: Option<SocketAddr>,
        /// The new address.
        to: SocketAddr,
    },
}

/// A bounded queue whose emptiness is known without taking the lock.
#[derive(Debug)]
struct Bounded<T> {
    items: Mutex<VecDeque<T>>,
    len: AtomicUsize,
}

impl<T> Bounded<T> {
    fn new() -> Self {
        Self { items: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0) }
    }

    fn with<R>(&self, change: impl FnOnce(&mut VecDeque<T>) -> R) -> R {
        let mut items = self.items.lock();
        let result = change(&mut items);
        self.len.store(items.len(), Ordering::Release);
        result
    }

    fn pop(&self) -> Option<T> {
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.with(VecDeque::pop_front)
    }
}

/// Datagrams and events that wait to be polled. Its locks are leaves: nothing is called while
/// one is held.
#[derive(Debug)]
pub(crate) struct Outbox {
    transmits: Bounded<Transmit>,
    events: Bounded<Event>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { transmits: Bounded::new(), events: Bounded::new() }
    }

    /// Queues a datagram; false if the queue is full and the datagram is gone.
    pub(crate) fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> bool {
        self.transmits.with(|items| {
            let room = items.len() < TRANSMITS_MAX;
            if room {
                items.push_back(Transmit { to, bytes });
            }
            room
        })
    }

    pub(crate) fn tell(&self, event: Event) {
        self.events.with(|items| {
            if items.len() >= EVENTS_MAX {
                items.pop_front();
            }
            items.push_back(event);
        });
    }

    pub(crate) fn poll_transmit(&self) -> Option<Transmit> {
        self.transmits.pop()
    }

    pub(crate) fn poll_event(&self) -> Option<Event> {
        self.events.pop()
    }
}
