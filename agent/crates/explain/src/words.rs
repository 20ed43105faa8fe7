//! What people read of an explanation.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use weft_model::{PolicyKind, PolicyName, ServiceProtocol};
use weft_proto::v1;
use weft_proto::v1::decision::Reason;
use weft_proto::v1::{
    DecidingRule, Decision, ExplainResponse, ExplainedConnection, ExplainedEnd, ExplainedPorts,
    Ports, Verdict,
};

/// Policies or rules that are named in one line.
pub const NAMED_MAX: usize = 5;

/// All of an explanation: for each connection, or several of which the same is to be said, a line with
/// the verdict, and then what each end says.
#[must_use]
pub fn explanation(response: &ExplainResponse) -> String {
    let mut text = String::new();
    let mut told: Vec<(Vec<&ExplainedConnection>, &ExplainedConnection)> = Vec::new();
    for connection in &response.connections {
        let same = told.iter_mut().find(|(_, first)| says_the_same(first, connection));
        match same {
            Some((all, _)) => all.push(connection),
            None => told.push((vec![connection], connection)),
        }
    }
    for (connections, first) in told {
        let from = end_name(&connections, |c| (&c.from_name, &c.from));
        let to = end_name(&connections, |c| (&c.to_name, &c.to));
        let through = match first.service_port.as_str() {
            "" => String::new(),
            port => format!(" (through {}, port {port})", response.to),
        };
        for (ports, said) in by_what_is_said(&first.ports) {
            let verdict = verdict(said.verdict());
            let _ = writeln!(text, "{from} to {to}{through}, {ports}: {verdict}");
            for (way, end) in [("egress", &said.egress), ("ingress", &said.ingress)] {
                if let Some(end) = end {
                    let _ = writeln!(text, "  {way}{}", end_text(end, way));
                }
            }
        }
    }
    for note in &response.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// Of one backend or family nothing else is to be said than of the other.
fn says_the_same(a: &ExplainedConnection, b: &ExplainedConnection) -> bool {
    a.from_name == b.from_name
        && a.to_name == b.to_name
        && a.service_port == b.service_port
        && a.ports == b.ports
}

/// `default/web (10.0.0.1, fd00::1)`.
fn end_name(
    connections: &[&ExplainedConnection],
    of: fn(&ExplainedConnection) -> (&String, &String),
) -> String {
    let mut addresses: Vec<&str> = Vec::new();
    for connection in connections {
        let address = of(connection).1.as_str();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let name = connections.first().map(|c| of(c).0.as_str()).unwrap_or_default();
    let addresses = addresses.join(", ");
    if name.is_empty() { addresses } else { format!("{name} ({addresses})") }
}

/// Ranges of ports of which the same is said, in one line; those that are allowed first.
fn by_what_is_said(all: &[ExplainedPorts]) -> Vec<(String, &ExplainedPorts)> {
    let mut groups: Vec<(Vec<Ports>, &ExplainedPorts)> = Vec::new();
    for one in all {
        let ports = one.ports.unwrap_or_default();
        let same = |(_, said): &&mut (Vec<Ports>, &ExplainedPorts)| {
            said.egress == one.egress && said.ingress == one.ingress
        };
        match groups.iter_mut().find(same) {
            Some((list, _)) => list.push(ports),
            None => groups.push((vec![ports], one)),
        }
    }
    let rank = |verdict: Verdict| match verdict {
        Verdict::Allowed => 0,
        Verdict::Audited => 1,
        Verdict::Denied => 2,
        Verdict::Unspecified => 3,
    };
    groups.sort_by_key(|(_, said)| rank(said.verdict()));
    let one = groups.len() == 1 && all.len() > 1;
    let text = |ports: &[Ports]| if one { "every port".to_owned() } else { list_of_ports(ports) };
    groups.into_iter().map(|(ports, said)| (text(&ports), said)).collect()
}

/// `TCP 80, 443; UDP 53`.
fn list_of_ports(all: &[Ports]) -> String {
    let mut by_protocol: BTreeMap<(bool, u32), Vec<String>> = BTreeMap::new();
    for ports in all {
        let range = match (ports.first, ports.last) {
            (0, 0) => String::new(),
            (1, 65_535) => "every port".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        by_protocol.entry((ports.protocol == 0, ports.protocol)).or_default().push(range);
    }
    let lists = by_protocol.into_iter().map(|((without, protocol), ranges)| match without {
        true => "ICMP and others without ports".to_owned(),
        false => format!("{} {}", protocol_name(protocol), ranges.join(", ")),
    });
    lists.collect::<Vec<_>>().join("; ")
}

/// `TCP`, or `protocol 47`.
#[must_use]
pub fn protocol_name(number: u32) -> String {
    match number {
        1 | 58 => return "ICMP".to_owned(),
        _ => {}
    }
    let known = u8::try_from(number).ok().and_then(ServiceProtocol::from_number);
    known.map_or_else(|| format!("protocol {number}"), |p| p.to_string())
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Audited => "allowed in audit mode, it would be denied",
        Verdict::Denied => "denied",
        Verdict::Unspecified => "not known",
    }
}

fn end_text(end: &ExplainedEnd, way: &str) -> String {
    let at = if end.node.is_empty() { String::new() } else { format!(", at node {}", end.node) };
    if !end.unknown.is_empty() {
        return format!("{at}: not known: {}", end.unknown);
    }
    let Some(decision) = &end.decision else { return format!("{at}: not known") };
    let text = format!("{at}: {}", decision_text(decision, way));
    match &end.audited {
        Some(audited) => format!("{text}; in audit mode: {}", decision_text(audited, way)),
        None => text,
    }
}

/// Why, in words. `way`: `egress` or `ingress`.
#[must_use]
pub fn decision_text(decision: &Decision, way: &str) -> String {
    let passed = match &decision.passed_by {
        Some(rule) => format!(", after {} passed it on", rule_text(rule)),
        None => String::new(),
    };
    let rules = || few(&decision.rules, rule_text);
    let does = if decision.denies { "denied" } else { "allowed" };
    let text = match decision.reason() {
        Reason::NoPod => "not a pod of the fabric: no policy is asked here".to_owned(),
        Reason::NoPolicies => "allowed: there are no policies".to_owned(),
        Reason::UnknownPod => "denied: no pod is known to have this address".to_owned(),
        Reason::Itself => "allowed: a pod always reaches itself".to_owned(),
        Reason::OwnNode if way == "ingress" => {
            "allowed: a pod's own node always reaches it".to_owned()
        }
        Reason::OwnNode => "allowed: the pod is isolated, but not from its own node".to_owned(),
        Reason::NotSelected => format!("allowed: no policy speaks of the pod's {way}"),
        Reason::Admin => format!("{does} in tier Admin by {}", rules()),
        Reason::Baseline => format!("{does} in tier Baseline by {}", rules()),
        Reason::Allowed => format!("allowed by {}", rules()),
        Reason::Isolated => {
            let policies = few(&decision.rules, |rule| policy(rule).to_string());
            format!("denied: the pod is isolated by {policies}, and no rule matches")
        }
        Reason::NoMatch => {
            "allowed: no rule matches, and no NetworkPolicy isolates the pod".to_owned()
        }
        Reason::Unspecified => "not known".to_owned(),
    };
    let by_name = match decision.names.as_slice() {
        [] => String::new(),
        all => format!(
            "; what the pod is told when it asks for {} passes at the ports of their rules",
            few(all, Clone::clone)
        ),
    };
    format!("{text}{passed}{by_name}")
}

/// The first of them, in one line.
fn few<T>(all: &[T], name: impl Fn(&T) -> String) -> String {
    let shown: Vec<_> = all.iter().take(NAMED_MAX).map(name).collect();
    listed(&shown, all.len().saturating_sub(NAMED_MAX))
}

/// Policies or rules in one line, of which `more` are not named.
#[must_use]
pub fn listed(named: &[String], more: usize) -> String {
    match (named, more) {
        ([], 0) => "a policy that is gone".to_owned(),
        (_, 0) => named.join(" and "),
        _ => format!("{} and {more} more", named.join(", ")),
    }
}

fn policy(rule: &DecidingRule) -> PolicyName {
    let name = rule.policy.clone().unwrap_or_default();
    let kind = match name.kind() {
        v1::PolicyKind::Fqdn => PolicyKind::Fqdn,
        v1::PolicyKind::Unspecified => PolicyKind::Kubernetes,
    };
    PolicyName { namespace: name.namespace, name: name.name, kind }
}

/// `rule 1 (ingress[0]) of NetworkPolicy default/web`.
fn rule_text(rule: &DecidingRule) -> String {
    let policy = policy(rule);
    let text = match (rule.number, rule.name.as_str()) {
        (0, "") => policy.to_string(),
        (0, name) => format!("rule {name} of {policy}"),
        (number, "") => format!("rule {number} of {policy}"),
        (number, name) => format!("rule {number} ({name}) of {policy}"),
    };
    match rule.learned.as_slice() {
        [] => text,
        all => format!("{text} (the pod was told this address as {})", few(all, Clone::clone)),
    }
}
