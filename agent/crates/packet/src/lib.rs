//! Packets as bytes: parse once, edit in place, emit. No I/O, no clock, no allocation on the way
//! of a packet.
//!
//! A packet starts at its IP header. [`Meta`] says what the bytes do not: whether the transport
//! checksum is complete and whether it is a super-packet to be segmented. [`Headers::parse`] checks
//! a packet once and gives plain values; everything else takes those values and trusts nothing but
//! the bounds of the slice. Callers: `weft-pipeline` (headers, rewrite, answers), `weft-datapath`
//! (segments, merger, fragments), `weft-mesh` (VXLAN framing).

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answer;
mod bytes;
pub mod checksum;
mod extension;
mod five_tuple;
mod fragment;
mod headers;
mod icmp;
mod merger;
mod meta;
pub mod protocol;
mod rewrite;
mod segments;
pub mod vxlan;

pub use answer::{
    IPV4_ERROR_MAX, IPV6_ERROR_MAX, Unreachable, icmp_unreachable, packet_too_big, tcp_reset,
    time_exceeded,
};
pub use five_tuple::FiveTuple;
pub use fragment::{FragmentError, fragment_ipv4};
pub use headers::{Fragment, Headers, IpVersion, ParseError};
pub use icmp::{Inner, icmp_error_inner, rewrite_icmp_error_inner};
pub use merger::Merger;
pub use meta::{Checksum, Gso, GsoKind, Meta};
pub use rewrite::{Rewrite, RewriteError, decrement_hop_limit, rewrite};
pub use segments::{SegmentError, Segments, complete_checksum};
