//! What belongs to one Service alone: cluster IPs, node ports, addresses of a balancer. Who gets what
//! is settled in [`slots`](super::slots).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_model::{ServiceName, ServiceProtocol};

use super::Inputs;
use super::draft::Draft;
use super::pools::Pools;
use super::slots::{Refused, Slot, Taken, settle};
use crate::range::{AddressRange, Family};

/// Node ports, as Kubernetes has them.
const NODE_PORT_FIRST: u16 = 30_000;
const NODE_PORT_LAST: u16 = 32_767;
/// Below this a node port is given out only when all others are taken: the lower ones are for those
/// who ask (KEP-3668).
const NODE_PORT_DYNAMIC: u16 = 30_086;

/// What a Service has; on disk, so that it has the same after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Allocation {
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// By `TCP/80`, its own protocol and port, or `healthCheck`.
    #[serde(default)]
    pub(crate) node_ports: BTreeMap<String, u16>,
    /// Out of a pool.
    #[serde(default)]
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    /// Out of a pool that is gone: nobody answers for it, and it is the Service's again when the pool is
    /// back.
    #[serde(default)]
    withheld: Vec<IpAddr>,
    /// The pool that each address is from.
    #[serde(default)]
    pools: BTreeMap<IpAddr, String>,
}

impl Allocation {
    /// The node port of this key.
    pub(super) fn node_port(&self, key: &str) -> Option<u16> {
        self.node_ports.get(key).copied()
    }

    fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|a| Family::of(*a) == family)
    }

    /// Addresses out of pools, those too that are withheld.
    pub(super) fn balancers(&self) -> impl Iterator<Item = IpAddr> {
        self.load_balancer_ips.iter().chain(&self.withheld).copied()
    }

    fn balancer(&self, family: Family) -> Option<IpAddr> {
        self.balancers().find(|a| Family::of(*a) == family)
    }

    fn pool_of(&self, address: IpAddr) -> Option<&str> {
        self.pools.get(&address).map(String::as_str)
    }
}

/// What each Service has now.
pub(super) struct Allocated<'d> {
    pub(super) allocations: BTreeMap<ServiceName, Allocation>,
    /// Why one did not get what it wants.
    pub(super) refused: Refused<'d>,
    /// The same in short, of those that ask for an address of a pool.
    pub(super) pending: BTreeMap<ServiceName, String>,
}

/// Gives each Service what it needs. Those that are `unreadable` now keep what they had, and so does
/// everybody that is gone while a document cannot be read: it may be theirs.
pub(super) fn allocate<'d>(
    inputs: &'d Inputs<'_>,
    pools: &Pools<'_>,
    drafts: &'d [Draft<'d>],
    unreadable: &BTreeSet<ServiceName>,
) -> Allocated<'d> {
    let present: BTreeSet<_> = drafts.iter().map(|d| &d.name).collect();
    let may_return = |name| !inputs.source.complete || unreadable.contains(name);
    let resting = inputs.before.iter().filter(|(n, _)| !present.contains(n) && may_return(n));
    let mut allocator = Allocator {
        inputs,
        drafts,
        resting: resting.collect(),
        refused: vec![],
        pending: BTreeMap::new(),
    };
    let mut allocations: BTreeMap<ServiceName, Allocation> =
        allocator.resting.iter().map(|(n, a)| ((*n).clone(), (*a).clone())).collect();
    // What is kept for those that may come back, others get who ask for it.
    let resting: Vec<_> = allocator.resting.iter().map(|(name, _)| *name).collect();
    let slots = allocator.cluster_ips();
    let given = all_given(&slots);
    take_from(&resting, &mut allocations, |kept| {
        kept.cluster_ips.retain(|address| !given.contains(address));
    });
    for slot in slots {
        let allocation = allocations.entry(slot.draft.name.clone()).or_default();
        allocation.cluster_ips.extend(slot.given);
    }
    let slots = allocator.node_ports();
    let given = all_given(&slots);
    take_from(&resting, &mut allocations, |kept| {
        let of = |key: &str, number| NodePort { protocol: protocol_of(key), number };
        kept.node_ports.retain(|key, number| !given.contains(&of(key, *number)));
    });
    for slot in slots {
        let allocation = allocations.entry(slot.draft.name.clone()).or_default();
        allocation.node_ports.extend(slot.given.map(|g| (slot.kind.0, g.number)));
    }
    let Balancers { slots, withheld } = allocator.load_balancer_ips(pools);
    let given = all_given(&slots);
    take_from(&resting, &mut allocations, |kept| {
        kept.load_balancer_ips.retain(|address| !given.contains(address));
        kept.withheld.retain(|address| !given.contains(address));
        kept.pools.retain(|address, _| !given.contains(address));
    });
    for slot in slots {
        let Some(address) = slot.given else { continue };
        let allocation = allocations.entry(slot.draft.name.clone()).or_default();
        allocation.load_balancer_ips.push(address);
        allocation.pools.extend(pools.pool_of(address).map(|pool| (address, pool.to_owned())));
    }
    for (name, address, pool) in withheld {
        let allocation = allocations.entry(name.clone()).or_default();
        allocation.withheld.push(address);
        allocation.pools.extend(pool.map(|pool| (address, pool.to_owned())));
    }
    allocations.retain(|_, a| *a != Allocation::default());
    let Allocator { refused, pending, .. } = allocator;
    Allocated { allocations, refused, pending }
}

