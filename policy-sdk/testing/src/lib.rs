//! Runs a plugin natively: under `cargo test`, on packets made here or on a saved pcap.
//!
//! [`NativePlugin`] is a plugin to the pipeline as the Wasm build is, so that both can be asked
//! about the same packets. [`Bench`] asks a plugin and keeps the slots of flows meanwhile.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bench;
mod build;
mod map;
mod native;
mod pcap;

pub use bench::{Answered, Bench, Counts};
pub use build::{PacketBuilder, sctp, tcp, udp};
pub use map::NativeMap;
pub use native::NativePlugin;
pub use pcap::{PcapError, packets_of_pcap};
pub use weft_model::Timestamp;
