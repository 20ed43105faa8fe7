//! The fabric as the hub sees it: one lock around everything that changes, and every change ends in
//! a new snapshot if it makes a difference. Calls block on the disk: not for an async thread.

mod error;
mod explain;
mod extent;
mod listing;
mod membership;
mod merge;
mod names;
mod plugins;
mod policies;
mod report;
mod services;
mod state;
mod status;
mod trial;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use time::OffsetDateTime;
use tokio::sync::Notify;
use weft_model::{Cluster, Generation, NodeName, Pod, PodName, ServiceName, SharedMap, Snapshot};

pub(crate) use error::FabricError;

use self::extent::{ChangedEndpoints, Extent};
use self::merge::{merge, merge_endpoints};
use self::state::State;
use crate::asking::Asking;
use crate::ca::{Ca, CaError};
use crate::config::HubConfig;
use crate::dns;
use crate::history::{History, Member};
use crate::lease::Allocator;
use crate::source::Problem;
use crate::source::objects::Objects;
use crate::store::{Change, Store, StoreError, Table};

/// Generations that are reserved at once: one write to disk for so many changes.
const GENERATION_BLOCK: u64 = 1024;
const GENERATION_BOUND: &str = "generation";

/// See the module.
pub(crate) struct Fabric {
    cluster: Cluster,
    allow_external_ips: bool,
    /// The Service that is asked for names, if nodes answer any.
    names: Option<dns::Stand>,
    certificate_ttl: Duration,
    ca: Ca,
    store: Arc<Store>,
    leases: Allocator<Arc<Store>>,
    history: History,
    state: Mutex<State>,
    /// Held by who changes plugins: one change at a time is put to the nodes.
    changing: tokio::sync::Mutex<()>,
    /// A node has reported or left.
    heard: Notify,
    asking: Asking,
}

/// Why the hub cannot take up its state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "node {node} holds {subnet}, which is in none of the pod CIDRs: start with the --pod-cidr it is from, and take such nodes out before you change it (`weft node remove`)"
    )]
    Stray { node: NodeName, subnet: IpNet },
    #[error("{kind} CIDR {cidr} contains address {address} of node {node}: choose another range")]
    OfNode { kind: &'static str, cidr: IpNet, address: IpAddr, node: NodeName },
}

/// Pods of a node whose subnet is in no CIDR would be cut off from the others' tables, and a node whose
/// own address is in one from everybody.
fn check_ranges(state: &State, cluster: &Cluster) -> Result<(), OpenError> {
    let pods = &cluster.pod_cidrs;
    for (node, joined) in &state.nodes {
        let stray = joined.subnets.iter().find(|s| !pods.iter().any(|r| r.contains(*s)));
        if let Some(subnet) = stray {
            return Err(OpenError::Stray { node: node.clone(), subnet: *subnet });
        }
        for address in &joined.reported.addresses {
            if let Some((kind, cidr)) = inside(cluster, *address) {
                let (address, node) = (*address, node.clone());
                return Err(OpenError::OfNode { kind, cidr, address, node });
            }
        }
    }
    Ok(())
}

/// The range of the fabric's that an address is in, and what it is for.
fn inside(cluster: &Cluster, address: IpAddr) -> Option<(&'static str, IpNet)> {
    let pods = cluster.pod_cidrs.iter().map(|c| ("pod", *c));
    let mut all = pods.chain(cluster.service_cidrs.iter().map(|c| ("service", *c)));
    all.find(|(_, cidr)| cidr.contains(&address))
}

