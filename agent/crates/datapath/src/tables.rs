//! What the agent wants ([`Desired`]) and the same checked and typed ([`Tables`]).
//!
//! Everything here happens off the packet path. A request that is wrong anywhere outside its
//! plugins is refused whole, and what was in force stays.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use prost::Message;
use weft_control::convert::{addresses, endpoint, keys, mac, narrow, subnets};
use weft_control::{ConvertError, FromProto, Reason};
use weft_mesh::{MeshConfig, PeerConfig, SecretKey};
use weft_model::{
    DNS_PLUGIN, Encapsulation, Mtu, POLICY_PLUGIN, PeerId, PublicKey, SERVICE_PLUGIN, Vni,
};
use weft_proto::v1::{ApplyRequest, LocalPod, NodeSettings, Peer, PluginSpec};

use crate::built_in::{BuiltInChange, Names, Policies, Services};

/// Why a request changes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TablesError {
    #[error("generation {at} is in force, not {from}: send the complete state")]
    OtherGeneration { from: u64, at: u64 },
    #[error(transparent)]
    Field(#[from] ConvertError),
    #[error("cannot read the WireGuard key {path}: {source}")]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error(
        "{0} holds no WireGuard private key: 32 bytes in base64 expected, as `wg genkey` prints"
    )]
    Key(PathBuf),
}

/// The complete state that the agent asked for last, in its own words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) generation: u64,
    pub(crate) settings: Option<NodeSettings>,
    pub(crate) peers: BTreeMap<u32, Peer>,
    pub(crate) pods: BTreeMap<String, LocalPod>,
    pub(crate) plugins: BTreeMap<String, PluginSpec>,
    pub(crate) services: Services,
    pub(crate) policies: Policies,
    pub(crate) names: Names,
}

impl Desired {
    /// The configuration of a built-in plugin, which does not stand in its spec; `resolver`: whether the
    /// node's own serves names.
    pub(crate) fn built_in_config(&self, plugin: &str, resolver: bool) -> Option<Vec<u8>> {
        match plugin {
            SERVICE_PLUGIN => Some(self.services.told(resolver).encode_to_vec()),
            POLICY_PLUGIN => Some(self.policies.complete().encode_to_vec()),
            DNS_PLUGIN => Some(self.names.complete().encode_to_vec()),
            _ => None,
        }
    }

    /// The state that `request` leads to.
    ///
    /// A change that was applied already may come again, so that plugins whose modules were
    /// missing get another try.
    pub(crate) fn after(&self, request: ApplyRequest) -> Result<Self, TablesError> {
        self.check_generation(&request)?;
        let mut next = if request.from == 0 { Self::default() } else { self.clone() };
        next.generation = request.generation;
        next.settings = request.settings.or(next.settings);
        if next.settings.is_none() {
            return Err(missing("settings").into());
        }
        request.removed_peers.iter().for_each(|id| drop(next.peers.remove(id)));
        request.removed_pods.iter().for_each(|key| drop(next.pods.remove(key)));
        request.removed_plugins.iter().for_each(|name| drop(next.plugins.remove(name)));
        next.services.change(request.services.unwrap_or_default());
        next.policies.change(request.policies.unwrap_or_default());
        next.names.change(request.names.unwrap_or_default());
        next.peers.extend(request.peers.into_iter().map(|p| (p.id, p)));
        next.pods.extend(request.pods.into_iter().map(|p| (p.attachment.clone(), p)));
        next.plugins.extend(request.plugins.into_iter().map(|p| (p.name.clone(), p)));
        Ok(next)
    }

    fn check_generation(&self, request: &ApplyRequest) -> Result<(), TablesError> {
        let again = request.from < self.generation && request.generation == self.generation;
        if request.from != 0 && request.from != self.generation && !again {
            return Err(TablesError::OtherGeneration { from: request.from, at: self.generation });
        }
        Ok(())
    }

    /// Takes what a request changes in the configuration of built-in plugins out of it, if it is a change
    /// to this state and does not touch the plugins themselves.
    pub(crate) fn take_built_in(
        &self,
        request: &mut ApplyRequest,
    ) -> Result<Option<BuiltInChange>, TablesError> {
        self.check_generation(request)?;
        let plugins_stay = request.plugins.is_empty() && request.removed_plugins.is_empty();
        if request.from == 0 || !plugins_stay {
            return Ok(None);
        }
        let change = BuiltInChange {
            services: request.services.take(),
            policies: request.policies.take(),
            names: request.names.take(),
        };
        Ok((change != BuiltInChange::default()).then_some(change))
    }

    /// Takes such a change, without a copy of everything else.
    pub(crate) fn change_built_in(&mut self, change: BuiltInChange) {
        self.services.change(change.services.unwrap_or_default());
        self.policies.change(change.policies.unwrap_or_default());
        self.names.change(change.names.unwrap_or_default());
    }

