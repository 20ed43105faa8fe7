//! A plugin answers the same as a native library and as a Wasm module: same packets, same
//! verdicts, same slots.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use weft_abi::{Descriptor, flags};
use weft_fuzz::Random;
use weft_pipeline::{Interest, Outcome, Plugin, PluginFault};
use weft_policy_sdk::Export;
use weft_policy_testing::{Answered, Bench, NativePlugin, tcp, udp};
use weft_wasm_host::{Engine, Module, PluginInstance, Settings, SharedState};

const PACKETS: usize = 30_000;

/// Both builds of a plugin, asked as one.
struct Both<F> {
    native: NativePlugin<F>,
    wasm: PluginInstance,
    random: Random,
}

impl<F: Export> Both<F> {
    fn bench(config: &str, seed: u64) -> Bench<Self> {
        let name = F::MANIFEST.name;
        let engine = Engine::with_instances(2).unwrap();
        let module = Module::load(&engine, &support::built(name)).unwrap();
        let settings = Settings {
            config: config.into(),
            // The test is about answers: a machine under load must not fail it.
            deadline: Duration::from_secs(1),
            ..Settings::new(name)
        };
        let wasm = PluginInstance::new(&module, settings, SharedState::new(name)).unwrap();
        let native = NativePlugin::new(config).unwrap();
        assert_eq!(native.interest(), wasm.interest());
        Bench::new(Self { native, wasm, random: Random::new(seed) })
    }
}

impl<F: Export> Plugin for Both<F> {
    fn interest(&self) -> &Interest {
        self.wasm.interest()
    }

    fn on_packet(&mut self, told: &Descriptor, packet: &[u8]) -> Result<Outcome<'_>, PluginFault> {
        let mut told = *told;
        disturb(&mut self.random, &mut told);
        let native = self.native.on_packet(&told, packet);
        let wasm = self.wasm.on_packet(&told, packet);
        assert_eq!(native, wasm, "{told:?} {packet:02x?}");
        native
    }
}

/// Now and then tells what a bench of one node never does, or what no plugin ever wrote.
fn disturb(random: &mut Random, told: &mut Descriptor) {
    match random.below(40) {
        0 => told.segments = random.below(45) as u16,
        1 => told.flags ^= flags::SOURCE_LOCAL_POD,
        2 => told.flags ^= flags::REPLY,
        3 => told.flags |= flags::LATER_FRAGMENT,
        4 => told.slot = [0; 16].map(|_: u8| random.byte()),
        5 => told.slot[0] = random.below(5) as u8,
        6 => told.payload_offset = random.below(300) as u16,
        7 => told.transport_offset = random.below(300) as u16,
        _ => {}
    }
}

/// Runs packets through both builds; returns how many answers were no `Continue`.
fn run<F: Export>(
    config: &str,
    seed: u64,
    mut packet: impl FnMut(&mut Random) -> Vec<u8>,
) -> usize {
    let mut bench = Both::<F>::bench(config, seed);
    let mut random = Random::new(seed + 1000);
    let mut decided = 0;
    for _ in 0..PACKETS {
        bench.set_now(bench.now() + Duration::from_micros(random.next() % 4000));
        let answer = bench.ask(&packet(&mut random));
        decided += usize::from(!matches!(answer, Answered::Continue | Answered::NotAsked));
    }
    assert_eq!(bench.plugin().wasm.shared().status().counters.traps, 0);
    decided
}

fn any_packet(random: &mut Random) -> Vec<u8> {
    let host = random.below(20);
    let ports = [22, 53, 80, 443, 8000, 8050, 8100, 8101, 65_535];
    let (from, to) = (random.pick(&ports), random.pick(&ports));
    let (source, destination) = if random.below(4) == 0 {
        (format!("[fd00::{host:x}]:{from}"), format!("[fd00::ffff]:{to}"))
    } else {
        (format!("10.0.0.{host}:{from}"), format!("10.9.9.9:{to}"))
    };
    let builder = if random.below(2) == 0 { tcp } else { udp }(&source, &destination);
    let length = random.pick(&[0, 1, 87, 88, 89, 100, 1400, 9000]);
    let mut packet = builder.flags(random.next() as u8).payload(&vec![9; length]).build();
    if random.below(8) == 0 {
        let at = random.below(packet.len());
        packet[at] = random.next() as u8;
    }
    packet
}

