//! What both ends say, as one.

use std::collections::BTreeSet;

use weft_proto::v1::decision::Reason;
use weft_proto::v1::{Decision, EndPorts, ExplainedEnd, ExplainedPorts, Ports, Verdict};

/// One end, as far as it is known.
pub(crate) enum End<'a> {
    /// It is no pod of the fabric.
    NoPod,
    Unknown {
        node: String,
        why: String,
    },
    /// In rising order.
    Told {
        node: String,
        ports: &'a [EndPorts],
    },
}

/// True if a decision drops.
#[must_use]
pub fn drops(decision: &Decision) -> bool {
    match decision.reason() {
        Reason::UnknownPod | Reason::Isolated => true,
        Reason::Admin | Reason::Baseline => decision.denies,
        Reason::Unspecified
        | Reason::NoPod
        | Reason::NoPolicies
        | Reason::Itself
        | Reason::OwnNode
        | Reason::NotSelected
        | Reason::Allowed
        | Reason::NoMatch => false,
    }
}

/// Every range of ports in which neither end makes a difference.
pub(crate) fn combine(egress: &End<'_>, ingress: &End<'_>) -> Vec<ExplainedPorts> {
    let mut all: Vec<ExplainedPorts> = Vec::new();
    for ports in ranges(egress, ingress) {
        let ends = [egress.at(&ports), ingress.at(&ports)];
        let verdict = both(&ends);
        let [egress, ingress] = ends.map(Some);
        let next = ExplainedPorts { ports: Some(ports), verdict: verdict.into(), egress, ingress };
        let joined = all.last_mut().filter(|last| touches(last, &next));
        match joined.and_then(|last| last.ports.as_mut()) {
            Some(before) => before.last = ports.last,
            None => all.push(next),
        }
    }
    all
}

impl End<'_> {
    fn ports(&self) -> &[EndPorts] {
        match self {
            Self::NoPod | Self::Unknown { .. } => &[],
            Self::Told { ports, .. } => ports,
        }
    }

    fn at(&self, ports: &Ports) -> ExplainedEnd {
        let (node, told) = match self {
            Self::NoPod => {
                let decision = Decision { reason: Reason::NoPod.into(), ..Decision::default() };
                return ExplainedEnd {
                    verdict: Verdict::Allowed.into(),
                    decision: Some(decision),
                    ..ExplainedEnd::default()
                };
            }
            Self::Unknown { node, why } => {
                let (node, unknown) = (node.clone(), why.clone());
                return ExplainedEnd { node, unknown, ..ExplainedEnd::default() };
            }
            Self::Told { node, ports } => (node.clone(), ports),
        };
        let within = |told: &&EndPorts| {
            let of = told.ports.unwrap_or_default();
            of.protocol == ports.protocol && of.first <= ports.first && ports.last <= of.last
        };
        let Some(told) = told.iter().find(within) else {
            let unknown = "it said nothing of this port".to_owned();
            return ExplainedEnd { node, unknown, ..ExplainedEnd::default() };
        };
        let verdict = match (&told.decision, &told.audited) {
            (None, _) => Verdict::Unspecified,
            (Some(decision), _) if drops(decision) => Verdict::Denied,
            (Some(_), Some(_)) => Verdict::Audited,
            (Some(_), None) => Verdict::Allowed,
        };
        let (decision, audited) = (told.decision.clone(), told.audited.clone());
        ExplainedEnd { node, verdict: verdict.into(), decision, audited, unknown: String::new() }
    }
}

/// What one end denies is denied, whatever the other says.
fn both(ends: &[ExplainedEnd; 2]) -> Verdict {
    let verdicts = ends.each_ref().map(ExplainedEnd::verdict);
    let order = [Verdict::Denied, Verdict::Unspecified, Verdict::Audited];
    order.into_iter().find(|v| verdicts.contains(v)).unwrap_or(Verdict::Allowed)
}

/// Of both ends, cut so that no range is in two of one end's. Where neither end has any, all of them.
fn ranges(egress: &End<'_>, ingress: &End<'_>) -> Vec<Ports> {
    let told = || egress.ports().iter().chain(ingress.ports()).filter_map(|p| p.ports);
    let whole = |protocol| {
        let (first, last) = if protocol == 0 { (0, 0) } else { (1, u16::MAX.into()) };
        Ports { protocol, first, last }
    };
    let mut cuts: BTreeSet<(u32, u32, u32)> = BTreeSet::new();
    let protocols: BTreeSet<u32> = told().map(|p| p.protocol).collect();
    for protocol in &protocols {
        let of = || told().filter(|p| p.protocol == *protocol);
        let starts: BTreeSet<u32> =
            of().flat_map(|p| [p.first, p.last.saturating_add(1)]).collect();
        let ends = starts.iter().skip(1).map(|next| next - 1);
        let within =
            |(first, last): &(u32, u32)| of().any(|p| p.first <= *first && *last <= p.last);
        let pieces = starts.iter().copied().zip(ends).filter(within);
        cuts.extend(pieces.map(|(first, last)| (*protocol, first, last)));
    }
    if cuts.is_empty() {
        return [6, 17, 132, 0].map(whole).to_vec();
    }
    // Those without ports last.
    let mut cuts: Vec<_> = cuts.into_iter().collect();
    cuts.sort_by_key(|(protocol, first, _)| (*protocol == 0, *protocol, *first));
    cuts.into_iter().map(|(protocol, first, last)| Ports { protocol, first, last }).collect()
}

fn touches(before: &ExplainedPorts, next: &ExplainedPorts) -> bool {
    let (Some(a), Some(b)) = (&before.ports, &next.ports) else { return false };
    a.protocol == b.protocol
        && a.last.saturating_add(1) == b.first
        && before.egress == next.egress
        && before.ingress == next.ingress
}