/// Addresses out of pools.
struct Balancers<'d> {
    slots: Vec<Slot<'d, Family, IpAddr>>,
    /// What is kept for a Service until its pool is back, and which that was.
    withheld: Vec<(&'d ServiceName, IpAddr, Option<&'d str>)>,
}

fn all_given<K, V: Copy + Ord>(slots: &[Slot<'_, K, V>]) -> BTreeSet<V> {
    slots.iter().filter_map(|slot| slot.given).collect()
}

fn take_from(
    resting: &[&ServiceName],
    allocations: &mut BTreeMap<ServiceName, Allocation>,
    take: impl Fn(&mut Allocation),
) {
    for name in resting {
        if let Some(kept) = allocations.get_mut(*name) {
            take(kept);
        }
    }
}

/// A node port can be one Service's for TCP and another's for UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NodePort {
    protocol: ServiceProtocol,
    number: u16,
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node port {} ({})", self.number, self.protocol)
    }
}

/// Its key in an [`Allocation`], and what it is for.
type NodePortKey = (String, ServiceProtocol);

struct Allocator<'d> {
    inputs: &'d Inputs<'d>,
    drafts: &'d [Draft<'d>],
    resting: Vec<(&'d ServiceName, &'d Allocation)>,
    refused: Refused<'d>,
    pending: BTreeMap<ServiceName, String>,
}

