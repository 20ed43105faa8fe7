//! Nanoseconds for each call with a header window of 128 bytes: `cargo bench -p weft-wasm-host`.
//!
//! Needs the built plugins: `./dev plugins`.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/support/mod.rs"]
mod support;

use divan::{Bencher, black_box};
use weft_abi::{Descriptor, flags};
use weft_pipeline::Plugin;
use weft_policy_testing::tcp;
use weft_wasm_host::{Engine, Module, PluginInstance, Settings, SharedState};

fn main() {
    divan::main();
}

fn instance(engine: &Engine, module: &[u8], config: &str) -> PluginInstance {
    let module = Module::load(engine, module).unwrap();
    let settings = Settings { config: config.into(), ..Settings::new("bench") };
    PluginInstance::new(&module, settings, SharedState::new("bench")).unwrap()
}

fn call(bencher: Bencher<'_, '_>, module: &[u8], config: &str) {
    let engine = Engine::with_instances(2).unwrap();
    let mut plugin = instance(&engine, module, config);
    let packet = tcp("10.0.0.1:40000", "10.0.1.1:5201").payload(&[0; 1400]).build();
    let descriptor = Descriptor {
        length: 1440,
        flags: flags::EGRESS | flags::SOURCE_LOCAL_POD,
        ip_version: 4,
        protocol: 6,
        transport_offset: 20,
        payload_offset: 40,
        source_port: 40_000,
        destination_port: 5201,
        segments: 1,
        now: 1_000_000_000,
        ..Descriptor::default()
    };
    bencher
        .counter(divan::counter::ItemsCount::new(1_u32))
        .bench_local(|| plugin.on_packet(black_box(&descriptor), black_box(&packet)).is_ok());
}

/// A plugin whose code is one constant: what the host itself costs.
#[divan::bench(sample_size = 1000, sample_count = 500)]
fn continue_only(bencher: Bencher<'_, '_>) {
    let module =
        support::module(&support::MANIFEST.to_bytes(), "", support::EXPORTS, "i32.const 0");
    call(bencher, &module, "");
}

/// The example plugin with five entries, none of which matches.
#[divan::bench(sample_size = 1000, sample_count = 500)]
fn port_block(bencher: Bencher<'_, '_>) {
    let config = "block = tcp/80, udp/53, tcp/8000-8100, udp/1000-2000, tcp/22";
    call(bencher, &support::built("port-block"), config);
}

/// Buckets for packets and bytes, both in the map: four calls back into the host.
#[divan::bench(sample_size = 1000, sample_count = 500)]
fn rate_limit(bencher: Bencher<'_, '_>) {
    let config = "packets_per_second = 1000000000\nbytes_per_second = 1000000000000";
    call(bencher, &support::built("rate-limit"), config);
}
