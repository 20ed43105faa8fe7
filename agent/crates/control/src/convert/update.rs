//! What `Watch` streams.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_model::{
    Cluster, Delta, Generation, NamedService, Namespace, Node, NodeName, PluginSpec, Pod, PodName,
    Policy, PolicyName, Service, ServiceName, Snapshot,
};
use weft_proto::v1;

use super::{ConvertError, FromProto, Reason, ToProto, each};

/// One message of `Watch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// To be given back in the next `WatchRequest`.
    pub resume: Vec<u8>,
    /// Rises when the operator asks this node for a new key.
    pub key_epoch: u64,
    /// What it says of the fabric.
    pub body: UpdateBody,
}

/// What an [`Update`] says of the fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateBody {
    /// Everything.
    Snapshot(Snapshot),
    /// What changed. Empty, from and to one generation, if only `key_epoch` changed.
    Delta(Delta),
}

impl Update {
    /// The generation it leads to.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match &self.body {
            UpdateBody::Snapshot(snapshot) => snapshot.generation,
            UpdateBody::Delta(delta) => delta.to,
        }
    }
}

impl ToProto for Update {
    type Proto = v1::Update;

    fn to_proto(&self) -> v1::Update {
        v1::Update {
            resume: self.resume.clone(),
            generation: self.generation().0,
            key_epoch: self.key_epoch,
            body: Some(match &self.body {
                UpdateBody::Snapshot(s) => v1::update::Body::Snapshot(s.to_proto()),
                UpdateBody::Delta(d) => v1::update::Body::Delta(d.to_proto()),
            }),
        }
    }
}

impl FromProto<v1::Update> for Update {
    fn from_proto(message: v1::Update) -> Result<Self, ConvertError> {
        let generation = Generation(message.generation);
        let body = match message.body {
            None => return Err(ConvertError::new("body", Reason::Missing)),
            Some(v1::update::Body::Snapshot(s)) => UpdateBody::Snapshot(
                Snapshot::from_proto((generation, s)).map_err(|e| e.within("snapshot"))?,
            ),
            Some(v1::update::Body::Delta(d)) => UpdateBody::Delta(
                Delta::from_proto((generation, d)).map_err(|e| e.within("delta"))?,
            ),
        };
        Ok(Self { resume: message.resume, key_epoch: message.key_epoch, body })
    }
}

/// Without the generation, which stands in the `Update` around it.
impl ToProto for Snapshot {
    type Proto = v1::Snapshot;

    fn to_proto(&self) -> v1::Snapshot {
        v1::Snapshot {
            cluster: Some(self.cluster.to_proto()),
            nodes: self.nodes.values().map(ToProto::to_proto).collect(),
            pods: self.pods.values().map(|p| p.to_proto()).collect(),
            plugins: self.plugins.values().map(ToProto::to_proto).collect(),
            services: self.services.values().map(|s| s.to_proto()).collect(),
            named_services: self.named_services.values().map(|s| s.to_proto()).collect(),
            namespaces: self.namespaces.values().map(|n| n.to_proto()).collect(),
            policies: self.policies.values().map(|p| p.to_proto()).collect(),
        }
    }
}

impl FromProto<(Generation, v1::Snapshot)> for Snapshot {
    fn from_proto((generation, message): (Generation, v1::Snapshot)) -> Result<Self, ConvertError> {
        let cluster =
            message.cluster.ok_or_else(|| ConvertError::new("cluster", Reason::Missing))?;
        let nodes = each("nodes", message.nodes, Node::from_proto)?;
        let pods = each("pods", message.pods, shared::<_, Pod>)?;
        let plugins = each("plugins", message.plugins, PluginSpec::from_proto)?;
        let services = each("services", message.services, shared::<_, Service>)?;
        let named = each("named_services", message.named_services, shared::<_, NamedService>)?;
        let namespaces = each("namespaces", message.namespaces, shared::<_, Namespace>)?;
        let policies = each("policies", message.policies, shared::<_, Policy>)?;
        Ok(Self {
            generation,
            cluster: Cluster::from_proto(cluster).map_err(|e| e.within("cluster"))?,
            nodes: by_key("nodes", nodes, |n| n.name.clone())?,
            pods: by_key("pods", pods, |p| p.name.clone())?,
            plugins: by_key("plugins", plugins, |p| p.name.clone())?,
            services: by_key("services", services, |s| s.name.clone())?,
            named_services: by_key("named_services", named, |s| s.name.clone())?,
            namespaces: by_key("namespaces", namespaces, |n| n.name.clone())?,
            policies: by_key("policies", policies, |p| p.name.clone())?,
        })
    }
}

