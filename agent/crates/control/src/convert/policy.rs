//! Network policies, and what they select by.

use std::collections::BTreeSet;

use ipnet::IpNet;
use weft_model::{
    NamedPort, Namespace, NamespaceSelector, Operator, PodSelector, Policy, PolicyAction,
    PolicyKind, PolicyName, PolicyPeer, PolicyPort, PolicyRule, PolicyTier, Requirement, Selector,
    ServiceProtocol,
};
use weft_proto::v1;

use super::{ConvertError, FromProto, Reason, ToProto, each, narrow, subnets, texts};

/// `priority` of a `ClusterNetworkPolicy` at most.
const PRIORITY_MAX: u16 = 1000;

fn missing(field: &str) -> ConvertError {
    ConvertError::new(field, Reason::Missing)
}

fn filled(field: &str, text: String) -> Result<String, ConvertError> {
    if text.is_empty() { Err(missing(field)) } else { Ok(text) }
}

/// Reads a message that has to be there.
fn needed<M, T: FromProto<M>>(field: &str, message: Option<M>) -> Result<T, ConvertError> {
    let message = message.ok_or_else(|| missing(field))?;
    T::from_proto(message).map_err(|e| e.within(field))
}

fn protocol(number: u32) -> Result<ServiceProtocol, ConvertError> {
    let known = ServiceProtocol::from_number(narrow("protocol", number)?);
    known.ok_or_else(|| ConvertError::new("protocol", Reason::Range(number.into())))
}

impl ToProto for NamedPort {
    type Proto = v1::NamedPort;

    fn to_proto(&self) -> v1::NamedPort {
        v1::NamedPort {
            name: self.name.clone(),
            protocol: self.protocol.number().into(),
            number: self.number.into(),
        }
    }
}

impl FromProto<v1::NamedPort> for NamedPort {
    fn from_proto(message: v1::NamedPort) -> Result<Self, ConvertError> {
        let number = narrow("number", message.number)?;
        if number == 0 {
            return Err(ConvertError::new("number", Reason::Range(0)));
        }
        let name = filled("name", message.name)?;
        Ok(Self { name, protocol: protocol(message.protocol)?, number })
    }
}

impl ToProto for Namespace {
    type Proto = v1::Namespace;

    fn to_proto(&self) -> v1::Namespace {
        let labels = self.labels.clone().into_iter().collect();
        v1::Namespace { name: self.name.clone(), labels }
    }
}

impl FromProto<v1::Namespace> for Namespace {
    fn from_proto(message: v1::Namespace) -> Result<Self, ConvertError> {
        let labels = message.labels.into_iter().collect();
        Ok(Self { name: filled("name", message.name)?, labels })
    }
}

impl ToProto for PolicyName {
    type Proto = v1::PolicyName;

    fn to_proto(&self) -> v1::PolicyName {
        let kind = match self.kind {
            PolicyKind::Kubernetes => v1::PolicyKind::Unspecified,
            PolicyKind::Fqdn => v1::PolicyKind::Fqdn,
        };
        v1::PolicyName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            kind: kind.into(),
        }
    }
}

impl FromProto<v1::PolicyName> for PolicyName {
    fn from_proto(message: v1::PolicyName) -> Result<Self, ConvertError> {
        let kind = match v1::PolicyKind::try_from(message.kind) {
            Ok(v1::PolicyKind::Unspecified) => PolicyKind::Kubernetes,
            Ok(v1::PolicyKind::Fqdn) if !message.namespace.is_empty() => PolicyKind::Fqdn,
            Ok(v1::PolicyKind::Fqdn) => return Err(missing("namespace")),
            Err(_) => return Err(ConvertError::new("kind", Reason::Enumeration(message.kind))),
        };
        Ok(Self { namespace: message.namespace, name: filled("name", message.name)?, kind })
    }
}

impl ToProto for Policy {
    type Proto = v1::Policy;

    fn to_proto(&self) -> v1::Policy {
        let (tier, priority) = match self.tier {
            PolicyTier::Admin(priority) => (v1::PolicyTier::Admin, priority),
            PolicyTier::Namespace => (v1::PolicyTier::Namespace, 0),
            PolicyTier::Baseline(priority) => (v1::PolicyTier::Baseline, priority),
        };
        let rules = |rules: &Vec<PolicyRule>| v1::PolicyRules {
            rules: rules.iter().map(ToProto::to_proto).collect(),
        };
        v1::Policy {
            name: Some(self.name.to_proto()),
            tier: tier.into(),
            priority: priority.into(),
            watched: self.watched,
            subject: Some(self.subject.to_proto()),
            ingress: self.ingress.as_ref().map(rules),
            egress: self.egress.as_ref().map(rules),
        }
    }
}

impl FromProto<v1::Policy> for Policy {
    fn from_proto(message: v1::Policy) -> Result<Self, ConvertError> {
        let name: PolicyName = needed("name", message.name)?;
        let tier = tier(message.tier, message.priority)?;
        // What is a policy of a namespace says so twice.
        if name.namespace.is_empty() == (tier == PolicyTier::Namespace) {
            return Err(ConvertError::new("tier", Reason::Enumeration(message.tier)));
        }
        Ok(Self {
            name,
            tier,
            watched: message.watched,
            subject: needed("subject", message.subject)?,
            ingress: rules("ingress", tier, message.ingress)?,
            egress: rules("egress", tier, message.egress)?,
        })
    }
}

