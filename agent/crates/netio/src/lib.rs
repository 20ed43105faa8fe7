//! Everything of Weft that talks to the kernel: TUN devices, UDP sockets, the event poller, netlink,
//! traffic control, nftables, network namespaces, the flow file.
//!
//! This is the only crate with `unsafe` code and system calls. It knows nothing of packets' meaning,
//! of peers or of Kubernetes: plain bytes, addresses and names go in and out. The packet side
//! ([`Tun`], [`UdpSocket`], [`Poller`], [`FlowFile`], [`clock`]) is synchronous and non-blocking for
//! the datapath's workers; the configuration side ([`Netlink`] and the modules that take it) is async
//! and idempotent: `ensure_*` functions say whether they had to change anything.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod addr;
mod affinity;
mod bpf;
mod capability;
pub mod clock;
mod flow_file;
#[cfg(test)]
mod harness;
pub mod link;
pub mod monitor;
pub mod neighbour;
mod netlink;
#[cfg(test)]
mod netlink_tests;
pub mod netns;
pub mod nft;
mod poller;
pub mod route;
pub mod rule;
pub mod segments;
mod sys;
pub mod sysctl;
pub mod tc;
mod tun;
mod udp;

pub use affinity::Affinity;
pub use capability::may_change_network;
pub use flow_file::{FlowFile, FlowFileError};
pub use netlink::{Ensured, Family, Netlink, NetlinkError};
pub use netns::{InNetNs, NetNs};
pub use poller::{Event, Events, Poller, Readiness, Waker};
pub use tun::{Offloads, QueueError, Sender, Tun, TunError, TunQueue, VNET_HEADER_LEN, VnetHeader};
pub use udp::{Datagrams, UdpOffloads, UdpSocket};
