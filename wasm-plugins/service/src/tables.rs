//! All Services of the node, found by what a packet is sent to.
//!
//! A claim is an address with port and protocol, or a node port with protocol. It belongs to the
//! first Service by name that makes it; the others wait in case that one goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::address::{Address, Family};
use crate::hash::{Map, halves};
use crate::service::{Kind, Port, Service};
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

/// Whose it is: place in [`Tables::services`], place in its ports, and what the address is. As
/// compact as it can be, as there is one for each claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    service: u32,
    port: u16,
    /// Of node ports it means nothing.
    kind: Kind,
}

/// What stands behind an address and port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// A Service.
    Service(&'a Service, &'a Port, At),
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
    services: Vec<Option<Service>>,
    /// Places in `services` that are free.
    free: Vec<u32>,
    by_name: Map<Arc<str>, u32>,
    v4: Map<u64, Claim>,
    v6: Map<KeyV6, Claim>,
    node_ports: Map<u32, Claim>,
    /// Of what more than one Service claims: all claims, by name. The first is in force.
    contested: BTreeMap<Key, BTreeMap<Arc<str>, Claim>>,
    /// How many frontends have an address.
    addresses_v4: Map<u32, u32>,
    addresses_v6: Map<[u64; 2], u32>,
}

impl Tables {
    /// With room for so many Services, each with an address: to grow step by step takes more room
    /// while it is done, and as long as all the rest.
    pub(crate) fn for_services(count: usize) -> Self {
        let mut tables = Self::default();
        tables.services.reserve_exact(count);
        tables.by_name.reserve(count);
        tables.v4.reserve(count);
        tables.addresses_v4.reserve(count);
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
    pub(crate) fn set(&mut self, service: Service) {
        self.remove(&service.name);
        let place = self.free.pop().or_else(|| u32::try_from(self.services.len()).ok());
        // More than the memory of any plugin can hold.
        let Some(place) = place else { return };
        self.by_name.insert(Arc::clone(&service.name), place);
        for (key, port, kind) in claims(&service) {
            self.add_claim(key, &service.name, Claim { service: place, port, kind });
        }
        for frontend in &service.frontends {
            self.count_address(frontend.address(), true);
        }
        match self.services.get_mut(place as usize) {
            Some(free) => *free = Some(service),
            None => self.services.push(Some(service)),
        }
    }

    /// Removes the Service of this name, if there is one.
    pub(crate) fn remove(&mut self, name: &str) {
        let Some(place) = self.by_name.remove(name) else { return };
        let Some(service) = self.services.get_mut(place as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(place);
        for (key, ..) in claims(&service) {
            self.remove_claim(key, name, place);
        }
        for frontend in &service.frontends {
            self.count_address(frontend.address(), false);
        }
    }

    /// True if nothing is left of any Service.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let maps = [self.by_name.len(), self.v4.len(), self.v6.len(), self.node_ports.len()];
        let counts = [self.contested.len(), self.addresses_v4.len(), self.addresses_v6.len()];
        self.services.iter().all(Option::is_none) && [maps.as_slice(), &counts].concat() == [0; 7]
    }

    fn found(&self, claim: Claim, at: At) -> Found<'_> {
        let service = self.services.get(claim.service as usize).and_then(Option::as_ref);
        let port = service.and_then(|s| s.ports.get(usize::from(claim.port)));
        match (service, port) {
            (Some(service), Some(port)) => Found::Service(service, port, at),
            _ => Found::Other,
        }
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
    fn add_claim(&mut self, key: Key, name: &Arc<str>, claim: Claim) {
        let first = match self.claim(key) {
            None => claim,
            Some(held) if held.service == claim.service => return,
            Some(held) => {
                let all = self.contested.entry(key).or_default();
                if all.is_empty() {
                    let holder = self.services.get(held.service as usize);
                    if let Some(holder) = holder.and_then(Option::as_ref) {
                        all.insert(Arc::clone(&holder.name), held);
                    }
                }
                all.entry(Arc::clone(name)).or_insert(claim);
                all.first_key_value().map_or(claim, |(_, first)| *first)
            }
        };
        self.put_in_force(key, Some(first));
    }

    fn remove_claim(&mut self, key: Key, name: &str, place: u32) {
        if let Some(all) = self.contested.get_mut(&key) {
            all.remove(name);
            let first = all.first_key_value().map(|(_, first)| *first);
            if all.len() < 2 {
                self.contested.remove(&key);
            }
            self.put_in_force(key, first);
        } else if self.claim(key).is_some_and(|claim| claim.service == place) {
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

/// All that a Service claims.
fn claims(service: &Service) -> impl Iterator<Item = (Key, u16, Kind)> {
    let ports = || (0_u16..).zip(&service.ports);
    let at_frontends = service.frontends.iter().flat_map(move |frontend| {
        ports().map(|(index, port)| {
            (Key::frontend(frontend.address(), port.port, port.protocol), index, frontend.kind)
        })
    });
    let with_node_port = ports().filter(|(_, port)| port.node_port != 0);
    at_frontends.chain(with_node_port.map(|(index, port)| {
        (Key::node_port(port.node_port, port.protocol), index, Kind::ExternalIp)
    }))
}
