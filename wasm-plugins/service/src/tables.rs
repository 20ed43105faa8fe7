//! All Services of the node, found by what a packet is sent to.
//!
//! A claim is an address with port and protocol, or a node port with protocol. It belongs to the
//! first Service by name that makes it; the others wait in case that one goes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::address::{Address, Family};
use crate::blocks::{self, Blocks, Served};
use crate::config::Room;
use crate::hash::{Map, halves};
use crate::service::{Configured, Kind, Numbers, Service};
use crate::settings::Settings;

/// What is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    /// Protocol, port and address in one number.
    V4(u64),
    V6(KeyV6),
    /// Protocol and port in one number.
    NodePort(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct KeyV6(u64, u64, u32);

impl Key {
    #[inline]
    fn frontend(address: Address, port: u16, protocol: u8) -> Self {
        let service = service_number(port, protocol);
        let [high, low] = halves(address.0);
        match address.family() {
            Family::V4 => Self::V4(u64::from(service) << 32 | low & 0xffff_ffff),
            Family::V6 => Self::V6(KeyV6(high, low, service)),
        }
    }

    #[inline]
    fn node_port(port: u16, protocol: u8) -> Self {
        Self::NodePort(service_number(port, protocol))
    }
}

/// Port and protocol in one number.
#[inline]
fn service_number(port: u16, protocol: u8) -> u32 {
    u32::from(protocol) << 16 | u32::from(port)
}

/// Whose it is: the first line of a Service port in [`Tables::blocks`], and what the address is. As
/// compact as it can be, as there is one for each claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    line: u32,
    /// Of node ports it means nothing.
    kind: Kind,
}

/// What stands behind an address and port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// A Service.
    Service(Served<'a>, At),
    /// An address of Services, but none of them has this port.
    Unserved,
    /// An address that only a Service could have.
    Nobody,
    /// Nothing of Services.
    Other,
}

/// How a packet was addressed to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Frontend(Kind),
    /// A node port at an address of this node.
    NodePort(u16),
}

/// All Services.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) settings: Settings,
    services: Vec<Option<Held>>,
    /// Places in `services` that are free.
    free: Vec<u32>,
    by_name: Map<Arc<str>, u32>,
    blocks: Blocks,
    v4: Map<u64, Claim>,
    v6: Map<KeyV6, Claim>,
    node_ports: Map<u32, Claim>,
    /// Of what more than one Service claims: all claims, by name. The first is in force.
    contested: BTreeMap<Key, BTreeMap<Arc<str>, Claim>>,
    /// How many frontends have an address.
    addresses_v4: Map<u32, u32>,
    addresses_v6: Map<[u64; 2], u32>,
}

/// A Service, and the block with its ports.
#[derive(Debug)]
struct Held {
    service: Service,
    block: Range<u32>,
}

impl Tables {
    /// With room for so much, each Service with an address: to grow step by step takes more room
    /// while it is done, and as long as all the rest.
    pub(crate) fn with_room(room: Room) -> Self {
        let mut tables = Self { blocks: Blocks::with_capacity(room.lines), ..Self::default() };
        tables.services.reserve_exact(room.services);
        tables.by_name.reserve(room.services);
        tables.v4.reserve(room.services);
        tables.addresses_v4.reserve(room.services);
        tables
    }

