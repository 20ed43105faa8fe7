//! Which node holds which pod subnet. No subnet is ever held by two.

mod store;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use store::LeaseStore;

use crate::store::StoreError;

/// Who may not be disturbed in a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Holder {
    /// The node of this uid.
    Node(String),
    /// Nobody until this Unix time in seconds; packets of the last holder may still be under way.
    QuarantinedUntil(i64),
}

/// A subnet that is not free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet.
    pub subnet: IpNet,
    /// Who has it.
    pub holder: Holder,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All taken.
    #[error(
        "no subnet of /{prefix} is left in {cidr}: remove nodes that are gone (`weft node remove`), or start the hub with a larger --pod-cidr or a longer node prefix"
    )]
    Exhausted {
        /// The range.
        cidr: IpNet,
        /// The length asked for.
        prefix: u8,
    },
    /// All taken, some by nobody.
    #[error(
        "every subnet of /{prefix} in {cidr} is held or was given up a short while ago: one is free again in {seconds} s"
    )]
    Resting {
        /// The range.
        cidr: IpNet,
        /// The length asked for.
        prefix: u8,
        /// Until one has rested.
        seconds: i64,
    },
    /// Assigned by somebody else, and out of our ranges.
    #[error(
        "pod CIDR {0}, which Kubernetes has assigned to this node, is in none of the fabric's: start the hub with the --pod-cidr that the cluster has (--cluster-cidr of its controller manager)"
    )]
    Outside(IpNet),
    /// Assigned by somebody else, and not free.
    #[error(
        "pod CIDR {assigned}, which Kubernetes has assigned to this node, overlaps {held}, which another node holds: remove that node if it is gone (`weft node remove`)"
    )]
    Taken {
        /// What was assigned.
        assigned: IpNet,
        /// What is held.
        held: IpNet,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives subnets out of the cluster's ranges.
pub struct Allocator<S> {
    store: S,
    /// Ranges with the prefix length of a node's subnet.
    ranges: Vec<(IpNet, u8)>,
    quarantine: Duration,
}

impl<S: LeaseStore> Allocator<S> {
    /// Leases subnets of the given prefix length from each of `ranges`.
    pub fn new(store: S, ranges: Vec<(IpNet, u8)>, quarantine: Duration) -> Self {
        Self { store, ranges, quarantine }
    }

    /// The subnets of the node `uid`: those it has, and a new one for each range it has none in: the one of
    /// `assigned` that is in it, which need not have rested, or else any. `reserved` is not for this node.
    /// `now` in Unix seconds.
    ///
    /// # Errors
    /// [`LeaseError`]; what was leased before the failure stays the node's.
    pub fn acquire(
        &self,
        uid: &str,
        assigned: &[IpNet],
        reserved: &[IpNet],
        now: i64,
    ) -> Result<Vec<IpNet>, LeaseError> {
        let inside = |subnet: &IpNet| self.ranges.iter().any(|(cidr, _)| cidr.contains(subnet));
        if let Some(outside) = assigned.iter().find(|subnet| !inside(subnet)) {
            return Err(LeaseError::Outside(*outside));
        }
        let acquire = |range: &(IpNet, u8)| {
            let assigned = assigned.iter().copied().find(|subnet| range.0.contains(subnet));
            self.acquire_in(*range, uid, assigned, reserved, now)
        };
        self.ranges.iter().map(acquire).collect()
    }

    /// The subnets that the node `uid` has now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of(&self, uid: &str) -> Result<Vec<IpNet>, StoreError> {
        let mut subnets: Vec<_> =
            self.store.list()?.into_iter().filter(|l| l.is_of(uid)).map(|l| l.subnet).collect();
        subnets.sort();
        Ok(subnets)
    }

    /// Every lease.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self) -> Result<Vec<Lease>, StoreError> {
        self.store.list()
    }

    /// Takes the subnets of `uid` away and puts them in quarantine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release(&self, uid: &str, now: i64) -> Result<(), StoreError> {
        let rest = i64::try_from(self.quarantine.as_secs()).unwrap_or(i64::MAX);
        let holder = Holder::QuarantinedUntil(now.saturating_add(rest));
        for lease in self.store.list()?.into_iter().filter(|l| l.is_of(uid)) {
            self.store.compare_and_swap(lease.subnet, Some(&lease.holder), Some(&holder))?;
        }
        Ok(())
    }

    fn acquire_in(
        &self,
        (cidr, prefix): (IpNet, u8),
        uid: &str,
        assigned: Option<IpNet>,
        reserved: &[IpNet],
        now: i64,
    ) -> Result<IpNet, LeaseError> {
        // Each turn either ends or has seen another hub's write, so this makes progress.
        loop {
            let leases = self.store.list()?;
            let own = leases.iter().find(|l| l.is_of(uid) && cidr.contains(&l.subnet));
            if let Some(own) = own {
                return Ok(own.subnet);
            }
            let subnet = match assigned {
                Some(assigned) => unheld(assigned, &leases)?,
                None => Self::free_subnet((cidr, prefix), &leases, reserved, now)?,
            };
            let rested = leases.iter().find(|l| l.subnet == subnet).map(|l| &l.holder);
            let holder = Holder::Node(uid.to_owned());
            if self.store.compare_and_swap(subnet, rested, Some(&holder))? {
                return Ok(subnet);
            }
        }
    }

    fn free_subnet(
        (cidr, prefix): (IpNet, u8),
        leases: &[Lease],
        reserved: &[IpNet],
        now: i64,
    ) -> Result<IpNet, LeaseError> {
        let held = leases.iter().filter(|l| !l.is_free(now)).map(|l| l.subnet);
        let taken: Vec<_> = held.chain(reserved.iter().copied()).collect();
        first_free(cidr, prefix, &taken).ok_or_else(|| {
            let inside = leases.iter().filter(|l| cidr.contains(&l.subnet));
            let soonest = inside.filter_map(Lease::rests_until).min();
            soonest.map_or(LeaseError::Exhausted { cidr, prefix }, |until| LeaseError::Resting {
                cidr,
                prefix,
                seconds: until.saturating_sub(now),
            })
        })
    }
}

