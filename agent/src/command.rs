//! The subcommands: their flags, and what they call.

pub(crate) mod agent;
pub(crate) mod control;
pub(crate) mod datapath;
pub(crate) mod dns;
pub(crate) mod drops;
pub(crate) mod explain;
pub(crate) mod hub;
pub(crate) mod keys;
pub(crate) mod lab;
pub(crate) mod node;
pub(crate) mod plugin;
pub(crate) mod services;
pub(crate) mod status;
pub(crate) mod token;
