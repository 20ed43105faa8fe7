//! The hub: the one part that knows the whole fabric.
//!
//! Objects come in from a directory of manifests or an API server ([`source`]), nodes join with a token and get
//! certificates ([`ca`]) and pod subnets ([`lease`]), and [`fabric`] makes one snapshot out of all
//! of it, which [`history`] hands to every agent, with deltas from then on. [`run`](fn@run) serves
//! it by gRPC; what has to survive is in [`store`].

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod announce;
mod asking;
mod ca;
mod config;
mod dns;
mod fabric;
mod history;
mod lease;
mod module;
mod range;
mod review;
mod run;
mod service;
mod source;
mod store;

pub use ca::{CaError, issue_admin, show_token};
pub use config::{
    CERTIFICATE_TTL, ConfigError, HubConfig, NODE_PREFIX_V4, NODE_PREFIX_V6, QUARANTINE,
    SERVICE_CIDR_V4, SERVICE_CIDR_V6, Source,
};
pub use dns::{DNS_TTL_S, usual_dns};
pub use lease::{Allocator, Holder, Lease, LeaseError, LeaseStore};
pub use module::{ModuleError, check_module};
pub use review::TOKEN_AUDIENCE;
pub use run::{RunningHub, run, start};
pub use source::kube::{KubernetesConfig, KubernetesError, definitions};
pub use store::StoreError;
