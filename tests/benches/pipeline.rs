//! Nanoseconds for each packet, part by part and as a whole: `./dev bench pipeline`.
//!
//! Every packet is one of an established TCP connection from a local pod to a pod of another node.
//! The whole pipeline is measured with plugins in packet mode. In flow mode, which is what
//! `port-block` declares, a plugin is asked once for each flow and direction: a million packets
//! later its calls would not show in the figure, however slow they were.
//!
//! Needs the built plugins: `./dev plugins`.

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod measure;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use weft_abi::{Descriptor, protocols};
use weft_model::{HookPosition, OnFault, PeerId, PluginMode, Timestamp};
use weft_packet::{Headers, Meta};
use weft_pipeline::{
    Action, Direction, FlowKey, FlowTable, Interest, Outcome, Pipeline, Plugin, PluginFault,
    Routes, RoutesConfig, Verdict,
};
use weft_policy_sdk::Export;
use weft_policy_testing::{NativePlugin, PacketBuilder, tcp};
use weft_wasm_host::{Engine, Module, PluginInstance, Settings, SharedState};

use crate::measure::Timings;

const PEER: PeerId = PeerId(2);
/// Enough that a flow is not in the first-level cache when its turn comes again.
const MANY: u16 = 10_000;
const PAYLOAD: [u8; 1200] = [0; 1200];
/// Between two packets.
const STEP: Duration = Duration::from_micros(1);

/// What a plugin is told: no packet is blocked, and each is looked at in full.
const PORT_BLOCK: (&str, &str) =
    ("port-block", "block = tcp/80, udp/53, tcp/8000-8100, udp/1000-2000, tcp/22");
/// Packets and bytes: two buckets, and for each two calls back into the host.
const RATE_LIMIT: (&str, &str) =
    ("rate-limit", "packets_per_second = 1000000000\nbytes_per_second = 1000000000000");
const SNI_ALLOW: (&str, &str) = ("sni-allow", "allow = example.com\nports = 443\nother = allow");
const EXAMPLES: [(&str, &str); 3] = [PORT_BLOCK, RATE_LIMIT, SNI_ALLOW];

fn main() -> anyhow::Result<()> {
    let wasm = Wasm::new()?;
    let mut report = Timings::new();
    parse(&mut report)?;
    look_up(&mut report)?;
    calls(&mut report, &wasm)?;
    whole(&mut report, &wasm)?;
    report.finish("pipeline")
}

fn parse(report: &mut Timings) -> anyhow::Result<()> {
    let v6 = tcp("[fd00:1::5]:40000", "[fd00:2::7]:443").payload(&PAYLOAD).build();
    for (variant, bytes) in [("IPv4 TCP", data(1)), ("IPv6 TCP", v6)] {
        Headers::parse(&bytes, &Meta::default())?;
        report.measure("parse", variant, || {
            let _ = black_box(Headers::parse(black_box(&bytes), &Meta::default()));
        });
    }
    Ok(())
}

fn look_up(report: &mut Timings) -> anyhow::Result<()> {
    for flows in [1, MANY] {
        let node = Node::<Native>::new(vec![], flows)?;
        let parsed = node.packets.iter().map(|bytes| Headers::parse(bytes, &Meta::default()));
        let keys: Vec<_> = parsed.map(|h| h.map(|h| key(&h))).collect::<Result<_, _>>()?;
        let (mut turn, mut known) = (0, true);
        report.measure("flow lookup", of_flows(flows), || {
            turn = (turn + 1) % keys.len();
            let direction = node.flows.direction_of(black_box(&keys[turn]), node.now);
            known &= direction == Some(Direction::Original);
        });
        ensure!(known, "a flow was lost");
    }
    Ok(())
}

fn key(headers: &Headers) -> FlowKey {
    let tuple = headers.five_tuple();
    FlowKey::new(tuple.protocol, tuple.source, tuple.destination)
}

