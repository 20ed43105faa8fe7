//! `ClusterNetworkPolicy`: accepts, drops or passes on, and isolates nobody. A part that is not
//! understood makes a rule that accepts match nothing, and any other drop everything.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use weft_model::{
    NamespaceSelector, PodSelector, Policy, PolicyAction, PolicyName, PolicyPeer, PolicyPort,
    PolicyRule, PolicyTier, Selector, ServiceProtocol,
};

use super::reader::{Reader, Why, block, domain, port_name, port_number};
use crate::source::policy::{
    ClusterPeer, ClusterPolicySpec, ClusterPort, ClusterPorts, ClusterProtocol, ClusterRule,
    NamespacedPods,
};

const PRIORITY_MAX: u16 = 1000;
/// Rules of a direction, peers, ports and networks that the API takes in one list.
const LIST_MAX: usize = 25;
/// Characters of a rule's name.
const NAME_MAX: usize = 100;

/// Reads a policy.
pub(super) fn policy(
    reader: &mut Reader<'_>,
    name: PolicyName,
    watched: bool,
    spec: &ClusterPolicySpec,
) -> Policy {
    let (tier, tier_known) = tier(reader, spec);
    let (subject, subject_known) = subject(reader, spec);
    // It may be a misspelt one of those that hold the rules.
    if let Err(unknown) = reader.spec_known() {
        reader.note("spec", &format!("{unknown}; the policy drops everything in both directions"));
        let name_of_rule = "spec".to_owned();
        let (action, peers, ports) = (PolicyAction::Deny, None, None);
        let rules = Some(vec![PolicyRule { name: name_of_rule, action, peers, ports }]);
        return Policy { name, tier, watched, subject, ingress: rules.clone(), egress: rules };
    }
    let mut directions =
        [("ingress", &spec.ingress), ("egress", &spec.egress)].map(|(name, given)| {
            let given = given.as_deref().unwrap_or_default();
            limit(reader, &format!("spec.{name}"), given.len(), "rules");
            let rules =
                given.iter().enumerate().map(|(i, given)| rule(reader, tier, name, i, given));
            let mut rules: Vec<_> = rules.collect();
            // For more pods than was meant, or before what it was meant to follow, only this is harmless.
            if !(tier_known && subject_known) {
                rules.retain(|rule| rule.action == PolicyAction::Deny);
            }
            (!rules.is_empty()).then_some(rules)
        });
    let [ingress, egress] = &mut directions;
    Policy { name, tier, watched, subject, ingress: ingress.take(), egress: egress.take() }
}

const ONLY_DENY: &str = "only rules that drop are left of the policy";

fn limit(reader: &mut Reader<'_>, field: &str, count: usize, what: &str) {
    if count > LIST_MAX {
        let what = format!("{count} {what} are more than the {LIST_MAX} of the API; all count");
        reader.note(field, &what);
    }
}

fn tier(reader: &mut Reader<'_>, spec: &ClusterPolicySpec) -> (PolicyTier, bool) {
    let given = spec.priority.unwrap_or_default();
    let priority = given.clamp(0, PRIORITY_MAX.into());
    let mut known = spec.priority.is_some();
    if !known {
        reader.note("spec.priority", &format!("it is missing and counts as 0; {ONLY_DENY}"));
    }
    if priority != given {
        let what = format!("{given} is not between 0 and {PRIORITY_MAX}; it counts as {priority}");
        reader.note("spec.priority", &what);
    }
    let priority = u16::try_from(priority).unwrap_or(PRIORITY_MAX);
    let tier = match spec.tier.as_deref() {
        Some("Admin") => PolicyTier::Admin(priority),
        Some("Baseline") => PolicyTier::Baseline(priority),
        other => {
            known = false;
            let what = format!(
                "`{}` is neither Admin nor Baseline; it counts as Admin, and {ONLY_DENY}",
                other.unwrap_or_default()
            );
            reader.note("spec.tier", &what);
            PolicyTier::Admin(priority)
        }
    };
    (tier, known)
}

