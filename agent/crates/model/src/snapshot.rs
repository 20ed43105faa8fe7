//! What the hub publishes to every agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::{
    Dns, Encapsulation, Generation, MacAddr, NamedPort, NamedService, Namespace, NodeName, PodName,
    Policy, PolicyName, PublicKey, Service, ServiceName, SharedMap, Vni,
};

/// Settings that hold for the whole fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Ranges that node subnets are leased from: at most one for each family, IPv4 first.
    pub pod_cidrs: Vec<IpNet>,
    /// How nodes talk to each other.
    pub encapsulation: Encapsulation,
    /// UDP port of the mesh on every node.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// MTU for pods if the operator fixed one; else each agent derives it from its underlay.
    pub mtu: Option<u16>,
    /// Ranges of the Services' cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of nodes inside these ranges serve node ports; all of a node's if there is none.
    pub node_port_cidrs: Vec<IpNet>,
    /// How names are answered; `None`: nodes answer none.
    pub dns: Option<Dns>,
}

/// A node of the fabric: one that runs an agent, or a static peer that somebody else's VXLAN or
/// WireGuard implementation serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique name.
    pub name: NodeName,
    /// Identity that survives a change of name or address; leases are keyed by it.
    pub uid: String,
    /// Where its mesh port is reached: the `PeerEndpoint`. `None` until the agent reported one.
    pub endpoint: Option<SocketAddr>,
    /// Addresses of the node itself; part of its AllowedIPs.
    pub addresses: Vec<IpAddr>,
    /// Leased pod subnets, at most one for each family.
    pub subnets: Vec<IpNet>,
    /// WireGuard public keys, the one to prefer first; more than one only while keys rotate.
    pub keys: Vec<PublicKey>,
    /// Address of the VTEP in VXLAN mode.
    pub vtep_mac: Option<MacAddr>,
    /// Labels from the Node manifest.
    pub labels: BTreeMap<String, String>,
}

/// A pod: from a manifest, from an agent's report of what CNI made, or both joined by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: PodName,
    /// Node it runs on, if it runs.
    pub node: Option<NodeName>,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Labels from the manifest.
    pub labels: BTreeMap<String, String>,
    /// Ports that its containers give a name to, from the manifest.
    pub ports: Vec<NamedPort>,
    /// Succeeded or failed, as its manifest says: nothing of it runs, though it may still be attached.
    pub finished: bool,
    /// Its manifest has a DNS policy or search list of its own, so it is not known where it looks names up.
    pub own_search: bool,
}

/// Where in the packet's way a plugin stands.
///
/// Egress and ingress are seen from the pod. A packet between pods of one node passes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPosition {
    /// After the flow lookup, before routing: packets that a pod or the host sends.
    Egress,
    /// After routing, on the destination's node: packets that a pod is about to get.
    Ingress,
    /// Both.
    Both,
}

/// What becomes of a packet whose plugin trapped or passed its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnFault {
    /// The packet is dropped: fail closed.
    #[default]
    Drop,
    /// The packet goes on as if the plugin were not there.
    Skip,
}

/// How often a plugin is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PluginMode {
    /// Every packet.
    #[default]
    Packet,
    /// The first packet of each direction of a flow, and again after the plugin or its
    /// configuration changed.
    Flow,
}

/// Plugins that run at most, built-in ones included: each has its slot in every flow of a datapath.
pub const PLUGINS_MAX: usize = 11;
/// Plugins that nodes run by themselves; nobody else's can have such a name.
pub const BUILT_IN_PLUGINS: [&str; 3] =
    [crate::SERVICE_PLUGIN, crate::POLICY_PLUGIN, crate::DNS_PLUGIN];
/// Plugins that users can have at most.
pub const USER_PLUGINS_MAX: usize = PLUGINS_MAX - BUILT_IN_PLUGINS.len();