fn tier(value: i32, priority: u32) -> Result<PolicyTier, ConvertError> {
    let known = v1::PolicyTier::try_from(value)
        .map_err(|_| ConvertError::new("tier", Reason::Enumeration(value)))?;
    let of_cluster = || {
        let number = narrow("priority", priority).ok().filter(|p| *p <= PRIORITY_MAX);
        number.ok_or_else(|| ConvertError::new("priority", Reason::Range(priority.into())))
    };
    match known {
        v1::PolicyTier::Unspecified => Err(missing("tier")),
        v1::PolicyTier::Admin => of_cluster().map(PolicyTier::Admin),
        v1::PolicyTier::Namespace => Ok(PolicyTier::Namespace),
        v1::PolicyTier::Baseline => of_cluster().map(PolicyTier::Baseline),
    }
}

fn rules(
    field: &str,
    tier: PolicyTier,
    message: Option<v1::PolicyRules>,
) -> Result<Option<Vec<PolicyRule>>, ConvertError> {
    let one = |rule: v1::PolicyRule| {
        let value = rule.action;
        let rule = PolicyRule::from_proto(rule)?;
        if tier == PolicyTier::Namespace && rule.action != PolicyAction::Accept {
            return Err(ConvertError::new("action", Reason::Enumeration(value)));
        }
        Ok(rule)
    };
    let rules = message.map(|m| each("rules", m.rules, one)).transpose();
    rules.map_err(|e| e.within(field))
}

impl ToProto for PolicyAction {
    type Proto = v1::PolicyAction;

    fn to_proto(&self) -> v1::PolicyAction {
        match self {
            Self::Accept => v1::PolicyAction::Accept,
            Self::Deny => v1::PolicyAction::Deny,
            Self::Pass => v1::PolicyAction::Pass,
        }
    }
}

impl FromProto<i32> for PolicyAction {
    fn from_proto(value: i32) -> Result<Self, ConvertError> {
        match v1::PolicyAction::try_from(value) {
            Ok(v1::PolicyAction::Accept) => Ok(Self::Accept),
            Ok(v1::PolicyAction::Deny) => Ok(Self::Deny),
            Ok(v1::PolicyAction::Pass) => Ok(Self::Pass),
            Ok(v1::PolicyAction::Unspecified) => Err(missing("action")),
            Err(_) => Err(ConvertError::new("action", Reason::Enumeration(value))),
        }
    }
}

impl ToProto for PolicyRule {
    type Proto = v1::PolicyRule;

    fn to_proto(&self) -> v1::PolicyRule {
        let peers = |p: &Vec<PolicyPeer>| p.iter().map(ToProto::to_proto).collect();
        let ports = |p: &Vec<PolicyPort>| p.iter().map(ToProto::to_proto).collect();
        v1::PolicyRule {
            name: self.name.clone(),
            action: self.action.to_proto().into(),
            peers: self.peers.as_ref().map(|p| v1::PolicyPeers { peers: peers(p) }),
            ports: self.ports.as_ref().map(|p| v1::PolicyPorts { ports: ports(p) }),
        }
    }
}

impl FromProto<v1::PolicyRule> for PolicyRule {
    fn from_proto(message: v1::PolicyRule) -> Result<Self, ConvertError> {
        let peers = message.peers.map(|m| each("peers", m.peers, PolicyPeer::from_proto));
        let ports = message.ports.map(|m| each("ports", m.ports, PolicyPort::from_proto));
        Ok(Self {
            name: message.name,
            action: PolicyAction::from_proto(message.action)?,
            peers: peers.transpose().map_err(|e| e.within("peers"))?,
            ports: ports.transpose().map_err(|e| e.within("ports"))?,
        })
    }
}

impl ToProto for PolicyPeer {
    type Proto = v1::PolicyPeer;

    fn to_proto(&self) -> v1::PolicyPeer {
        let peer = match self {
            Self::Pods(pods) => v1::policy_peer::Peer::Pods(pods.to_proto()),
            Self::Block { range, except } => v1::policy_peer::Peer::Block(v1::AddressBlock {
                range: range.to_string(),
                except: texts(except),
            }),
            Self::Nodes(nodes) => v1::policy_peer::Peer::Nodes(nodes.to_proto()),
            Self::Domain(domain) => v1::policy_peer::Peer::Domain(domain.to_string()),
        };
        v1::PolicyPeer { peer: Some(peer) }
    }
}

impl FromProto<v1::PolicyPeer> for PolicyPeer {
    fn from_proto(message: v1::PolicyPeer) -> Result<Self, ConvertError> {
        Ok(match message.peer.ok_or_else(|| missing("peer"))? {
            v1::policy_peer::Peer::Pods(pods) => Self::Pods(needed("pods", Some(pods))?),
            v1::policy_peer::Peer::Block(block) => {
                block_peer(&block).map_err(|e| e.within("block"))?
            }
            v1::policy_peer::Peer::Nodes(nodes) => Self::Nodes(needed("nodes", Some(nodes))?),
            v1::policy_peer::Peer::Domain(domain) => {
                let bad = |_| ConvertError::new("domain", Reason::Domain(domain.clone()));
                Self::Domain(domain.parse().map_err(bad)?)
            }
        })
    }
}

