//! The tables that workers read, built anew by each configuration and swapped whole.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use weft_model::{Encapsulation, MacAddr, PeerId, PublicKey, Vni};

use crate::config::{Applied, ConfigError, Conflict, MeshConfig, PeerConfig};
use crate::peer::{Peer, PeerState};
use crate::wireguard::{Identity, Inbound, Machine, Tunnel};

/// Who a receiver index belongs to.
pub(crate) struct Receiver {
    pub(crate) peer: Arc<Peer>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) inbound: Arc<Inbound>,
}

/// How packets travel, with what only that way needs.
pub(crate) enum Carrier {
    /// Before the first configuration.
    None,
    WireGuard(WireGuardTables),
    Vxlan(VxlanTables),
}

/// Our VTEP and who has the others.
pub(crate) struct VxlanTables {
    pub(crate) vni: Vni,
    pub(crate) mac: MacAddr,
    /// By outer address, to tell a peer that lies from a stranger.
    pub(crate) by_address: HashMap<IpAddr, Arc<Peer>>,
}

/// Who is who on the encrypted side.
pub(crate) struct WireGuardTables {
    machine: Machine,
    pub(crate) identities: Vec<Arc<Identity>>,
    /// By the upper 24 bits of the receiver index.
    pub(crate) receivers: HashMap<u32, Receiver>,
    pub(crate) by_key: HashMap<PublicKey, Arc<Peer>>,
}

/// Everything of one configuration.
pub(crate) struct Tables {
    pub(crate) carrier: Carrier,
    pub(crate) peers: HashMap<PeerId, Arc<Peer>>,
    allowed: JointPrefixMap<IpNet, PeerId>,
}

/// Gives out receiver indices, 24 bits, that no tunnel has. They start at a random one, so that
/// datagrams for an earlier run find nobody.
pub(crate) struct Indices(u32);

impl Indices {
    const MASK: u32 = 0x00ff_ffff;

    pub(crate) fn new(seed: u64) -> Self {
        let [a, b, c, ..] = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    fn next(&mut self, taken: &HashMap<u32, Receiver>) -> u32 {
        loop {
            self.0 = self.0.wrapping_add(1) & Self::MASK;
            if !taken.contains_key(&self.0) {
                return self.0;
            }
        }
    }
}

impl Tables {
    pub(crate) fn empty() -> Self {
        Self { carrier: Carrier::None, peers: HashMap::new(), allowed: JointPrefixMap::new() }
    }

    /// The peer that may send from `source`.
    pub(crate) fn peer_of(&self, source: IpAddr) -> Option<PeerId> {
        self.allowed.get_lpm(&IpNet::from(source)).map(|(_, peer)| *peer)
    }

    pub(crate) fn wireguard(&self) -> Option<&WireGuardTables> {
        match &self.carrier {
            Carrier::WireGuard(tables) => Some(tables),
            Carrier::None | Carrier::Vxlan(_) => None,
        }
    }

    /// Builds the tables for `config`, taking over from `self` every session that it still lists.
    pub(crate) fn next(
        &self,
        config: &MeshConfig,
        indices: &mut Indices,
        machine: Machine,
    ) -> Result<(Self, Applied), ConfigError> {
        let mut carrier = self.next_carrier(config, machine)?;
        check_ids(&config.peers)?;
        let mut applied = Applied::default();
        let mut peers = HashMap::new();
        let mut allowed = JointPrefixMap::new();
        for peer in &config.peers {
            let keys = match &carrier {
                Carrier::WireGuard(tables) => tables.free_keys(peer, &mut applied),
                Carrier::None | Carrier::Vxlan(_) => Vec::new(),
            };
            let shared = self.take_over(peer);
            shared.lock().configure(peer.endpoint, peer.vtep_mac);
            match &mut carrier {
                Carrier::WireGuard(tables) => {
                    tables.add(&shared, &keys, self.wireguard(), indices);
                }
                Carrier::Vxlan(tables) => tables.add(&shared),
                Carrier::None => {}
            }
            allow(peer, &mut allowed, &mut applied);
            peers.insert(peer.id, shared);
        }
        Ok((Self { carrier, peers, allowed }, applied))
    }

