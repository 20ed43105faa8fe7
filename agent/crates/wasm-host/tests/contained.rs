//! Modules that break the ABI are refused by text; calls that break it are contained.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;

use weft_pipeline::{Plugin, PluginFault, Verdict};
use weft_wasm_host::{Engine, LoadError, Module, PluginInstance, Settings, SharedState};

use support::{EXPORTS, MANIFEST, module, told};

fn engine() -> Engine {
    Engine::with_instances(8).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    Module::load(&engine(), bytes).map(drop).unwrap_err().to_string()
}

fn instance(exports: &str, body: &str) -> Result<PluginInstance, LoadError> {
    let bytes = module(&MANIFEST.to_bytes(), "", exports, body);
    let module = Module::load(&engine(), &bytes)?;
    PluginInstance::new(&module, Settings::new("test"), SharedState::new("test"))
}

fn ask(plugin: &mut PluginInstance) -> Result<Verdict<'_>, PluginFault> {
    ask_about(plugin, 1)
}

/// A packet to or from this port.
fn ask_about(plugin: &mut PluginInstance, port: u16) -> Result<Verdict<'_>, PluginFault> {
    plugin.on_packet(&told(port), &[0x45; 60]).map(|outcome| outcome.verdict)
}

#[test]
fn modules_that_break_the_abi_are_refused_by_text() {
    let good = MANIFEST.to_bytes();
    let mut later = good;
    later[4] = 9;
    let import = |name| format!(r#"(import "weft" "{name}" (func (param i32 i32) (result i32)))"#);
    assert!(refusal(&module(&later, "", EXPORTS, "i32.const 0")).contains("ABI version 9"));
    let text = refusal(&module(&good, &import("fly"), EXPORTS, "i32.const 0"));
    assert!(text.contains("`weft.fly`"), "{text}");
    let text = refusal(&module(&good, &import("map_remove"), EXPORTS, "i32.const 0"));
    assert!(text.contains("capability::MAP"), "{text}");
    let text = refusal(&module(&good, "", r#"(memory (export "memory") 1)"#, "i32.const 0"));
    assert!(text.contains("does not export `weft_exchange`"), "{text}");
    assert!(refusal(&wat::parse_str("(module)").unwrap()).contains("no `weft.manifest`"));
    assert!(refusal(b"nonsense").contains("not a core WebAssembly module"));
    assert!(refusal(&vec![0; 5 << 20]).contains("5242880 bytes"));
}

#[test]
fn exchange_area_outside_the_memory_is_refused() {
    let exports = EXPORTS.replace("i32.const 1024", "i32.const 65500");
    let error = instance(&exports, "i32.const 0").map(drop).unwrap_err();
    assert!(matches!(error, LoadError::Exchange { address: 65_500 }), "{error}");
}

#[test]
fn verdict_is_handed_on() {
    let mut plugin = instance(EXPORTS, "i32.const 1").unwrap();
    assert_eq!(ask(&mut plugin), Ok(Verdict::Accept));
    let mut plugin =
        instance(EXPORTS, "i32.const 1124 i32.const 7 i32.store i32.const 258").unwrap();
    assert_eq!(ask(&mut plugin), Ok(Verdict::Drop(7)));
    assert_eq!(plugin.shared().status().counters.drops, 1);
    let mut plugin =
        instance(EXPORTS, "i32.const 1124 i32.const 8 i32.store i32.const 262").unwrap();
    assert_eq!(ask(&mut plugin), Ok(Verdict::WouldDrop(8)));
    let status = plugin.shared().status();
    assert_eq!((status.counters.drops, status.would_drop_by_number[&8]), (0, 1));
}

#[test]
fn every_fault_is_contained_and_sixteen_cut_the_conversation_off() {
    let cases = [
        ("i32.const 99", PluginFault::Trap),
        ("i32.const 4", PluginFault::Trap),
        ("unreachable", PluginFault::Trap),
        ("i32.const 1120 i32.const 128 i32.store i32.const 256", PluginFault::Trap),
        ("(loop br 0) i32.const 0", PluginFault::Deadline),
    ];
    for (body, fault) in cases {
        let mut plugin = instance(EXPORTS, body).unwrap();
        for _ in 0..16 {
            assert_eq!(ask(&mut plugin), Err(fault), "{body}");
        }
        assert_eq!(ask(&mut plugin), Err(PluginFault::TakenOut), "{body}");
        let status = plugin.shared().status();
        assert!(status.cut_off == 1 && !status.taken_out, "{status:?}");
    }
}

#[test]
fn refusal_of_a_configuration_is_handed_on() {
    let exports = EXPORTS.replace("i64.const 0", "i64.const 0x200000000003")
        + r#"(data (i32.const 0x2000) "why")"#;
    let error = instance(&exports, "i32.const 0").map(drop).unwrap_err();
    assert_eq!(error.to_string(), "the plugin refuses its configuration: why");
    let exports = EXPORTS.replace("i64.const 0", "i64.const -1");
    let error = instance(&exports, "i32.const 0").map(drop).unwrap_err();
    assert!(error.to_string().contains("outside its memory"), "{error}");
}

#[test]
fn configuration_that_loops_is_ended() {
    let exports = EXPORTS.replace("i64.const 0", "(loop br 0) i64.const 0");
    let error = instance(&exports, "i32.const 0").map(drop).unwrap_err();
    assert!(error.to_string().contains("100 ms"), "{error}");
}

#[test]
fn replaced_module_gets_a_clean_standing_and_the_same_map() {
    let engine = engine();
    let shared = SharedState::new("test");
    let load = |body| Module::load(&engine, &module(&MANIFEST.to_bytes(), "", EXPORTS, body));
    let bad = load("unreachable").unwrap();
    let make = |module: &Arc<Module>, revision| {
        let settings = Settings { revision, ..Settings::new("test") };
        PluginInstance::new(module, settings, Arc::clone(&shared)).unwrap()
    };
    let mut plugin = make(&bad, 1);
    for port in 0..65 {
        ask_about(&mut plugin, port).unwrap_err();
    }
    assert!(shared.status().taken_out);
    let mut plugin = make(&load("i32.const 0").unwrap(), 2);
    assert_eq!(ask(&mut plugin), Ok(Verdict::Continue));
    assert!(!shared.status().taken_out);
    assert_eq!(shared.status().counters.traps, 64);
}