fn shared<M, T: FromProto<M>>(message: M) -> Result<Arc<T>, ConvertError> {
    T::from_proto(message).map(Arc::new)
}

/// A map that each key is in once.
fn by_key<K: Ord + ToString, V, M: FromIterator<(K, V)>>(
    field: &str,
    items: Vec<V>,
    key: impl Fn(&V) -> K,
) -> Result<M, ConvertError> {
    let all: Vec<_> = items.into_iter().map(|item| (key(&item), item)).collect();
    let mut seen = BTreeSet::new();
    if let Some((twice, _)) = all.iter().find(|(key, _)| !seen.insert(key)) {
        return Err(ConvertError::new(field, Reason::Duplicate(twice.to_string())));
    }
    Ok(all.into_iter().collect())
}

/// Without `to`, which is the generation of the `Update` around it.
impl ToProto for Delta {
    type Proto = v1::Delta;

    fn to_proto(&self) -> v1::Delta {
        v1::Delta {
            from: self.from.0,
            cluster: self.cluster.as_ref().map(ToProto::to_proto),
            nodes: self.nodes.iter().map(ToProto::to_proto).collect(),
            removed_nodes: super::texts(&self.removed_nodes),
            pods: self.pods.iter().map(|p| p.to_proto()).collect(),
            removed_pods: self.removed_pods.iter().map(ToProto::to_proto).collect(),
            plugins: self.plugins.iter().map(ToProto::to_proto).collect(),
            removed_plugins: self.removed_plugins.clone(),
            services: self.services.iter().map(|s| s.to_proto()).collect(),
            removed_services: self.removed_services.iter().map(ToProto::to_proto).collect(),
            named_services: self.named_services.iter().map(|s| s.to_proto()).collect(),
            removed_named_services: self
                .removed_named_services
                .iter()
                .map(ToProto::to_proto)
                .collect(),
            namespaces: self.namespaces.iter().map(|n| n.to_proto()).collect(),
            removed_namespaces: self.removed_namespaces.clone(),
            policies: self.policies.iter().map(|p| p.to_proto()).collect(),
            removed_policies: self.removed_policies.iter().map(ToProto::to_proto).collect(),
        }
    }
}

impl FromProto<(Generation, v1::Delta)> for Delta {
    fn from_proto((to, message): (Generation, v1::Delta)) -> Result<Self, ConvertError> {
        let cluster = message.cluster.map(Cluster::from_proto).transpose();
        Ok(Self {
            from: Generation(message.from),
            to,
            cluster: cluster.map_err(|e| e.within("cluster"))?,
            nodes: each("nodes", message.nodes, Node::from_proto)?,
            removed_nodes: each("removed_nodes", message.removed_nodes, NodeName::from_proto)?,
            pods: each("pods", message.pods, shared::<_, Pod>)?,
            removed_pods: each("removed_pods", message.removed_pods, PodName::from_proto)?,
            plugins: each("plugins", message.plugins, PluginSpec::from_proto)?,
            removed_plugins: message.removed_plugins,
            services: each("services", message.services, shared::<_, Service>)?,
            removed_services: each(
                "removed_services",
                message.removed_services,
                ServiceName::from_proto,
            )?,
            named_services: each(
                "named_services",
                message.named_services,
                shared::<_, NamedService>,
            )?,
            removed_named_services: each(
                "removed_named_services",
                message.removed_named_services,
                ServiceName::from_proto,
            )?,
            namespaces: each("namespaces", message.namespaces, shared::<_, Namespace>)?,
            removed_namespaces: message.removed_namespaces,
            policies: each("policies", message.policies, shared::<_, Policy>)?,
            removed_policies: each(
                "removed_policies",
                message.removed_policies,
                PolicyName::from_proto,
            )?,
        })
    }
}
