//! What can be seen of a peer from outside.

use std::net::SocketAddr;
use std::time::Duration;

use weft_model::{PeerId, PublicKey};

/// State and counters of one peer since it was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub peer: PeerId,
    /// Its name.
    pub name: String,
    /// Where datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// A packet can be sent without waiting: WireGuard has a session, VXLAN an endpoint.
    pub ready: bool,
    /// Time since the last handshake was complete; `None` before the first, and in VXLAN mode.
    pub last_handshake: Option<Duration>,
    /// Complete handshakes.
    pub handshakes: u64,
    /// Keys that packets are sent under: ours, theirs.
    pub keys: Option<(PublicKey, PublicKey)>,
    /// Inner packets received and accepted.
    pub rx_packets: u64,
    /// Their bytes, without encapsulation.
    pub rx_bytes: u64,
    /// Inner packets encapsulated.
    pub tx_packets: u64,
    /// Their bytes, without encapsulation.
    pub tx_bytes: u64,
    /// Packets that wait for a handshake.
    pub queued: usize,
    /// Packets that waited for a handshake in vain, or found no room to wait.
    pub no_session: u64,
    /// Inner packets refused because their source is not in the peer's AllowedIPs.
    pub not_allowed: u64,
}
