//! Deltas change the configuration in force, and come back after a fault.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use weft_abi::{Answer, Descriptor};
use weft_pipeline::{Plugin, PluginFault, Verdict};
use weft_wasm_host::{
    CONFIG_BYTES_MAX, ConfigureError, ConfigureKind, Engine, MEMORY_BYTES_MAX, Module,
    PluginInstance, Settings, SharedState,
};

use ConfigureKind::{Delta, Full};
use support::{EXCHANGE, MANIFEST, module, told};

const REFUSE: u8 = 255;
const TRAP: u8 = 254;
const LOOP: u8 = 253;

/// Each configuration adds its first byte as a decimal digit to a number; a full one starts anew.
/// A packet is dropped with that number as the reason, or traps if it begins with a zero.
fn digits() -> Vec<u8> {
    let window = EXCHANGE + Descriptor::LEN + Answer::LEN;
    let reason = EXCHANGE + Descriptor::LEN + 4;
    let exports = format!(
        r#"(memory (export "memory") {pages}) (global $n (mut i32) (i32.const 0))
        (data (i32.const 512) "no")
        (func (export "weft_exchange") (result i32) i32.const {EXCHANGE})
        (func (export "weft_allocate") (param i32) (result i32) i32.const 4096)
        (func (export "weft_configure") (param $len i32) (param $kind i32) (result i64)
            (local $byte i32)
            (local.set $byte (i32.load8_u (i32.const 4096)))
            (if (i32.eq (local.get $byte) (i32.const {REFUSE}))
                (then (return (i64.const {refusal}))))
            (if (i32.eq (local.get $byte) (i32.const {TRAP})) (then unreachable))
            (if (i32.eq (local.get $byte) (i32.const {LOOP})) (then (loop br 0)))
            (if (i32.eqz (local.get $kind)) (then (global.set $n (i32.const 0))))
            (global.set $n
                (i32.add (i32.mul (global.get $n) (i32.const 10)) (local.get $byte)))
            i64.const 0)"#,
        pages = 1 + CONFIG_BYTES_MAX.div_ceil(65_536),
        refusal = 512_u64 << 32 | 2,
    );
    let body = format!(
        "(if (i32.eqz (i32.load8_u (i32.const {window}))) (then unreachable))
        (i32.store (i32.const {reason}) (global.get $n)) i32.const 258"
    );
    module(&MANIFEST.to_bytes(), "", &exports, &body)
}

/// Configured with the digit 1.
fn instance() -> PluginInstance {
    let module = Module::load(&Engine::with_instances(4).unwrap(), &digits()).unwrap();
    let settings =
        Settings { config: vec![1], memory_max: MEMORY_BYTES_MAX, ..Settings::new("digits") };
    PluginInstance::new(&module, settings, SharedState::new("digits")).unwrap()
}

fn number(plugin: &mut PluginInstance) -> u32 {
    match ask(plugin, 0x45).unwrap() {
        Verdict::Drop(number) => number,
        other => panic!("{other:?}"),
    }
}

fn fault(plugin: &mut PluginInstance) {
    assert_eq!(ask(plugin, 0), Err(PluginFault::Trap));
}

fn ask(plugin: &mut PluginInstance, first: u8) -> Result<Verdict<'_>, PluginFault> {
    ask_about(plugin, first, 1)
}

/// A packet to or from this port.
fn ask_about(
    plugin: &mut PluginInstance,
    first: u8,
    port: u16,
) -> Result<Verdict<'_>, PluginFault> {
    plugin.on_packet(&told(port), &[first; 60]).map(|outcome| outcome.verdict)
}

#[test]
fn deltas_come_back_in_their_order_after_each_fault() {
    let mut plugin = instance();
    plugin.configure(Delta, &[2], 2).unwrap();
    plugin.configure(Delta, &[3], 3).unwrap();
    assert_eq!(number(&mut plugin), 123);
    fault(&mut plugin);
    assert_eq!(number(&mut plugin), 123);
    plugin.configure(Delta, &[4], 4).unwrap();
    fault(&mut plugin);
    fault(&mut plugin);
    assert_eq!(number(&mut plugin), 1234);
}

#[test]
fn full_configuration_takes_the_place_of_the_deltas_before_it() {
    let mut plugin = instance();
    plugin.configure(Delta, &[2], 2).unwrap();
    plugin.configure(Full, &[7], 3).unwrap();
    plugin.configure(Delta, &[8], 4).unwrap();
    assert_eq!(number(&mut plugin), 78);
    fault(&mut plugin);
    assert_eq!(number(&mut plugin), 78);
    assert_eq!(plugin.settings().config, [7]);
}

#[test]
fn configuration_that_fails_changes_nothing_then_or_after_a_fault() {
    let refused = ConfigureError::Refused("no".into());
    for kind in [Full, Delta] {
        let mut plugin = instance();
        plugin.configure(Delta, &[2], 2).unwrap();
        assert_eq!(plugin.configure(kind, &[REFUSE], 3), Err(refused.clone()));
        assert_eq!(number(&mut plugin), 12);
        let trapped = plugin.configure(kind, &[TRAP], 3).unwrap_err();
        assert!(matches!(trapped, ConfigureError::Trap(_)), "{trapped}");
        assert_eq!(number(&mut plugin), 12);
        assert_eq!(plugin.configure(kind, &[LOOP], 3), Err(ConfigureError::Deadline));
        assert_eq!(number(&mut plugin), 12);
        fault(&mut plugin);
        assert_eq!(number(&mut plugin), 12);
        assert_eq!(plugin.interest().revision, 2);
    }
}

#[test]
fn revision_rises_with_what_is_accepted() {
    let mut plugin = instance();
    assert_eq!(plugin.interest().revision, 1);
    plugin.configure(Delta, &[2], 5).unwrap();
    assert_eq!((plugin.interest().revision, plugin.settings().revision), (5, 5));
}

#[test]
fn deltas_count_towards_the_size_of_the_configuration() {
    let mut plugin = instance();
    let most = vec![2; CONFIG_BYTES_MAX - 2];
    plugin.configure(Delta, &most, 2).unwrap();
    plugin.configure(Delta, &[3], 3).unwrap();
    let (size, max) = (CONFIG_BYTES_MAX + 1, CONFIG_BYTES_MAX);
    assert_eq!(plugin.configure(Delta, &[4], 4), Err(ConfigureError::TooLarge { size, max }));
    assert_eq!(number(&mut plugin), 123);
    fault(&mut plugin);
    assert_eq!(number(&mut plugin), 123);
    plugin.configure(Full, &most, 5).unwrap();
    assert_eq!(number(&mut plugin), 2);
}

#[test]
fn plugin_that_is_taken_out_takes_no_configuration() {
    let mut plugin = instance();
    for port in 0..64 {
        assert_eq!(ask_about(&mut plugin, 0, port), Err(PluginFault::Trap));
    }
    assert_eq!(plugin.configure(Delta, &[2], 2), Err(ConfigureError::TakenOut));
    assert_eq!(ask(&mut plugin, 0x45), Err(PluginFault::TakenOut));
}
