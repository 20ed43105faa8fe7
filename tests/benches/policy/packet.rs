//! Nanoseconds of a packet through a pipeline with the built-in plugin, as a module, by the number of
//! policies: five pods each, of which a hundred are of this node.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use prost::Message as _;
use weft_model::{POLICY_PLUGIN, PeerId, Timestamp};
use weft_packet::Meta;
use weft_pipeline::{Action, FlowTable, Pipeline, Routes, RoutesConfig};
use weft_policy_testing::tcp;
use weft_proto::tables::v1::{
    IdentitySet, PolicyPort, PolicyProgram, PolicyRule, PolicySettings, PolicySubject, PolicyTables,
};
use weft_tests::report::{Report, Table, shown};
use weft_wasm_host::{Engine, MEMORY_BYTES_MAX, Module, PluginInstance, Settings, SharedState};

/// Policies; none: without the plugin.
const SIZES: [u32; 4] = [0, 10, 1_000, 10_000];
const CASES: [&str; 2] = ["packet sent", "packet received"];
const METRICS: [&str; 2] = ["new_flow", "known_flow"];
const PODS_EACH: u32 = 5;
const POLICIES_IN_NAMESPACE: u32 = 10;
const LOCAL_MAX: u32 = 100;
const ROUNDS: usize = 7;
/// Flows of a round: so many that each size meets as many different tuples.
const FLOWS: u16 = 20_000;
const PEER: PeerId = PeerId(2);
const SYN: u8 = 2;
const ACK: u8 = 16;

pub(super) fn measure(report: &mut Report) -> Result<()> {
    let engine = Engine::with_instances(8)?;
    let module = Module::load(&engine, weft_builtin::POLICY.module)?;
    let benches: Vec<_> =
        SIZES.iter().map(|size| Bench::new(&module, *size)).collect::<Result<_>>()?;
    for _ in 0..ROUNDS {
        for bench in &benches {
            for (case, sends) in CASES.into_iter().zip([true, false]) {
                for (metric, ns) in METRICS.into_iter().zip(bench.round(sends)?) {
                    report.record(case, &variant(bench.policies), (metric, "ns"), ns);
                }
            }
        }
    }
    Ok(())
}

fn variant(policies: u32) -> String {
    format!("{policies} policies")
}

/// What each size takes beside the smallest, and what the plugin adds to a packet.
pub(super) fn ratios(report: &Report) -> Table {
    let mut table = Table::new(["case", "policies", "metric", "/ 10 policies", "plugin, ns"]);
    for (case, metric) in CASES.into_iter().flat_map(|c| METRICS.map(|m| (c, m))) {
        let median = |policies| report.median(case, &variant(policies), metric);
        let Some((without, few)) = median(SIZES[0]).zip(median(SIZES[1])) else { continue };
        for policies in &SIZES[1..] {
            let Some(ns) = median(*policies) else { continue };
            let cells = [policies.to_string(), metric.to_owned(), shown(ns / few)];
            let added = shown(ns - without);
            table.push([case.to_owned()].into_iter().chain(cells).chain([added]));
        }
    }
    table
}

struct Bench {
    policies: u32,
    module: Arc<Module>,
    config: Vec<u8>,
    routes: Arc<Routes>,
}

impl Bench {
    fn new(module: &Arc<Module>, policies: u32) -> Result<Self> {
        let routes = Routes::new(&RoutesConfig {
            local_subnets: vec!["10.1.1.0/24".parse()?],
            local_pods: (0..LOCAL_MAX).map(|n| local(n).into()).collect(),
            peers: vec![(PEER, vec!["10.128.0.0/9".parse()?])],
            pod_cidrs: vec!["10.1.0.0/16".parse()?, "10.128.0.0/9".parse()?],
            ..RoutesConfig::default()
        });
        let config = tables(policies).encode_to_vec();
        Ok(Self { policies, module: Arc::clone(module), config, routes: Arc::new(routes) })
    }

