//! The datapath of a node: worker threads that carry packets, and the gRPC service that tells them
//! how.
//!
//! Two halves that meet in [`link`] only:
//! - workers (`worker.rs` is the way of every packet; `output.rs`, `outbox.rs` where it leaves): one
//!   thread for each TUN queue, with a UDP socket, a pipeline and plugin instances of its own;
//! - the control side (`service.rs`, `control.rs`): a small tokio runtime that checks what the agent
//!   asks for, builds immutable tables and new plugin instances off the packet path, and hands them
//!   over.
//!
//! What must outlive the process is in the run directory: the last tables, the modules, the flows.
//! The TUN device is persistent. So a restarted datapath carries packets before any agent connects.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod built_in;
mod config;
mod control;
mod counters;
mod flows;
mod link;
mod outbox;
mod output;
mod placement;
mod plugins;
mod run;
mod service;
mod shared;
mod store;
mod tables;
mod vnet;
mod worker;

pub use config::{DatapathConfig, FLOWS_DEFAULT};
pub use run::run;
