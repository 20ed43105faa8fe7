//! Scenarios on a whole fabric: real namespaces, devices, agents, datapaths, CNI calls and peers.

mod cni;
mod contained;
mod encryption;
mod failures;
mod heal;
mod keys;
mod matrix;
mod peers;
mod plugins;
mod refusals;
mod spoof;
mod transfer;
