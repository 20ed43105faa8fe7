//! What the agent knows, in one place: every task reads from here and puts its findings here.
//!
//! Nothing in this module waits or does I/O but for the small file of peer indices. A change wakes
//! whoever holds a [`Core::changes`] receiver.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::watch;
use weft_control::ToProto;
use weft_model::cni::{Delegation, Range};
use weft_model::{MacAddr, Mtu, NodeName, Pod, PodName, Snapshot, Timestamp};
use weft_proto::v1::{self, DatapathStatus, PluginStatus, ReportRequest, TranslatedFlows};
use weft_resolver::Resolver;

use crate::cni::Record;
use crate::config::AgentConfig;
use crate::drops::Drops;
use crate::durable;
use crate::keys::KeyFile;
use crate::learned::{Learned, Saved};
use crate::tables::{Domains, Known, Local, PeerIds, Tables};
use crate::uninstall::BRIDGE;

/// The interface that carries the mesh, and what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnderlayState {
    /// Its name.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// What peers send to.
    pub address: IpAddr,
    /// Every global address of the interface, that one first.
    pub addresses: Vec<IpAddr>,
    /// What is reached on its link: a prefix for each of those addresses.
    pub prefixes: Vec<IpNet>,
    /// Routers that the node's routes name.
    pub gateways: BTreeSet<IpAddr>,
}

/// Tables with the numbers that belong to them.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Rises with each change of the tables; of this process only.
    pub version: u64,
    /// Generation of the snapshot they were made from.
    pub generation: u64,
    /// What the datapath shall know.
    pub tables: Arc<Tables>,
}

/// What is in force on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Applied {
    /// [`Target::version`], 0 before the first.
    pub version: u64,
    /// [`Target::generation`], of the datapath.
    pub generation: u64,
    /// Generation of the snapshot that the host's own network was last put right for: node ports, routes. What
    /// could not be is among the problems.
    pub network: u64,
    /// False while there is no datapath.
    pub connected: bool,
    /// What it said of its plugins.
    pub plugins: Vec<PluginStatus>,
    /// Live flows that it has translated.
    pub translated: Vec<TranslatedFlows>,
}

/// Everything that is known; see [`Core::update`].
#[derive(Debug, Default)]
pub(crate) struct State {
    /// What the hub published last.
    pub snapshot: Option<Snapshot>,
    /// From the last update of the hub.
    pub resume: Vec<u8>,
    /// True once the node's network was looked at. Until then nothing is compiled or reported: half
    /// a truth would replace what the datapath and the peers still have from before a restart.
    pub looked: bool,
    /// Pods get what is for them straight from the fabric's interface.
    pub direct_delivery: bool,
    /// The mesh's interface.
    pub underlay: Option<UnderlayState>,
    /// Where the hub is.
    pub hub: Option<IpAddr>,
    /// The host's addresses on any interface.
    pub host_addresses: BTreeSet<IpAddr>,
    /// WireGuard keys in use, the one to prefer first.
    pub keys: Vec<KeyFile>,
    /// Attached pods by `network/container/ifname`.
    pub attachments: BTreeMap<String, Record>,
    /// What they were told when they asked for names.
    pub learned: Learned,
    /// One line for each thing an operator should look at, by who found it.
    pub problems: BTreeMap<&'static str, Vec<String>>,
    /// True while the hub's stream is open.
    pub hub_connected: bool,
    /// When the hub last told something, Unix seconds; 0 before it does.
    pub updated: i64,
    /// When the certificate expires, Unix seconds; 0 if there is none.
    pub certificate_expires: i64,
    peer_ids: PeerIds,
    target: Option<Target>,
}

/// The shared state of the agent.
#[derive(Debug)]
pub(crate) struct Core {
    /// What the agent was told.
    pub config: AgentConfig,
    /// Identity of the node.
    pub uid: String,
    /// Address of its VTEP.
    pub vtep_mac: MacAddr,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    applied: watch::Sender<Applied>,
    datapath_status: Mutex<Option<DatapathStatus>>,
    drops: Drops,
    /// What answers names on this node; none until it is made at the start.
    resolver: OnceLock<Arc<Resolver>>,
    serves_names: watch::Sender<bool>,
    leaving: AtomicBool,
}

