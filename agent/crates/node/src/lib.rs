//! The agent role: one per node.
//!
//! It joins the hub, follows the snapshot, compiles it into tables for the datapath, serves CNI,
//! keeps the node's network right, and says how it is. [`run()`] puts the parts together; they meet in
//! `core` only: the hub's client and the netlink monitor put in what they learn, the compiled tables
//! come out, the datapath's client sends them on.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cni;
mod config;
mod core;
mod datapath;
mod drops;
mod durable;
mod explain;
mod health;
mod http;
mod hub;
mod identity;
mod install;
mod keys;
mod learned;
mod metrics;
mod modules;
mod names;
mod network;
mod resolver;
mod run;
mod service;
mod snapshot_file;
mod tables;
mod uninstall;
mod witness;

pub use config::{AgentConfig, DelegateKind, HubAddress, TokenSource, Underlay};
pub use run::{run, run_until};
pub use uninstall::uninstall;