impl Fabric {
    /// Takes up what is in the state directory.
    pub(crate) fn open(config: &HubConfig) -> Result<Self, OpenError> {
        let ca = Ca::open(&config.state, OffsetDateTime::now_utc())?;
        let store = Arc::new(Store::open(&config.state)?);
        let cluster = config.cluster();
        let ranges = cluster.pod_cidrs.iter().map(|c| (*c, config.node_prefix(*c))).collect();
        let leases = Allocator::new(store.clone(), ranges, config.quarantine);
        let mut state = State::load(&store, &leases)?;
        check_ranges(&state, &cluster)?;
        let listen = config.listen.ip();
        state.own_addresses.extend((!listen.is_unspecified()).then_some(listen));
        let reserved = read_bound(&store)?;
        state.generation_bound = reserved;
        let mut snapshot = Snapshot::empty(cluster.clone());
        snapshot.generation = Generation(reserved);
        let fabric = Self {
            names: cluster
                .dns
                .as_ref()
                .map(|d| dns::Stand::new(&d.service, &cluster.service_cidrs)),
            cluster,
            allow_external_ips: config.allow_external_ips,
            certificate_ttl: config.certificate_ttl,
            ca,
            store,
            leases,
            history: History::new(snapshot, rand::random()),
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            heard: Notify::new(),
            asking: Asking::default(),
        };
        fabric.publish(&mut fabric.state(), &Extent::Everything)?;
        Ok(fabric)
    }

    /// The authority.
    pub(crate) fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Where snapshots come from.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// For questions to nodes.
    pub(crate) fn asking(&self) -> &Asking {
        &self.asking
    }

    /// Takes note of an address that a node has reached the hub at.
    pub(crate) fn reached_at(&self, address: IpAddr) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.own_addresses.insert(address) {
            self.publish(&mut state, &Extent::Everything)?;
        }
        Ok(())
    }

    /// Takes what the source says now.
    pub(crate) fn set_source(&self, mut source: Objects) -> Result<(), StoreError> {
        if let Some(names) = &self.names {
            names.stand_in(&mut source);
        }
        let mut state = self.state();
        let news = source.problems.iter().filter(|p| !state.source.problems.contains(p));
        news.for_each(warn);
        let extent = Extent::of_source(&state.source, &source);
        state.set_source(source);
        let gone = self.take_out_deleted(&mut state)?;
        let extent = if gone { Some(Extent::Everything) } else { extent };
        extent.map_or(Ok(()), |extent| self.publish(&mut state, &extent))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made in one piece; a panic in between leaves nothing half-done that the
        // next publish would not put right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now() -> i64 {
        OffsetDateTime::now_utc().unix_timestamp()
    }

    /// Publishes the state if it says anything new.
    fn publish(&self, state: &mut State, extent: &Extent) -> Result<(), StoreError> {
        // First: who is removed gets nothing more.
        self.history.set_members(members(state));
        state.forget_departed();
        // On disk before anybody hears of it.
        state.keep_pods(&self.store, extent.pods())?;
        let before = self.history.newest().snapshot;
        let mut next = match extent {
            Extent::Everything => self.make_everything(state, &before)?,
            Extent::Endpoints(changed) => self.make_endpoints(state, &before, changed),
        };
        let first = before.generation.0 == state.generation_bound;
        let mut delta = before.delta_to(&next);
        if first || !delta.is_empty() {
            next.generation = self.next_generation(state, before.generation)?;
            delta.to = next.generation;
            tracing::debug!(generation = next.generation.0, "snapshot");
            self.history.publish(next, delta);
        }
        Ok(())
    }

    fn make_everything(
        &self,
        state: &mut State,
        before: &Snapshot,
    ) -> Result<Snapshot, StoreError> {
        let mut merged = merge(&self.cluster, self.allow_external_ips, state);
        merged.misfits.iter().filter(|p| !state.misfits.contains(p)).for_each(warn);
        warn_of_services(&state.service_problems, &merged.service_problems);
        state.misfits = merged.misfits;
        state.service_problems = merged.service_problems;
        state.static_peers = merged.static_peers;
        state.keep_policies(&self.store, &mut merged.policies, &merged.unread_policies)?;
        state.pending = merged.pending;
        // On disk before anybody hears of it: after a kill nobody else gets the same.
        state.save_allocations(&self.store, merged.allocations)?;
        let pods = shared(&before.pods, &merged.pods);
        let services = shared(&before.services, &merged.services.into_iter().map(arc).collect());
        Ok(Snapshot {
            generation: before.generation.next(),
            cluster: self.standing_in(state, before, &services, &pods),
            nodes: merged.nodes,
            pods,
            plugins: merged.plugins,
            services,
            named_services: shared(
                &before.named_services,
                &merged.named_services.into_iter().map(arc).collect(),
            ),
            namespaces: shared(&before.namespaces, &merged.namespaces),
            policies: shared(&before.policies, &merged.policies),
        })
    }

    fn make_endpoints(
        &self,
        state: &mut State,
        before: &Snapshot,
        changed: &ChangedEndpoints,
    ) -> Snapshot {
        let (cluster, external_ips) = (&self.cluster, self.allow_external_ips);
        let merged = merge_endpoints(cluster, external_ips, state, before, changed);
        warn_of_services(&state.service_problems, &merged.problems);
        for name in merged.services.keys() {
            state.service_problems.remove(name);
        }
        let problems = merged.problems.into_iter().filter(|(_, problems)| !problems.is_empty());
        state.service_problems.extend(problems);
        let mut next = Snapshot { generation: before.generation.next(), ..before.clone() };
        for (name, pod) in merged.pods {
            replace(&mut next.pods, name, pod);
        }
        for (name, service) in merged.services {
            replace(&mut next.services, name, service.map(Arc::new));
        }
        for (name, service) in merged.named_services {
            replace(&mut next.named_services, name, service.map(Arc::new));
        }
        for (name, namespace) in merged.namespaces {
            replace(&mut next.namespaces, name, namespace);
        }
        next.cluster = self.standing_in(state, before, &next.services, &next.pods);
        next
    }

    fn standing_in(
        &self,
        state: &State,
        before: &Snapshot,
        services: &SharedMap<ServiceName, Arc<weft_model::Service>>,
        pods: &SharedMap<PodName, Arc<Pod>>,
    ) -> Cluster {
        let dns = self.cluster.dns.as_ref();
        let before = before.cluster.dns.as_ref();
        let dns = dns.map(|dns| dns::standing_in(dns, before, &state.source, services, pods));
        Cluster { dns, ..self.cluster.clone() }
    }

    /// Rises over restarts too, so that no table in force anywhere is newer than ours.
    fn next_generation(&self, state: &mut State, at: Generation) -> Result<Generation, StoreError> {
        let next = at.next();
        if next.0 >= state.generation_bound {
            let bound = next.0.saturating_add(GENERATION_BLOCK);
            let bytes = bound.to_be_bytes();
            self.store.write(&[Change::Put(Table::Meta, GENERATION_BOUND, &bytes)])?;
            state.generation_bound = bound;
        }
        Ok(next)
    }
}