impl Core {
    /// An agent that knows its configuration only.
    pub(crate) fn new(config: AgentConfig, uid: String, vtep_mac: MacAddr) -> Self {
        let peer_ids = durable::read(&config.state(PEER_IDS))
            .ok()
            .flatten()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        Self {
            config,
            uid,
            vtep_mac,
            state: Mutex::new(State { peer_ids, ..State::default() }),
            changes: watch::Sender::new(0),
            applied: watch::Sender::default(),
            datapath_status: Mutex::default(),
            drops: Drops::default(),
            resolver: OnceLock::new(),
            serves_names: watch::Sender::new(false),
            leaving: AtomicBool::new(false),
        }
    }

    /// What answers names, as soon as there is one.
    pub(crate) fn resolver(&self) -> Option<&Arc<Resolver>> {
        self.resolver.get()
    }

    /// Keeps what answers names; the first one stays.
    pub(crate) fn set_resolver(&self, resolver: Arc<Resolver>) {
        let _first = self.resolver.set(resolver);
    }

    /// Notes whether the resolver knows the cluster's names and is reached.
    pub(crate) fn set_serves_names(&self, serves: bool) {
        let serves = serves && !self.leaving.load(Ordering::Relaxed);
        self.serves_names.send_if_modified(|before| std::mem::replace(before, serves) != serves);
    }

