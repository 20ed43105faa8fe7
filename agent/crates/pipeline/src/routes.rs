//! Where an address is: one immutable table, made whole for each generation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;
use ipnet::IpNet;
use weft_model::PeerId;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// To a pod of this node.
    LocalPod,
    /// To this node itself.
    Host,
    /// To another node.
    Peer(PeerId),
    /// Out of the fabric; the host routes it.
    World,
    /// Nowhere: inside the fabric but nobody's, or an address that is not forwarded.
    None,
}

/// What [`Routes`] are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutesConfig {
    /// The host's own addresses, gateways of pods included.
    pub host_addresses: Vec<IpAddr>,
    /// Subnets leased to this node: what is neither pod nor host there is nobody.
    pub local_subnets: Vec<IpNet>,
    /// Addresses of every pod of this node.
    pub local_pods: Vec<IpAddr>,
    /// AllowedIPs of every peer.
    pub peers: Vec<(PeerId, Vec<IpNet>)>,
    /// Ranges of all pods of the fabric: what no peer has there is nobody.
    pub pod_cidrs: Vec<IpNet>,
    /// Stand for this host where the way back would miss it otherwise: never leave it.
    pub host_sources: Vec<IpAddr>,
}

/// Finds the [`Target`] of an address: the longest prefix wins.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    exact_v4: HashMap<u32, Target>,
    exact_v6: HashMap<u128, Target>,
    /// By prefix length, longest first.
    v4: Vec<(u32, HashMap<u32, Target>)>,
    v6: Vec<(u128, HashMap<u128, Target>)>,
    host_sources: Vec<IpAddr>,
}

impl Routes {
    /// Makes the table. Where entries of one length contradict each other, the pod wins over the
    /// host, and the peer over a subnet that is nobody's.
    #[must_use]
    pub fn new(config: &RoutesConfig) -> Self {
        let mut routes = Self { host_sources: config.host_sources.clone(), ..Self::default() };
        for net in config.pod_cidrs.iter().chain(&config.local_subnets) {
            routes.add(*net, Target::None);
        }
        for (peer, nets) in &config.peers {
            nets.iter().for_each(|net| routes.add(*net, Target::Peer(*peer)));
        }
        let of_host = config.host_addresses.iter().chain(&config.host_sources);
        of_host.for_each(|a| routes.add_exact(*a, Target::Host));
        config.local_pods.iter().for_each(|a| routes.add_exact(*a, Target::LocalPod));
        routes.v4.sort_by_key(|(mask, _)| std::cmp::Reverse(*mask));
        routes.v6.sort_by_key(|(mask, _)| std::cmp::Reverse(*mask));
        routes
    }

    fn add_exact(&mut self, address: IpAddr, target: Target) {
        match address {
            IpAddr::V4(v4) => self.exact_v4.insert(v4.to_bits(), target),
            IpAddr::V6(v6) => self.exact_v6.insert(v6.to_bits(), target),
        };
    }

    fn add(&mut self, net: IpNet, target: Target) {
        match net {
            // Found at the first look, like the addresses of pods. A special one is nowhere.
            IpNet::V4(net) if net.prefix_len() == 32 => {
                if !is_special_v4(net.addr()) {
                    self.exact_v4.insert(net.addr().to_bits(), target);
                }
            }
            IpNet::V6(net) if net.prefix_len() == 128 => {
                if !is_special_v6(net.addr()) {
                    self.exact_v6.insert(net.addr().to_bits(), target);
                }
            }
            IpNet::V4(net) => {
                let (mask, bits) = (net.netmask().to_bits(), net.network().to_bits());
                table(&mut self.v4, mask).insert(bits, target);
            }
            IpNet::V6(net) => {
                let (mask, bits) = (net.netmask().to_bits(), net.network().to_bits());
                table(&mut self.v6, mask).insert(bits, target);
            }
        }
    }

    /// True for an address that stands for this host and is known on it only.
    #[must_use]
    #[inline]
    pub fn is_host_source(&self, address: IpAddr) -> bool {
        self.host_sources.contains(&address)
    }

    /// True for an address of a peer itself, not of its pods.
    #[must_use]
    pub fn is_peer_host(&self, address: IpAddr) -> bool {
        let exact = match address {
            IpAddr::V4(v4) => self.exact_v4.get(&v4.to_bits()),
            IpAddr::V6(v6) => self.exact_v6.get(&v6.to_bits()),
        };
        matches!(exact, Some(Target::Peer(_)))
    }

    /// Where packets to `address` go.
    #[must_use]
    #[inline]
    pub fn target(&self, address: IpAddr) -> Target {
        match address {
            IpAddr::V4(v4) => match self.exact_v4.get(&v4.to_bits()) {
                Some(target) => *target,
                None if is_special_v4(v4) => Target::None,
                None => longest(&self.v4, |mask| v4.to_bits() & mask),
            },
            IpAddr::V6(v6) => match self.exact_v6.get(&v6.to_bits()) {
                Some(target) => *target,
                None if is_special_v6(v6) => Target::None,
                None => longest(&self.v6, |mask| v6.to_bits() & mask),
            },
        }
    }
}

