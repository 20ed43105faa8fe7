//! The pools that balancers' addresses come from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpAddrRange;

use super::Inputs;
use crate::range::{AddressRange, Family};
use crate::source::Problem;
use crate::source::object::Object;

/// The ranges of every pool.
pub(super) struct Pools<'a> {
    ranges: Vec<Range<'a>>,
    /// Of every pool, also if nothing of it can be used.
    names: BTreeSet<&'a str>,
    /// Addresses of machines: never given.
    machines: BTreeSet<IpAddr>,
    inputs: &'a Inputs<'a>,
}

struct Range<'a> {
    addresses: AddressRange,
    /// Given to Services that do not ask.
    auto_assign: bool,
    pool: &'a str,
}

/// What is left to give out.
pub(super) struct Free<'a> {
    pools: &'a Pools<'a>,
    ranges: Vec<(Family, IpAddrRange)>,
}

impl<'a> Pools<'a> {
    /// Pools of the source. A range that pods or cluster IPs have addresses of is a problem, and left
    /// out.
    pub(super) fn new(inputs: &'a Inputs<'a>, problems: &mut Vec<Problem>) -> Self {
        let (mut ranges, mut names) = (Vec::new(), BTreeSet::new());
        for defined in inputs.source.objects.values() {
            let Object::AddressPool(pool) = &defined.object else { continue };
            names.insert(pool.name.as_str());
            for range in &pool.ranges {
                let cluster = inputs.cluster;
                let mut cidrs = cluster.pod_cidrs.iter().chain(&cluster.service_cidrs);
                let Some(cidr) = cidrs.find(|c| range.overlaps(c)) else {
                    let (addresses, auto_assign) = (*range, pool.auto_assign);
                    ranges.push(Range { addresses, auto_assign, pool: &pool.name });
                    continue;
                };
                let (file, line) = (defined.file.clone(), defined.line);
                let reason = format!(
                    "AddressPool {}: {range} is left out, it overlaps the fabric's own {cidr}",
                    pool.name
                );
                problems.push(Problem { file, line, reason });
            }
        }
        let machines = inputs.nodes.values().flat_map(|n| n.addresses.iter().copied());
        let machines = machines.chain(inputs.own_addresses.iter().copied()).collect();
        Self { ranges, names, machines, inputs }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the address is in a pool.
    pub(super) fn contain(&self, address: IpAddr) -> Result<(), String> {
        let pool = self.pool_of(address);
        pool.map(drop).ok_or_else(|| format!("address {address} is in no AddressPool"))
    }

    /// The pool that an address is in.
    pub(super) fn pool_of(&self, address: IpAddr) -> Option<&'a str> {
        self.ranges.iter().find(|r| r.addresses.contains(address)).map(|r| r.pool)
    }

    /// True if the pool that gave this address is gone, and may come back. One that is there without
    /// the address has been changed on purpose.
    pub(super) fn is_away(&self, address: IpAddr, pool: Option<&str>) -> bool {
        self.pool_of(address).is_none() && pool.is_none_or(|pool| !self.names.contains(pool))
    }

    /// Whether the address can be given to who asks for it.
    pub(super) fn may_give(&self, address: IpAddr) -> Result<(), String> {
        self.contain(address)?;
        match super::whose(self.inputs, address) {
            Some(owner) => Err(format!("address {address} is not given: it is {owner}")),
            None => Ok(()),
        }
    }

    /// Addresses for Services that do not ask for one, in order of the pools' names.
    pub(super) fn free(&'a self) -> Free<'a> {
        let auto = self.ranges.iter().filter(|r| r.auto_assign).map(|r| r.addresses);
        let ranges = auto.map(|range| (range.family(), range.iter())).collect();
        Free { pools: self, ranges }
    }
}

impl Free<'_> {
    /// The next one of a family.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn next(
        &mut self,
        family: Family,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Result<IpAddr, String> {
        let machines = &self.pools.machines;
        let mut ranges = self.ranges.iter_mut().filter(|(f, _)| *f == family).peekable();
        if ranges.peek().is_none() {
            return Err(format!("no AddressPool that assigns by itself has {family} addresses"));
        }
        let next =
            ranges.flat_map(|(_, range)| range).find(|a| !taken(*a) && !machines.contains(a));
        next.ok_or_else(|| {
            format!("no {family} address is left in any AddressPool that assigns by itself")
        })
    }
}
