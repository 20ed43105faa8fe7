//! Who has which address. Kept up to date by what differs from the pods that there were before.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_model::{Dns, Pod, PodName, RESOLVERS, SharedMap, Snapshot};

use super::identities::{Identities, Identity};
use crate::tables::Local;

/// What pods are, and what their addresses are of whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    pub(super) identities: Identities,
    claims: SharedMap<IpAddr, Claims>,
    /// What of the snapshot is in `claims`.
    pods: SharedMap<PodName, Arc<Pod>>,
    /// Of this node.
    subnets: Vec<IpNet>,
    local: Vec<LocalPod>,
    /// What the node's resolver is.
    resolver: Option<u32>,
}

/// A pod of this node, with what the hub knows of it.
#[derive(Clone, Debug)]
struct LocalPod {
    name: PodName,
    known: Option<Arc<Pod>>,
    addresses: Vec<IpAddr>,
    /// `None`: what it is nobody has said yet.
    number: Option<u32>,
}

impl LocalPod {
    fn is(&self, name: &PodName, known: Option<&Arc<Pod>>, addresses: &[IpAddr]) -> bool {
        let same = match (&self.known, known) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        same && self.name == *name && self.addresses == addresses
    }
}

/// Identities whose pods lay claim to an address: seldom more than one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claims {
    One(u32),
    Several(Arc<Vec<u32>>),
}

impl Claims {
    /// An address that two pods claim is nobody's: neither may have what the other may.
    fn owner(&self) -> Option<u32> {
        match self {
            Self::One(number) => Some(*number),
            Self::Several(all) => {
                let (first, rest) = all.split_first()?;
                rest.iter().all(|number| number == first).then_some(*first)
            }
        }
    }

    fn with(&self, number: u32) -> Self {
        let mut all = self.all();
        all.push(number);
        Self::Several(all.into())
    }

    fn without(&self, number: u32) -> Option<Self> {
        let mut all = self.all();
        if let Some(place) = all.iter().position(|n| *n == number) {
            all.swap_remove(place);
        }
        match *all {
            [] => None,
            [one] => Some(Self::One(one)),
            _ => Some(Self::Several(all.into())),
        }
    }

    fn all(&self) -> Vec<u32> {
        match self {
            Self::One(number) => vec![*number],
            Self::Several(all) => all.to_vec(),
        }
    }
}

impl PartialEq for Owners {
    /// What they were found by does not count.
    fn eq(&self, other: &Self) -> bool {
        self.claims == other.claims
    }
}