/// Whom the policy is for, and whether that is certain.
fn subject(reader: &mut Reader<'_>, spec: &ClusterPolicySpec) -> (PodSelector, bool) {
    let field = "spec.subject";
    let given = spec.subject.clone().unwrap_or_default();
    let everything = LabelSelector::default();
    let mut why = reader.own_known(field).err();
    let (namespaces, pods) = match (&given.namespaces, &given.pods) {
        (Some(namespaces), None) => ((".namespaces", namespaces), ("", &everything)),
        (None, Some(NamespacedPods { namespace_selector, pod_selector })) => {
            why = why.or_else(|| reader.own_known("spec.subject.pods").err());
            why = why.or_else(|| pod_selector.is_none().then(|| "podSelector is missing".into()));
            let namespaces = namespace_selector.as_ref().unwrap_or(&everything);
            let pods = pod_selector.as_ref().unwrap_or(&everything);
            ((".pods.namespaceSelector", namespaces), (".pods.podSelector", pods))
        }
        (None, None) => {
            why = why.or_else(|| Some("there is no known kind of subject".to_owned()));
            (("", &everything), ("", &everything))
        }
        (Some(_), Some(_)) => {
            why = why.or_else(|| Some("namespaces and pods exclude each other".to_owned()));
            (("", &everything), ("", &everything))
        }
    };
    let mut widest = |(name, given): (&str, &LabelSelector)| {
        // What is not given has no fields to look for.
        let (selector, reason) = match name {
            "" => (Selector::default(), None),
            _ => reader.widest(&format!("{field}{name}"), given),
        };
        why = why.take().or(reason);
        selector
    };
    let (namespaces, pods) = (NamespaceSelector::Labels(widest(namespaces)), widest(pods));
    if let Some(why) = &why {
        let what =
            format!("{why}; it is for all pods that the rest of it matches, and {ONLY_DENY}");
        reader.note(field, &what);
    }
    (PodSelector { namespaces, pods }, why.is_none())
}

fn rule(
    reader: &mut Reader<'_>,
    tier: PolicyTier,
    direction: &str,
    i: usize,
    given: &ClusterRule,
) -> PolicyRule {
    let place = format!("{direction}[{i}]");
    let field = format!("spec.{place}");
    let name = given.name.clone().filter(|n| !n.is_empty());
    let usable = |n: &String| n.chars().count() <= NAME_MAX && !n.chars().any(char::is_control);
    if name.as_ref().is_some_and(|n| !usable(n)) {
        let what = format!("it is no line of up to {NAME_MAX} characters; the rule is {place}");
        reader.note(&format!("{field}.name"), &what);
    }
    let name = name.filter(usable).unwrap_or(place);
    let action = action(reader, &field, given.action.as_deref());
    let accepts = action == PolicyAction::Accept;
    let of = RuleOf {
        egress: direction == "egress",
        accepts,
        admin: matches!(tier, PolicyTier::Admin(_)),
    };
    let peers = match peers(reader, &field, of, given) {
        Ok(peers) => peers,
        Err((field, why)) if accepts => {
            reader.note(&field, &format!("{why}; the rule matches nothing"));
            return PolicyRule { name, action, peers: Some(Vec::new()), ports: None };
        }
        Err((field, why)) => {
            reader.note(&field, &format!("{why}; the rule drops everything"));
            return PolicyRule { name, action: PolicyAction::Deny, peers: None, ports: None };
        }
    };
    let given_ports = given.protocols.as_deref().unwrap_or_default();
    limit(reader, &format!("{field}.protocols"), given_ports.len(), "entries");
    let outside = given.to.iter().flatten().any(|p| p.namespaces.is_none() && p.pods.is_none());
    let mut ports = (!given_ports.is_empty()).then(Vec::new);
    for (i, given) in given_ports.iter().enumerate() {
        let field = format!("{field}.protocols[{i}]");
        match reader.all_known(&field).and_then(|()| read_ports(given, outside)) {
            Ok(read) => ports.iter_mut().for_each(|ports| ports.extend(read.iter().cloned())),
            Err(why) if accepts => reader.note(&field, &format!("{why}; it matches nothing")),
            Err(why) => {
                reader.note(&field, &format!("{why}; the rule drops all that its peers match"));
                let (action, peers) = (PolicyAction::Deny, Some(peers));
                return PolicyRule { name, action, peers, ports: None };
            }
        }
    }
    PolicyRule { name, action, peers: Some(peers), ports }
}

fn action(reader: &mut Reader<'_>, field: &str, given: Option<&str>) -> PolicyAction {
    match given {
        Some("Accept") => PolicyAction::Accept,
        Some("Deny") => PolicyAction::Deny,
        Some("Pass") => PolicyAction::Pass,
        other => {
            let what = match other {
                Some(other) => format!("`{other}` is none of Accept, Deny, Pass"),
                None => "it is missing".to_owned(),
            };
            reader.note(&format!("{field}.action"), &format!("{what}; it counts as Deny"));
            PolicyAction::Deny
        }
    }
}

/// What peers a rule may have depends on this.
#[derive(Clone, Copy)]
struct RuleOf {
    egress: bool,
    accepts: bool,
    admin: bool,
}

/// All peers of a rule; if one is not understood, where and why.
fn peers(
    reader: &mut Reader<'_>,
    field: &str,
    of: RuleOf,
    given: &ClusterRule,
) -> Result<Vec<PolicyPeer>, (String, Why)> {
    reader.own_known(field).map_err(|why| (field.to_owned(), why))?;
    let (list, others, name) = match of.egress {
        true => (&given.to, &given.from, "to"),
        false => (&given.from, &given.to, "from"),
    };
    if others.is_some() {
        return Err((field.to_owned(), format!("its peers are in `{name}` only")));
    }
    let list = list.as_deref().unwrap_or_default();
    let field = format!("{field}.{name}");
    if list.is_empty() {
        return Err((field, "there are no peers".to_owned()));
    }
    limit(reader, &field, list.len(), "peers");
    let mut peers = Vec::new();
    for (i, given) in list.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let read = peer(reader, &field, of, given);
        peers.extend(read.map_err(|why| (field, why))?);
    }
    Ok(peers)
}