    /// This agent ends soon: names are to be asked for elsewhere.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.set_serves_names(false);
    }

    /// Follows that.
    pub(crate) fn serves_names(&self) -> watch::Receiver<bool> {
        self.serves_names.subscribe()
    }

    /// Why pods of this node should wait; nothing once the fabric is in force here. A hub that is away is no
    /// reason, as nodes go on without it.
    pub(crate) fn unready(&self) -> Vec<&'static str> {
        let (known, names) = self.read(|state| {
            let snapshot = state.snapshot.as_ref();
            (snapshot.is_some(), snapshot.is_some_and(|s| s.cluster.dns.is_some()))
        });
        let applied = self.applied.borrow();
        let reasons = [
            (!known, "the hub has told nothing yet"),
            (!applied.connected, "no datapath"),
            (applied.version == 0, "no tables in force yet"),
            (known && applied.network == 0, "the host's network is not set up yet"),
            (names && !*self.serves_names.borrow(), "names are not served yet"),
        ];
        reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect()
    }

    /// Changes what is known, compiles the tables again, and wakes everybody if it made a
    /// difference to them.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.compile(&mut state);
        drop(state);
        self.poke();
        result
    }

    /// Looks at what is known.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    /// Notes what is wrong according to `who`; nothing ends it.
    pub(crate) fn set_problems(&self, who: &'static str, lines: Vec<String>) {
        let mut state = self.state.lock();
        let before = state.problems.get(who).map(Vec::as_slice).unwrap_or_default();
        if before == lines.as_slice() {
            return;
        }
        for line in lines.iter().filter(|l| !before.contains(l)) {
            tracing::warn!(who, "{line}");
        }
        if lines.is_empty() {
            tracing::info!(who, "no problem any more");
            state.problems.remove(who);
        } else {
            state.problems.insert(who, lines);
        }
    }

    /// Wakes everybody though nothing changed.
    pub(crate) fn poke(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notes what the datapath said of itself; `None` while it is away.
    pub(crate) fn set_datapath_status(&self, status: Option<DatapathStatus>) {
        *self.datapath_status.lock() = status;
    }

    /// What the datapath said of itself last.
    pub(crate) fn datapath_status(&self) -> Option<DatapathStatus> {
        self.datapath_status.lock().clone()
    }

    /// Connections that were dropped of late.
    pub(crate) fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Wakes at each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Follows what the datapath confirms.
    pub(crate) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// Notes what the datapath confirmed; receivers wake only if it differs.
    pub(crate) fn set_applied(&self, change: impl FnOnce(&mut Applied)) {
        self.applied.send_if_modified(|applied| {
            let before = applied.clone();
            change(applied);
            *applied != before
        });
    }

    /// The tables as they should be; `None` until enough is known.
    pub(crate) fn target(&self) -> Option<Target> {
        self.state.lock().target.clone()
    }

    /// Waits until the datapath uses the tables as they are at the time of the call; false if that
    /// takes longer than `limit`.
    pub(crate) async fn wait_applied(&self, limit: Duration) -> bool {
        let Some(version) = self.target().map(|t| t.version) else { return false };
        self.wait_version(version, limit).await
    }

    /// Waits until the datapath uses tables of this version or a later one; false if that takes longer than
    /// `limit`.
    pub(crate) async fn wait_version(&self, version: u64, limit: Duration) -> bool {
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|a| a.connected && a.version >= version);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Waits until the hub has told of a pod, if policies may be for it; not while the hub is away, when the
    /// pod stays closed. False if it takes longer than `limit`.
    pub(crate) async fn wait_known(&self, pod: &PodName, limit: Duration) -> bool {
        let known = |state: &State| !state.hub_connected || !state.is_unknown(pod);
        let mut changes = self.changes();
        let reached = changes.wait_for(|_| self.read(known));
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Takes what a pod is about to be told when it asks for names. Gives the version of the tables that have
    /// all that it knows, and whether it did not know some of this.
    pub(crate) fn learn(
        &self,
        attachment: &str,
        names: &[String],
        addresses: &[IpAddr],
        now: Timestamp,
        until: Timestamp,
    ) -> (u64, bool) {
        let mut state = self.state.lock();
        let is_new = state.learned.learn(attachment, names, addresses, now, until);
        if is_new {
            let version = self.compile_learned(&mut state);
            state.learned.set_version(attachment, version);
        }
        (state.learned.version(attachment), is_new)
    }

    /// Forgets what pods were told that does not hold any more.
    pub(crate) fn forget_learned(&self, now: Timestamp) {
        let mut state = self.state.lock();
        if state.learned.forget(now) {
            self.compile_learned(&mut state);
        }
    }

    /// What a pod has learned, as it has to be on disk.
    pub(crate) fn save_learned(&self, attachment: &str) -> Option<Saved> {
        self.state.lock().learned.save(attachment)
    }

    /// Compiles nothing but what pods have learned. Gives the version of the tables that have it.
    fn compile_learned(&self, state: &mut State) -> u64 {
        let known = state.known();
        let Some(target) = &mut state.target else { return 0 };
        if let Some(tables) = target.tables.learn(&known) {
            target.version += 1;
            target.tables = Arc::new(tables);
            self.poke();
        }
        target.version
    }

    fn compile(&self, state: &mut State) {
        let State { learned, attachments, .. } = &mut *state;
        learned.keep_only(|attachment| attachments.contains_key(attachment));
        let Some((snapshot, mtu)) = state.ready(&self.config) else { return };
        let names = snapshot.nodes.keys().filter(|n| **n != self.config.node_name);
        let mut ids = state.peer_ids.clone();
        if ids.assign(names.map(NodeName::as_str)) {
            self.save(&ids);
        }
        let pods = state
            .attachments
            .iter()
            .map(|(k, record)| (k.clone(), record.to_local_pod()))
            .collect();
        let mut addresses = state.host_addresses.clone();
        addresses.extend(state.gateways(&self.config).iter().map(IpNet::addr));
        let policed: Vec<_> = state
            .attachments
            .iter()
            .map(|(key, record)| {
                // A container that no pod stands behind.
                let unnamed = || PodName { namespace: String::new(), name: key.clone() };
                (record.pod_name().unwrap_or_else(unnamed), record.addresses())
            })
            .collect();
        let known = state.known();
        let local = Local {
            node: &self.config.node_name,
            interface: &self.config.interface,
            mtu,
            vtep_mac: self.vtep_mac,
            addresses: &addresses,
            keys: &state.keys,
            pods: &pods,
            policed: &policed,
            known: &known,
        };
        let tables =
            Tables::compile(snapshot, &local, &ids, state.target.as_ref().map(|t| &*t.tables));
        let generation = snapshot.generation.0;
        state.peer_ids = ids;
        state.target = Some(match state.target.take() {
            Some(old) if *old.tables == tables => Target { generation, ..old },
            old => Target {
                version: old.map_or(1, |t| t.version + 1),
                generation,
                tables: Arc::new(tables),
            },
        });
    }

    fn save(&self, ids: &PeerIds) {
        let saved = serde_json::to_vec(ids).map_err(std::io::Error::from).and_then(|bytes| {
            durable::write(&self.config.state(PEER_IDS), &bytes, durable::PRIVATE)
        });
        if let Err(error) = saved {
            tracing::warn!(%error, "indices of peers not kept: sessions start anew with the next start");
        }
    }

    /// What the hub is told of this node; `None` until the node's network is known.
    pub(crate) fn report(&self) -> Option<ReportRequest> {
        let applied = self.applied.borrow().clone();
        let state = self.state.lock();
        if !state.looked {
            return None;
        }
        let port = state.snapshot.as_ref().map_or(0, |s| s.cluster.port);
        let endpoint = state
            .underlay
            .as_ref()
            .filter(|_| port != 0)
            .map(|u| std::net::SocketAddr::new(u.address, port).to_string());
        let addresses = state.underlay.as_ref().map(|u| u.addresses.clone()).unwrap_or_default();
        Some(ReportRequest {
            endpoint: endpoint.unwrap_or_default(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            keys: state.keys.iter().map(|k| k.public.0.to_vec()).collect(),
            vtep_mac: self.vtep_mac.to_string(),
            pods: state.attachments.values().filter_map(|r| self.pod(r)).collect(),
            generation: applied.generation.min(applied.network),
            plugins: applied.plugins.into_iter().map(short).collect(),
            translated: applied.translated,
            problems: state.problems.get(LISTENERS).cloned().unwrap_or_default(),
        })
    }

    fn pod(&self, record: &Record) -> Option<v1::Pod> {
        let pod = Pod {
            name: record.pod_name()?,
            node: Some(self.config.node_name.clone()),
            addresses: record.addresses(),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            finished: false,
            own_search: false,
        };
        Some(pod.to_proto())
    }
}

/// What the hub has use for.
fn short(plugin: PluginStatus) -> PluginStatus {
    let none = HashMap::new;
    PluginStatus {
        drops_by_number: none(),
        would_drop_by_number: none(),
        replies_by_number: none(),
        ..plugin
    }
}

/// Who finds what is told to whoever looks at the fabric, since it concerns Services, beside to those who
/// look at the node.
pub(crate) const LISTENERS: &str = "listeners";

const PEER_IDS: &str = "peers.json";

impl State {
    /// The tables as they should be.
    pub(crate) fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// What pods know of names, by each of their addresses.
    fn known(&self) -> BTreeMap<IpAddr, Arc<Known>> {
        let known = self.attachments.iter().filter_map(|(key, record)| {
            self.learned.known(key).map(|known| (record.addresses(), known))
        });
        let each = known.flat_map(|(addresses, known)| {
            addresses.into_iter().map(move |address| (address, Arc::clone(known)))
        });
        each.collect()
    }

    /// Hosts that rules for the pod at this address name; `None` if there are none.
    pub(crate) fn domains_of(&self, pod: IpAddr) -> Option<&Domains> {
        self.target.as_ref()?.tables.policies().domains_of(pod).map(|domains| &**domains)
    }

    /// The attachment that has an address.
    pub(crate) fn attachment_at(&self, address: IpAddr) -> Option<&str> {
        let has = |record: &Record| record.addresses().contains(&address);
        self.attachments.iter().find(|(_, record)| has(record)).map(|(key, _)| key.as_str())
    }

    /// Domains of the cluster.
    pub(crate) fn zones(&self) -> &[String] {
        self.snapshot.as_ref().map(|s| s.cluster.zones()).unwrap_or_default()
    }

    /// What the delegate of CNI is told; `None` until the node has a subnet and an MTU.
    pub(crate) fn delegation(&self, config: &AgentConfig) -> Option<Delegation> {
        let (_, mtu) = self.ready(config)?;
        let ranges = self
            .subnets(config)
            .into_iter()
            .filter_map(|subnet| gateway(&subnet).map(|g| Range { subnet, gateway: g.addr() }));
        let encapsulation = self.snapshot.as_ref()?.cluster.encapsulation;
        let segments_max = Some(encapsulation.segments_max(mtu));
        Some(Delegation { mtu, segments_max, ranges: ranges.collect() })
    }

    /// True for a pod that policies may be for and that the hub has not told of.
    fn is_unknown(&self, pod: &PodName) -> bool {
        let snapshot = self.snapshot.as_ref();
        snapshot.is_some_and(|s| !s.policies.is_empty() && !s.pods.contains_key(pod))
    }

    /// Attached pods that are closed until the hub is back.
    pub(crate) fn unknown_pods(&self) -> Vec<PodName> {
        let pods = self.attachments.values().filter_map(Record::pod_name);
        pods.filter(|pod| !self.hub_connected && self.is_unknown(pod)).collect()
    }

    /// Subnets leased to this node, IPv4 first.
    pub(crate) fn subnets(&self, config: &AgentConfig) -> Vec<IpNet> {
        let own = self.snapshot.as_ref().and_then(|s| s.nodes.get(&config.node_name));
        let mut subnets = own.map(|n| n.subnets.clone()).unwrap_or_default();
        subnets.sort_by_key(|s| matches!(s, IpNet::V6(_)));
        subnets
    }

    /// The first address of each subnet, as a host route: the host's end as pods see it.
    pub(crate) fn gateways(&self, config: &AgentConfig) -> Vec<IpNet> {
        self.subnets(config).iter().filter_map(gateway).collect()
    }

    /// MTU of pods in bytes, or why there is none.
    pub(crate) fn mtu(&self, config: &AgentConfig) -> Option<Result<u16, weft_model::MtuError>> {
        let cluster = &self.snapshot.as_ref()?.cluster;
        let pods_ipv6 = cluster.pod_cidrs.iter().any(|c| matches!(c, IpNet::V6(_)));
        if let Some(fixed) = config.mtu.or(cluster.mtu) {
            return Some(Mtu::try_new(fixed, pods_ipv6).map(Mtu::get));
        }
        let underlay = self.underlay.as_ref()?;
        let peers = self.snapshot.iter().flat_map(|s| s.nodes.values());
        let ipv6 = underlay.address.is_ipv6()
            || peers.filter_map(|n| n.endpoint).any(|e| e.is_ipv6() && !is_mapped(e.ip()));
        Some(Mtu::inside(cluster.encapsulation, underlay.mtu, ipv6, pods_ipv6).map(Mtu::get))
    }

    /// Why the fabric's pod CIDRs must not be put in force here: what the node itself is reached by
    /// would be sent to pods. `None` if they may; also in a wide network, most of which is elsewhere.
    pub(crate) fn overlap(&self) -> Option<String> {
        let cidrs = &self.snapshot.as_ref()?.cluster.pod_cidrs;
        let find = |net: &IpNet| cidrs.iter().find(|c| c.contains(net));
        let what = |net: &IpNet, whose: &str| {
            let cidr = find(net)?;
            Some(format!(
                "pod CIDR {cidr} overlaps {net}, {whose}: nothing of the fabric is put in force here; start the hub with another --pod-cidr"
            ))
        };
        let underlay = self.underlay.iter().filter(|u| !self.is_of_pods(&u.interface));
        let mut of_node = underlay.flat_map(|u| {
            let addresses = u.addresses.iter().map(|a| IpNet::from(*a));
            let nets = u.prefixes.iter().copied().chain(addresses);
            nets.filter_map(|net| what(&net, &format!("of interface {}", u.interface)))
        });
        let of_hub = || what(&self.hub?.into(), "the hub's address");
        of_node.next().or_else(of_hub)
    }

    /// The host's side of pods, which has a gateway's address, may pass for an underlay while the
    /// real one is gone.
    fn is_of_pods(&self, interface: &str) -> bool {
        let mut ports = self.attachments.values().map(|r| &r.wiring.host_interface);
        interface == BRIDGE || ports.any(|p| p == interface)
    }

    fn ready(&self, config: &AgentConfig) -> Option<(&Snapshot, u16)> {
        let snapshot = self.snapshot.as_ref()?;
        let known = self.looked && !self.subnets(config).is_empty() && !self.keys.is_empty();
        if !known || self.overlap().is_some() {
            return None;
        }
        Some((snapshot, self.mtu(config)?.ok()?))
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.to_ipv4_mapped().is_some())
}

/// The first host address of a subnet, which `host-local` keeps for the host.
pub(crate) fn gateway(subnet: &IpNet) -> Option<IpNet> {
    match subnet {
        IpNet::V4(v4) => {
            let first = u32::from(v4.network()).checked_add(1)?;
            let first = std::net::Ipv4Addr::from(first);
            v4.contains(&first).then(|| IpAddr::V4(first).into())
        }
        IpNet::V6(v6) => {
            let first = u128::from(v6.network()).checked_add(1)?;
            let first = std::net::Ipv6Addr::from(first);
            v6.contains(&first).then(|| IpAddr::V6(first).into())
        }
    }
}
