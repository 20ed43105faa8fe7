//! How much has to be made anew.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{NodeName, Pod, PodName, ServiceName};

use super::services;
use super::state::State;
use crate::source::object::Object;
use crate::source::objects::Objects;

/// What a change of the hub's state touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Anything.
    Everything,
    /// Endpoints of Services and nothing else: most changes of a cluster.
    Endpoints(ChangedEndpoints),
}

/// Pods, and Services some slice of which changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedEndpoints {
    pub(crate) pods: BTreeSet<PodName>,
    pub(crate) services: BTreeSet<ServiceName>,
}

impl Extent {
    /// Pods that may be other than they were; `None`: any.
    pub(crate) fn pods(&self) -> Option<&BTreeSet<PodName>> {
        match self {
            Self::Everything => None,
            Self::Endpoints(changed) => Some(&changed.pods),
        }
    }

    /// From one reading of the source to the next; `None` if nothing changed.
    pub(crate) fn of_source(before: &Objects, after: &Objects) -> Option<Self> {
        if !after.differs_in_objects_only(before) {
            return Some(Self::Everything);
        }
        let keys = after.changed_from(before);
        if keys.is_empty() {
            return None;
        }
        let mut changed = ChangedEndpoints::default();
        for key in keys {
            for defined in [before, after].into_iter().filter_map(|o| o.objects.get(key)) {
                match &defined.object {
                    Object::Pod(pod) => drop(changed.pods.insert(pod.pod.name.clone())),
                    Object::EndpointSlice(slice) => {
                        let namespace = key.namespace.clone();
                        let name = services::service_of(slice).map(ToOwned::to_owned);
                        changed.services.extend(name.map(|name| ServiceName { namespace, name }));
                    }
                    _ => return Some(Self::Everything),
                }
            }
        }
        Some(Self::Endpoints(changed))
    }

    /// From the pods that a node had to those it has now. One that another node has too may be that one's
    /// now, or no longer.
    pub(crate) fn of_pods(state: &State, node: &NodeName, before: &[Pod], after: &[Pod]) -> Self {
        let by_name = |pods: &[Pod]| pods.iter().map(|p| (p.name.clone(), p.clone())).collect();
        let (old, new): (BTreeMap<PodName, Pod>, BTreeMap<_, _>) =
            (by_name(before), by_name(after));
        let others = state.nodes.iter().filter(|(name, _)| *name != node);
        let elsewhere = others.flat_map(|(_, joined)| &joined.reported.pods).map(|p| &p.name);
        let contested = elsewhere.filter(|name| old.contains_key(name) || new.contains_key(name));
        let changed = old.keys().chain(new.keys()).filter(|name| old.get(name) != new.get(name));
        let pods = changed.chain(contested).cloned().collect();
        Self::Endpoints(ChangedEndpoints { pods, services: BTreeSet::new() })
    }
}