fn table<K: PartialEq + Copy>(
    tables: &mut Vec<(K, HashMap<K, Target>)>,
    mask: K,
) -> &mut HashMap<K, Target> {
    let at = tables.iter().position(|(m, _)| *m == mask).unwrap_or_else(|| {
        tables.push((mask, HashMap::new()));
        tables.len() - 1
    });
    &mut tables[at].1
}

#[inline]
fn longest<K: Copy + Eq + std::hash::Hash>(
    tables: &[(K, HashMap<K, Target>)],
    network: impl Fn(K) -> K,
) -> Target {
    let found = tables.iter().find_map(|(mask, table)| table.get(&network(*mask)));
    found.copied().unwrap_or(Target::World)
}

/// Not forwarded: this network (RFC 1122 section 3.2.1.3), loopback, link-local (RFC 3927 section
/// 7), multicast, reserved and broadcast (RFC 1112 section 4).
#[inline]
fn is_special_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    a == 0 || a == 127 || a >= 224 || (a == 169 && b == 254)
}

/// Not forwarded: unspecified, loopback, IPv4-mapped and -compatible, link-local and multicast
/// (RFC 4291 section 2.5).
fn is_special_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    bits >> 48 == 0
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.to_ipv4_mapped().is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes() -> Routes {
        let net = |n: &str| n.parse::<IpNet>().unwrap();
        let ip = |a: &str| a.parse::<IpAddr>().unwrap();
        Routes::new(&RoutesConfig {
            host_addresses: vec![ip("10.1.1.1"), ip("192.0.2.1"), ip("fd00:1::1")],
            local_subnets: vec![net("10.1.1.0/24"), net("fd00:1::/64")],
            local_pods: vec![ip("10.1.1.5"), ip("fd00:1::5")],
            peers: vec![
                (PeerId(2), vec![net("10.1.2.0/24"), net("192.0.2.2/32"), net("fd00:2::/64")]),
                (PeerId(3), vec![net("10.1.2.128/25")]),
            ],
            pod_cidrs: vec![net("10.1.0.0/16"), net("fd00::/16")],
            host_sources: vec![ip("169.254.1.9")],
        })
    }

    #[test]
    fn each_address_has_its_place() {
        let routes = routes();
        let cases = [
            ("10.1.1.5", Target::LocalPod),
            ("10.1.1.1", Target::Host),
            ("192.0.2.1", Target::Host),
            ("169.254.1.9", Target::Host),
            ("10.1.1.6", Target::None),
            ("10.1.1.255", Target::None),
            ("10.1.2.7", Target::Peer(PeerId(2))),
            ("10.1.2.200", Target::Peer(PeerId(3))),
            ("192.0.2.2", Target::Peer(PeerId(2))),
            ("10.1.9.1", Target::None),
            ("8.8.8.8", Target::World),
            ("fd00:1::5", Target::LocalPod),
            ("fd00:1::6", Target::None),
            ("fd00:2::6", Target::Peer(PeerId(2))),
            ("2001:db8::1", Target::World),
        ];
        for (address, target) in cases {
            assert_eq!(routes.target(address.parse().unwrap()), target, "{address}");
        }
        let is_peer_host = |a: &str| routes.is_peer_host(a.parse().unwrap());
        assert_eq!(["192.0.2.2", "10.1.2.7", "192.0.2.1"].map(is_peer_host), [true, false, false]);
    }

    #[test]
    fn multicast_broadcast_and_link_local_go_nowhere() {
        let routes = routes();
        for address in [
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "0.0.0.0",
            "127.0.0.1",
            "ff02::1",
            "fe80::1",
            "::",
            "::1",
            "::ffff:10.1.1.5",
        ] {
            assert_eq!(routes.target(address.parse().unwrap()), Target::None, "{address}");
        }
    }

    proptest! {
        #[test]
        fn longest_prefix_wins(
            nets in prop::collection::vec((any::<u32>(), 8u8..=32), 0..40),
            address in any::<u32>(),
        ) {
            let nets: Vec<IpNet> = nets
                .iter()
                .map(|(bits, len)| {
                    // Few distinct networks, so that they overlap.
                    let bits = 0x0a00_0000 | (bits & 0x0003_0303);
                    ipnet::Ipv4Net::new(Ipv4Addr::from_bits(bits), *len).unwrap().trunc().into()
                })
                .collect();
            let address = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | (address & 0x0003_0303)));
            let peers: Vec<_> =
                nets.iter().zip(0..).map(|(net, id)| (PeerId(id), vec![*net])).collect();
            let routes = Routes::new(&RoutesConfig { peers, ..RoutesConfig::default() });
            let best = nets
                .iter()
                .zip(0..)
                .filter(|(net, _)| net.contains(&address))
                .max_by_key(|(net, id)| (net.prefix_len(), *id))
                .map_or(Target::World, |(_, id)| Target::Peer(PeerId(id)));
            prop_assert_eq!(routes.target(address), best);
        }
    }
}
