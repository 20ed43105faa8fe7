//! Names of hosts in rules, and addresses that pods of this node have learned by them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use weft_model::DomainPattern;
use weft_proto::tables::v1::PolicyLearned;

use crate::tables::services::bytes;

/// Names by the numbers that they have in tables.
pub(crate) type Domains = BTreeMap<u64, DomainPattern>;

/// Addresses that a pod was told, by the name that it asked for.
pub(crate) type Known = BTreeMap<Arc<str>, BTreeSet<IpAddr>>;

/// The number of a name: the same in every agent, since flows remember it. It has 7 bytes.
pub(super) fn number(domain: &DomainPattern) -> u64 {
    let digest: [u8; 32] = Sha256::digest(domain.as_str()).into();
    let [a, b, c, d, e, f, g, ..] = digest;
    u64::from_be_bytes([0, a, b, c, d, e, f, g]).max(1)
}

/// What of all that pods were told their rules speak of.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned(BTreeMap<IpAddr, Arc<OfPod>>);

/// By one address of a pod.
#[derive(Debug)]
struct OfPod {
    /// Numbers of names, in rising order.
    addresses: BTreeMap<IpAddr, BTreeSet<u64>>,
    /// What it was made of.
    known: Arc<Known>,
    domains: Arc<Domains>,
}

/// What it was made of does not count.
impl PartialEq for Learned {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|((a, of), (b, other))| {
                a == b && (Arc::ptr_eq(of, other) || of.addresses == other.addresses)
            })
    }
}

impl OfPod {
    fn new(pod: IpAddr, known: Arc<Known>, domains: Arc<Domains>) -> Self {
        let mut addresses: BTreeMap<IpAddr, BTreeSet<u64>> = BTreeMap::new();
        for (name, told) in known.iter() {
            let matching = domains.iter().filter(|(_, domain)| domain.matches(name));
            let numbers: Vec<u64> = matching.map(|(number, _)| *number).collect();
            let same_family = told.iter().filter(|a| a.is_ipv4() == pod.is_ipv4());
            for address in same_family.filter(|_| !numbers.is_empty()) {
                addresses.entry(*address).or_default().extend(&numbers);
            }
        }
        Self { addresses, known, domains }
    }
}

impl Learned {
    /// Takes what pods know now, by each address of theirs, with the names that their rules have.
    pub(super) fn follow(
        &mut self,
        pods: impl Iterator<Item = (IpAddr, Arc<Known>, Arc<Domains>)>,
    ) {
        let before = std::mem::take(&mut self.0);
        for (pod, known, domains) in pods {
            let same = before.get(&pod).filter(|of| {
                Arc::ptr_eq(&of.known, &known)
                    && (Arc::ptr_eq(&of.domains, &domains) || of.domains == domains)
            });
            let of = same.cloned().unwrap_or_else(|| OfPod::new(pod, known, domains).into());
            if !of.addresses.is_empty() {
                self.0.insert(pod, of);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Everything, for tables.
    pub(super) fn all(&self) -> Vec<PolicyLearned> {
        self.changed_from(&Self::default())
    }

    /// What differs from `old`.
    pub(super) fn changed_from(&self, old: &Self) -> Vec<PolicyLearned> {
        let nothing = BTreeMap::new();
        let mut changed = Vec::new();
        let pods: BTreeSet<_> = self.0.keys().chain(old.0.keys()).collect();
        for pod in pods {
            let (now, before) = (self.0.get(pod), old.0.get(pod));
            if let (Some(now), Some(before)) = (now, before)
                && Arc::ptr_eq(now, before)
            {
                continue;
            }
            let [now, before] = [now, before].map(|of| of.map_or(&nothing, |of| &of.addresses));
            let differing =
                now.iter().filter(|(address, names)| before.get(address) != Some(names));
            changed.extend(differing.map(|(a, names)| record(*pod, *a, names.iter().copied())));
            let gone = before.keys().filter(|address| !now.contains_key(address));
            changed.extend(gone.map(|address| record(*pod, *address, std::iter::empty())));
        }
        changed
    }

    /// Names that a pod asked for and was told the address, if its rules have any.
    pub(super) fn names(&self, pod: &IpAddr, address: &IpAddr) -> Vec<Arc<str>> {
        let Some(of) = self.0.get(pod) else { return Vec::new() };
        let told = of.known.iter().filter(|(_, addresses)| addresses.contains(address));
        told.map(|(name, _)| Arc::clone(name)).collect()
    }
}

fn record(pod: IpAddr, address: IpAddr, names: impl Iterator<Item = u64>) -> PolicyLearned {
    PolicyLearned { pod: bytes(&pod), address: bytes(&address), names: names.collect() }
}
