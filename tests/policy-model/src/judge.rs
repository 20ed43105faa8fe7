//! The rules.

use std::net::IpAddr;

use crate::{
    Action, Block, Cluster, ClusterPeer, ClusterPort, ClusterRule, Direction, NetworkPolicy, Peer,
    Pod, Port, PortNumber, Protocol, Rule, Subject, Tier,
};

/// True if a new connection is allowed: at both ends (NP-004).
///
/// `to` and `port` are those after translation by Services; `port` means nothing for a protocol
/// without ports. An address that neither a pod nor a node has is outside of the cluster.
#[must_use]
pub fn allowed(cluster: &Cluster, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> bool {
    egress_allowed(cluster, from, to, protocol, port)
        && ingress_allowed(cluster, from, to, protocol, port)
}

/// True if the pod at `from` may begin this connection, or if there is no pod.
#[must_use]
pub fn egress_allowed(
    cluster: &Cluster,
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let Some(pod) = cluster.pod_at(from) else { return true };
    let connection = Connection { cluster, direction: Direction::Egress, to, protocol, port };
    connection.is_exempt(pod, to) || connection.passes(pod, to)
}

/// True if the pod at `to` may be reached by this connection, or if there is no pod.
#[must_use]
pub fn ingress_allowed(
    cluster: &Cluster,
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let Some(pod) = cluster.pod_at(to) else { return true };
    let connection = Connection { cluster, direction: Direction::Ingress, to, protocol, port };
    connection.is_exempt(pod, from) || connection.passes(pod, from)
}

/// A connection at one of its ends.
struct Connection<'a> {
    cluster: &'a Cluster,
    /// Of the pod that is asked about.
    direction: Direction,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

impl Connection<'_> {
    /// What no policy of any tier denies: a pod and itself, and what its own node sends it (NP-061, NP-062,
    /// NP-064, NP-142).
    fn is_exempt(&self, pod: &Pod, peer: IpAddr) -> bool {
        let from_node = self.direction == Direction::Ingress && self.is_own_node(pod, peer);
        pod.addresses.contains(&peer) || from_node
    }

    fn is_own_node(&self, pod: &Pod, peer: IpAddr) -> bool {
        let node = self.cluster.nodes.get(&pod.node);
        node.is_some_and(|node| node.addresses.contains(&peer))
    }

    /// The tiers in their order (NP-130, NP-135). NetworkPolicies keep no pod from its own node (NP-063).
    fn passes(&self, pod: &Pod, peer: IpAddr) -> bool {
        match self.decided_by(Tier::Admin, pod, peer) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None => {}
        }
        let policies: Vec<_> = (self.cluster.policies.iter())
            .filter(|((namespace, _), policy)| {
                *namespace == pod.namespace
                    && policy.pods.matches(&pod.labels)
                    && policy.covers(self.direction)
                    && !policy.watched
            })
            .collect();
        if !policies.is_empty() {
            let allows = |((namespace, _), policy): &(&(String, String), &NetworkPolicy)| {
                policy.rules(self.direction).iter().any(|rule| self.matches(rule, namespace, peer))
            };
            return self.is_own_node(pod, peer) || policies.iter().any(allows);
        }
        self.decided_by(Tier::Baseline, pod, peer) != Some(Action::Deny)
    }

    /// What the first rule of a tier that matches says (NP-131).
    fn decided_by(&self, tier: Tier, pod: &Pod, peer: IpAddr) -> Option<Action> {
        let mut policies: Vec<_> = (self.cluster.cluster_policies.values())
            .filter(|policy| policy.tier == tier && !policy.watched)
            .filter(|policy| self.is_of(&policy.subject, pod))
            .collect();
        policies.sort_by_key(|policy| policy.priority);
        let mut rules = policies.iter().flat_map(|policy| policy.rules(self.direction));
        rules.find_map(|rule| self.decision(rule, peer))
    }

    fn decision(&self, rule: &ClusterRule, peer: IpAddr) -> Option<Action> {
        if rule.peers.contains(&ClusterPeer::Unknown) {
            // NP-139
            return (rule.action != Action::Accept).then_some(Action::Deny);
        }
        let matches = rule.peers.iter().any(|entry| self.is_cluster_peer(entry, peer))
            && (rule.ports.is_empty() || rule.ports.iter().any(|port| self.is_cluster_port(port)));
        matches.then_some(rule.action)
    }

    fn is_of(&self, subject: &Subject, pod: &Pod) -> bool {
        let namespace = self.cluster.namespace_labels(&pod.namespace);
        match subject {
            Subject::Namespaces(selector) => selector.matches(&namespace),
            Subject::Pods(namespaces, pods) => {
                namespaces.matches(&namespace) && pods.matches(&pod.labels)
            }
        }
    }

    fn is_cluster_peer(&self, entry: &ClusterPeer, peer: IpAddr) -> bool {
        match entry {
            ClusterPeer::Pods(subject) => {
                self.cluster.pod_at(peer).is_some_and(|pod| self.is_of(subject, pod))
            }
            ClusterPeer::Networks(networks) => networks.iter().any(|net| net.contains(&peer)),
            ClusterPeer::Nodes(selector) => {
                self.cluster.node_at(peer).is_some_and(|node| selector.matches(&node.labels))
            }
            ClusterPeer::Unknown => false,
        }
    }

    fn is_cluster_port(&self, entry: &ClusterPort) -> bool {
        match entry {
            ClusterPort::Ports(protocol, None) => self.protocol == *protocol,
            ClusterPort::Ports(protocol, Some((first, last))) => {
                self.protocol == *protocol && (*first..=*last).contains(&self.port)
            }
            ClusterPort::Named(name) => self.is_named(name, self.protocol),
        }
    }

    fn matches(&self, rule: &Rule, namespace: &str, peer: IpAddr) -> bool {
        let is_known =
            |port: &Port| port.protocol.as_deref().is_none_or(|p| Protocol::named(p).is_some());
        rule.ports.iter().all(is_known)
            && (rule.peers.is_empty() && self.is_port_of(rule, None)
                || rule.peers.iter().any(|entry| {
                    self.is_peer(entry, namespace, peer) && self.is_port_of(rule, Some(entry))
                }))
    }

    fn is_peer(&self, entry: &Peer, namespace: &str, peer: IpAddr) -> bool {
        if let Some(Block { cidr, except }) = &entry.block {
            return cidr.contains(&peer) && !except.iter().any(|hole| hole.contains(&peer));
        }
        let Some(pod) = self.cluster.pod_at(peer) else { return false };
        let in_namespaces = |selector: &crate::Selector| {
            selector.matches(&self.cluster.namespace_labels(&pod.namespace))
        };
        match (&entry.namespaces, &entry.pods) {
            (None, None) => false,
            (None, Some(pods)) => pod.namespace == namespace && pods.matches(&pod.labels),
            (Some(namespaces), None) => in_namespaces(namespaces),
            (Some(namespaces), Some(pods)) => {
                in_namespaces(namespaces) && pods.matches(&pod.labels)
            }
        }
    }

    /// `entry`: the peer that matches; `None` if any does.
    fn is_port_of(&self, rule: &Rule, entry: Option<&Peer>) -> bool {
        // NP-037: what is meant by its address has no named ports.
        let by_address =
            self.direction == Direction::Egress && entry.is_some_and(|entry| entry.block.is_some());
        rule.ports.is_empty()
            || rule.ports.iter().any(|port| {
                !(by_address && matches!(port.port, PortNumber::Name(_))) && self.is_port(port)
            })
    }

    fn is_port(&self, entry: &Port) -> bool {
        let protocol = entry.protocol.as_deref().unwrap_or("TCP");
        let Some(protocol) = Protocol::named(protocol) else { return false };
        self.protocol == protocol
            && match &entry.port {
                PortNumber::Any => true,
                PortNumber::Range(first, last) => (*first..=*last).contains(&self.port),
                PortNumber::Name(name) => self.is_named(name, protocol),
            }
    }

    /// True if the destination is a pod with a port of this name there (NP-041 to NP-044).
    fn is_named(&self, name: &str, protocol: Protocol) -> bool {
        self.cluster.pod_at(self.to).is_some_and(|pod| {
            let mut ports = pod.ports.iter().filter(|port| port.name == name);
            ports.any(|port| port.protocol == protocol && port.port == self.port)
        })
    }
}
