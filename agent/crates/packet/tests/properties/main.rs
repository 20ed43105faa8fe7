//! Property tests; `etherparse` is the independent second opinion.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answer;
mod fragment;
mod golden;
mod icmp;
mod merger;
mod parse;
mod rewrite;
mod segments;
mod spec;
mod vxlan;
