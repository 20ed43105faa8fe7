//! What holds for all Services of the node.

use crate::address::{Address, Family, Prefix};
use crate::hash::{Map, halves};

/// Of each family at most one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    v4: Option<Address>,
    v6: Option<Address>,
}

impl Sources {
    /// Tells if the place was free.
    pub(crate) fn set(&mut self, address: Address) -> bool {
        let place = match address.family() {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        place.replace(address).is_none()
    }

    pub(crate) fn of(&self, family: Family) -> Option<Address> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Address> {
        self.v4.into_iter().chain(self.v6)
    }
}

/// See the configuration's `ServiceSettings`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// 0 if this node serves no node ports.
    pub(crate) own_node: u16,
    pub(crate) node_sources: Sources,
    pub(crate) host_sources: Sources,
    pub(crate) service_cidrs: Box<[Prefix]>,
    nodes: Map<[u64; 2], u16>,
    own_addresses: Vec<Address>,
}

impl Settings {
    /// `nodes` are pairs of an address and the index of the node that serves node ports there.
    pub(crate) fn new(
        own_node: u16,
        node_sources: Sources,
        host_sources: Sources,
        service_cidrs: Box<[Prefix]>,
        nodes: &[(Address, u16)],
    ) -> Self {
        let mut settings =
            Self { own_node, node_sources, host_sources, service_cidrs, ..Self::default() };
        let is_own = |entry: &&(Address, u16)| entry.1 == own_node;
        let own = nodes.iter().filter(is_own).map(|(address, _)| *address);
        settings.own_addresses = own.chain(node_sources.iter()).collect();
        // The kernel sends what is for node ports of this node there. Own addresses come last, as
        // they count if another node claims one too.
        let hosts = host_sources.iter().map(|address| (address, own_node));
        let own = nodes.iter().filter(is_own).copied().chain(hosts);
        let others = nodes.iter().filter(|entry| !is_own(entry)).copied();
        settings.nodes = others.chain(own).map(|(address, n)| (halves(address.0), n)).collect();
        settings
    }

    /// The node that serves node ports at an address.
    #[inline]
    pub(crate) fn node_at(&self, address: Address) -> Option<u16> {
        self.nodes.get(&halves(address.0)).copied()
    }

    /// Addresses by which this node is known to others.
    pub(crate) fn own_addresses(&self) -> &[Address] {
        &self.own_addresses
    }

    /// True if only a cluster IP can have this address.
    pub(crate) fn is_for_cluster_ips(&self, address: Address) -> bool {
        self.service_cidrs.iter().any(|range| range.contains(address))
    }
}
