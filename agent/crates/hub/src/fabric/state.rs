//! What the hub remembers of nodes and plugins, and how it is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use weft_control::{ConvertError, FromProto as _, ToProto as _, convert};
use weft_model::{
    MacAddr, NodeName, PluginSpec, Pod, PodName, Policy, PolicyName, PublicKey, ServiceName,
    SharedMap,
};
use weft_proto::v1;

use super::services::Allocation;
use crate::ca::Incarnation;
use crate::lease::{Allocator, LeaseStore};
use crate::source::Problem;
use crate::source::modules::Module;
use crate::source::object::Object;
use crate::source::objects::Objects;
use crate::store::{Change, Store, StoreError, Table};

/// What is on disk of a node that joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) uid: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) key_epoch: u64,
    pub(crate) joined_unix: i64,
    /// Its agent has been away for so long that its pods serve nobody; on disk, so that a hub that is
    /// started again does not take them for ready.
    #[serde(default)]
    pub(crate) lost: bool,
    /// Its uid is that of a Node object: it leaves with that.
    #[serde(default)]
    pub(crate) of_cluster: bool,
}

/// The part of a report that goes into the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) keys: Vec<PublicKey>,
    pub(crate) vtep_mac: Option<MacAddr>,
    pub(crate) pods: Vec<Pod>,
}

/// A node that joined.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) record: Record,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) reported: Reported,
    /// Watch streams open now.
    pub(crate) streams: usize,
    /// When the last of them ended.
    pub(crate) left: Option<Instant>,
    pub(crate) applied_generation: u64,
    pub(crate) last_report_unix: i64,
    /// Rises with each change of any node's pods: of two nodes that both have a pod, the one that spoke
    /// of it last is right.
    pub(crate) pods_from: u64,
    pub(crate) plugins: Vec<v1::PluginStatus>,
    pub(crate) translated: Vec<v1::TranslatedFlows>,
    /// What it has noticed that whoever runs Services should know.
    pub(crate) problems: Vec<String>,
    /// Why its last report was refused.
    pub(crate) complaint: Option<String>,
}

/// How long an agent may be away, as when it restarts, before its node counts as gone.
const AWAY_MAX: Duration = Duration::from_millis(500);

/// How much longer agents may take to find a hub that was started again.
const RETURN_MAX: Duration = Duration::from_secs(5);

/// How long an agent may be away before the pods of its node count as not ready, as long as Kubernetes
/// waits for a node (`node-monitor-grace-period`, 40 s up to 1.31).
const LOST_AFTER: Duration = Duration::from_secs(40);

impl Joined {
    /// Its agent is away for long, while others are there: else it may be the hub that is cut off.
    fn is_lost(&self, now: Instant, others_since: Option<Instant>) -> bool {
        if self.streams > 0 {
            return false;
        }
        let away_since = self.left.zip(others_since).map(|(left, since)| left.max(since));
        self.record.lost || away_since.is_some_and(|s| now.duration_since(s) >= LOST_AFTER)
    }

    /// Its agent is there, or was a moment ago.
    fn is_alive(&self, now: Instant) -> bool {
        self.streams > 0 || self.left.is_some_and(|left| now.duration_since(left) < AWAY_MAX)
    }
}

/// A plugin that is published and not yet agreed to.
#[derive(Clone)]
pub(crate) struct Trial {
    pub(crate) spec: PluginSpec,
    /// `None` if it is one that is in use already.
    pub(crate) module: Option<Arc<Module>>,
}

