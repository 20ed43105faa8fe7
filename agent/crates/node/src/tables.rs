//! What the datapath shall know, compiled from the snapshot and what is known of this node.
//!
//! Sans-IO: [`Tables::compile`] is a function of its arguments; [`Tables::complete`] and
//! [`Tables::change_from`] turn the result into requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_control::ToProto;
use weft_model::{
    DNS_PLUGIN, HOST_SOURCES, MacAddr, Node, NodeName, POLICY_PLUGIN, PodName, PublicKey,
    RESOLVERS, SERVICE_PLUGIN, Snapshot, changed,
};
use weft_proto::v1::{ApplyRequest, LocalPod, NodeSettings, Peer, PluginSpec};

use crate::keys::KeyFile;

mod dns;
mod policies;
mod services;

pub(crate) use dns::Names;
use policies::Policies;
pub(crate) use policies::{Domains, Explaining, Known};
use services::Services;

/// Index of each peer, kept on disk: a peer keeps its sessions when the agent is restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerIds {
    next: u32,
    by_name: BTreeMap<String, u32>,
}

impl PeerIds {
    /// Gives new names an index and takes it from names that are gone; an index is not given
    /// twice. True if anything changed.
    pub(crate) fn assign<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> bool {
        let names: BTreeSet<&str> = names.collect();
        let before = self.by_name.len();
        self.by_name.retain(|name, _| names.contains(name.as_str()));
        let mut changed = self.by_name.len() != before;
        for name in names {
            if !self.by_name.contains_key(name) {
                self.next = self.next.wrapping_add(1);
                self.by_name.insert(name.to_owned(), self.next);
                changed = true;
            }
        }
        changed
    }
}

/// What the snapshot cannot know.
#[derive(Clone, Debug)]
pub(crate) struct Local<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// The fabric's interface.
    pub interface: &'a str,
    /// MTU of pods and of the fabric's interface.
    pub mtu: u16,
    /// Address of this node's VTEP.
    pub vtep_mac: MacAddr,
    /// The host's own addresses, gateways of pods included.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// WireGuard keys in use.
    pub keys: &'a [KeyFile],
    /// Pods that are attached here.
    pub pods: &'a BTreeMap<String, LocalPod>,
    /// Their names, and addresses that policies hold for.
    pub policed: &'a [(PodName, Vec<IpAddr>)],
    /// What pods know of names, by each of their addresses.
    pub known: &'a BTreeMap<IpAddr, Arc<Known>>,
}

/// Everything the datapath shall know, in the words it is told in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tables {
    settings: NodeSettings,
    /// Key files keep their names when keys rotate: this is what makes a rotation a change.
    keys: Vec<PublicKey>,
    peers: BTreeMap<u32, Peer>,
    pods: BTreeMap<String, LocalPod>,
    plugins: BTreeMap<String, PluginSpec>,
    /// Shared with tables that differ elsewhere, as `names` are.
    services: Arc<Services>,
    policies: Policies,
    names: Arc<Names>,
}

impl Tables {
    /// Compiles; every node but this one has to have an index in `ids`.
    /// `before`: what was compiled last.
    pub(crate) fn compile(
        snapshot: &Snapshot,
        local: &Local<'_>,
        ids: &PeerIds,
        before: Option<&Self>,
    ) -> Self {
        let others = snapshot.nodes.values().filter(|n| n.name != *local.node);
        let peers = others
            .filter_map(|n| ids.by_name.get(n.name.as_str()).map(|id| (*id, peer(*id, n))))
            .collect();
        let plugins = snapshot.plugins.values().map(|p| (p.name.clone(), p.to_proto()));
        let services = Services::compile(snapshot, local, ids, before.map(|b| &*b.services));
        let policies = Policies::compile(snapshot, local, before.map(|b| &b.policies));
        let mut names = Names::compile(snapshot, before.map(|b| &*b.names));
        names.pass_clients(policies.with_domains());
        // Before every plugin of a user. Policies and users see backends, and a query is answered if
        // policies let it pass.
        let first = (!services.is_empty()).then(|| built_in(SERVICE_PLUGIN, i32::MIN));
        let second = (!policies.is_empty()).then(|| built_in(POLICY_PLUGIN, i32::MIN + 1));
        let third = (!names.is_empty()).then(|| built_in(DNS_PLUGIN, i32::MIN + 2));
        let plugins = plugins.chain(first).chain(second).chain(third).collect();
        Self {
            services: services.into(),
            policies,
            names: names.into(),
            settings: settings(snapshot, local),
            keys: local.keys.iter().map(|k| k.public).collect(),
            peers,
            pods: local.pods.clone(),
            plugins,
        }
    }

