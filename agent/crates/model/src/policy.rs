//! Network policies as the hub publishes them: checked, and of all kinds alike. What of a manifest is
//! invalid is left out by the hub, so that it matches nothing and the policy still isolates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::{DomainPattern, ServiceProtocol};

/// Name of the built-in plugin that enforces policies.
pub const POLICY_PLUGIN: &str = "policy";

/// A namespace, as far as policies select it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, `kubernetes.io/metadata.name` among them.
    pub labels: BTreeMap<String, String>,
}

/// Which policy; the namespace of a `ClusterNetworkPolicy` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name inside of it.
    pub name: String,
    /// Policies of two kinds may have the same name.
    pub kind: PolicyKind,
}

/// Whose kind a policy is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `NetworkPolicy`, or `ClusterNetworkPolicy` if it has no namespace.
    #[default]
    Kubernetes,
    /// `FqdnPolicy` of `weft.dev`.
    Fqdn,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.kind, self.namespace.as_str()) {
            (PolicyKind::Fqdn, _) => "FqdnPolicy",
            (PolicyKind::Kubernetes, "") => "ClusterNetworkPolicy",
            (PolicyKind::Kubernetes, _) => "NetworkPolicy",
        };
        match self.namespace.as_str() {
            "" => write!(f, "{kind} {}", self.name),
            namespace => write!(f, "{kind} {namespace}/{}", self.name),
        }
    }
}

/// When a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyTier {
    /// `ClusterNetworkPolicy` of tier Admin with this priority, 0 to 1000, the lowest first.
    Admin(u16),
    /// `NetworkPolicy` and `FqdnPolicy`: all that select a pod together.
    Namespace,
    /// `ClusterNetworkPolicy` of tier Baseline, as in Admin.
    Baseline(u16),
}

/// What one policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which it is.
    pub name: PolicyName,
    /// When it is asked.
    pub tier: PolicyTier,
    /// What it would drop is counted and logged, and passes.
    pub watched: bool,
    /// Pods that it is for.
    pub subject: PodSelector,
    /// Rules for what they get; `None` if it does not speak of that. In tier `Namespace` what no rule
    /// matches is dropped.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Rules for what they send, alike.
    pub egress: Option<Vec<PolicyRule>>,
}

/// What becomes of what a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction {
    /// It passes this tier and all that follow.
    Accept,
    /// It is dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// One rule of a policy; peers and ports must both match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its name, or its place in the manifest: `ingress[0]`.
    pub name: String,
    /// In tier `Namespace` always [`PolicyAction::Accept`].
    pub action: PolicyAction,
    /// Any of these; `None`: anybody, inside of the cluster or outside.
    pub peers: Option<Vec<PolicyPeer>>,
    /// Any of these; `None`: every protocol and port.
    pub ports: Option<Vec<PolicyPort>>,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPeer {
    /// Pods, not of a node's own network.
    Pods(PodSelector),
    /// Addresses, whoever they belong to.
    Block {
        /// Its first address and prefix.
        range: IpNet,
        /// What is not meant.
        except: Vec<IpNet>,
    },
    /// Addresses of nodes with such labels.
    Nodes(Selector),
    /// Addresses that the pod itself was told when it asked for such a name. Only of egress rules that accept.
    Domain(DomainPattern),
}

/// Destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPort {
    /// From one number to another, both included; 0 to 65535 for every port of the protocol.
    Range {
        /// What it is about.
        protocol: ServiceProtocol,
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
    /// What the destination pod calls so, if it does for this protocol.
    Named {
        /// What it is about.
        protocol: ServiceProtocol,
        /// Name of a container's port.
        name: String,
    },
}

/// Pods by their namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// In which namespaces.
    pub namespaces: NamespaceSelector,
    /// Of those.
    pub pods: Selector,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceSelector {
    /// This one, whether there is an object for it or not.
    Named(String),
    /// Those with such labels.
    Labels(Selector),
}

/// A label selector: all requirements must hold. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub Vec<Requirement>);

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What it has to be.
    pub operator: Operator,
}

/// How labels are compared: exactly, with upper and lower case apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is there and has one of these values.
    In(BTreeSet<String>),
    /// It is not there, or has none of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// True if the labels meet all requirements.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|Requirement { key, operator }| match (operator, labels.get(key)) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::In(_) | Operator::Exists, None) => false,
            (Operator::NotIn(_) | Operator::DoesNotExist, None) => true,
            (Operator::Exists, Some(_)) => true,
            (Operator::DoesNotExist, Some(_)) => false,
        })
    }
}

/// A named port of a pod's container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// What it carries.
    pub protocol: ServiceProtocol,
    /// Its number.
    pub number: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NP-024, NP-026.
    #[test]
    fn selectors_compare_exactly_and_negations_match_what_lacks_the_label() {
        let labels = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let one = |operator| Selector(vec![Requirement { key: "app".into(), operator }]);
        let values = || BTreeSet::from(["web".to_owned(), String::new()]);
        let (web, upper, empty, none) = (
            labels(&[("app", "web")]),
            labels(&[("app", "Web")]),
            labels(&[("app", "")]),
            labels(&[("other", "web")]),
        );
        let matching = |operator| {
            let selector = one(operator);
            [&web, &upper, &empty, &none].map(|l| selector.matches(l))
        };
        assert_eq!(matching(Operator::In(values())), [true, false, true, false]);
        assert_eq!(matching(Operator::NotIn(values())), [false, true, false, true]);
        assert_eq!(matching(Operator::Exists), [true, true, true, false]);
        assert_eq!(matching(Operator::DoesNotExist), [false, false, false, true]);
        assert!(Selector::default().matches(&none));
    }
}
