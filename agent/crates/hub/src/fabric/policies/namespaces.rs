//! Namespaces: those of manifests, and those that only pods name.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::{Dns, Namespace, Pod, PodName, SharedMap};

use crate::source::object::{Key, Object};
use crate::source::objects::Objects;

/// Label that every namespace has.
const NAME: &str = "kubernetes.io/metadata.name";

/// Every namespace that has an object or a pod, and the one that nodes' resolvers are in.
pub(in crate::fabric) fn namespaces(
    source: &Objects,
    pods: &SharedMap<PodName, Arc<Pod>>,
    dns: Option<&Dns>,
) -> SharedMap<String, Arc<Namespace>> {
    let mut all = SharedMap::default();
    for (key, defined) in &source.objects {
        if let Object::Namespace(manifest) = &defined.object {
            let labels = manifest.metadata.labels.clone().unwrap_or_default();
            all.insert(key.name.clone(), labelled(&key.name, labels));
        }
    }
    let resolvers = dns.iter().map(|dns| &dns.service.namespace);
    for name in pods.keys().map(|pod| &pod.namespace).chain(resolvers) {
        if !all.contains_key(name) {
            all.insert(name.clone(), labelled(name, BTreeMap::new()));
        }
    }
    all
}

/// One of [`namespaces`].
pub(in crate::fabric) fn namespace(
    source: &Objects,
    pods: &SharedMap<PodName, Arc<Pod>>,
    dns: Option<&Dns>,
    name: &str,
) -> Option<Arc<Namespace>> {
    let kind = "Namespace".to_owned();
    let key = Key { kind, namespace: String::new(), name: name.to_owned() };
    if let Some(Object::Namespace(manifest)) = source.objects.get(&key).map(|d| &d.object) {
        let labels = manifest.metadata.labels.clone().unwrap_or_default();
        return Some(labelled(name, labels));
    }
    let first = PodName { namespace: name.to_owned(), name: String::new() };
    let next = pods.range_from(&first).next();
    let named = next.is_some_and(|(pod, _)| pod.namespace == name)
        || dns.is_some_and(|dns| dns.service.namespace == name);
    named.then(|| labelled(name, BTreeMap::new()))
}

fn labelled(name: &str, mut labels: BTreeMap<String, String>) -> Arc<Namespace> {
    labels.insert(NAME.to_owned(), name.to_owned());
    Arc::new(Namespace { name: name.to_owned(), labels })
}