    /// The same, but for what pods know of names; `None` if that makes no difference.
    pub(crate) fn learn(&self, known: &BTreeMap<IpAddr, Arc<Known>>) -> Option<Self> {
        let mut next = self.clone();
        next.policies.learn(known).then_some(next)
    }

    /// Everything, for a datapath that knows nothing or something else.
    pub(crate) fn complete(&self, generation: u64) -> ApplyRequest {
        ApplyRequest {
            generation,
            from: 0,
            settings: Some(self.settings.clone()),
            peers: self.peers.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            plugins: self.plugins.values().cloned().collect(),
            services: Some(self.services.complete()),
            policies: Some(self.policies.complete()),
            names: Some(self.names.complete()),
            ..ApplyRequest::default()
        }
    }

    /// What takes a datapath that has `old` at generation `from` to `self`.
    pub(crate) fn change_from(&self, old: &Self, from: u64, generation: u64) -> ApplyRequest {
        let settings =
            (self.settings != old.settings || self.keys != old.keys).then(|| self.settings.clone());
        let (peers, removed_peers) = changed(&old.peers, &self.peers);
        let (pods, removed_pods) = changed(&old.pods, &self.pods);
        let (plugins, removed_plugins) = changed(&old.plugins, &self.plugins);
        ApplyRequest {
            generation,
            from,
            settings,
            peers,
            removed_peers,
            pods,
            removed_pods,
            plugins,
            removed_plugins,
            services: self.services.change_from(&old.services),
            policies: self.policies.change_from(&old.policies),
            names: self.names.change_from(&old.names),
        }
    }

    /// What a drop of the plugin for policies means, by its number.
    pub(crate) fn describe_drop(&self, number: u32) -> String {
        let known = self.policies.describe(number);
        known.unwrap_or_else(|| format!("a policy that is gone (number {number})"))
    }

    /// Names of the cluster.
    pub(crate) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// What is in force of policies.
    pub(crate) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// WireGuard keys that the tables name.
    pub(crate) fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
}

fn settings(snapshot: &Snapshot, local: &Local<'_>) -> NodeSettings {
    let subnets = snapshot.nodes.get(local.node).map(|n| n.subnets.as_slice()).unwrap_or_default();
    let resolvers = if snapshot.cluster.dns.is_some() { RESOLVERS.as_slice() } else { &[] };
    NodeSettings {
        interface: local.interface.to_owned(),
        mtu: u32::from(local.mtu),
        encapsulation: snapshot.cluster.to_proto().encapsulation,
        port: u32::from(snapshot.cluster.port),
        vni: snapshot.cluster.vni.get(),
        vtep_mac: local.vtep_mac.to_string(),
        addresses: texts(local.addresses.iter().chain(resolvers)),
        subnets: texts(subnets),
        pod_cidrs: texts(&snapshot.cluster.pod_cidrs),
        key_files: local.keys.iter().map(|k| k.path.display().to_string()).collect(),
        host_sources: texts(HOST_SOURCES),
    }
}

fn built_in(name: &str, priority: i32) -> (String, PluginSpec) {
    let module = match name {
        POLICY_PLUGIN => &weft_builtin::POLICY,
        DNS_PLUGIN => &weft_builtin::DNS,
        _ => &weft_builtin::SERVICE,
    };
    let (name, digest) = (name.to_owned(), module.digest().to_vec());
    (name.clone(), PluginSpec { name, digest, priority, ..PluginSpec::default() })
}

fn peer(id: u32, node: &Node) -> Peer {
    Peer {
        id,
        name: node.name.to_string(),
        endpoint: node.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        keys: node.keys.iter().map(|k| k.0.to_vec()).collect(),
        vtep_mac: node.vtep_mac.map(|m| m.to_string()).unwrap_or_default(),
        allowed_ips: node.allowed_ips().map(|n| n.to_string()).collect(),
    }
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|i| i.to_string()).collect()
}

#[cfg(test)]
pub(crate) mod tests;
