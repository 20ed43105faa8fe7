//! The node's network: addresses, routes, rules, settings, the nftables table and pods' ports are
//! what they should be, whoever changes them.

pub(crate) mod announce;
mod delivery;
pub(crate) mod forward;
pub(crate) mod input;
mod kube_proxy;
pub(crate) mod listeners;
mod plan;
mod ports;
mod ruleset;
mod sysctls;
mod task;
mod underlay;

pub(crate) use plan::{NFT_TABLE, plan_removal};
pub(crate) use ports::KernelPorts;
pub(crate) use sysctls::OldSysctls;
pub(crate) use task::{NetworkTask, look, perform};
