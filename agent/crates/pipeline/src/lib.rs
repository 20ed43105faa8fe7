//! The packet pipeline of one node: flow table, routing decision, plugins, verdicts. Sans-IO: bytes
//! and `now` come in, an [`Action`] comes out.
//!
//! [`Pipeline`] belongs to one worker; [`FlowTable`] and [`Routes`] are shared by all. Read
//! `pipeline.rs` for a packet's way. The only caller is `weft-datapath`; plugins come in through
//! the [`Plugin`] trait, so nothing here knows of Wasm.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod counters;
mod dropped;
mod flow;
mod limit;
mod passage;
mod pipeline;
mod plugin;
mod plugins;
mod routes;
mod verdict;

pub use counters::{Counters, PluginCounters};
pub use dropped::{DropLog, Dropped, DroppedKey};
pub use flow::{
    Direction, FRAGMENT_TIMEOUT, FlowInfo, FlowKey, FlowState, FlowTable, ICMP_TIMEOUT,
    OTHER_TIMEOUT, PLUGINS_MAX, RECORD_LEN, RecordError, SLOT_LEN, TCP_CLOSED_TIMEOUT,
    TCP_ESTABLISHED_TIMEOUT, TCP_FIN_TIMEOUT, TCP_PICKED_UP_TIMEOUT, TCP_SYN_RECEIVED_TIMEOUT,
    TCP_SYN_SENT_TIMEOUT, TCP_TIME_WAIT_TIMEOUT, Traffic, UDP_REPLIED_TIMEOUT,
    UDP_UNREPLIED_TIMEOUT,
};
pub use pipeline::{Action, AnswerTo, Origin, Pipeline};
pub use plugin::{Interest, Outcome, Plugin, PluginFault, Verdict};
pub use plugins::TooManyPlugins;
pub use routes::{Routes, RoutesConfig, Target};
