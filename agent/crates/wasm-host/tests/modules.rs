//! The built plugins of this repository: they load, and the misbehaving one is contained.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use weft_abi::Descriptor;
use weft_pipeline::{Plugin, PluginFault, Verdict};
use weft_wasm_host::{
    Engine, LoadError, Module, PACKET_DEADLINE, PluginInstance, Settings, SharedState,
};

fn instance(name: &str, config: &str) -> Result<PluginInstance, LoadError> {
    instance_within(name, config, PACKET_DEADLINE)
}

fn instance_within(
    name: &str,
    config: &str,
    deadline: Duration,
) -> Result<PluginInstance, LoadError> {
    let module = Module::load(&Engine::with_instances(4).unwrap(), &support::built(name))?;
    let settings = Settings { config: config.into(), deadline, ..Settings::new(name) };
    PluginInstance::new(&module, settings, SharedState::new(name))
}

fn tcp_to(port: u16) -> Descriptor {
    Descriptor {
        length: 60,
        ip_version: 4,
        protocol: 6,
        destination_port: port,
        now: 1_000_000_000,
        segments: 1,
        ..Descriptor::default()
    }
}

#[test]
fn examples_load_and_refuse_a_bad_configuration_by_text() {
    instance("rate-limit", "packets_per_second = 10").unwrap();
    instance("sni-allow", "allow = example.com, *.example.org").unwrap();
    let bad = [
        ("port-block", "block = tcp/0", "`tcp/0`"),
        ("rate-limit", "burst_bytes = 1", "burst_bytes without"),
        ("sni-allow", "allow = *", "allow `*`"),
    ];
    for (name, config, names) in bad {
        let text = instance(name, config).map(drop).unwrap_err().to_string();
        assert!(text.contains(names), "{text}");
    }
}

#[test]
fn port_block_rejects_what_is_on_its_list() {
    let mut plugin = instance("port-block", "block = tcp/80, tcp/8000-8100").unwrap();
    let mut ask =
        |port| plugin.on_packet(&tcp_to(port), &[0x45; 60]).unwrap().verdict.eq(&Verdict::Continue);
    assert!(ask(81));
    assert!(!ask(80));
    assert!(!ask(8050));
}

#[test]
fn each_misbehaviour_on_a_packet_is_contained_and_other_packets_pass() {
    let cases = [
        ("loop", Some(PluginFault::Deadline)),
        ("trap", Some(PluginFault::Trap)),
        ("recurse", Some(PluginFault::Trap)),
        ("reply", Some(PluginFault::Trap)),
        ("undeclared", Some(PluginFault::Trap)),
        ("pointer", Some(PluginFault::Trap)),
        ("grow", None),
    ];
    for (behaviour, fault) in cases {
        let config = format!("behaviour = {behaviour}\nport = 7777");
        // A machine under load needs its time to hand 16 MiB out.
        let deadline = if fault.is_none() { Duration::from_secs(1) } else { PACKET_DEADLINE };
        let mut plugin = instance_within("misbehaving", &config, deadline).unwrap();
        for _ in 0..3 {
            let bad = plugin.on_packet(&tcp_to(7777), &[0x45; 60]).map(|o| o.verdict);
            assert_eq!(bad, fault.map_or(Ok(Verdict::Continue), Err), "{behaviour}");
            let good = plugin.on_packet(&tcp_to(80), &[0x45; 60]).map(|o| o.verdict);
            assert_eq!(good, Ok(Verdict::Continue), "{behaviour}");
        }
    }
}

#[test]
fn each_misbehaviour_over_a_configuration_is_refused() {
    let cases = [
        ("configure-loop", "100 ms"),
        ("configure-trap", "trapped"),
        ("configure-refuse", "refuses its configuration: no no"),
    ];
    for (behaviour, says) in cases {
        let config = format!("behaviour = {behaviour}");
        let text = instance("misbehaving", &config).map(drop).unwrap_err().to_string();
        assert!(text.contains(says) && text.len() < 1200, "{text}");
    }
}