#[test]
fn port_block_answers_the_same_natively_and_in_wasm() {
    let config = "tcp/80, udp/53, tcp/8000-8100, sctp/1-65535";
    for (seed, action) in [(1, "reject"), (2, "drop")] {
        let config = format!("{config}\naction = {action}");
        let decided = run::<port_block::PortBlock>(&config, seed, any_packet);
        assert!(decided > PACKETS / 20, "{decided}");
    }
}

#[test]
fn rate_limit_answers_the_same_natively_and_in_wasm() {
    let configs = [
        "packets_per_second = 7\nburst_packets = 3",
        "bytes_per_second = 9999\nburst_bytes = 3000",
        "packets_per_second = 12\nbytes_per_second = 17777\nwhen_full = pass",
    ];
    for (seed, config) in (3..).zip(configs) {
        let decided = run::<rate_limit::RateLimit>(config, seed, any_packet);
        assert!(decided > PACKETS / 20, "{decided}");
    }
}

/// A TLS client that sends its ClientHello in pieces, some of them twice, early or never.
#[derive(Clone)]
struct Client {
    source: String,
    isn: u32,
    hello: Vec<u8>,
    sent: usize,
}

impl Client {
    fn new(random: &mut Random) -> Self {
        let names = ["example.com", "www.example.org", "example.net", "x.y.example.org", "", "a b"];
        let mut hello = client_hello(random.pick(&names), random.pick(&[0, 30, 700, 2500, 5000]));
        if random.below(4) == 0 {
            let at = random.below(hello.len());
            hello[at] = random.next() as u8;
        }
        let source = format!("10.0.0.{}:{}", random.below(9), 1024 + random.below(5000));
        Self { source, isn: random.next() as u32, hello, sent: 0 }
    }

    fn packet(&mut self, random: &mut Random) -> Vec<u8> {
        let port = random.pick(&[443, 443, 443, 443, 8443, 80]);
        let builder = tcp(&self.source, &format!("192.0.2.1:{port}"));
        if self.sent == 0 || random.below(16) == 0 {
            self.sent = self.sent.max(1);
            return builder.flags(2).sequence(self.isn).build();
        }
        let from = match random.below(8) {
            0 => random.below(self.hello.len()),
            _ => (self.sent - 1).min(self.hello.len()),
        };
        let length = random.pick(&[0, 1, 5, 100, 256, 1400, 4000]);
        let to = (from + length).min(self.hello.len());
        self.sent = self.sent.max(to + 1);
        let flags = random.pick(&[0x10, 0x10, 0x18, 0x18, 0x11, 0x04]);
        let sequence = self.isn.wrapping_add(1).wrapping_add(u32::try_from(from).unwrap());
        builder.flags(flags).sequence(sequence).payload(&self.hello[from..to]).build()
    }
}

/// In one record, with an extension of `padding` bytes before the name.
fn client_hello(name: &str, padding: usize) -> Vec<u8> {
    let field = |head: &[u8], content: &[u8]| {
        [head, &u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    };
    let name = field(&[0, 0], &field(&[], &field(&[0], name.as_bytes())));
    let extensions = [field(&[0, 21], &vec![0; padding]), name].concat();
    let body = [&[3; 34][..], &[0, 0, 2, 0x13, 1, 1, 0], &field(&[], &extensions)].concat();
    field(&[22, 3, 1], &[&[1, 0], &field(&[], &body)[..]].concat())
}

#[test]
fn sni_allow_answers_the_same_natively_and_in_wasm() {
    let config = "allow = example.com, *.example.org\nports = 443, 8443";
    for (seed, other) in [(6, "reject"), (7, "allow")] {
        let mut clients: Vec<Client> = Vec::new();
        let packet = |random: &mut Random| {
            if clients.len() < 30 {
                clients.push(Client::new(random));
            }
            let index = random.below(clients.len());
            if random.below(12) == 0 {
                clients[index] = Client::new(random);
            }
            clients[index].packet(random)
        };
        let decided =
            run::<sni_allow::SniAllow>(&format!("{config}\nother = {other}"), seed, packet);
        assert!(decided > PACKETS / 20, "{decided}");
    }
}