impl<'d> Allocator<'d> {
    fn held(&self, draft: &Draft<'_>) -> Option<&'d Allocation> {
        self.inputs.before.get(&draft.name)
    }

    fn cluster_ips(&mut self) -> Vec<Slot<'d, Family, IpAddr>> {
        let mut slots = Vec::new();
        for draft in self.drafts {
            let held = self.held(draft);
            slots.extend(draft.cluster_ips.iter().map(|(family, asked)| Slot {
                draft,
                kind: *family,
                held: held.and_then(|h| h.cluster_ip(*family)),
                asked: *asked,
                given: None,
            }));
        }
        let cidrs = &self.inputs.cluster.service_cidrs;
        let legal = |_: &Slot<'d, Family, IpAddr>, address: IpAddr| {
            let inside = cidrs.iter().any(|c| c.contains(&address) && is_inner(c, address));
            inside.then_some(()).ok_or_else(|| {
                let cidrs = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                format!("cluster IP {address} is none of {cidrs}, first and last address left out")
            })
        };
        let mut free: Vec<_> = cidrs.iter().map(|c| (*c, in_order(*c))).collect();
        let fresh = |slot: &Slot<'d, Family, IpAddr>, taken: &Taken<'d, IpAddr>| {
            let of_family = |(c, _): &&mut (IpNet, _)| Family::of(c.addr()) == slot.kind;
            let Some((cidr, free)) = free.iter_mut().find(of_family) else {
                return Err(format!("no service CIDR is of {}", slot.kind));
            };
            free.find(|a| !taken.contains_key(a)).ok_or_else(|| {
                format!(
                    "no cluster IP is left in {cidr}: start the hub with a larger --service-cidr"
                )
            })
        };
        let resting = self.resting.iter().flat_map(|(n, a)| a.cluster_ips.iter().map(|a| (*a, *n)));
        let kept = resting.collect();
        settle(slots, &kept, legal, fresh, &mut self.refused)
    }

    fn node_ports(&mut self) -> Vec<Slot<'d, NodePortKey, NodePort>> {
        let mut slots = Vec::new();
        for draft in self.drafts {
            let held = self.held(draft);
            slots.extend(draft.node_ports().into_iter().map(|(key, protocol, asked)| Slot {
                draft,
                held:
                    held.and_then(|h| h.node_port(&key)).map(|n| NodePort { protocol, number: n }),
                asked: asked.map(|number| NodePort { protocol, number }),
                kind: (key, protocol),
                given: None,
            }));
        }
        let legal = |_: &Slot<'d, NodePortKey, NodePort>, port: NodePort| {
            let inside = (NODE_PORT_FIRST..=NODE_PORT_LAST).contains(&port.number);
            inside
                .then_some(())
                .ok_or_else(|| format!("{port} is not from {NODE_PORT_FIRST} to {NODE_PORT_LAST}"))
        };
        let numbers =
            || (NODE_PORT_DYNAMIC..=NODE_PORT_LAST).chain(NODE_PORT_FIRST..NODE_PORT_DYNAMIC);
        let mut free: BTreeMap<ServiceProtocol, _> = BTreeMap::new();
        let fresh = |slot: &Slot<'d, NodePortKey, NodePort>, taken: &Taken<'d, NodePort>| {
            let protocol = slot.kind.1;
            let mut free = free.entry(protocol).or_insert_with(numbers);
            let mut ports = (&mut free).map(|number| NodePort { protocol, number });
            ports
                .find(|p| !taken.contains_key(p))
                .ok_or_else(|| format!("no node port is left for {protocol}"))
        };
        let mut taken = Taken::new();
        for (name, allocation) in &self.resting {
            for (key, number) in &allocation.node_ports {
                taken.insert(NodePort { protocol: protocol_of(key), number: *number }, *name);
            }
        }
        settle(slots, &taken, legal, fresh, &mut self.refused)
    }

    fn load_balancer_ips(&mut self, pools: &Pools<'_>) -> Balancers<'d> {
        let (mut slots, mut withheld) = (Vec::new(), Vec::new());
        let mut taken: Taken<'d, IpAddr> = Taken::new();
        for (name, allocation) in &self.resting {
            taken.extend(allocation.balancers().map(|a| (a, *name)));
        }
        let refused_before = self.refused.len();
        // Addresses that did not come from here. They take nothing away from who has an address.
        let mut elsewhere: Taken<'d, IpAddr> = Taken::new();
        for draft in self.drafts {
            // What is wrong with these is said where they are served.
            let mut given = draft.status_addresses(&mut Vec::new());
            if self.inputs.allow_external_ips {
                given.extend(draft.external_ips(&mut Vec::new()));
            }
            elsewhere.extend(given.into_iter().map(|a| (a, &draft.name)));
            if !draft.wants_pool() {
                continue;
            }
            let held = self.held(draft).filter(|held| held.balancers().next().is_some());
            // Without a pool, a class that is not said is somebody else's.
            if pools.is_empty() && held.is_none() && !draft.names_our_class() {
                self.pending.insert(draft.name.clone(), "no AddressPool".to_owned());
                continue;
            }
            for slot in self.pool_slots(draft) {
                let address = slot.held.filter(|held| slot.asked.is_none_or(|a| a == *held));
                let pool = address.zip(held).and_then(|(address, held)| held.pool_of(address));
                match address.filter(|address| pools.is_away(*address, pool)) {
                    Some(address) => {
                        let which = pool.map(|pool| format!(" {pool}")).unwrap_or_default();
                        let reason = format!(
                            "{address} is kept for it and not served: its AddressPool{which} is gone"
                        );
                        self.refused.push((draft, reason));
                        withheld.push((&draft.name, address, pool));
                    }
                    None => slots.push(slot),
                }
            }
        }
        let mut free = pools.free();
        let legal = |slot: &Slot<'d, Family, IpAddr>, address: IpAddr| match slot.held {
            Some(held) if held == address => pools.contain(address),
            _ => match elsewhere.get(&address).filter(|owner| **owner != &slot.draft.name) {
                Some(owner) => Err(format!("{address} is Service {owner}'s already")),
                None => pools.may_give(address),
            },
        };
        let fresh = |slot: &Slot<'d, Family, IpAddr>, taken: &Taken<'d, IpAddr>| {
            free.next(slot.kind, |a| taken.contains_key(&a) || elsewhere.contains_key(&a))
        };
        let slots = settle(slots, &taken, legal, fresh, &mut self.refused);
        for (draft, reason) in self.refused.iter().skip(refused_before) {
            self.pending.entry(draft.name.clone()).or_insert_with(|| reason.clone());
        }
        Balancers { slots, withheld }
    }

    fn pool_slots(&mut self, draft: &'d Draft<'d>) -> Vec<Slot<'d, Family, IpAddr>> {
        let asked = match draft.asked_of_pool() {
            Ok(asked) => asked,
            Err(reason) => {
                self.refused.push((draft, reason));
                return Vec::new();
            }
        };
        let held = self.held(draft);
        let slot = |(family, _): &(Family, Option<IpAddr>)| Slot {
            draft,
            kind: *family,
            held: held.and_then(|h| h.balancer(*family)),
            asked: asked.iter().copied().find(|a| Family::of(*a) == *family),
            given: None,
        };
        let slots: Vec<_> = draft.cluster_ips.iter().map(slot).collect();
        let fits = |a: &&IpAddr| slots.iter().any(|s| s.asked == Some(**a));
        let Some(stray) = asked.iter().find(|a| !fits(a)) else { return slots };
        // Others than those it asks for would be a surprise.
        let reason = format!("no address is given: {stray} is not one for each of its families");
        self.refused.push((draft, reason));
        Vec::new()
    }
}

/// Neither the first address of a range nor the last.
fn is_inner(cidr: &IpNet, address: IpAddr) -> bool {
    address != cidr.network() && address != cidr.broadcast()
}

/// Cluster IPs in the order they are given out. The lower ones come last: they are for those who
/// ask for one in particular, as the one of DNS (KEP-3070).
fn in_order(cidr: IpNet) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len()).min(12);
    let lower = match (1_usize << bits) / 16 {
        0 => 0,
        sixteenth => sixteenth.max(16).min((1 << bits) / 2),
    };
    let all = AddressRange::of(cidr);
    let inner = move |a: &IpAddr| is_inner(&cidr, *a);
    all.iter().skip(lower).chain(all.iter().take(lower)).filter(inner)
}

/// The protocol in the key of a node port; that of the health check is TCP.
fn protocol_of(key: &str) -> ServiceProtocol {
    let all = [ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
    let named = |p: &ServiceProtocol| key.starts_with(&format!("{p}/"));
    all.into_iter().find(named).unwrap_or(ServiceProtocol::Tcp)
}