/// Everything behind the fabric's lock.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) nodes: BTreeMap<NodeName, Joined>,
    /// Uids that may not join.
    pub(crate) removed: BTreeSet<String>,
    /// Loaded by the API, as it is on disk.
    pub(crate) plugins: BTreeMap<String, PluginSpec>,
    /// What nodes are being asked about; not on disk, so that a hub that is killed meanwhile starts
    /// with what was good before.
    pub(crate) trial: Option<Trial>,
    pub(crate) source: Objects,
    /// Pods whose documents are gone, or are no YAML since before the hub's start, and that nodes have
    /// still, as their documents had them: policies hold for them until their end.
    pub(crate) departed: BTreeMap<PodName, Arc<Pod>>,
    /// What documents say, or said last, of pods that nodes have, as it is on disk.
    saved_pods: BTreeMap<PodName, Pod>,
    /// Addresses and ports that Services have, as it is on disk.
    pub(crate) allocations: BTreeMap<ServiceName, Allocation>,
    /// Policies in force, as they are on disk.
    pub(crate) saved_policies: SharedMap<PolicyName, Arc<Policy>>,
    /// Those that were in force before the hub's start and that no document has had since.
    pub(crate) unseen_policies: BTreeSet<PolicyName>,
    /// Why Services that ask for an address of a pool have none.
    pub(crate) pending: BTreeMap<ServiceName, String>,
    /// Objects that are good in themselves and do not fit the others.
    pub(crate) misfits: Vec<Problem>,
    /// Of Services and their endpoints.
    pub(crate) service_problems: BTreeMap<ServiceName, Vec<Problem>>,
    pub(crate) static_peers: BTreeSet<NodeName>,
    /// Nodes that were there when the announcers of addresses were chosen last.
    pub(crate) alive: BTreeSet<NodeName>,
    /// Since when there have been agents without a break; `None` while there is none.
    others_since: Option<Instant>,
    /// The highest [`Joined::pods_from`].
    pub(crate) pods_changes: u64,
    /// Addresses of the hub's own machine, as far as they are known.
    pub(crate) own_addresses: BTreeSet<IpAddr>,
    /// Generations below this may be given without writing it down.
    pub(crate) generation_bound: u64,
}

impl Joined {
    pub(crate) fn new(record: Record, subnets: Vec<IpNet>) -> Self {
        Self {
            record,
            subnets,
            reported: Reported::default(),
            streams: 0,
            left: None,
            applied_generation: 0,
            last_report_unix: 0,
            pods_from: 0,
            plugins: Vec::new(),
            translated: Vec::new(),
            problems: Vec::new(),
            complaint: None,
        }
    }
}

impl Reported {
    /// Reads the durable part of a report.
    pub(crate) fn from_message(message: &v1::ReportRequest) -> Result<Self, ConvertError> {
        let pods = message.pods.iter().enumerate().map(|(i, pod)| {
            Pod::from_proto(pod.clone()).map_err(|e| e.within(&format!("pods[{i}]")))
        });
        Ok(Self {
            endpoint: convert::endpoint("endpoint", &message.endpoint)?,
            addresses: convert::addresses("addresses", &message.addresses)?,
            keys: convert::keys("keys", message.keys.clone())?,
            vtep_mac: convert::mac("vtep_mac", &message.vtep_mac)?,
            pods: pods.collect::<Result<_, _>>()?,
        })
    }

    /// The message that [`Reported::from_message`] reads back, as bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        use weft_control::ToProto as _;
        let message = v1::ReportRequest {
            endpoint: self.endpoint.map(|e| e.to_string()).unwrap_or_default(),
            addresses: convert::texts(&self.addresses),
            keys: self.keys.iter().map(|k| k.0.to_vec()).collect(),
            vtep_mac: self.vtep_mac.map(|m| m.to_string()).unwrap_or_default(),
            pods: self.pods.iter().map(|p| p.to_proto()).collect(),
            generation: 0,
            plugins: Vec::new(),
            translated: Vec::new(),
            problems: Vec::new(),
        };
        message.encode_to_vec()
    }
}

impl State {
    /// Looks who is there; true if it is not who was.
    pub(crate) fn look_who_is_alive(&mut self, now: Instant) -> bool {
        let there = self.nodes.iter().filter(|(_, joined)| joined.is_alive(now));
        let there: BTreeSet<_> = there.map(|(name, _)| name.clone()).collect();
        let changed = there != self.alive;
        self.alive = there;
        changed
    }

