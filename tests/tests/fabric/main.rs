//! Scenarios on a whole fabric: real namespaces, devices, agents, datapaths, CNI calls and peers.

// Measured times are printed for whoever reads the run; nothing is asserted about them.
#![allow(clippy::print_stdout, clippy::expect_used)]

mod cni;
mod contained;
mod encryption;
mod failures;
mod heal;
mod keys;
mod matrix;
mod peers;
mod plugins;
mod spoof;
mod transfer;
