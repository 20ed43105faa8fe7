//! Modules for tests: the built plugins of this repository, and small ones made here.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};

use weft_abi::{Descriptor, Manifest, capability, hooks, protocols};

/// The manifest of the modules that are made here.
pub(crate) const MANIFEST: Manifest<'static> = Manifest {
    name: "test",
    version: "1",
    hooks: hooks::EGRESS,
    protocols: protocols::ALL,
    per_flow: false,
    skip_on_fault: false,
    capabilities: capability::LOG,
    window: 128,
    map_entries: 0,
};

/// Address of the exchange area in the modules that are made here.
pub(crate) const EXCHANGE: usize = 1024;

/// What a module must export beside `weft_on_packet`.
pub(crate) const EXPORTS: &str = r#"(memory (export "memory") 1)
    (func (export "weft_exchange") (result i32) i32.const 1024)
    (func (export "weft_allocate") (param i32) (result i32) i32.const 4096)
    (func (export "weft_configure") (param i32 i32) (result i64) i64.const 0)"#;

/// A module with this manifest, these imports and exports, and this body of `weft_on_packet`.
pub(crate) fn module(manifest: &[u8], imports: &str, exports: &str, body: &str) -> Vec<u8> {
    let manifest: String = manifest.iter().map(|b| format!("\\{b:02x}")).collect();
    wat::parse_str(format!(
        r#"(module {imports} {exports}
            (func (export "weft_on_packet") (result i32) {body})
            (@custom "weft.manifest" "{manifest}"))"#
    ))
    .unwrap()
}

/// What a plugin is told of a packet to or from this port.
pub(crate) fn told(port: u16) -> Descriptor {
    let (source_port, destination_port) = (port, 50_000);
    Descriptor { ip_version: 4, now: 5, source_port, destination_port, ..Descriptor::default() }
}

/// A built plugin of this repository; `WEFT_WASM_DIR` says where, or they are in `target/wasm`.
pub(crate) fn built(name: &str) -> Vec<u8> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/wasm");
    let dir = std::env::var_os("WEFT_WASM_DIR").map_or(default, PathBuf::from);
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run ./dev plugins", path.display()))
}
