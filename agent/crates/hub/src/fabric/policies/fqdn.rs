//! `FqdnPolicy`: allows pods to send to hosts by their names, and isolates them from everything else that
//! they might send. Nothing is said of what they get.

use weft_model::{
    Policy, PolicyAction, PolicyName, PolicyPeer, PolicyPort, PolicyRule, PolicyTier,
};

use super::network::read_port;
use super::reader::{Reader, Why, domain};
use crate::source::fqdn::{FqdnPolicySpec, FqdnRule};

/// Reads a policy. It isolates whomever it may be for, whatever else is wrong with it.
pub(super) fn policy(
    reader: &mut Reader<'_>,
    name: PolicyName,
    watched: bool,
    spec: &FqdnPolicySpec,
) -> Policy {
    let (subject, subject_known) = reader.pods_of(&name.namespace, spec.pod_selector.as_ref());
    let unknown = reader.spec_known().err();
    if let Some(unknown) = &unknown {
        let what = format!("{unknown}; the policy isolates at egress and allows nothing");
        reader.note("spec", &what);
    }
    let understood = subject_known && unknown.is_none();
    let given = spec.egress.iter().flatten().enumerate().filter(|_| understood);
    let egress = given.map(|(i, given)| rule(reader, i, given)).collect();
    Policy {
        tier: PolicyTier::Namespace,
        watched,
        subject,
        ingress: None,
        egress: Some(egress),
        name,
    }
}

fn rule(reader: &mut Reader<'_>, i: usize, given: &FqdnRule) -> PolicyRule {
    let name = format!("egress[{i}]");
    let field = format!("spec.{name}");
    let names = given.names.as_deref().unwrap_or_default();
    let known = reader.own_known(&field).and_then(|()| match names {
        [] => Err("there are no names".to_owned()),
        _ => Ok(()),
    });
    let known = understood(reader, &field, known).is_some();
    let mut peers = Vec::new();
    for (i, text) in names.iter().enumerate().filter(|_| known) {
        let domain = understood(reader, &format!("{field}.names[{i}]"), domain(text));
        peers.extend(domain.map(PolicyPeer::Domain));
    }
    let given = given.ports.as_ref().filter(|ports| !ports.is_empty());
    let ports = given.map(|ports| {
        let mut read = Vec::new();
        for (i, given) in ports.iter().enumerate() {
            let field = format!("{field}.ports[{i}]");
            let port = reader.all_known(&field).and_then(|()| read_port(given)).and_then(by_number);
            read.extend(understood(reader, &field, port));
        }
        read
    });
    PolicyRule { name, action: PolicyAction::Accept, peers: Some(peers), ports }
}

/// Names of ports are those of pods.
fn by_number(port: PolicyPort) -> Result<PolicyPort, Why> {
    match port {
        PolicyPort::Range { .. } => Ok(port),
        PolicyPort::Named { name, .. } => Err(format!("`{name}` is no number of a port")),
    }
}

fn understood<T>(reader: &mut Reader<'_>, field: &str, part: Result<T, Why>) -> Option<T> {
    let note = |why: &Why| reader.note(field, &format!("{why}; it matches nothing"));
    part.inspect_err(note).ok()
}