fn members(state: &State) -> BTreeMap<weft_model::NodeName, Member> {
    let member = |r: &state::Record| Member { incarnation: r.incarnation, key_epoch: r.key_epoch };
    state.nodes.iter().map(|(name, joined)| (name.clone(), member(&joined.record))).collect()
}

fn read_bound(store: &Store) -> Result<u64, StoreError> {
    let Some(bytes) = store.get(Table::Meta, GENERATION_BOUND)? else { return Ok(0) };
    let damaged = || StoreError::Damaged { table: "meta", key: GENERATION_BOUND.to_owned() };
    let bytes = bytes.try_into().map_err(|_| damaged())?;
    Ok(u64::from_be_bytes(bytes))
}

fn warn(problem: &Problem) {
    let Problem { file, line, reason } = problem;
    tracing::warn!(file = %file.display(), line, reason, "manifest");
}

fn warn_of_services(
    before: &BTreeMap<ServiceName, Vec<Problem>>,
    now: &BTreeMap<ServiceName, Vec<Problem>>,
) {
    for (name, problems) in now {
        let known = before.get(name).map(Vec::as_slice).unwrap_or_default();
        problems.iter().filter(|p| !known.contains(p)).for_each(warn);
    }
}

fn arc<K, V>((key, value): (K, V)) -> (K, Arc<V>) {
    (key, Arc::new(value))
}

/// What did not change is what was there before.
fn shared<K: Ord + Clone, V: Eq>(
    before: &SharedMap<K, Arc<V>>,
    now: &SharedMap<K, Arc<V>>,
) -> SharedMap<K, Arc<V>> {
    let mut next = before.clone();
    next.become_like(now);
    next
}

fn replace<K: Ord + Clone, V: Eq>(map: &mut SharedMap<K, Arc<V>>, key: K, value: Option<Arc<V>>) {
    match value {
        // What did not change is what was there before.
        Some(value) if map.get(&key) == Some(&value) => {}
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
