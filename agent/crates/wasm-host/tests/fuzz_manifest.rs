//! Manifests and modules from outside: whatever they are, they are refused by text or keep to the
//! rules. Deterministic; `WEFT_FUZZ_ITERATIONS` sets how long (20,000).
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use weft_abi::{Descriptor, MANIFEST_LEN, Manifest, capability};
use weft_fuzz::{Random, Report, iterations, mutate};
use weft_pipeline::Plugin;
use weft_wasm_host::{Engine, Module, PluginInstance, Settings, SharedState, inspect};

use support::{EXPORTS, MANIFEST, module};

/// A module takes a millisecond to compile and run, a manifest a microsecond to read.
const ITERATIONS_FOR_ONE_LOADED: usize = 20;
const LOADED_MAX: usize = 20_000;

/// Edges of numbers, in binary and in LEB128.
const TELLING: [u8; 5] = [0, 1, 0x7f, 0x80, 0xff];

#[test]
fn fuzz_manifest_is_refused_or_keeps_to_its_ranges() {
    let full = Manifest {
        name: "a-name-of-many-letters-and-9",
        version: "12.34.56-rc.1+build",
        capabilities: capability::MAP | capability::REPLY,
        map_entries: 1 << 20,
        ..MANIFEST
    };
    let seeds = [MANIFEST.to_bytes(), full.to_bytes()];
    let (mut random, mut taken) = (Random::new(0x5eed), 0);
    for iteration in 0..iterations() {
        let input = mutate(&mut random, &seeds, &TELLING);
        let report = Report { iteration, input: &input };
        match Manifest::from_bytes(&input) {
            Ok(manifest) => {
                taken += 1;
                assert_eq!(Manifest::from_bytes(&manifest.to_bytes()), Ok(manifest));
                assert!((1..=63).contains(&manifest.name.len()));
                assert!((128..=65_536).contains(&manifest.window));
                assert_eq!(input.len(), MANIFEST_LEN);
            }
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
        drop(report);
    }
    // The generator must reach behind the checks, and before them.
    assert!((iterations() / 20..iterations() * 19 / 20).contains(&taken), "{taken} were taken");
}

/// Small modules that between them use what a module can have.
fn modules() -> Vec<Vec<u8>> {
    let manifest = Manifest { capabilities: 15, map_entries: 8, ..MANIFEST }.to_bytes();
    let imports = r#"(import "weft" "log" (func $log (param i32 i32 i32)))
        (import "weft" "map_get" (func $get (param i32 i32 i32 i32) (result i32)))
        (import "weft" "map_put" (func $put (param i32 i32 i32 i32 i64) (result i32)))
        (import "weft" "map_swap" (func $swap (param i32 i32 i32 i32 i32 i32 i64) (result i32)))
        (import "weft" "map_take" (func $take (param i32 i32 i32 i32) (result i32)))
        (import "weft" "map_remove" (func $remove (param i32 i32) (result i32)))"#;
    let calls = "(call $log (i32.const 3) (i32.const 0) (i32.const 9))
        (drop (call $put (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 8) (i64.const 5)))
        (drop (call $get (i32.const 0) (i32.const 4) (i32.const 64) (i32.const 256)))
        (drop (call $swap (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 8)
            (i32.const 80) (i32.const 8) (i64.const 0)))
        (drop (call $take (i32.const 0) (i32.const 4) (i32.const 96) (i32.const 2)))
        (call $remove (i32.const 0) (i32.const 4))";
    let more = r#"(table 4 funcref) (global (mut i32) (i32.const 7)) (elem (i32.const 0) $start)
        (data (i32.const 100) "text") (func $start) (start $start)"#;
    let answer = "(i64.store (i32.const 1120) (i64.const 0x1_0000_001f))
        (drop (memory.grow (i32.const 1))) (i32.const 260)";
    vec![
        module(&manifest, imports, EXPORTS, calls),
        module(&manifest, "", &format!("{EXPORTS} {more}"), answer),
        module(&manifest, "", EXPORTS, "(i32.store (i32.const 1132) (i32.const 40)) i32.const 261"),
    ]
}

#[test]
fn fuzz_module_is_refused_in_one_line_or_runs_contained() {
    let (engine, modules) = (Engine::with_instances(2).unwrap(), modules());
    let (mut random, mut loaded) = (Random::new(0x0dd), 0);
    let loads = (iterations() / ITERATIONS_FOR_ONE_LOADED).clamp(1, LOADED_MAX);
    for iteration in 0..iterations() {
        let input = mutate(&mut random, &modules, &TELLING);
        let report = Report { iteration, input: &input };
        match inspect(&input) {
            Ok(_) if iteration % (iterations() / loads).max(1) == 0 => {
                loaded += usize::from(load_and_ask(&engine, &input, &mut random));
            }
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
        drop(report);
    }
    assert!(loaded > loads / 20, "{loaded} of {loads} came to life");
}

/// Tells if it came to life.
fn load_and_ask(engine: &Engine, input: &[u8], random: &mut Random) -> bool {
    let settings = Settings {
        config: b"some text".to_vec(),
        deadline: Duration::from_micros(100),
        ..Settings::new("fuzzed")
    };
    let made = Module::load(engine, input)
        .and_then(|module| PluginInstance::new(&module, settings, SharedState::new("fuzzed")));
    let mut plugin = match made {
        Ok(plugin) => plugin,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return false;
        }
    };
    for now in 0..3 {
        let descriptor = Descriptor { ip_version: 4, now, ..Descriptor::default() };
        let packet: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
        let _ = plugin.on_packet(&descriptor, &packet);
    }
    true
}