fn peer(
    reader: &mut Reader<'_>,
    field: &str,
    RuleOf { egress, accepts, admin }: RuleOf,
    given: &ClusterPeer,
) -> Result<Vec<PolicyPeer>, Why> {
    reader.all_known(field)?;
    let ClusterPeer { namespaces, pods, networks, nodes, domain_names } = given;
    let networks = networks.as_deref().unwrap_or_default();
    let domain_names = domain_names.as_deref().unwrap_or_default();
    let outside = [!networks.is_empty(), nodes.is_some(), !domain_names.is_empty()];
    let kinds = [namespaces.is_some(), pods.is_some()].into_iter().chain(outside);
    match kinds.filter(|there| *there).count() {
        0 => return Err("there is no known kind of peer".to_owned()),
        1 => {}
        _ => return Err("kinds of peers exclude each other".to_owned()),
    }
    if !egress && outside.contains(&true) {
        return Err("rules for ingress have namespaces and pods as peers".to_owned());
    }
    let selector = |name: &str, given| reader.selector(&format!("{field}.{name}"), given);
    if let Some(given) = namespaces {
        let namespaces = NamespaceSelector::Labels(selector("namespaces", given)?);
        return Ok(vec![PolicyPeer::Pods(PodSelector { namespaces, pods: Selector::default() })]);
    }
    if let Some(NamespacedPods { namespace_selector, pod_selector }) = pods {
        let given = pod_selector.as_ref().ok_or("podSelector is missing")?;
        let pods = selector("pods.podSelector", given)?;
        let namespaces = namespace_selector.as_ref();
        let namespaces = namespaces.map(|given| selector("pods.namespaceSelector", given));
        let namespaces = namespaces.transpose()?.unwrap_or_else(Selector::default);
        let namespaces = NamespaceSelector::Labels(namespaces);
        return Ok(vec![PolicyPeer::Pods(PodSelector { namespaces, pods })]);
    }
    if let Some(given) = nodes {
        return Ok(vec![PolicyPeer::Nodes(selector("nodes", given)?)]);
    }
    if !domain_names.is_empty() {
        if !accepts {
            return Err("domainNames are for rules that accept".to_owned());
        }
        if !admin {
            return Err("domainNames are for tier Admin".to_owned());
        }
        limit(reader, &format!("{field}.domainNames"), domain_names.len(), "names");
        return domain_names.iter().map(|text| domain(text).map(PolicyPeer::Domain)).collect();
    }
    limit(reader, &format!("{field}.networks"), networks.len(), "networks");
    let block =
        |text: &String| block(text).map(|range| PolicyPeer::Block { range, except: Vec::new() });
    networks.iter().map(block).collect()
}

/// `outside`: some peers are no pods, which have no names for ports.
fn read_ports(given: &ClusterProtocol, outside: bool) -> Result<Vec<PolicyPort>, Why> {
    let ClusterProtocol { tcp, udp, sctp, destination_named_port: named } = given;
    let known =
        [(ServiceProtocol::Tcp, tcp), (ServiceProtocol::Udp, udp), (ServiceProtocol::Sctp, sctp)];
    let given: Vec<_> =
        known.iter().filter_map(|(p, ports)| Some((*p, (*ports).as_ref()?))).collect();
    match (given.as_slice(), named) {
        ([(protocol, ports)], None) => Ok(vec![range(*protocol, ports)?]),
        ([], Some(_)) if outside => {
            Err("destinationNamedPort is for peers that are namespaces or pods".to_owned())
        }
        ([], Some(name)) => {
            let name = port_name(name)?;
            let one = |(protocol, _)| PolicyPort::Named { protocol, name: name.clone() };
            Ok(known.into_iter().map(one).collect())
        }
        ([], None) => Err("there is no known kind of protocol".to_owned()),
        _ => Err("tcp, udp, sctp and destinationNamedPort exclude each other".to_owned()),
    }
}

fn range(protocol: ServiceProtocol, given: &ClusterPorts) -> Result<PolicyPort, Why> {
    let (first, last) = match &given.destination_port {
        None => (0, u16::MAX),
        Some(ClusterPort { number: Some(number), range: None }) => {
            let number = port_number(*number)?;
            (number, number)
        }
        Some(ClusterPort { number: None, range: Some(range) }) => {
            let end = |name: &str, end: Option<i64>| {
                end.ok_or_else(|| format!("{name} of the range is missing")).and_then(port_number)
            };
            (end("start", range.start)?, end("end", range.end)?)
        }
        Some(_) => return Err("destinationPort is either a number or a range".to_owned()),
    };
    if first > last {
        return Err(format!("end {last} of the range is less than its start {first}"));
    }
    Ok(PolicyPort::Range { protocol, first, last })
}
