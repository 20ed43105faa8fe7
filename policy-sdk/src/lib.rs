//! Write a packet filter for Weft in Rust.
//!
//! A plugin is a type that implements [`Filter`] and a line that exports it. This is a whole one:
//!
//! ```
//! use weft_policy_sdk::prelude::*;
//!
//! #[derive(Default)]
//! struct NoTelnet;
//!
//! impl Filter for NoTelnet {
//!     fn on_packet(&mut self, packet: &Packet, _flow: &mut Flow, _host: &Host) -> Verdict {
//!         if packet.destination_port() == 23 { Verdict::Drop(1) } else { Verdict::Continue }
//!     }
//! }
//!
//! export_plugin!(NoTelnet, name: "no-telnet", protocols: protocols::TCP, per_flow: true);
//! ```
//!
//! Built for `wasm32-unknown-unknown` as a `cdylib` it is a module for `weft plugin load`. Built
//! for the machine you sit at it is a plain library: `weft-policy-testing` runs it there on packets
//! you make or on a saved pcap, under `cargo test`.
//!
//! What a plugin keeps in its own memory is a cache it can lose: instances are one for each worker,
//! and are remade after a fault. What belongs to a flow goes into its [`Flow`] slot, what is shared
//! into the [`Map`], what is configured comes back with [`Filter::configure`].

#![warn(missing_docs)]
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bucket;
mod config;
mod filter;
mod flow;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod host;
mod macros;
mod packet;
mod udp;
mod verdict;

pub use bucket::TokenBucket;
pub use config::{Config, Lines};
pub use filter::{Export, Filter};
pub use flow::Flow;
#[cfg(not(target_arch = "wasm32"))]
pub use host::HostCalls;
pub use host::{Host, Level, Map, MapError, Value};
pub use macros::{abi_checked, defaults};
pub use packet::{Packet, Protocol};
pub use verdict::{Rewrite, Verdict};
pub use weft_abi::{Descriptor, Draw, Manifest, capability, flags, hooks, protocols};

#[doc(hidden)]
pub use weft_abi as abi;

/// What every plugin needs.
pub mod prelude {
    #[doc(no_inline)]
    pub use crate::{
        Config, Filter, Flow, Host, Packet, Protocol, Rewrite, TokenBucket, Verdict, capability,
        export_plugin, hooks, protocols,
    };
}