/// One plugin, without the pipeline around it.
fn calls(report: &mut Timings, wasm: &Wasm) -> anyhow::Result<()> {
    let told = Told::by_the_pipeline()?;
    let trivial = wasm.plugin("misbehaving", "behaviour = none")?;
    told.ask(report, "plugin: none of its own work", "wasm", trivial)?;
    for (name, config) in EXAMPLES {
        let case = match name {
            "port-block" => "plugin: port-block",
            "rate-limit" => "plugin: rate-limit",
            _ => "plugin: sni-allow",
        };
        told.ask(report, case, "wasm", wasm.plugin(name, config)?)?;
        told.ask(report, case, "native", Native::new(name, config)?)?;
    }
    Ok(())
}

fn whole(report: &mut Timings, wasm: &Wasm) -> anyhow::Result<()> {
    let wasm = |plugin: (&str, &str)| wasm.plugin(plugin.0, plugin.1);
    let native = |plugin: (&str, &str)| Native::new(plugin.0, plugin.1);
    run::<Native>(report, "no plugins", &[], native, 1)?;
    run::<Native>(report, "no plugins", &[], native, MANY)?;
    run(report, "1 wasm (port-block), packet mode", &[PORT_BLOCK], wasm, 1)?;
    run(report, "3 wasm (port-block), packet mode", &[PORT_BLOCK; 3], wasm, 1)?;
    run(report, "3 wasm (port-block), packet mode", &[PORT_BLOCK; 3], wasm, MANY)?;
    run(report, "3 native (port-block), packet mode", &[PORT_BLOCK; 3], native, 1)?;
    run(report, "3 wasm (the examples), packet mode", &EXAMPLES, wasm, 1)?;
    run(report, "3 native (the examples), packet mode", &EXAMPLES, native, 1)
}

/// The whole pipeline with plugins that are asked about each packet.
fn run<P: Plugin>(
    report: &mut Timings,
    variant: &str,
    plugins: &[(&str, &str)],
    make: impl Fn((&str, &str)) -> anyhow::Result<P>,
    flows: u16,
) -> anyhow::Result<()> {
    let plugins: Vec<P> = plugins.iter().map(|p| make(*p)).collect::<Result<_, _>>()?;
    let plugins = plugins.into_iter().zip(1..).map(|(p, n)| EachPacket::new(p, n)).collect();
    let mut node = Node::new(plugins, flows)?;
    let before = node.asked();
    let (mut sent, mut passed) = (0, 0);
    report.measure("whole pipeline", format!("{variant}, {}", of_flows(flows)), || {
        sent += 1;
        passed += u64::from(node.send_next() == Action::ToPeer(PEER));
    });
    ensure!(passed == sent, "{} packets did not pass", sent - passed);
    let asked = node.asked().into_iter().zip(before).map(|(after, before)| after - before);
    ensure!(asked.into_iter().all(|n| n == sent), "a plugin was not asked about each packet");
    Ok(())
}

fn of_flows(flows: u16) -> String {
    if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows in turn") }
}

/// A node with a pod that has connections to port 443 of a pod of another node.
struct Node<P> {
    pipeline: Pipeline<P>,
    flows: Arc<FlowTable>,
    /// One of each connection.
    packets: Vec<Vec<u8>>,
    turn: usize,
    now: Timestamp,
}

impl<P: Plugin> Node<P> {
    fn new(plugins: Vec<P>, flows: u16) -> anyhow::Result<Self> {
        let routes = Routes::new(&RoutesConfig {
            host_addresses: vec![],
            local_subnets: vec!["10.1.1.0/24".parse()?],
            local_pods: vec!["10.1.1.5".parse()?],
            peers: vec![(PEER, vec!["10.1.2.0/24".parse()?, "192.0.2.2/32".parse()?])],
            pod_cidrs: vec!["10.1.0.0/16".parse()?],
            host_sources: vec![],
        });
        let table = Arc::new(FlowTable::new(1 << 18, 42));
        let mut pipeline = Pipeline::new(Arc::clone(&table), Arc::new(routes), 1420);
        pipeline.set_plugins(plugins)?;
        let mut node = Self {
            pipeline,
            flows: table,
            packets: vec![],
            turn: 0,
            now: Timestamp(1_000_000_000),
        };
        (1..=flows).try_for_each(|n| node.connect(n))?;
        // As the datapath does after each batch: what is to be stored is not to pile up.
        node.flows.take_dirty(&mut |_, _| {});
        Ok(node)
    }

