//! The mesh between nodes, without I/O: peers, AllowedIPs, WireGuard and VXLAN encapsulation.
//!
//! The datapath's workers share one [`Mesh`] behind an `Arc`. Time comes in as `now`, datagrams
//! and packets as slices; what has to be sent comes out of [`Mesh::encapsulate`] and
//! [`Mesh::poll_transmit`]. No socket, no thread, no clock is touched here; randomness for keys is
//! asked of the system.
//!
//! The WireGuard mode is strict: a packet for a peer without a session waits in a bounded queue
//! until the handshake is done, or is dropped and counted. It is never sent in clear.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod config;
mod ip;
mod mesh;
mod outbox;
mod packets;
mod peer;
mod queue;
mod receive;
mod status;
mod tables;
mod vxlan;
mod wireguard;

pub use config::{Applied, ConfigError, Conflict, MeshConfig, PeerConfig, SecretKey};
pub use mesh::{Encapsulated, Mesh, Received};
pub use outbox::{Event, Transmit};
pub use packets::Packets;
pub use receive::Reception;
pub use status::PeerStatus;