/// A Wasm module to run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSpec {
    /// Unique name, a DNS-1123 label.
    pub name: String,
    /// SHA-256 of the module; the module itself is fetched by it.
    pub digest: [u8; 32],
    /// Handed to the plugin as it is.
    pub config: Vec<u8>,
    /// Order among plugins of one position: lower first, then by name.
    pub priority: i32,
    /// Overrides what the module's manifest declares.
    pub position: Option<HookPosition>,
    /// Overrides what the module's manifest declares.
    pub on_fault: Option<OnFault>,
    /// Deadline of one call in microseconds, 100..=1_000_000; `None` is 1 ms.
    pub deadline_us: Option<u32>,
}

/// The state of the fabric at one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which version this is.
    pub generation: Generation,
    /// Settings.
    pub cluster: Cluster,
    /// By name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// By namespace and name.
    pub pods: SharedMap<PodName, Arc<Pod>>,
    /// By name.
    pub plugins: BTreeMap<String, PluginSpec>,
    /// By namespace and name; what did not change is shared between snapshots.
    pub services: SharedMap<ServiceName, Arc<Service>>,
    /// By namespace and name: Services that are none of `services` and have names.
    pub named_services: SharedMap<ServiceName, Arc<NamedService>>,
    /// By name: every one that has an object or a pod.
    pub namespaces: SharedMap<String, Arc<Namespace>>,
    /// By namespace and name, both kinds.
    pub policies: SharedMap<PolicyName, Arc<Policy>>,
}

/// What changed between two generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The generation it applies to.
    pub from: Generation,
    /// The generation it leads to.
    pub to: Generation,
    /// New settings, if they changed.
    pub cluster: Option<Cluster>,
    /// New or changed nodes.
    pub nodes: Vec<Node>,
    /// Nodes that are gone.
    pub removed_nodes: Vec<NodeName>,
    /// New or changed pods.
    pub pods: Vec<Arc<Pod>>,
    /// Pods that are gone.
    pub removed_pods: Vec<PodName>,
    /// New or changed plugins.
    pub plugins: Vec<PluginSpec>,
    /// Plugins that are gone.
    pub removed_plugins: Vec<String>,
    /// New or changed Services, whole.
    pub services: Vec<Arc<Service>>,
    /// Services that are gone.
    pub removed_services: Vec<ServiceName>,
    /// New or changed Services that have nothing but names, whole.
    pub named_services: Vec<Arc<NamedService>>,
    /// Such Services that are gone.
    pub removed_named_services: Vec<ServiceName>,
    /// New or changed namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Namespaces that are gone.
    pub removed_namespaces: Vec<String>,
    /// New or changed policies, whole.
    pub policies: Vec<Arc<Policy>>,
    /// Policies that are gone.
    pub removed_policies: Vec<PolicyName>,
}

/// A delta that does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("delta from generation {from} does not apply to generation {at}")]
pub struct DeltaError {
    /// Where the delta starts.
    pub from: Generation,
    /// Where the snapshot is.
    pub at: Generation,
}

/// What leads from `old` to `new`: values that are new or differ, in order of their keys, and keys that
/// are gone.
#[must_use]
pub fn changed<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (Vec<V>, Vec<K>) {
    let upserts = new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(_, v)| v.clone());
    let removed = old.keys().filter(|k| !new.contains_key(k)).cloned();
    (upserts.collect(), removed.collect())
}

impl Cluster {
    /// Domains of the cluster's names; none if nodes answer none.
    #[must_use]
    pub fn zones(&self) -> &[String] {
        self.dns.as_ref().map(|dns| dns.zones.as_slice()).unwrap_or_default()
    }
}

impl Snapshot {
    /// Addresses of the Service that clients ask for names; none if nodes answer none.
    #[must_use]
    pub fn name_servers(&self) -> &[IpAddr] {
        let service = self.cluster.dns.as_ref().and_then(|dns| self.services.get(&dns.service));
        service.map(|service| service.cluster_ips.as_slice()).unwrap_or_default()
    }

    /// Generation zero: no nodes, no pods.
    #[must_use]
    pub fn empty(cluster: Cluster) -> Self {
        Self {
            generation: Generation::default(),
            cluster,
            nodes: BTreeMap::new(),
            pods: SharedMap::default(),
            plugins: BTreeMap::new(),
            services: SharedMap::default(),
            named_services: SharedMap::default(),
            namespaces: SharedMap::default(),
            policies: SharedMap::default(),
        }
    }