/// The subnet that was assigned, if no node holds a part of it.
fn unheld(assigned: IpNet, leases: &[Lease]) -> Result<IpNet, LeaseError> {
    let mut held = leases.iter().filter(|l| matches!(l.holder, Holder::Node(_)));
    match held.find(|l| overlap(assigned, l.subnet).is_some()) {
        Some(Lease { subnet: held, .. }) => Err(LeaseError::Taken { assigned, held: *held }),
        None => Ok(assigned),
    }
}

impl Lease {
    fn is_of(&self, uid: &str) -> bool {
        matches!(&self.holder, Holder::Node(holder) if holder == uid)
    }

    fn rests_until(&self) -> Option<i64> {
        match self.holder {
            Holder::QuarantinedUntil(until) => Some(until),
            Holder::Node(_) => None,
        }
    }

    fn is_free(&self, now: i64) -> bool {
        matches!(self.holder, Holder::QuarantinedUntil(until) if until <= now)
    }
}

/// The lowest subnet of `prefix` bits in `cidr` that shares no address with any of `taken`.
fn first_free(cidr: IpNet, prefix: u8, taken: &[IpNet]) -> Option<IpNet> {
    let mut taken: Vec<_> = taken.iter().filter_map(|t| overlap(cidr, *t)).collect();
    taken.sort_unstable();
    let (start, end) = bounds(cidr);
    let size = 1u128.checked_shl(u32::from(cidr.max_prefix_len() - prefix))?;
    let mut candidate = start;
    for (first, last) in taken {
        if first > candidate.checked_add(size - 1)? {
            break;
        }
        if last >= candidate {
            // The next aligned subnet behind the taken one.
            candidate = (last / size).checked_add(1)?.checked_mul(size)?;
        }
    }
    let last = candidate.checked_add(size - 1)?;
    (last <= end).then(|| subnet(cidr, candidate, prefix)).flatten()
}

fn overlap(cidr: IpNet, other: IpNet) -> Option<(u128, u128)> {
    (cidr.contains(&other) || other.contains(&cidr)).then(|| bounds(other))
}

fn bounds(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn subnet(family: IpNet, start: u128, prefix: u8) -> Option<IpNet> {
    let address = match family {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(start).ok()?)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(start)),
    };
    IpNet::new(address, prefix).ok()
}