    fn next_carrier(&self, config: &MeshConfig, machine: Machine) -> Result<Carrier, ConfigError> {
        match config.encapsulation {
            Encapsulation::Vxlan => {
                let mac = config.vtep_mac.ok_or(ConfigError::NoVtepMac)?;
                Ok(Carrier::Vxlan(VxlanTables { vni: config.vni, mac, by_address: HashMap::new() }))
            }
            Encapsulation::WireGuard if config.keys.is_empty() => Err(ConfigError::NoKey),
            Encapsulation::WireGuard => {
                let old = self.wireguard().map_or(&[][..], |t| &t.identities);
                let mut identities: Vec<Arc<Identity>> = Vec::new();
                for key in &config.keys {
                    let public = key.public_key();
                    if identities.iter().any(|i| i.public_key() == public) {
                        continue;
                    }
                    let kept = old.iter().find(|i| i.public_key() == public);
                    identities.push(kept.map_or_else(|| Arc::new(Identity::new(key)), Arc::clone));
                }
                Ok(Carrier::WireGuard(WireGuardTables {
                    machine,
                    identities,
                    receivers: HashMap::new(),
                    by_key: HashMap::new(),
                }))
            }
        }
    }

    /// The peer that `config` means, with its state: the one of the same id and name, else, when
    /// the agent has numbered anew, the one with a key in common, else a new one.
    fn take_over(&self, config: &PeerConfig) -> Arc<Peer> {
        let same = self.peers.get(&config.id).filter(|p| p.name == config.name);
        if let Some(peer) = same {
            return Arc::clone(peer);
        }
        let by_key = |key| self.wireguard().and_then(|t| t.by_key.get(key));
        let state = match config.keys.iter().find_map(by_key) {
            Some(old) => std::mem::take(&mut *old.lock()),
            None => PeerState::default(),
        };
        Arc::new(Peer::new(config.id, config.name.clone(), state))
    }
}

impl VxlanTables {
    fn add(&mut self, peer: &Arc<Peer>) {
        let mut state = peer.lock();
        state.leave_wireguard();
        let endpoint = state.endpoint();
        drop(state);
        if let Some(endpoint) = endpoint {
            self.by_address.insert(endpoint.ip(), Arc::clone(peer));
        }
    }
}

impl WireGuardTables {
    /// The keys of `peer` that nobody else has.
    fn free_keys(&self, peer: &PeerConfig, applied: &mut Applied) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        for key in peer.keys.iter().copied() {
            let own = self.identities.iter().any(|i| i.public_key() == key);
            let holder = self.by_key.get(&key).map(|p| p.id);
            if own || holder.is_some() {
                applied.conflicts.push(Conflict::Key { key, holder, refused: peer.id });
            } else if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// Gives the peer a tunnel for each pair of keys, keeping those it has, and dropping those of
    /// keys that are gone.
    fn add(
        &mut self,
        peer: &Arc<Peer>,
        keys: &[PublicKey],
        old: Option<&Self>,
        indices: &mut Indices,
    ) {
        let mut state = peer.lock();
        let mut before = std::mem::take(&mut state.tunnels);
        let pairs = self.identities.iter().flat_map(|i| keys.iter().map(move |key| (i, *key)));
        for (identity, remote) in pairs {
            let same = |t: &Tunnel| t.keys() == (identity.public_key(), remote);
            let kept = before.iter().position(same).map(|at| before.swap_remove(at));
            let tunnel = kept.unwrap_or_else(|| {
                let taken = old.map_or(&self.receivers, |old| &old.receivers);
                let mut index = indices.next(taken);
                while self.receivers.contains_key(&index) {
                    index = indices.next(taken);
                }
                Tunnel::new(identity, remote, index, self.machine)
            });
            let receiver = Receiver {
                peer: Arc::clone(peer),
                identity: Arc::clone(identity),
                inbound: Arc::clone(tunnel.inbound()),
            };
            self.receivers.insert(tunnel.index(), receiver);
            state.tunnels.push(tunnel);
        }
        state.refresh();
        drop(state);
        self.by_key.extend(keys.iter().map(|key| (*key, Arc::clone(peer))));
    }
}

fn check_ids(peers: &[PeerConfig]) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashSet::new();
    match peers.iter().find(|p| !seen.insert(p.id)) {
        Some(twice) => Err(ConfigError::DuplicatePeer(twice.id)),
        None => Ok(()),
    }
}

fn allow(peer: &PeerConfig, allowed: &mut JointPrefixMap<IpNet, PeerId>, applied: &mut Applied) {
    for range in peer.allowed_ips.iter().map(IpNet::trunc) {
        match allowed.get(&range) {
            Some(holder) if *holder != peer.id => {
                let (holder, refused) = (*holder, peer.id);
                applied.conflicts.push(Conflict::AllowedIp { range, holder, refused });
            }
            Some(_) => {}
            None => drop(allowed.insert(range, peer.id)),
        }
    }
}
