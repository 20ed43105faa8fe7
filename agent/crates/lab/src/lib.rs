//! A whole fabric on one machine, made of network namespaces: an underlay, a hub, nodes with real
//! agents and datapaths, pods through the real CNI binary.
//!
//! Used by `weft lab`, the demo and the tests. Everything it makes is named after the lab, written
//! down under `/run/weft-lab/NAME`, and taken away by [`Lab::down`], whatever state it is in.
//!
//! Processes are looked after by one supervisor ([`supervise`]), as the kubelet would: what exits
//! is started again.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cni;
mod commands;
mod fabric;
mod layout;
mod matrix;
mod supervisor;
mod underlay;

pub use commands::HUB_PORT;
pub use fabric::{Cluster, Lab, Options, Pod, UnderlayFamily};
pub use layout::NodeLayout;
pub use matrix::{Cell, Matrix, Protocol};
pub use supervisor::supervise;