    /// Moves on to another generation, if a request asks for nothing more.
    pub(crate) fn is_all_of(&mut self, request: &ApplyRequest) -> bool {
        let &ApplyRequest { generation, from, .. } = request;
        let all = *request == ApplyRequest { generation, from, ..ApplyRequest::default() };
        if all {
            self.generation = generation;
        }
        all
    }

    /// The complete request that leads to this state.
    pub(crate) fn to_request(&self) -> ApplyRequest {
        ApplyRequest {
            generation: self.generation,
            from: 0,
            settings: self.settings.clone(),
            peers: self.peers.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            plugins: self.plugins.values().cloned().collect(),
            services: Some(self.services.complete()),
            policies: Some(self.policies.complete()),
            names: Some(self.names.complete()),
            ..ApplyRequest::default()
        }
    }
}

/// [`NodeSettings`], checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) interface: String,
    pub(crate) mtu: u16,
    pub(crate) port: u16,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) host_sources: Vec<IpAddr>,
}

/// Everything but plugins, checked and typed.
pub(crate) struct Tables {
    pub(crate) settings: Settings,
    pub(crate) mesh: MeshConfig,
    /// Addresses of this node's pods.
    pub(crate) pods: Vec<IpAddr>,
}

impl Tables {
    /// Checks `desired`; reads the key files it names.
    pub(crate) fn try_new(desired: &Desired) -> Result<Self, TablesError> {
        let settings = desired.settings.as_ref().ok_or_else(|| missing("settings"))?;
        let within = |e: ConvertError| e.within("settings");
        let pods = desired.pods.values().map(pod).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            settings: Settings::try_new(settings).map_err(within)?,
            mesh: mesh(settings, desired.peers.values())?,
            pods: pods.concat(),
        })
    }
}

impl Settings {
    fn try_new(settings: &NodeSettings) -> Result<Self, ConvertError> {
        let at_least = |field, value: u32, least: u16| {
            let number: u16 = narrow(field, value)?;
            let small = ConvertError::new(field, Reason::Range(value.into()));
            if number < least { Err(small) } else { Ok(number) }
        };
        Ok(Self {
            interface: settings.interface.clone(),
            mtu: at_least("mtu", settings.mtu, Mtu::IPV4_MIN)?,
            port: at_least("port", settings.port, 1)?,
            addresses: addresses("addresses", &settings.addresses)?,
            subnets: subnets("subnets", &settings.subnets)?,
            pod_cidrs: subnets("pod_cidrs", &settings.pod_cidrs)?,
            host_sources: addresses("host_sources", &settings.host_sources)?,
        })
    }
}

fn mesh<'a>(
    settings: &NodeSettings,
    peers: impl Iterator<Item = &'a Peer>,
) -> Result<MeshConfig, TablesError> {
    let encapsulation =
        Encapsulation::from_proto(settings.encapsulation).map_err(|e| e.within("settings"))?;
    let vtep_mac = mac("settings.vtep_mac", &settings.vtep_mac)?;
    let mut vni = Vni::DEFAULT;
    match encapsulation {
        Encapsulation::WireGuard if settings.key_files.is_empty() => {
            return Err(missing("settings.key_files").into());
        }
        Encapsulation::WireGuard => {}
        Encapsulation::Vxlan if vtep_mac.is_none() => {
            return Err(missing("settings.vtep_mac").into());
        }
        Encapsulation::Vxlan => {
            vni = Vni::try_new(settings.vni).map_err(|e| ConvertError::new("settings.vni", e))?;
        }
    }
    let keys = settings.key_files.iter().map(|file| read_key(file)).collect::<Result<_, _>>()?;
    let peers = peers.map(|p| peer(p).map_err(|e| e.within(&format!("peers[{}]", p.name))));
    Ok(MeshConfig { encapsulation, keys, vni, vtep_mac, peers: peers.collect::<Result<_, _>>()? })
}

fn peer(peer: &Peer) -> Result<PeerConfig, ConvertError> {
    Ok(PeerConfig {
        id: PeerId(peer.id),
        name: peer.name.clone(),
        endpoint: endpoint("endpoint", &peer.endpoint)?,
        keys: keys("keys", peer.keys.clone())?,
        vtep_mac: mac("vtep_mac", &peer.vtep_mac)?,
        allowed_ips: subnets("allowed_ips", &peer.allowed_ips)?,
    })
}

fn pod(pod: &LocalPod) -> Result<Vec<IpAddr>, ConvertError> {
    addresses("addresses", &pod.addresses)
        .map_err(|e| e.within(&format!("pods[{}]", pod.attachment)))
}

fn missing(field: &str) -> ConvertError {
    ConvertError::new(field, Reason::Missing)
}

fn read_key(path: &str) -> Result<SecretKey, TablesError> {
    let path = Path::new(path);
    let text = std::fs::read_to_string(path)
        .map_err(|source| TablesError::KeyFile { path: path.to_owned(), source })?;
    // A private key has the text form of a public one.
    let key = text.trim().parse::<PublicKey>();
    key.map(|k| SecretKey(k.0)).map_err(|_| TablesError::Key(path.to_owned()))
}

#[cfg(test)]
mod tests;
