//! The DNS server of a node.
//!
//! It answers names of the cluster by the code that the plugin `dns` answers them with in the packets'
//! way, so both say the same; it gets what the plugin passes: queries over TCP, in fragments, and about
//! everything else, which it asks other servers ([`Upstreams`]), with a cache.
//!
//! Bounded: so many queries wait for other servers at once, so many connections are open, and one that is
//! silent is closed. Whoever asks the same at the same time waits for one answer.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod ask;
mod counters;
mod limit;
mod reply;
mod serve;
#[cfg(test)]
mod tests;
mod trace;
mod upstreams;
mod witness;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use weft_dns::{Outcome, Transport, Zones};
use weft_policy_sdk::Config;

pub use counters::{Counters, Latency};
pub use serve::{serve_tcp, serve_udp};
pub use trace::{Traced, code_name};
pub use upstreams::{RootCertStore, StubDomains, UpstreamError, Upstreams, servers_of};
pub use witness::{Found, Witness};

use ask::Asking;
use limit::Limits;

/// Queries that wait for other servers at once, over all clients.
const WAITING_MAX: usize = 1000;

/// Says which addresses may ask.
type Clients = dyn Fn(IpAddr) -> bool + Send + Sync;

/// See the crate.
pub struct Resolver {
    zones: RwLock<Zones>,
    upstreams: ArcSwap<Upstreams>,
    asking: Asking,
    waiting: Semaphore,
    clients: Box<Clients>,
    limits: Limits,
    counters: Counters,
    loops: AtomicBool,
    witness: OnceLock<Arc<dyn Witness>>,
}

impl Resolver {
    /// Knows nothing of the cluster yet and has nobody to ask. `clients` says which addresses may ask it.
    pub fn new(clients: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            zones: RwLock::default(),
            upstreams: ArcSwap::from_pointee(Upstreams::none()),
            asking: Asking::default(),
            waiting: Semaphore::new(WAITING_MAX),
            clients: Box::new(clients),
            limits: Limits::new(),
            counters: Counters::default(),
            loops: AtomicBool::new(false),
            witness: OnceLock::new(),
        })
    }

    /// Takes what the plugin is configured with: everything, or a change.
    ///
    /// # Errors
    /// As [`Zones::configure`].
    pub fn configure(&self, config: Config<'_>) -> Result<(), String> {
        self.zones.write().configure(config)
    }

    /// Asks these from now on; what the former ones answered is forgotten.
    pub fn set_upstreams(&self, upstreams: Upstreams) {
        self.loops.store(false, Ordering::Relaxed);
        self.asking.clear();
        self.upstreams.store(Arc::new(upstreams));
    }

    /// Asks the servers something that they should not ask back; true if they did. Whoever does so must not
    /// be asked: each query would go round until it is given up.
    pub async fn loops(&self) -> bool {
        let upstreams = self.upstreams.load_full();
        upstreams.probe().await;
        self.loops.load(Ordering::Relaxed)
    }

    pub(crate) fn note_loop(&self) {
        self.loops.store(true, Ordering::Relaxed);
    }

    /// Counts of queries.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Answers a client's message; `None`: it gets no answer.
    pub async fn answer(
        &self,
        message: &[u8],
        transport: Transport,
        client: IpAddr,
    ) -> Option<Vec<u8>> {
        if transport == Transport::Tcp && self.is_over_limit(client) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return match Zones::refuse(message) {
                Outcome::Reply(reply) => Some(reply),
                Outcome::Elsewhere(_) | Outcome::Nothing => None,
            };
        }
        let reply = self.find_reply(message, transport, client).await?;
        self.release(message, reply, transport, client).await
    }

    async fn find_reply(
        &self,
        message: &[u8],
        transport: Transport,
        client: IpAddr,
    ) -> Option<Vec<u8>> {
        match self.look_up(message, transport, Some(client)) {
            Outcome::Nothing => None,
            Outcome::Reply(reply) => Some(reply),
            Outcome::Elsewhere(beyond) => self.ask(message, &beyond, transport).await,
        }
    }

    /// What the cluster has.
    pub(crate) fn look_up(
        &self,
        message: &[u8],
        transport: Transport,
        client: Option<IpAddr>,
    ) -> Outcome {
        let outcome = self.zones.read().answer(message, transport, client, rand::random());
        if matches!(outcome, Outcome::Reply(_)) {
            self.counters.cluster.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn is_over_limit(&self, client: IpAddr) -> bool {
        let limit = self.zones.read().client_limit();
        limit.is_some_and(|limit| self.limits.is_over(limit, client))
    }

    fn may_ask(&self, client: IpAddr) -> bool {
        let may = (self.clients)(client);
        if !may {
            self.counters.strangers.fetch_add(1, Ordering::Relaxed);
        }
        may
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("counters", &self.counters).finish_non_exhaustive()
    }
}
