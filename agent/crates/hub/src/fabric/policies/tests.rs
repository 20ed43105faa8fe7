//! Manifests in, policies out. The numbers are those of the checklist of policies' behaviour.

mod cluster;
mod fqdn;
mod namespaces;
mod network;

use std::path::Path;

use weft_model::{
    NamespaceSelector, Operator, PodSelector, PolicyPeer, PolicyPort, PolicyRule, Requirement,
    Selector,
};

use super::*;
use crate::source::index::Index;

fn read(text: &str) -> Objects {
    let mut index = Index::default();
    index.set(Path::new("p.yaml"), text);
    let (objects, problems) = index.objects();
    Objects { objects, problems, complete: index.is_complete(), ..Objects::default() }
}

fn made(text: &str) -> Outcome {
    let source = read(text);
    assert_eq!(source.problems, [], "{text}");
    build(&source)
}

/// The only policy of a text, which there is nothing to say of.
fn good(text: &str) -> Arc<Policy> {
    let (policy, problems) = bad(text);
    assert_eq!(problems, [""; 0], "{text}");
    policy
}

/// The only policy of a text, and what is said of it, without its name.
fn bad(text: &str) -> (Arc<Policy>, Vec<String>) {
    let outcome = made(text);
    assert_eq!(outcome.policies.len(), 1);
    let (name, policy) = outcome.policies.iter().next().unwrap();
    let without_name = |p: Problem| {
        let rest = p.reason.strip_prefix(&format!("{name}: "));
        rest.unwrap_or_else(|| panic!("{}", p.reason)).to_owned()
    };
    (Arc::clone(policy), outcome.problems.into_iter().map(without_name).collect())
}

/// `app in [a b] & tier`; `*` selects everything.
fn selector(Selector(requirements): &Selector) -> String {
    let one = |Requirement { key, operator }: &Requirement| match operator {
        Operator::In(values) => format!("{key} in {}", list(values.iter().cloned(), " ")),
        Operator::NotIn(values) => format!("{key} notin {}", list(values.iter().cloned(), " ")),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    };
    match requirements.as_slice() {
        [] => "*".to_owned(),
        all => all.iter().map(one).collect::<Vec<_>>().join(" & "),
    }
}

fn list(items: impl Iterator<Item = String>, separator: &str) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(separator))
}

/// `@default/*`: namespace by name, or by labels without the `@`; then pods.
fn pods(PodSelector { namespaces, pods }: &PodSelector) -> String {
    let namespaces = match namespaces {
        NamespaceSelector::Named(name) => format!("@{name}"),
        NamespaceSelector::Labels(labels) => selector(labels),
    };
    format!("{namespaces}/{}", selector(pods))
}

fn peer(peer: &PolicyPeer) -> String {
    match peer {
        PolicyPeer::Pods(selected) => pods(selected),
        PolicyPeer::Block { range, except } if except.is_empty() => range.to_string(),
        PolicyPeer::Block { range, except } => {
            format!("{range} but {}", list(except.iter().map(ToString::to_string), " "))
        }
        PolicyPeer::Nodes(labels) => format!("nodes {}", selector(labels)),
        PolicyPeer::Domain(domain) => domain.to_string(),
    }
}

fn port(port: &PolicyPort) -> String {
    match port {
        PolicyPort::Range { protocol, first: 0, last: u16::MAX } => format!("{protocol}"),
        PolicyPort::Range { protocol, first, last } if first == last => {
            format!("{protocol} {first}")
        }
        PolicyPort::Range { protocol, first, last } => format!("{protocol} {first}-{last}"),
        PolicyPort::Named { protocol, name } => format!("{protocol} {name}"),
    }
}

/// `ingress[0] Accept any any`: name, action, peers, ports.
fn rule(PolicyRule { name, action, peers, ports }: &PolicyRule) -> String {
    let any = || "any".to_owned();
    let peers = peers.as_ref().map_or_else(any, |p| list(p.iter().map(peer), ", "));
    let ports = ports.as_ref().map_or_else(any, |p| list(p.iter().map(port), ", "));
    format!("{name} {action:?} {peers} {ports}")
}

fn rules(rules: &Option<Vec<PolicyRule>>) -> Option<Vec<String>> {
    rules.as_ref().map(|rules| rules.iter().map(rule).collect())
}
