//! The agent role: one per node.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![allow(dead_code, unused_imports)]

mod cni;
mod config;
mod core;
mod datapath;
mod durable;
mod hub;
mod identity;
mod install;
mod keys;
mod modules;
mod snapshot_file;
mod tables;

pub use config::{AgentConfig, DelegateKind, TokenSource, Underlay};
