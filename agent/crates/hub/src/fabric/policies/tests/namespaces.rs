use std::collections::BTreeMap;

use weft_model::{Pod, PodName};

use super::*;

fn pod(namespace: &str) -> (PodName, Arc<Pod>) {
    let name = PodName { namespace: namespace.into(), name: "a".into() };
    let pod = Pod {
        name: name.clone(),
        node: None,
        addresses: vec![],
        labels: BTreeMap::new(),
        ports: vec![],
        finished: false,
        own_search: false,
    };
    (name, pod.into())
}

fn object(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n---\n")
}

/// NP-025.
#[test]
fn every_namespace_has_its_name_as_a_label() {
    let text = object("x", "{team: a}") + &object("y", "{kubernetes.io/metadata.name: x}");
    let (source, pods) = (read(&text), SharedMap::from([pod("x"), pod("z")]));
    let all = namespaces(&source, &pods, None);
    let labels = |name: &str| -> Vec<String> {
        all[name].labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
    };
    assert_eq!(all.keys().collect::<Vec<_>>(), ["x", "y", "z"]);
    assert_eq!(labels("x"), ["kubernetes.io/metadata.name=x", "team=a"]);
    assert_eq!(labels("y"), ["kubernetes.io/metadata.name=y"]);
    assert_eq!(labels("z"), ["kubernetes.io/metadata.name=z"]);
    for name in ["x", "y", "z"] {
        assert_eq!(namespace(&source, &pods, None, name).as_ref(), Some(&all[name]));
    }
    // No prefix of another's name is a namespace.
    assert_eq!(namespace(&source, &SharedMap::from([pod("zz")]), None, "z"), None);
}