    /// What stands behind a destination. Costs the same however many Services there are.
    #[inline]
    pub(crate) fn find(&self, address: Address, port: u16, protocol: u8) -> Found<'_> {
        if let Some(claim) = self.claim(Key::frontend(address, port, protocol)) {
            return self.found(claim, At::Frontend(claim.kind));
        }
        if let Some(node) = self.settings.node_at(address) {
            // A node's other ports are the node's own, even where a Service has its address too.
            let claim = self.claim(Key::node_port(port, protocol));
            return claim.map_or(Found::Other, |claim| self.found(claim, At::NodePort(node)));
        }
        if self.is_frontend(address) {
            Found::Unserved
        } else if self.settings.is_for_cluster_ips(address) {
            Found::Nobody
        } else {
            Found::Other
        }
    }

    /// True if there is a Service of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Adds a Service, in the place of the one of its name.
    pub(crate) fn set(&mut self, service: Configured) {
        self.remove(&service.kept.name);
        let place = self.free.pop().or_else(|| u32::try_from(self.services.len()).ok());
        let added = place.and_then(|place| Some((place, self.blocks.add(place, &service)?)));
        // More than the memory of any plugin can hold.
        let Some((place, block)) = added else { return };
        let Configured { kept: service, ports, .. } = service;
        self.by_name.insert(Arc::clone(&service.name), place);
        for (key, claim) in claims(&service, blocks::placed(block.clone(), &ports)) {
            self.add_claim(key, &service.name, claim, &block);
        }
        for frontend in &service.frontends {
            self.count_address(frontend.address(), true);
        }
        let held = Some(Held { service, block });
        match self.services.get_mut(place as usize) {
            Some(free) => *free = held,
            None => self.services.push(held),
        }
    }

    /// Removes the Service of this name, if there is one.
    pub(crate) fn remove(&mut self, name: &str) {
        let Some(place) = self.by_name.remove(name) else { return };
        let Some(Held { service, block }) =
            self.services.get_mut(place as usize).and_then(Option::take)
        else {
            return;
        };
        self.free.push(place);
        let ports: Vec<_> = self.blocks.ports(block.clone()).collect();
        for (key, _) in claims(&service, ports.iter().copied()) {
            self.remove_claim(key, name, &block);
        }
        for frontend in &service.frontends {
            self.count_address(frontend.address(), false);
        }
        self.blocks.remove(block);
    }

    /// The Service that a port is of.
    pub(crate) fn service(&self, port: Served<'_>) -> Option<&Service> {
        Some(&self.services.get(port.service() as usize)?.as_ref()?.service)
    }

    /// Lines that are in use.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> usize {
        self.blocks.used()
    }

    /// True if nothing is left of any Service.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let maps = [self.by_name.len(), self.v4.len(), self.v6.len(), self.node_ports.len()];
        let counts = [self.contested.len(), self.addresses_v4.len(), self.addresses_v6.len()];
        self.services.iter().all(Option::is_none)
            && self.blocks.used() == 0
            && [maps.as_slice(), &counts].concat() == [0; 7]
    }

    #[inline]
    fn found(&self, claim: Claim, at: At) -> Found<'_> {
        self.blocks.port(claim.line).map_or(Found::Other, |port| Found::Service(port, at))
    }

    #[inline]
    fn claim(&self, key: Key) -> Option<Claim> {
        match key {
            Key::V4(key) => self.v4.get(&key).copied(),
            Key::V6(key) => self.v6.get(&key).copied(),
            Key::NodePort(key) => self.node_ports.get(&key).copied(),
        }
    }

    fn put_in_force(&mut self, key: Key, claim: Option<Claim>) {
        match (key, claim) {
            (Key::V4(key), Some(claim)) => drop(self.v4.insert(key, claim)),
            (Key::V4(key), None) => drop(self.v4.remove(&key)),
            (Key::V6(key), Some(claim)) => drop(self.v6.insert(key, claim)),
            (Key::V6(key), None) => drop(self.v6.remove(&key)),
            (Key::NodePort(key), Some(claim)) => drop(self.node_ports.insert(key, claim)),
            (Key::NodePort(key), None) => drop(self.node_ports.remove(&key)),
        }
    }

    /// Of the claims of one Service to the same, the first counts.
    fn add_claim(&mut self, key: Key, name: &Arc<str>, claim: Claim, block: &Range<u32>) {
        let first = match self.claim(key) {
            None => claim,
            Some(held) if block.contains(&held.line) => return,
            Some(held) => {
                let all = self.contested.entry(key).or_default();
                if all.is_empty() {
                    let place = self.blocks.port(held.line).map(|port| port.service() as usize);
                    let holder = place.and_then(|place| self.services.get(place)?.as_ref());
                    if let Some(holder) = holder {
                        all.insert(Arc::clone(&holder.service.name), held);
                    }
                }
                all.entry(Arc::clone(name)).or_insert(claim);
                all.first_key_value().map_or(claim, |(_, first)| *first)
            }
        };
        self.put_in_force(key, Some(first));
    }

    fn remove_claim(&mut self, key: Key, name: &str, block: &Range<u32>) {
        if let Some(all) = self.contested.get_mut(&key) {
            all.remove(name);
            let first = all.first_key_value().map(|(_, first)| *first);
            if all.len() < 2 {
                self.contested.remove(&key);
            }
            self.put_in_force(key, first);
        } else if self.claim(key).is_some_and(|claim| block.contains(&claim.line)) {
            self.put_in_force(key, None);
        }
    }

    fn is_frontend(&self, address: Address) -> bool {
        match address.family() {
            Family::V4 => self.addresses_v4.contains_key(&(address.0 as u32)),
            Family::V6 => self.addresses_v6.contains_key(&halves(address.0)),
        }
    }

    fn count_address(&mut self, address: Address, more: bool) {
        fn count<K: std::hash::Hash + Eq>(counts: &mut Map<K, u32>, key: K, more: bool) {
            if more {
                *counts.entry(key).or_default() += 1;
            } else if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        match address.family() {
            Family::V4 => count(&mut self.addresses_v4, address.0 as u32, more),
            Family::V6 => count(&mut self.addresses_v6, halves(address.0), more),
        }
    }
}

/// All that a Service claims, with ports by their first lines.
fn claims(
    service: &Service,
    ports: impl Iterator<Item = (u32, Numbers)> + Clone,
) -> impl Iterator<Item = (Key, Claim)> {
    let with_node_port = ports.clone().filter(|(_, numbers)| numbers.node_port != 0);
    let at_frontends = service.frontends.iter().flat_map(move |frontend| {
        ports.clone().map(|(line, Numbers { protocol, port, .. })| {
            let key = Key::frontend(frontend.address(), port, protocol);
            (key, Claim { line, kind: frontend.kind })
        })
    });
    at_frontends.chain(with_node_port.map(|(line, Numbers { protocol, node_port, .. })| {
        (Key::node_port(node_port, protocol), Claim { line, kind: Kind::ExternalIp })
    }))
}