    /// Nodes that have become lost, or have come back, since this was asked last; not noted yet.
    pub(crate) fn look_who_is_lost(&mut self, now: Instant) -> Vec<(NodeName, bool)> {
        let any = self.nodes.values().any(|joined| joined.streams > 0);
        self.others_since = if any { self.others_since.or(Some(now)) } else { None };
        let since = self.others_since;
        let now = self.nodes.iter().map(|(name, j)| (name, j.record.lost, j.is_lost(now, since)));
        now.filter(|(_, was, is)| was != is).map(|(name, _, is)| (name.clone(), is)).collect()
    }

    /// Nodes whose pods serve nobody.
    pub(crate) fn lost(&self) -> BTreeSet<NodeName> {
        let lost = self.nodes.iter().filter(|(_, joined)| joined.record.lost);
        lost.map(|(name, _)| name.clone()).collect()
    }

    /// Reads what the last run left.
    pub(crate) fn load<S: LeaseStore>(
        store: &Store,
        leases: &Allocator<S>,
    ) -> Result<Self, StoreError> {
        let mut state = Self::default();
        for (name, bytes) in store.all(Table::Nodes)? {
            let damaged = || StoreError::Damaged { table: "nodes", key: name.clone() };
            let record: Record = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            let subnets = leases.of(&record.uid)?;
            let key = NodeName::try_new(name.clone()).map_err(|_| damaged())?;
            let left = Some(Instant::now() + RETURN_MAX);
            let joined = Joined { left, ..Joined::new(record, subnets) };
            state.nodes.insert(key, joined);
        }
        state.alive = state.nodes.keys().cloned().collect();
        for (name, bytes) in store.all(Table::Reports)? {
            let damaged = || StoreError::Damaged { table: "reports", key: name.clone() };
            let message = v1::ReportRequest::decode(bytes.as_slice()).map_err(|_| damaged())?;
            let reported = Reported::from_message(&message).map_err(|_| damaged())?;
            let key = NodeName::try_new(name.clone()).map_err(|_| damaged())?;
            if let Some(node) = state.nodes.get_mut(&key) {
                node.reported = reported;
            }
        }
        for (name, bytes) in store.all(Table::Plugins)? {
            let damaged = || StoreError::Damaged { table: "plugins", key: name.clone() };
            let message = v1::PluginSpec::decode(bytes.as_slice()).map_err(|_| damaged())?;
            let spec = PluginSpec::from_proto(message).map_err(|_| damaged())?;
            state.plugins.insert(name, spec);
        }
        for (name, bytes) in store.all(Table::Policies)? {
            let damaged = || StoreError::Damaged { table: "policies", key: name.clone() };
            let message = v1::Policy::decode(bytes.as_slice()).map_err(|_| damaged())?;
            let policy = Policy::from_proto(message).map_err(|_| damaged())?;
            state.unseen_policies.insert(policy.name.clone());
            state.saved_policies.insert(policy.name.clone(), Arc::new(policy));
        }
        for (name, bytes) in store.all(Table::Pods)? {
            let damaged = || StoreError::Damaged { table: "pods", key: name.clone() };
            let message = v1::Pod::decode(bytes.as_slice()).map_err(|_| damaged())?;
            let pod = Pod::from_proto(message).map_err(|_| damaged())?;
            state.departed.insert(pod.name.clone(), Arc::new(pod.clone()));
            state.saved_pods.insert(pod.name.clone(), pod);
        }
        for (name, bytes) in store.all(Table::Services)? {
            let damaged = || StoreError::Damaged { table: "services", key: name.clone() };
            let (namespace, service) = name.split_once('/').ok_or_else(damaged)?;
            let allocation = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            let key = ServiceName { namespace: namespace.to_owned(), name: service.to_owned() };
            state.allocations.insert(key, allocation);
        }
        state.removed = store.all(Table::Removed)?.into_iter().map(|(uid, _)| uid).collect();
        Ok(state)
    }