impl Owners {
    /// Takes what is known now. Of this node's pods those count that are attached here: what the hub
    /// knows of them may be about one that had the address before.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, local: &Local<'_>) {
        let own = snapshot.nodes.get(local.node).map(|n| n.subnets.as_slice()).unwrap_or_default();
        if self.subnets != own {
            self.take_elsewhere(&SharedMap::default());
            self.subnets = own.to_vec();
        }
        self.take_elsewhere(&snapshot.pods);
        self.take_local(snapshot, local);
        self.take_resolver(snapshot.cluster.dns.as_ref());
    }

    /// The node's resolver is to policies what the pods of the Service are that it stands for.
    fn take_resolver(&mut self, dns: Option<&Dns>) {
        let identity = dns.map(Identity::of_resolver);
        let number = identity.map(|identity| self.identities.hold(identity));
        if let Some(number) = number {
            RESOLVERS.iter().for_each(|address| self.claim(*address, number));
        }
        if let Some(before) = std::mem::replace(&mut self.resolver, number) {
            RESOLVERS.iter().for_each(|address| self.disclaim(address, before));
            self.identities.release(before);
        }
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        self.take_elsewhere(&SharedMap::default());
        for pod in std::mem::take(&mut self.local) {
            self.drop_local(&pod);
        }
        self.take_resolver(None);
    }

    /// Whose an address is.
    pub(super) fn get(&self, address: &IpAddr) -> Option<u32> {
        self.claims.get(address)?.owner()
    }

    /// Identities of pods of this node.
    pub(super) fn of_node(&self) -> BTreeSet<u32> {
        self.local_addresses().map(|(_, number)| number).collect()
    }

    /// Addresses of pods of this node that are somebody's, with identities.
    pub(super) fn local_addresses(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        let addresses = self.local.iter().flat_map(|pod| &pod.addresses);
        addresses.filter_map(|address| Some((*address, self.get(address)?)))
    }

    /// Identity of the pod of this node that has an address.
    pub(super) fn local(&self, address: &IpAddr) -> Option<u32> {
        let is_local = self.local.iter().any(|pod| pod.addresses.contains(address));
        self.get(address).filter(|_| is_local)
    }

    /// Every address that is somebody's.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpAddr, u32)> {
        self.claims.iter().filter_map(|(address, claims)| Some((address, claims.owner()?)))
    }

    /// Addresses that are somebody else's than in `old`, or nobody's (0).
    pub(super) fn changed_from<'a>(
        &'a self,
        old: &'a Self,
    ) -> impl Iterator<Item = (&'a IpAddr, u32)> {
        let differing = self.claims.differences(&old.claims).into_iter();
        differing.filter_map(|difference| {
            let owner = |claims: Option<&Claims>| claims.and_then(Claims::owner).unwrap_or(0);
            let (before, now) = (owner(difference.old), owner(difference.new));
            (before != now).then_some((difference.key, now))
        })
    }

    fn take_elsewhere(&mut self, pods: &SharedMap<PodName, Arc<Pod>>) {
        let before = std::mem::replace(&mut self.pods, pods.clone());
        for difference in pods.differences(&before) {
            // First, so that a number that both have stays.
            if let Some(pod) = difference.new {
                let addresses = self.elsewhere(pod);
                if !addresses.is_empty() {
                    let number = self.identities.hold(Identity::of(pod));
                    addresses.iter().for_each(|address| self.claim(*address, number));
                }
            }
            if let Some(pod) = difference.old {
                let addresses = self.elsewhere(pod);
                let number = self.identities.number(&Identity::of(pod));
                if let Some(number) = number.filter(|_| !addresses.is_empty()) {
                    addresses.iter().for_each(|address| self.disclaim(address, number));
                    self.identities.release(number);
                }
            }
        }
    }

    fn elsewhere(&self, pod: &Pod) -> Vec<IpAddr> {
        let here = |address: &&IpAddr| self.subnets.iter().any(|subnet| subnet.contains(*address));
        let addresses = pod.addresses.iter().filter(|address| !here(address));
        addresses.filter(|_| !pod.finished).copied().collect()
    }

    fn take_local(&mut self, snapshot: &Snapshot, local: &Local<'_>) {
        let now: Vec<_> = local
            .policed
            .iter()
            .map(|(name, addresses)| (name, snapshot.pods.get(name), addresses))
            .collect();
        let before = std::mem::take(&mut self.local);
        // Mostly all but one are as they were.
        let mut left: Vec<_> = before.into_iter().map(Some).collect();
        for (name, known, addresses) in now {
            let same = |pod: &&mut Option<LocalPod>| {
                pod.as_ref().is_some_and(|pod| pod.is(name, known, addresses))
            };
            if let Some(pod) = left.iter_mut().find(same).and_then(Option::take) {
                self.local.push(pod);
                continue;
            }
            let number = identity_of(name, known).map(|identity| self.identities.hold(identity));
            if let Some(number) = number {
                addresses.iter().for_each(|address| self.claim(*address, number));
            }
            let (name, known) = (name.clone(), known.cloned());
            self.local.push(LocalPod { name, known, addresses: addresses.clone(), number });
        }
        left.iter().flatten().for_each(|pod| self.drop_local(pod));
    }

    fn drop_local(&mut self, pod: &LocalPod) {
        let Some(number) = pod.number else { return };
        pod.addresses.iter().for_each(|address| self.disclaim(address, number));
        self.identities.release(number);
    }

    fn claim(&mut self, address: IpAddr, number: u32) {
        let claims = self.claims.get(&address).map(|claims| claims.with(number));
        self.claims.insert(address, claims.unwrap_or(Claims::One(number)));
    }

    fn disclaim(&mut self, address: &IpAddr, number: u32) {
        match self.claims.get(address).and_then(|claims| claims.without(number)) {
            Some(claims) => drop(self.claims.insert(*address, claims)),
            None => drop(self.claims.remove(address)),
        }
    }
}

/// `None` for a pod of which nothing runs any more: its addresses are nobody's, and closed. And for one that
/// the hub has not told of: any policy may turn out to be for it, so it is closed until
/// then. Of a container that no pod stands behind nobody ever tells.
fn identity_of(name: &PodName, known: Option<&Arc<Pod>>) -> Option<Identity> {
    match known {
        Some(pod) => (!pod.finished).then(|| Identity::of(pod)),
        None => name.namespace.is_empty().then(Identity::default),
    }
}