    /// A packet of each of many new flows, then another one of each.
    fn round(&self, sends: bool) -> Result<[f64; 2]> {
        let flows = Arc::new(FlowTable::new(1 << 17, 42));
        let mut pipeline = Pipeline::new(flows, Arc::clone(&self.routes), 1420);
        if self.policies > 0 {
            let settings = Settings {
                config: self.config.clone(),
                memory_max: MEMORY_BYTES_MAX,
                ..Settings::new(POLICY_PLUGIN)
            };
            let shared = SharedState::new(POLICY_PLUGIN);
            pipeline.set_plugins(vec![PluginInstance::new(&self.module, settings, shared)?])?;
        }
        let expected = if sends { Action::ToPeer(PEER) } else { Action::ToTun };
        let now = Timestamp(1_000_000_000);
        let mut times = [0.0; 2];
        for (time, flags) in times.iter_mut().zip([SYN, ACK]) {
            let mut packets: Vec<_> =
                (0..FLOWS).map(|n| self.packet(n, sends).flags(flags).build()).collect();
            let begun = Instant::now();
            let mut passed = 0;
            for packet in &mut packets {
                let meta = &mut Meta::default();
                let action = if sends {
                    pipeline.handle_tun_input(packet, meta, now)
                } else {
                    pipeline.handle_network_input(PEER, packet, meta, now)
                };
                passed += u32::from(action == expected);
            }
            *time = begun.elapsed().as_nanos() as f64 / f64::from(FLOWS);
            ensure!(black_box(passed) == u32::from(FLOWS), "only {passed} of {FLOWS} passed");
        }
        Ok(times)
    }

    /// Of the flow with this number: its peer is not the neighbour of the one before.
    fn packet(&self, n: u16, sends: bool) -> weft_policy_testing::PacketBuilder {
        let pods = self.policies.max(1) * PODS_EACH;
        let locals = pods.min(LOCAL_MAX);
        let pod = local(u32::from(n) % locals);
        let peer = remote(u32::from(n).wrapping_mul(2_654_435_761) % pods);
        let (from, to) = if sends { (pod, peer) } else { (peer, pod) };
        let from = SocketAddr::new(from.into(), 10_000 + n).to_string();
        tcp(&from, &format!("{to}:80"))
    }
}

fn local(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 1, 2)) + n)
}

fn remote(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 2)) + pod)
}

/// Pods of one policy are alike. Each policy speaks of both directions: everybody on port 80, and pods of
/// its own namespace on others.
fn tables(policies: u32) -> PolicyTables {
    const ALL: u32 = 1;
    let mut tables =
        PolicyTables { settings: Some(PolicySettings::default()), ..PolicyTables::default() };
    let identity = |policy: u32| policy + 1;
    let mut place = |address: Ipv4Addr, policy: u32| {
        tables.addresses_v4.extend(address.octets());
        tables.addresses_v4.extend(identity(policy).to_be_bytes());
    };
    for pod in 0..policies * PODS_EACH {
        place(remote(pod), pod / PODS_EACH);
    }
    let locals = (policies * PODS_EACH).min(LOCAL_MAX);
    let of_local: Vec<_> = (0..locals).map(|n| (n, n * policies / locals)).collect();
    for (n, policy) in &of_local {
        place(local(*n), *policy);
    }
    let namespace = |policy: u32| ALL + 1 + policy / POLICIES_IN_NAMESPACE;
    let set = |number, policies: std::ops::Range<u32>| IdentitySet {
        number,
        identities: policies.map(identity).collect(),
    };
    tables.sets.push(set(ALL, 0..policies));
    for first in (0..policies).step_by(POLICIES_IN_NAMESPACE as usize) {
        let end = (first + POLICIES_IN_NAMESPACE).min(policies);
        tables.sets.push(set(namespace(first), first..end));
    }
    let mut known: Vec<u32> = of_local.iter().map(|(_, policy)| *policy).collect();
    known.dedup();
    for policy in known {
        let rule = |set, first, last| PolicyRule {
            number: 16 + 2 * policy,
            sets: vec![set],
            ports: vec![PolicyPort { protocol: 6, first, last }],
            ..PolicyRule::default()
        };
        let program = |number| PolicyProgram {
            number,
            isolated: true,
            isolation: 17 + 2 * policy,
            allowed: vec![rule(namespace(policy), 8_080, 8_090), rule(ALL, 80, 80)],
            ..PolicyProgram::default()
        };
        let (ingress, egress) = (2 * policy + 1, 2 * policy + 2);
        tables.programs.extend([program(ingress), program(egress)]);
        let identity = identity(policy);
        tables.subjects.push(PolicySubject { identity, ingress, egress });
    }
    tables
}
