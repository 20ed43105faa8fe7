//! `NetworkPolicy`: allows, and isolates from everything else.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_model::{
    NamespaceSelector, PodSelector, Policy, PolicyAction, PolicyName, PolicyPeer, PolicyPort,
    PolicyRule, PolicyTier, Selector, ServiceProtocol,
};

use super::reader::{Reader, Why, block, port_name, port_number};
use crate::source::pod::protocol;

/// Reads a policy. It isolates whomever it may be for, whatever else is wrong with it.
pub(super) fn policy(
    reader: &mut Reader<'_>,
    name: PolicyName,
    watched: bool,
    spec: &NetworkPolicySpec,
) -> Policy {
    let (subject, subject_known) = reader.pods_of(&name.namespace, spec.pod_selector.as_ref());
    let (mut isolates_ingress, mut isolates_egress) = directions(reader, spec);
    // It may be a misspelt one of those that say whom the policy is for, and what it is about.
    let unknown = reader.spec_known().err();
    if let Some(unknown) = &unknown {
        let what = format!("{unknown}; the policy isolates in both directions and allows nothing");
        reader.note("spec", &what);
        (isolates_ingress, isolates_egress) = (true, true);
    }
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    // To pods that another policy isolates and that this one was not meant for, rules would open.
    if subject_known && unknown.is_none() {
        let mut rules = Rules { reader, namespace: &name.namespace };
        if isolates_ingress {
            let given = spec.ingress.iter().flatten().enumerate();
            ingress.extend(given.map(|(i, rule)| {
                rules.rule(&format!("ingress[{i}]"), "from", rule.from.as_deref(), &rule.ports)
            }));
        }
        if isolates_egress {
            let given = spec.egress.iter().flatten().enumerate();
            egress.extend(given.map(|(i, rule)| {
                rules.rule(&format!("egress[{i}]"), "to", rule.to.as_deref(), &rule.ports)
            }));
        }
    }
    Policy {
        name,
        tier: PolicyTier::Namespace,
        watched,
        subject,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
    }
}

/// Whether the policy isolates from what pods get, and from what they send.
fn directions(reader: &mut Reader<'_>, spec: &NetworkPolicySpec) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    }
    let named = |name: &str| types.iter().any(|t| t == name);
    match types.iter().find(|t| !["Ingress", "Egress"].contains(&t.as_str())) {
        None => (named("Ingress"), named("Egress")),
        Some(other) => {
            let what = format!("`{other}` is neither Ingress nor Egress; it counts as both");
            reader.note("spec.policyTypes", &what);
            (true, true)
        }
    }
}

struct Rules<'r, 'a> {
    reader: &'r mut Reader<'a>,
    /// The policy's own.
    namespace: &'r str,
}

impl Rules<'_, '_> {
    fn rule(
        &mut self,
        name: &str,
        list: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: &Option<Vec<NetworkPolicyPort>>,
    ) -> PolicyRule {
        let field = format!("spec.{name}");
        let known = self.reader.own_known(&field);
        let known = self.understood(&field, known).is_some();
        let peers = peers.filter(|p| !p.is_empty()).map(|peers| {
            let peers = peers.iter().enumerate();
            let read = peers.filter_map(|(i, p)| self.peer(&format!("{field}.{list}[{i}]"), p));
            read.collect()
        });
        let ports = ports.as_ref().filter(|p| !p.is_empty()).map(|ports| {
            let ports = ports.iter().enumerate();
            let read = ports.filter_map(|(i, p)| self.port(&format!("{field}.ports[{i}]"), p));
            read.collect()
        });
        PolicyRule {
            name: name.to_owned(),
            action: PolicyAction::Accept,
            peers: if known { peers } else { Some(Vec::new()) },
            ports,
        }
    }

    fn understood<T>(&mut self, field: &str, part: Result<T, Why>) -> Option<T> {
        let note = |why: &Why| self.reader.note(field, &format!("{why}; it matches nothing"));
        part.inspect_err(note).ok()
    }

    fn peer(&mut self, field: &str, given: &NetworkPolicyPeer) -> Option<PolicyPeer> {
        let peer = self.read_peer(field, given);
        self.understood(field, peer)
    }

    fn read_peer(&mut self, field: &str, given: &NetworkPolicyPeer) -> Result<PolicyPeer, Why> {
        self.reader.all_known(field)?;
        let (pods, namespaces) = (&given.pod_selector, &given.namespace_selector);
        let selector = |name: &str, given| self.reader.selector(&format!("{field}.{name}"), given);
        if let Some(block) = &given.ip_block {
            return match (pods, namespaces) {
                (None, None) => self.read_block(field, block),
                _ => Err("a peer is either an ipBlock or selectors".to_owned()),
            };
        }
        let namespaces = match (pods, namespaces) {
            (None, None) => return Err("there is no known kind of peer".to_owned()),
            (_, Some(given)) => NamespaceSelector::Labels(selector("namespaceSelector", given)?),
            (Some(_), None) => NamespaceSelector::Named(self.namespace.to_owned()),
        };
        let pods = pods.as_ref().map(|given| selector("podSelector", given)).transpose()?;
        let pods = pods.unwrap_or_else(Selector::default);
        Ok(PolicyPeer::Pods(PodSelector { namespaces, pods }))
    }

    fn read_block(&mut self, field: &str, given: &IPBlock) -> Result<PolicyPeer, Why> {
        let range = block(&given.cidr)?;
        let mut except = Vec::new();
        for text in given.except.iter().flatten() {
            // Without one of its exceptions a block would say more than was meant.
            let inner = block(text)?;
            if range.contains(&inner) || inner.contains(&range) {
                except.push(inner);
            } else {
                let what = format!("`{text}` is not inside of `{range}` and makes no difference");
                self.reader.note(&format!("{field}.ipBlock.except"), &what);
            }
        }
        Ok(PolicyPeer::Block { range, except })
    }

    fn port(&mut self, field: &str, given: &NetworkPolicyPort) -> Option<PolicyPort> {
        let port = self.reader.all_known(field).and_then(|()| read_port(given));
        self.understood(field, port)
    }
}

pub(super) fn read_port(given: &NetworkPolicyPort) -> Result<PolicyPort, Why> {
    let text = given.protocol.as_deref();
    let protocol: ServiceProtocol = protocol(text)
        .filter(|_| text != Some(""))
        .ok_or_else(|| format!("`{}` is none of TCP, UDP, SCTP", text.unwrap_or_default()))?;
    let (first, last) = match (&given.port, given.end_port) {
        (None, None) => (0, u16::MAX),
        (None, Some(_)) => return Err("endPort is there without port".to_owned()),
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err("endPort is there with the name of a port".to_owned());
        }
        (Some(IntOrString::String(name)), None) => {
            return Ok(PolicyPort::Named { protocol, name: port_name(name)? });
        }
        (Some(IntOrString::Int(port)), end) => {
            let first = port_number((*port).into())?;
            let last = end.map(|end| port_number(end.into())).transpose()?.unwrap_or(first);
            if last < first {
                return Err(format!("endPort {last} is less than port {first}"));
            }
            (first, last)
        }
    };
    Ok(PolicyPort::Range { protocol, first, last })
}