    /// The handshake, and a segment that makes plugins decide.
    fn connect(&mut self, n: u16) -> anyhow::Result<()> {
        const SYN: u8 = 0x02;
        const SYN_ACK: u8 = 0x12;
        let opening = from_pod(n).flags(SYN).build();
        self.expect(None, opening, Action::ToPeer(PEER))?;
        let answer = tcp("10.1.2.7:443", &pod(n)).flags(SYN_ACK).build();
        self.expect(Some(PEER), answer, Action::ToTun)?;
        self.expect(None, data(n), Action::ToPeer(PEER))?;
        self.packets.push(data(n));
        Ok(())
    }

    fn expect(
        &mut self,
        from: Option<PeerId>,
        mut packet: Vec<u8>,
        expected: Action,
    ) -> anyhow::Result<()> {
        self.now = self.now + STEP;
        let mut meta = Meta::default();
        let action = match from {
            None => self.pipeline.handle_tun_input(&mut packet, &mut meta, self.now),
            Some(peer) => {
                self.pipeline.handle_network_input(peer, &mut packet, &mut meta, self.now)
            }
        };
        ensure!(action == expected, "expected {expected:?}, not {action:?}");
        Ok(())
    }

    #[inline]
    fn send_next(&mut self) -> Action {
        self.turn = (self.turn + 1) % self.packets.len();
        self.now = self.now + STEP;
        let packet = black_box(&mut self.packets[self.turn]);
        self.pipeline.handle_tun_input(packet, &mut Meta::default(), self.now)
    }

    fn asked(&self) -> Vec<u64> {
        self.pipeline.plugin_counters().map(|(_, counters)| counters.asked).collect()
    }
}

fn pod(n: u16) -> String {
    format!("10.1.1.5:{}", 10_000 + n)
}

fn from_pod(n: u16) -> PacketBuilder {
    tcp(&pod(n), "10.1.2.7:443")
}

fn data(n: u16) -> Vec<u8> {
    from_pod(n).sequence(1).payload(&PAYLOAD).build()
}

/// What a plugin is told about a packet, and the packet.
struct Told {
    descriptor: Descriptor,
    packet: Vec<u8>,
}

impl Told {
    fn by_the_pipeline() -> anyhow::Result<Self> {
        let mut node = Node::new(vec![Listener::new()], 1)?;
        node.send_next();
        let heard = node.pipeline.plugins_mut().find_map(|listener| listener.heard);
        let descriptor = heard.ok_or_else(|| anyhow!("no plugin was asked"))?;
        Ok(Self { descriptor, packet: data(1) })
    }

    fn ask<P: Plugin>(
        &self,
        report: &mut Timings,
        case: &'static str,
        variant: &str,
        mut plugin: P,
    ) -> anyhow::Result<()> {
        let mut told = self.descriptor;
        // The first answer may leave something in the flow's slot.
        let first = plugin.on_packet(&told, &self.packet).with_context(|| case)?;
        told.slot = first.slot.copied().unwrap_or(told.slot);
        let mut passed = true;
        report.measure(case, variant, || {
            told.now += 1000;
            let outcome = plugin.on_packet(black_box(&told), black_box(&self.packet));
            passed &= outcome.is_ok_and(|outcome| outcome.verdict == Verdict::Continue);
        });
        ensure!(passed, "{case}: not every answer was `continue`");
        Ok(())
    }
}

/// Keeps what it was told last.
struct Listener {
    interest: Interest,
    heard: Option<Descriptor>,
}