    /// What takes `self` to `next`.
    #[must_use]
    pub fn delta_to(&self, next: &Self) -> Delta {
        let (nodes, removed_nodes) = changed(&self.nodes, &next.nodes);
        let (pods, removed_pods) = next.pods.changed_from(&self.pods);
        let (plugins, removed_plugins) = changed(&self.plugins, &next.plugins);
        let (services, removed_services) = next.services.changed_from(&self.services);
        let (named_services, removed_named_services) =
            next.named_services.changed_from(&self.named_services);
        let (namespaces, removed_namespaces) = next.namespaces.changed_from(&self.namespaces);
        let (policies, removed_policies) = next.policies.changed_from(&self.policies);
        Delta {
            from: self.generation,
            to: next.generation,
            cluster: (self.cluster != next.cluster).then(|| next.cluster.clone()),
            nodes,
            removed_nodes,
            pods,
            removed_pods,
            plugins,
            removed_plugins,
            services,
            removed_services,
            named_services,
            removed_named_services,
            namespaces,
            removed_namespaces,
            policies,
            removed_policies,
        }
    }

    /// Brings the snapshot to `delta.to`.
    ///
    /// # Errors
    /// [`DeltaError`] if the delta starts at another generation; nothing is changed then.
    pub fn apply(&mut self, delta: Delta) -> Result<(), DeltaError> {
        if delta.from != self.generation {
            return Err(DeltaError { from: delta.from, at: self.generation });
        }
        self.generation = delta.to;
        if let Some(cluster) = delta.cluster {
            self.cluster = cluster;
        }
        delta.removed_nodes.iter().for_each(|n| drop(self.nodes.remove(n)));
        delta.removed_pods.iter().for_each(|p| drop(self.pods.remove(p)));
        delta.removed_plugins.iter().for_each(|p| drop(self.plugins.remove(p)));
        delta.removed_services.iter().for_each(|s| drop(self.services.remove(s)));
        let removed_named = &delta.removed_named_services;
        removed_named.iter().for_each(|s| drop(self.named_services.remove(s)));
        delta.removed_namespaces.iter().for_each(|n| drop(self.namespaces.remove(n)));
        delta.removed_policies.iter().for_each(|p| drop(self.policies.remove(p)));
        self.nodes.extend(delta.nodes.into_iter().map(|n| (n.name.clone(), n)));
        self.pods.extend(delta.pods.into_iter().map(|p| (p.name.clone(), p)));
        self.plugins.extend(delta.plugins.into_iter().map(|p| (p.name.clone(), p)));
        self.services.extend(delta.services.into_iter().map(|s| (s.name.clone(), s)));
        let named = delta.named_services.into_iter();
        self.named_services.extend(named.map(|s| (s.name.clone(), s)));
        self.namespaces.extend(delta.namespaces.into_iter().map(|n| (n.name.clone(), n)));
        self.policies.extend(delta.policies.into_iter().map(|p| (p.name.clone(), p)));
        Ok(())
    }
}

impl Delta {
    /// True if it changes nothing but the generation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cluster.is_none()
            && self.nodes.is_empty()
            && self.removed_nodes.is_empty()
            && self.pods.is_empty()
            && self.removed_pods.is_empty()
            && self.plugins.is_empty()
            && self.removed_plugins.is_empty()
            && self.services.is_empty()
            && self.removed_services.is_empty()
            && self.named_services.is_empty()
            && self.removed_named_services.is_empty()
            && self.namespaces.is_empty()
            && self.removed_namespaces.is_empty()
            && self.policies.is_empty()
            && self.removed_policies.is_empty()
    }
}

