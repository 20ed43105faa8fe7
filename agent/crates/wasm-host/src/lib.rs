//! Runs plugins: loads and checks Wasm modules, keeps their instances inside their limits, calls
//! them for packets.
//!
//! [`Engine`] is made once, [`Module`] once for each module, [`PluginInstance`] once for each
//! worker. Loading and making are off the data path; a replaced instance is dropped between two
//! packets. What the instances of one plugin share is in [`SharedState`], kept by plugin name, so
//! that a plugin's map survives a replace.
//!
//! A plugin cannot harm its host: each address it gives is checked, memory and table growth are
//! limited, a call that passes its deadline is ended, and a plugin that faults too often is taken
//! out. No sockets, no async, no Kubernetes here.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod clock;
mod code;
mod engine;
mod error;
mod host;
mod inspect;
mod instance;
mod live;
mod map;
mod module;
mod settings;
mod shared;
mod standing;

use std::time::Duration;

pub use engine::{Engine, INSTANCES_DEFAULT};
pub use error::{ConfigureError, EngineError, LoadError, RuntimeError};
pub use inspect::inspect;
pub use instance::{ConfigureKind, PluginInstance};
pub use map::{MapError, SharedMap};
pub use module::{Module, ModuleInfo};
pub use settings::Settings;
pub use shared::{Counters, SharedState, Status};
pub use standing::{CUT_OFF, FAULT_WINDOW, FAULTS_MAX, FAULTS_TOTAL_MAX};

/// Largest module in bytes.
pub const MODULE_BYTES_MAX: usize = 4 << 20;
/// Most memory that a plugin can be given, in bytes.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Memory that a plugin is given unless told otherwise, in bytes.
pub const MEMORY_BYTES_DEFAULT: usize = 16 << 20;
/// Longest configuration in bytes, the deltas since the last full one counted in.
pub const CONFIG_BYTES_MAX: usize = 32 << 20;
/// Longest text of a refusal that is kept, in bytes.
pub const REFUSAL_MAX: usize = 1024;
/// Deadline of a packet call unless told otherwise, in CPU time. A call is ended at its
/// deadline or up to 8 ms later.
pub const PACKET_DEADLINE: Duration = Duration::from_millis(1);
/// Deadline of making an instance, and of a small configuration.
pub const CONFIGURE_DEADLINE: Duration = Duration::from_millis(100);
/// What each MiB of a configuration adds to its deadline.
pub const CONFIGURE_DEADLINE_PER_MIB: Duration = Duration::from_millis(100);

pub(crate) const TABLE_ELEMENTS_MAX: usize = 10_000;
