//! Nanoseconds of a packet through a pipeline with the built-in plugin, as a module, by the number of
//! Services: five backends each.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use prost::Message as _;
use weft_model::{PeerId, Timestamp};
use weft_packet::Meta;
use weft_pipeline::{Action, FlowTable, Pipeline, Routes, RoutesConfig};
use weft_policy_testing::tcp;
use weft_proto::tables::v1::frontend::Kind;
use weft_proto::tables::v1::{
    Frontend, NodePortAddresses, Range, ServicePortTable, ServiceSettings, ServiceTable,
    ServiceTables, backend,
};
use weft_tests::report::Report;
use weft_wasm_host::{Engine, MEMORY_BYTES_MAX, Module, PluginInstance, Settings, SharedState};

const SIZES: [u32; 3] = [10, 1_000, 50_000];
const BACKENDS: u8 = 5;
const ROUNDS: usize = 5;
/// Flows of a round: so many that each size meets as many different tuples.
const FLOWS: u16 = 20_000;
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 1, 5));
const PEER: PeerId = PeerId(2);

pub(super) fn measure(report: &mut Report) -> Result<()> {
    let engine = Engine::with_instances(8)?;
    let module = Module::load(&engine, weft_builtin::SERVICE.module)?;
    let benches: Vec<_> =
        SIZES.iter().map(|size| Bench::new(&module, *size)).collect::<Result<_>>()?;
    for _ in 0..ROUNDS {
        for bench in &benches {
            let variant = format!("{} Services", bench.services);
            for (metric, ns) in bench.round()? {
                report.record("translate", &variant, (metric, "ns"), ns);
            }
        }
    }
    Ok(())
}

struct Bench {
    services: u32,
    module: Arc<Module>,
    config: Vec<u8>,
    routes: Arc<Routes>,
}

impl Bench {
    fn new(module: &Arc<Module>, services: u32) -> Result<Self> {
        let config = tables(services).encode_to_vec();
        let routes = Routes::new(&RoutesConfig {
            local_subnets: vec!["10.1.1.0/24".parse()?],
            local_pods: vec![POD],
            peers: vec![(PEER, vec!["10.128.0.0/9".parse()?])],
            pod_cidrs: vec!["10.1.0.0/16".parse()?, "10.128.0.0/9".parse()?],
            ..RoutesConfig::default()
        });
        Ok(Self { services, module: Arc::clone(module), config, routes: Arc::new(routes) })
    }

    /// A packet of each of many new flows, then another one of each.
    fn round(&self) -> Result<[(&'static str, f64); 2]> {
        let flows = Arc::new(FlowTable::new(1 << 17, 42));
        let mut pipeline = Pipeline::new(flows, Arc::clone(&self.routes), 1420);
        let settings = Settings {
            config: self.config.clone(),
            memory_max: MEMORY_BYTES_MAX,
            ..Settings::new("service")
        };
        let shared = SharedState::new("service");
        pipeline.set_plugins(vec![PluginInstance::new(&self.module, settings, shared)?])?;
        let now = Timestamp(1_000_000_000);
        let mut times = [0.0; 2];
        for (time, flags) in times.iter_mut().zip([SYN, ACK]) {
            // What a Service is asked for next is not what was asked for last.
            let service = |n: u16| u32::from(n).wrapping_mul(2_654_435_761) % self.services;
            let mut packets: Vec<_> = (0..FLOWS)
                .map(|n| {
                    let from = SocketAddr::new(POD, 10_000 + n).to_string();
                    tcp(&from, &format!("{}:80", address(service(n)))).flags(flags).build()
                })
                .collect();
            let begun = Instant::now();
            let mut sent = 0;
            for packet in &mut packets {
                let action = pipeline.handle_tun_input(packet, &mut Meta::default(), now);
                sent += u32::from(action == Action::ToPeer(PEER));
            }
            *time = begun.elapsed().as_nanos() as f64 / f64::from(FLOWS);
            ensure!(black_box(sent) == u32::from(FLOWS), "only {sent} of {FLOWS} were translated");
        }
        let [new, known] = times;
        Ok([("new_flow", new), ("known_flow", known)])
    }
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service)
}

fn tables(services: u32) -> ServiceTables {
    let service = |n: u32| {
        let backends = (0..BACKENDS).flat_map(|b| {
            let [_, x, y, z] = n.to_be_bytes();
            let bits = backend::CLUSTER | backend::COUNTS | backend::REMOTE_POD;
            // 10.128.0.0/9, another one for each.
            [[10, 128 | x << 3 | b, y, z].as_slice(), &[0x1f, 0x90, 0, 1, bits]].concat()
        });
        ServiceTable {
            name: format!("default/service-{n}"),
            frontends: vec![Frontend {
                kind: Kind::ClusterIp.into(),
                address: address(n).octets().to_vec(),
            }],
            ports: vec![ServicePortTable {
                protocol: 6,
                port: 80,
                backends_v4: backends.collect(),
                ..ServicePortTable::default()
            }],
            ..ServiceTable::default()
        }
    };
    ServiceTables {
        settings: Some(ServiceSettings {
            nodes: vec![NodePortAddresses { node: 1, addresses: vec![vec![192, 0, 2, 1]] }],
            own_node: 1,
            node_sources: vec![vec![192, 0, 2, 1]],
            host_sources: vec![vec![169, 254, 88, 1]],
            service_cidrs: vec![Range { address: vec![10, 96, 0, 0], prefix: 15 }],
        }),
        services: (0..services).map(service).collect(),
        removed: Vec::new(),
    }
}