impl Node {
    /// What the node may send from inside the tunnel: its subnets and its own addresses.
    pub fn allowed_ips(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.subnets.iter().copied().chain(self.addresses.iter().map(|a| IpNet::from(*a)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{NamespaceSelector, PodSelector, PolicyTier, Selector};

    fn snapshot(generation: u64, nodes: &[(u8, u8)], pods: &[(u8, u8)]) -> Snapshot {
        let mut snapshot = Snapshot::empty(Cluster {
            pod_cidrs: vec![],
            encapsulation: Encapsulation::WireGuard,
            port: 51820,
            vni: Vni::DEFAULT,
            mtu: None,
            service_cidrs: vec![],
            node_port_cidrs: vec![],
            dns: None,
        });
        snapshot.generation = Generation(generation);
        for (id, address) in nodes {
            let name = NodeName::try_new(format!("n{id}")).unwrap();
            let addresses = vec![IpAddr::from([10, 0, 0, *address])];
            let node = Node {
                name: name.clone(),
                uid: name.to_string(),
                endpoint: None,
                addresses,
                subnets: vec![],
                keys: vec![],
                vtep_mac: None,
                labels: BTreeMap::new(),
            };
            snapshot.nodes.insert(name, node);
        }
        for (id, address) in pods {
            let name = PodName { namespace: "default".into(), name: format!("p{id}") };
            let addresses = vec![IpAddr::from([10, 1, 0, *address])];
            let pod = Pod {
                name: name.clone(),
                node: None,
                addresses,
                labels: BTreeMap::new(),
                ports: vec![],
                finished: false,
                own_search: false,
            };
            snapshot.pods.insert(name, pod.into());
        }
        snapshot
    }

    fn add_policies(snapshot: &mut Snapshot, namespaces: &[(u8, u8)], policies: &[(u8, bool)]) {
        for (id, label) in namespaces {
            let name = format!("ns{id}");
            let labels = BTreeMap::from([("team".to_owned(), label.to_string())]);
            snapshot.namespaces.insert(name.clone(), Namespace { name, labels }.into());
        }
        for (id, watched) in policies {
            let name = PolicyName {
                namespace: "default".into(),
                name: format!("p{id}"),
                ..PolicyName::default()
            };
            let subject = PodSelector {
                namespaces: NamespaceSelector::Named("default".into()),
                pods: Selector::default(),
            };
            let policy = Policy {
                name: name.clone(),
                tier: PolicyTier::Namespace,
                watched: *watched,
                subject,
                ingress: Some(vec![]),
                egress: None,
            };
            snapshot.policies.insert(name, policy.into());
        }
    }

    type Ids = Vec<(u8, u8)>;

    proptest! {
        #[test]
        fn delta_takes_the_old_snapshot_to_the_new(
            (n1, p1, n2, p2) in any::<(Ids, Ids, Ids, Ids)>()
        ) {
            let old = snapshot(1, &n1, &p1);
            let new = snapshot(2, &n2, &p2);
            let mut moved = old.clone();
            moved.apply(old.delta_to(&new)).unwrap();
            prop_assert_eq!(moved, new);
        }

        #[test]
        fn delta_takes_policies_and_namespaces_along(
            (n1, p1, n2, p2) in any::<(Ids, Vec<(u8, bool)>, Ids, Vec<(u8, bool)>)>()
        ) {
            let (mut old, mut new) = (snapshot(1, &[], &[]), snapshot(2, &[], &[]));
            add_policies(&mut old, &n1, &p1);
            add_policies(&mut new, &n2, &p2);
            let delta = old.delta_to(&new);
            let same = old.namespaces == new.namespaces && old.policies == new.policies;
            prop_assert_eq!(delta.is_empty(), same);
            let mut moved = old.clone();
            moved.apply(delta).unwrap();
            prop_assert_eq!(moved, new);
        }
    }

    #[test]
    fn delta_for_another_generation_changes_nothing() {
        let old = snapshot(1, &[(1, 1)], &[]);
        let delta = old.delta_to(&snapshot(2, &[], &[]));
        let mut other = snapshot(5, &[(1, 1)], &[]);
        assert!(other.apply(delta).is_err());
        assert_eq!(other, snapshot(5, &[(1, 1)], &[]));
    }
}
