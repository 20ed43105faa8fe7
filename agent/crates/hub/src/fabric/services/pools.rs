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
    /// With whether it is given to Services that do not ask.
    ranges: Vec<(AddressRange, bool)>,
    /// Addresses of machines: never given.
    machines: BTreeSet<IpAddr>,
    inputs: &'a Inputs<'a>,
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
        let mut ranges = Vec::new();
        for defined in inputs.source.objects.values() {
            let Object::AddressPool(pool) = &defined.object else { continue };
            for range in &pool.ranges {
                let cluster = inputs.cluster;
                let mut cidrs = cluster.pod_cidrs.iter().chain(&cluster.service_cidrs);
                let Some(cidr) = cidrs.find(|c| range.overlaps(c)) else {
                    ranges.push((*range, pool.auto_assign));
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
        Self { ranges, machines, inputs }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the address is in a pool.
    pub(super) fn contain(&self, address: IpAddr) -> Result<(), String> {
        if self.ranges.iter().any(|(r, _)| r.contains(address)) {
            return Ok(());
        }
        Err(format!("address {address} is in no AddressPool"))
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
        let auto = self.ranges.iter().filter(|(_, auto)| *auto);
        let ranges = auto.map(|(range, _)| (range.family(), range.iter())).collect();
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