impl Listener {
    fn new() -> Self {
        let interest = Interest {
            name: "listener".into(),
            position: HookPosition::Egress,
            priority: 0,
            protocols: protocols::ALL,
            mode: PluginMode::Packet,
            on_fault: OnFault::Drop,
            revision: 1,
        };
        Self { interest, heard: None }
    }
}

impl Plugin for Listener {
    fn interest(&self) -> &Interest {
        &self.interest
    }

    fn on_packet(&mut self, told: &Descriptor, _: &[u8]) -> Result<Outcome<'_>, PluginFault> {
        self.heard = Some(*told);
        Ok(Outcome { verdict: Verdict::Continue, slot: None, again: false })
    }
}

/// A plugin in packet mode, whatever its manifest says, under a name of its own.
struct EachPacket<P> {
    plugin: P,
    interest: Interest,
}

impl<P: Plugin> EachPacket<P> {
    fn new(plugin: P, number: u32) -> Self {
        let mut interest = plugin.interest().clone();
        interest.mode = PluginMode::Packet;
        interest.name = format!("{}-{number}", interest.name);
        Self { plugin, interest }
    }
}

impl<P: Plugin> Plugin for EachPacket<P> {
    fn interest(&self) -> &Interest {
        &self.interest
    }

    #[inline]
    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault> {
        self.plugin.on_packet(descriptor, packet)
    }
}

/// The built modules.
struct Wasm {
    engine: Engine,
    dir: PathBuf,
}

impl Wasm {
    /// `WEFT_WASM_DIR` says where they are, or they are in `target/wasm`.
    fn new() -> anyhow::Result<Self> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasm");
        let dir = std::env::var_os("WEFT_WASM_DIR").map_or(default, PathBuf::from);
        // No more than needed: each takes 4 GB of addresses, and valgrind has 128.
        Ok(Self { engine: Engine::with_instances(4)?, dir })
    }

    fn plugin(&self, name: &str, config: &str) -> anyhow::Result<PluginInstance> {
        let path = self.dir.join(format!("{name}.wasm"));
        let module = std::fs::read(&path)
            .with_context(|| format!("{}: run ./dev plugins first", path.display()))?;
        let module = Module::load(&self.engine, &module)?;
        let settings = Settings {
            config: config.into(),
            // A call that a loaded machine holds up must not end the bench.
            deadline: Duration::from_secs(1),
            ..Settings::new(name)
        };
        Ok(PluginInstance::new(&module, settings, SharedState::new(name))?)
    }
}

/// The same plugins as libraries.
enum Native {
    PortBlock(NativePlugin<port_block::PortBlock>),
    RateLimit(NativePlugin<rate_limit::RateLimit>),
    SniAllow(NativePlugin<sni_allow::SniAllow>),
}

impl Native {
    fn new(name: &str, config: &str) -> anyhow::Result<Self> {
        fn plugin<F: Export>(config: &str) -> anyhow::Result<NativePlugin<F>> {
            NativePlugin::new(config).map_err(|refusal| anyhow!(refusal))
        }
        match name {
            "port-block" => plugin(config).map(Self::PortBlock),
            "rate-limit" => plugin(config).map(Self::RateLimit),
            "sni-allow" => plugin(config).map(Self::SniAllow),
            _ => Err(anyhow!("no plugin `{name}`")),
        }
    }
}

impl Plugin for Native {
    fn interest(&self) -> &Interest {
        match self {
            Self::PortBlock(plugin) => plugin.interest(),
            Self::RateLimit(plugin) => plugin.interest(),
            Self::SniAllow(plugin) => plugin.interest(),
        }
    }

    #[inline]
    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault> {
        match self {
            Self::PortBlock(plugin) => plugin.on_packet(descriptor, packet),
            Self::RateLimit(plugin) => plugin.on_packet(descriptor, packet),
            Self::SniAllow(plugin) => plugin.on_packet(descriptor, packet),
        }
    }
}
