//! What the agent tells the mesh, and what can be wrong with it.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use weft_model::{Encapsulation, MacAddr, PeerId, PublicKey, Vni};
use x25519_dalek::StaticSecret;

/// A WireGuard (Curve25519) private key: 32 bytes. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(pub [u8; 32]);

impl SecretKey {
    /// The public key that belongs to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The whole configuration of the mesh; the next one replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// How datagrams look.
    pub encapsulation: Encapsulation,
    /// WireGuard: private keys of this node, the one to prefer first; more than one only while
    /// keys rotate. Sessions of a key that is no longer listed are dropped.
    pub keys: Vec<SecretKey>,
    /// VXLAN: the network identifier.
    pub vni: Vni,
    /// VXLAN: the Ethernet address of this node's VTEP.
    pub vtep_mac: Option<MacAddr>,
    /// The other nodes.
    pub peers: Vec<PeerConfig>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// How packets name it; unique.
    pub id: PeerId,
    /// For status and logs.
    pub name: String,
    /// Where it is reached. Without it a WireGuard peer has to speak first.
    pub endpoint: Option<SocketAddr>,
    /// WireGuard: its public keys, the one to prefer first.
    pub keys: Vec<PublicKey>,
    /// VXLAN: the Ethernet address of its VTEP.
    pub vtep_mac: Option<MacAddr>,
    /// Source addresses it may use inside the tunnel.
    pub allowed_ips: Vec<IpNet>,
}

/// A configuration that cannot run at all; the old one stays.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// WireGuard without a private key.
    #[error("WireGuard needs a private key of this node, none is configured")]
    NoKey,
    /// VXLAN without an own VTEP address.
    #[error("VXLAN needs the VTEP address of this node, none is configured")]
    NoVtepMac,
    /// Two peers have one id.
    #[error("two peers have the id {}", .0.0)]
    DuplicatePeer(PeerId),
}

/// What [`Mesh::apply`](crate::Mesh::apply) had to leave out of a configuration that it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Claims that two peers make; the peer that comes first in the configuration has it.
    pub conflicts: Vec<Conflict>,
}

/// Something that two peers claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Both list this range in their AllowedIPs.
    AllowedIp {
        /// The range.
        range: IpNet,
        /// The peer that has it.
        holder: PeerId,
        /// The peer that does not get it.
        refused: PeerId,
    },
    /// Both list this public key, or it is a key of this node itself (`holder` is `None`).
    Key {
        /// The key.
        key: PublicKey,
        /// The peer that has it.
        holder: Option<PeerId>,
        /// The peer that does not get it.
        refused: PeerId,
    },
}
