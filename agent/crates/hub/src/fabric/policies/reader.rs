//! What policies of both kinds are written with: selectors, blocks of addresses, ports. An `Err` says
//! why a part cannot be understood; what becomes of it then is for the kind of policy to say.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use weft_model::{
    DomainError, DomainPattern, NamespaceSelector, Operator, PodSelector, Requirement, Selector,
};

use crate::source::policy::{PolicyManifest, UnknownField};

/// Why a part cannot be understood.
pub(super) type Why = String;

/// Takes note of what is wrong.
pub(super) struct Reader<'a> {
    unknown: &'a [UnknownField],
    unread: bool,
    notes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new<S>(manifest: &'a PolicyManifest<S>) -> Self {
        Self { unknown: &manifest.unknown, unread: manifest.unread, notes: Vec::new() }
    }

    pub(super) fn into_notes(self) -> Vec<String> {
        self.notes
    }

    pub(super) fn note(&mut self, field: &str, what: &str) {
        self.notes.push(format!("`{field}`: {what}"));
    }

    /// What the annotation says.
    pub(super) fn watched(&mut self, mode: Option<&str>) -> bool {
        match mode {
            None => false,
            Some("audit") => true,
            Some(other) => {
                let what = format!("`{other}` is not `audit`; the policy is enforced");
                self.note("weft.dev/policy-mode", &what);
                false
            }
        }
    }

    /// Refuses a part with a field, at any depth, that is not known: it may say what the part is about.
    pub(super) fn all_known(&self, part: &str) -> Result<(), Why> {
        let within = |u: &&UnknownField| {
            u.inside.strip_prefix(part).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('.') || rest.starts_with('[')
            })
        };
        self.unknown.iter().find(within).map_or(Ok(()), |u| Err(no_field(u)))
    }

    /// The same, without what is in the parts of this one.
    pub(super) fn own_known(&self, part: &str) -> Result<(), Why> {
        let own = self.unknown.iter().find(|u| u.inside == part);
        own.map_or(Ok(()), |u| Err(no_field(u)))
    }

    /// The same of the policy as a whole: what stands beside the `spec` may be meant for it, or be it.
    pub(super) fn spec_known(&self) -> Result<(), Why> {
        if self.unread {
            return Err("it cannot be read".to_owned());
        }
        self.own_known("").and_then(|()| self.own_known("spec"))
    }

    /// A selector of which all is understood.
    pub(super) fn selector(&self, field: &str, given: &LabelSelector) -> Result<Selector, Why> {
        self.all_known(field)?;
        requirements(given).collect::<Result<_, _>>().map(Selector)
    }

    /// The selector of what a policy is for, and why it is not all of it. What is not understood counts
    /// as met: that nobody is left out.
    pub(super) fn widest(&self, field: &str, given: &LabelSelector) -> (Selector, Option<Why>) {
        let mut why = self.all_known(field).err();
        let mut understood = Vec::new();
        for requirement in requirements(given) {
            match requirement {
                Ok(requirement) => understood.push(requirement),
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        (Selector(understood), why)
    }

    /// The pods of a namespace that a policy is for, by its `spec.podSelector`. False if that is not all
    /// understood: then the policy must not allow anything.
    pub(super) fn pods_of(
        &mut self,
        namespace: &str,
        given: Option<&LabelSelector>,
    ) -> (PodSelector, bool) {
        let field = "spec.podSelector";
        let (pods, why) = self.widest(field, &given.cloned().unwrap_or_default());
        if let Some(why) = &why {
            let what = format!(
                "{why}; all pods that the rest of it matches are isolated, nothing is allowed"
            );
            self.note(field, &what);
        }
        let namespaces = NamespaceSelector::Named(namespace.to_owned());
        (PodSelector { namespaces, pods }, why.is_none())
    }
}

fn no_field(field: &UnknownField) -> Why {
    format!("`{}` is no known field", field.name)
}

fn requirements(given: &LabelSelector) -> impl Iterator<Item = Result<Requirement, Why>> + '_ {
    let labels = given.match_labels.iter().flatten().map(|(key, value)| {
        let operator = Operator::In(BTreeSet::from([value.clone()]));
        Ok(Requirement { key: key.clone(), operator })
    });
    labels.chain(given.match_expressions.iter().flatten().map(requirement))
}

fn requirement(given: &LabelSelectorRequirement) -> Result<Requirement, Why> {
    let LabelSelectorRequirement { key, operator, values } = given;
    if key.is_empty() {
        return Err("an expression of the selector has no key".to_owned());
    }
    let values: BTreeSet<_> = values.iter().flatten().cloned().collect();
    let operator = match (operator.as_str(), values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => return Err(format!("{operator} of `{key}` needs values")),
        ("Exists" | "DoesNotExist", false) => {
            return Err(format!("{operator} of `{key}` takes no values"));
        }
        _ => {
            return Err(format!(
                "operator `{operator}` is none of In, NotIn, Exists, DoesNotExist"
            ));
        }
    };
    Ok(Requirement { key: key.clone(), operator })
}

/// A block of addresses. Bits behind its prefix do not count.
pub(super) fn block(text: &str) -> Result<IpNet, Why> {
    let bad = || format!("`{text}` is no CIDR such as 10.0.0.0/8 or fd00::/8");
    let block: IpNet = text.parse().map_err(|_| bad())?;
    match block {
        // Packets to IPv4 addresses have those in their headers.
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(bad()),
        _ => Ok(block.trunc()),
    }
}

/// A name, or all names below one.
pub(super) fn domain(text: &str) -> Result<DomainPattern, Why> {
    text.parse().map_err(|e: DomainError| e.to_string())
}

pub(super) fn port_number(given: i64) -> Result<u16, Why> {
    let number = u16::try_from(given).ok().filter(|n| *n != 0);
    number.ok_or_else(|| format!("`{given}` is no port: 1 to 65535"))
}

/// Name of a container's port, as Kubernetes takes it.
pub(super) fn port_name(given: &str) -> Result<String, Why> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = given.len() <= 15
        && given.bytes().all(legal)
        && given.bytes().any(|b| b.is_ascii_lowercase())
        && !given.starts_with('-')
        && !given.ends_with('-')
        && !given.contains("--");
    let bad =
        || format!("`{given}` is no name of a port: up to 15 lower-case letters, digits and `-`");
    if good { Ok(given.to_owned()) } else { Err(bad()) }
}
