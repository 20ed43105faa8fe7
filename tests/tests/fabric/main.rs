//! Scenarios on a whole fabric: real namespaces, devices, agents, datapaths, CNI calls and peers.

// Measured times are printed for whoever reads the run; nothing is asserted about them.
#![allow(clippy::print_stdout, clippy::expect_used)]

mod cni;
mod contained;
mod crafted;
mod dns;
mod encryption;
mod errors;
mod explained;
mod failures;
mod firewall;
mod fqdn;
mod fragments;
mod heal;
mod keys;
mod kubernetes;
mod lab;
mod matrix;
mod membership;
mod occupied;
mod offloads;
mod operator;
mod peers;
mod plugins;
mod policies;
mod policies_namespaces;
mod policies_race;
mod refusals;
mod services;
mod settings;
mod sources;
mod spoof;
mod transfer;
mod wiring;
