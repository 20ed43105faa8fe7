//! What speaks gRPC in Weft shares this: proto <-> model, the join token, clients, sockets, TLS.
//!
//! Nothing here decides anything: the hub, the agent, the datapath and the command line do.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod client;
pub mod convert;
mod encoded;
pub mod identity;
pub mod serve;
mod text;
pub mod tls;
pub mod token;

pub use client::{ConnectError, connect_hub, connect_unix};
pub use convert::{ConvertError, FromProto, Reason, ToProto, Update, UpdateBody};
pub use encoded::Encoded;
pub use identity::{IdentityError, PeerIdentity, Role, peer_identity};
pub use serve::{KeptSocket, ServeError, ensure_free, serve_unix};
pub use text::operator_text;
pub use tls::{Distrust, TlsIdentity, distrust, hub_tls, pem_of};
pub use token::{JoinToken, TokenError};

/// Greatest gRPC message that a Weft server or client takes, in bytes: a module of 4 MiB with its
/// wrapping, or the snapshot of a large fabric. gRPC's own limit would be 4 MiB. Generated clients
/// and servers have to be told with `max_decoding_message_size`.
pub const MESSAGE_MAX: usize = 64 << 20;

/// Greatest Wasm module in bytes.
pub const MODULE_MAX: usize = 4 << 20;

/// File names of the sockets in the run directory.
pub mod socket {
    /// Service `Control` of the hub.
    pub const HUB: &str = "hub.sock";
    /// Service `Agent`.
    pub const AGENT: &str = "agent.sock";
    /// Service `Datapath`.
    pub const DATAPATH: &str = "datapath.sock";
}