    /// Writes down what Services have now, if it is not what they had.
    pub(crate) fn save_allocations(
        &mut self,
        store: &Store,
        now: BTreeMap<ServiceName, Allocation>,
    ) -> Result<(), StoreError> {
        if now == self.allocations {
            return Ok(());
        }
        let changed = now.iter().filter(|(name, a)| self.allocations.get(name) != Some(a));
        // Texts, numbers and addresses: cannot fail.
        let changed =
            changed.map(|(n, a)| (n.to_string(), serde_json::to_vec(a).unwrap_or_default()));
        let changed: Vec<_> = changed.collect();
        let gone = self.allocations.keys().filter(|name| !now.contains_key(name));
        let gone: Vec<_> = gone.map(ToString::to_string).collect();
        let put = changed.iter().map(|(name, bytes)| Change::Put(Table::Services, name, bytes));
        let remove = gone.iter().map(|name| Change::Remove(Table::Services, name));
        store.write(&put.chain(remove).collect::<Vec<_>>())?;
        self.allocations = now;
        Ok(())
    }

    /// Takes what the source says now, and remembers pods that it says nothing of any more.
    pub(crate) fn set_source(&mut self, source: Objects) {
        let gone = source.changed_from(&self.source).into_iter().filter_map(|key| {
            match (source.objects.get(key), &self.source.objects.get(key)?.object) {
                (None, Object::Pod(pod)) => Some((pod.pod.name.clone(), Arc::clone(&pod.pod))),
                _ => None,
            }
        });
        let gone: Vec<_> = gone.collect();
        self.departed.extend(gone);
        self.source = source;
    }

    /// Forgets pods that have ended, or that the source speaks of again.
    pub(crate) fn forget_departed(&mut self) {
        if self.departed.is_empty() {
            return;
        }
        let Self { departed, source, nodes, .. } = self;
        let reported: BTreeSet<_> = reported(nodes).collect();
        departed.retain(|name, _| source.pod(name).is_none() && reported.contains(name));
    }