fn block_peer(block: &v1::AddressBlock) -> Result<PolicyPeer, ConvertError> {
    let range = block.range.parse().ok().filter(|r: &IpNet| r.trunc() == *r);
    let bad = || ConvertError::new("range", Reason::Subnet(block.range.clone()));
    let except = subnets("except", &block.except)?;
    Ok(PolicyPeer::Block { range: range.ok_or_else(bad)?, except })
}

impl ToProto for PolicyPort {
    type Proto = v1::PolicyPort;

    fn to_proto(&self) -> v1::PolicyPort {
        let (protocol, port) = match self {
            Self::Range { protocol, first, last } => {
                let (first, last) = ((*first).into(), (*last).into());
                (protocol, v1::policy_port::Port::Range(v1::PortRange { first, last }))
            }
            Self::Named { protocol, name } => (protocol, v1::policy_port::Port::Name(name.clone())),
        };
        v1::PolicyPort { protocol: protocol.number().into(), port: Some(port) }
    }
}

impl FromProto<v1::PolicyPort> for PolicyPort {
    fn from_proto(message: v1::PolicyPort) -> Result<Self, ConvertError> {
        let protocol = protocol(message.protocol)?;
        match message.port.ok_or_else(|| missing("port"))? {
            v1::policy_port::Port::Range(v1::PortRange { first, last }) => {
                let (from, to) = (narrow("range.first", first)?, narrow("range.last", last)?);
                if from > to {
                    return Err(ConvertError::new("range.last", Reason::Range(last.into())));
                }
                Ok(Self::Range { protocol, first: from, last: to })
            }
            v1::policy_port::Port::Name(name) => {
                Ok(Self::Named { protocol, name: filled("name", name)? })
            }
        }
    }
}

impl ToProto for PodSelector {
    type Proto = v1::PodSelector;

    fn to_proto(&self) -> v1::PodSelector {
        let namespaces = match &self.namespaces {
            NamespaceSelector::Named(name) => v1::pod_selector::Namespaces::Named(name.clone()),
            NamespaceSelector::Labels(labels) => {
                v1::pod_selector::Namespaces::Labels(labels.to_proto())
            }
        };
        v1::PodSelector { namespaces: Some(namespaces), pods: Some(self.pods.to_proto()) }
    }
}

impl FromProto<v1::PodSelector> for PodSelector {
    fn from_proto(message: v1::PodSelector) -> Result<Self, ConvertError> {
        let namespaces = match message.namespaces.ok_or_else(|| missing("namespaces"))? {
            v1::pod_selector::Namespaces::Named(name) => {
                NamespaceSelector::Named(filled("named", name)?)
            }
            v1::pod_selector::Namespaces::Labels(labels) => {
                NamespaceSelector::Labels(needed("labels", Some(labels))?)
            }
        };
        // One that is missing would select everything.
        Ok(Self { namespaces, pods: needed("pods", message.pods)? })
    }
}

impl ToProto for Selector {
    type Proto = v1::Selector;

    fn to_proto(&self) -> v1::Selector {
        v1::Selector { requirements: self.0.iter().map(ToProto::to_proto).collect() }
    }
}

impl FromProto<v1::Selector> for Selector {
    fn from_proto(message: v1::Selector) -> Result<Self, ConvertError> {
        each("requirements", message.requirements, Requirement::from_proto).map(Self)
    }
}

impl ToProto for Requirement {
    type Proto = v1::Requirement;

    fn to_proto(&self) -> v1::Requirement {
        use v1::requirement::Operator as Known;
        let (operator, values) = match &self.operator {
            Operator::In(values) => (Known::In, values.iter().cloned().collect()),
            Operator::NotIn(values) => (Known::NotIn, values.iter().cloned().collect()),
            Operator::Exists => (Known::Exists, Vec::new()),
            Operator::DoesNotExist => (Known::DoesNotExist, Vec::new()),
        };
        v1::Requirement { key: self.key.clone(), operator: operator.into(), values }
    }
}

impl FromProto<v1::Requirement> for Requirement {
    fn from_proto(message: v1::Requirement) -> Result<Self, ConvertError> {
        use v1::requirement::Operator as Known;
        let value = message.operator;
        let known = Known::try_from(value)
            .map_err(|_| ConvertError::new("operator", Reason::Enumeration(value)))?;
        let values: BTreeSet<_> = message.values.into_iter().collect();
        let operator = match known {
            Known::Unspecified => return Err(missing("operator")),
            Known::In => Operator::In(values),
            Known::NotIn => Operator::NotIn(values),
            Known::Exists => Operator::Exists,
            Known::DoesNotExist => Operator::DoesNotExist,
        };
        Ok(Self { key: filled("key", message.key)?, operator })
    }
}
