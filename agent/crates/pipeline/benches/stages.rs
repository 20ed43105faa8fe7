//! Nanoseconds for each packet: `cargo bench -p weft-pipeline`.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use divan::{Bencher, black_box};
use weft_abi::{Descriptor, protocols};
use weft_model::{HookPosition, OnFault, PeerId, PluginMode, Timestamp};
use weft_packet::{Headers, Meta};
use weft_pipeline::{
    Action, FlowTable, Interest, Outcome, Pipeline, Plugin, PluginFault, Routes, RoutesConfig,
    Verdict,
};

const FLOWS: usize = 10_000;

struct Watch(Interest);

impl Watch {
    fn new(name: &str, mode: PluginMode) -> Self {
        Self(Interest {
            name: name.into(),
            position: HookPosition::Egress,
            priority: 0,
            protocols: protocols::ALL,
            mode,
            on_fault: OnFault::Drop,
            revision: 1,
        })
    }
}

impl Plugin for Watch {
    fn interest(&self) -> &Interest {
        &self.0
    }

    fn on_packet(&mut self, d: &Descriptor, _: &[u8]) -> Result<Outcome<'_>, PluginFault> {
        black_box(d);
        Ok(Outcome { verdict: Verdict::Continue, slot: None })
    }
}

fn main() {
    divan::main();
}

fn packet(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            etherparse::PacketBuilder::ipv4(a.octets(), b.octets(), 64)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            etherparse::PacketBuilder::ipv6(a.octets(), b.octets(), 64)
        }
        _ => unreachable!("families differ"),
    };
    let builder = builder.tcp(from.port(), to.port(), 1, 512).ack(1);
    builder.write(&mut out, &[0; 1200]).unwrap();
    out
}

/// A node with `FLOWS` flows, and a packet of one of them.
fn node(plugins: Vec<Watch>, v6: bool) -> (Pipeline<Watch>, Vec<u8>) {
    let net = |n: &str| n.parse().unwrap();
    let (pod, remote) = if v6 { ("[fd00:1::5]", "[fd00:2::7]") } else { ("10.1.1.5", "10.1.2.7") };
    let pod = |port: usize| format!("{pod}:{port}").parse::<SocketAddr>().unwrap();
    let remote = format!("{remote}:80").parse().unwrap();
    let routes = Routes::new(&RoutesConfig {
        host_addresses: vec![],
        local_subnets: vec![net("10.1.1.0/24"), net("fd00:1::/64")],
        local_pods: vec![pod(1).ip()],
        peers: vec![(PeerId(2), vec![net("10.1.2.0/24"), net("192.0.2.2/32"), net("fd00:2::/64")])],
        pod_cidrs: vec![net("10.1.0.0/16"), net("fd00::/16")],
    });
    let flows = Arc::new(FlowTable::new(1 << 18, 42));
    let mut node = Pipeline::new(flows, Arc::new(routes), 1420);
    node.set_plugins(plugins).unwrap();
    for port in 1..=FLOWS {
        let mut bytes = packet(pod(port), remote);
        let action = node.handle_tun_input(&mut bytes, &mut Meta::default(), Timestamp(1));
        assert_eq!(action, Action::ToPeer(PeerId(2)));
    }
    (node, packet(pod(FLOWS / 2), remote))
}

fn run(bencher: Bencher<'_, '_>, plugins: Vec<Watch>, v6: bool) {
    let (mut node, mut bytes) = node(plugins, v6);
    let mut now = 2;
    bencher.bench_local(|| {
        now += 1;
        node.handle_tun_input(black_box(&mut bytes), &mut Meta::default(), Timestamp(now))
    });
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let (_, bytes) = node(vec![], false);
    bencher.bench_local(|| Headers::parse(black_box(&bytes), &Meta::default()));
}

#[divan::bench(args = [false, true])]
fn established(bencher: Bencher<'_, '_>, v6: bool) {
    run(bencher, vec![], v6);
}

/// Each packet is of another flow than the one before.
#[divan::bench]
fn established_of_many(bencher: Bencher<'_, '_>) {
    let (mut node, _) = node(vec![], false);
    let from = |port: usize| SocketAddr::new([10, 1, 1, 5].into(), u16::try_from(port).unwrap());
    let to = SocketAddr::new([10, 1, 2, 7].into(), 80);
    let mut packets: Vec<_> =
        (1..=FLOWS).map(|n| packet(from((n * 7919) % FLOWS + 1), to)).collect();
    let mut at = 0;
    bencher.bench_local(|| {
        at = (at + 1) % FLOWS;
        let now = Timestamp(10 + at as u64);
        node.handle_tun_input(&mut packets[at], &mut Meta::default(), now)
    });
}

#[divan::bench]
fn established_with_three_native_plugins(bencher: Bencher<'_, '_>) {
    let plugins = ["a", "b", "c"].map(|n| Watch::new(n, PluginMode::Packet));
    run(bencher, plugins.into(), false);
}

#[divan::bench]
fn established_with_three_flow_mode_plugins(bencher: Bencher<'_, '_>) {
    let plugins = ["a", "b", "c"].map(|n| Watch::new(n, PluginMode::Flow));
    run(bencher, plugins.into(), false);
}