    /// Writes down what documents say of pods that nodes have, so that policies hold for them after a
    /// restart too, whatever has become of the documents. `changed`: only these may be other than they were.
    pub(crate) fn keep_pods(
        &mut self,
        store: &Store,
        changed: Option<&BTreeSet<PodName>>,
    ) -> Result<(), StoreError> {
        let concerned = |name: &&PodName| changed.is_none_or(|changed| changed.contains(*name));
        let reported: BTreeSet<_> = reported(&self.nodes).filter(concerned).collect();
        let gone = self.saved_pods.keys().filter(concerned).filter(|name| !reported.contains(name));
        let mut changes: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
        for name in reported {
            let declared = self.source.pod(name).or_else(|| self.departed.get(name));
            let Some(pod) = declared else { continue };
            if !self.saved_pods.get(name).is_some_and(|saved| says_the_same(saved, pod)) {
                // Where it is, is the node's to say.
                let pod = Pod { node: None, addresses: Vec::new(), ..(**pod).clone() };
                changes.push((name.clone(), Some(pod)));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let rows = changes.iter().map(|(name, pod)| {
            (name.to_string(), pod.as_ref().map(|pod| pod.to_proto().encode_to_vec()))
        });
        let rows: Vec<_> = rows.collect();
        let writes = rows.iter().map(|(name, pod)| match pod {
            Some(bytes) => Change::Put(Table::Pods, name, bytes),
            None => Change::Remove(Table::Pods, name),
        });
        store.write(&writes.collect::<Vec<_>>())?;
        for (name, pod) in changes {
            match pod {
                Some(pod) => drop(self.saved_pods.insert(name, pod)),
                None => drop(self.saved_pods.remove(&name)),
            }
        }
        Ok(())
    }

    /// Adds to the policies what was in force before the hub's start and that no document has had since,
    /// while some cannot be read; writes down what is in force.
    pub(crate) fn keep_policies(
        &mut self,
        store: &Store,
        now: &mut SharedMap<PolicyName, Arc<Policy>>,
        unread: &BTreeSet<PolicyName>,
    ) -> Result<(), StoreError> {
        let complete = self.source.complete;
        self.unseen_policies
            .retain(|name| !complete && (!now.contains_key(name) || unread.contains(name)));
        for name in &self.unseen_policies {
            if let Some(policy) = self.saved_policies.get(name) {
                now.insert(name.clone(), Arc::clone(policy));
            }
        }
        let differences = now.differences(&self.saved_policies);
        let changed = differences.iter().map(|difference| {
            let policy = difference.new.map(|policy| policy.to_proto().encode_to_vec());
            (difference.key.to_string(), policy)
        });
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() {
            return Ok(());
        }
        let changes = changed.iter().map(|(name, policy)| match policy {
            Some(bytes) => Change::Put(Table::Policies, name, bytes),
            None => Change::Remove(Table::Policies, name),
        });
        store.write(&changes.collect::<Vec<_>>())?;
        self.saved_policies = now.clone();
        Ok(())
    }

    /// Writes a node's record.
    pub(crate) fn save_record(
        store: &Store,
        name: &NodeName,
        record: &Record,
    ) -> Result<(), StoreError> {
        // Text, numbers and bytes: cannot fail.
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        store.write(&[Change::Put(Table::Nodes, name.as_str(), &bytes)])
    }
}

/// Pods that nodes have.
fn reported(nodes: &BTreeMap<NodeName, Joined>) -> impl Iterator<Item = &PodName> {
    nodes.values().flat_map(|node| &node.reported.pods).map(|pod| &pod.name)
}

/// Of what is kept of a pod.
fn says_the_same(a: &Pod, b: &Pod) -> bool {
    (&a.labels, &a.ports, a.finished) == (&b.labels, &b.ports, b.finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(names: &[&str]) -> State {
        let mut state = State::default();
        for name in names {
            let text = r#"{"uid":"u","incarnation":[],"key_epoch":0,"joined_unix":0}"#;
            let incarnation = serde_json::to_string(&Incarnation::default()).unwrap();
            // As an older hub wrote it.
            let record = serde_json::from_str(&text.replace("[]", &incarnation)).unwrap();
            state.nodes.insert(name.parse().unwrap(), Joined::new(record, vec![]));
        }
        state
    }

    fn note(state: &mut State, now: Instant) -> Vec<String> {
        for (name, lost) in state.look_who_is_lost(now) {
            state.nodes.get_mut(&name).unwrap().record.lost = lost;
        }
        state.lost().iter().map(ToString::to_string).collect()
    }

    /// SVC-045: a node is lost after its time, not before, and back at once.
    #[test]
    fn node_that_stays_away_is_lost_until_it_is_back() {
        let (start, mut state) = (Instant::now(), state(&["a", "b"]));
        let set = |state: &mut State, name: &str, streams, left| {
            let joined = state.nodes.get_mut(&name.parse::<NodeName>().unwrap()).unwrap();
            (joined.streams, joined.left) = (streams, left);
        };
        set(&mut state, "a", 1, None);
        set(&mut state, "b", 1, None);
        assert_eq!(note(&mut state, start), [""; 0]);
        let left = start + Duration::from_secs(100);
        set(&mut state, "b", 0, Some(left));
        let almost = left + LOST_AFTER - Duration::from_millis(1);
        assert_eq!(note(&mut state, almost), [""; 0]);
        assert_eq!(note(&mut state, left + LOST_AFTER), ["b"]);
        set(&mut state, "b", 1, Some(left));
        assert_eq!(note(&mut state, left + LOST_AFTER), [""; 0]);
    }

    /// While nobody is there it is most likely the hub that is cut off; time begins when it is back. Who
    /// was lost before the hub was started again stays so.
    #[test]
    fn hub_that_was_away_itself_loses_nobody() {
        let (start, mut state) = (Instant::now(), state(&["a", "b", "dead"]));
        for joined in state.nodes.values_mut() {
            joined.left = Some(start);
        }
        state.nodes.get_mut(&"dead".parse::<NodeName>().unwrap()).unwrap().record.lost = true;
        let later = start + 10 * LOST_AFTER;
        assert_eq!(note(&mut state, later), ["dead"]);
        state.nodes.get_mut(&"a".parse::<NodeName>().unwrap()).unwrap().streams = 1;
        assert_eq!(note(&mut state, later), ["dead"]);
        assert_eq!(note(&mut state, later + LOST_AFTER / 2), ["dead"]);
        assert_eq!(note(&mut state, later + LOST_AFTER), ["b", "dead"]);
    }
}
