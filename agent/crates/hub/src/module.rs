//! Is this a plugin? Told from the module's sections, without running anything.
//!
//! The datapath checks again, and more, when it compiles the module; here an operator learns at
//! once of what can be known at once.

use wasmparser::{ExternalKind, Parser, Payload, Validator};
use weft_abi::{
    EXPORT_ALLOCATE, EXPORT_CONFIGURE, EXPORT_EXCHANGE, EXPORT_ON_PACKET, IMPORT_MODULE,
    MANIFEST_SECTION, Manifest, ManifestError,
};
use weft_control::MODULE_MAX;

/// Why a module is no plugin.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Too long.
    #[error("it has {0} bytes, a plugin has {MODULE_MAX} at most: build it in release mode")]
    TooLarge(usize),
    /// Not Wasm.
    #[error("it is no valid WebAssembly module ({})", one_line(.0))]
    Wasm(#[from] wasmparser::BinaryReaderError),
    /// Does not even begin like it.
    #[error("it is no valid WebAssembly module (it does not begin like one): pass the .wasm file")]
    NotWasm,
    /// No section of that name.
    #[error(
        "it has no section `weft.manifest`: is it built with the policy SDK's `export_plugin!`?"
    )]
    NoManifest,
    /// A section that says nothing good.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Wants something of the host that there is not.
    #[error(
        "it imports `{name}` from `{module}`, plugins import from `weft` only: build it for wasm32-unknown-unknown"
    )]
    Import {
        /// Module of the import.
        module: String,
        /// Name of the import.
        name: String,
    },
    /// Lacks an export.
    #[error("it does not export `{0}`: is it built with the policy SDK's `export_plugin!`?")]
    Export(&'static str),
}

/// What every module begins with.
const MAGIC: &[u8] = b"\0asm";

fn one_line(error: &wasmparser::BinaryReaderError) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Checks a module and returns the name in its manifest.
///
/// # Errors
/// [`ModuleError`] says what is wrong with it.
pub fn check_module(bytes: &[u8]) -> Result<String, ModuleError> {
    if bytes.len() > MODULE_MAX {
        return Err(ModuleError::TooLarge(bytes.len()));
    }
    if !bytes.starts_with(MAGIC) {
        return Err(ModuleError::NotWasm);
    }
    Validator::new().validate_all(bytes)?;
    let mut name = None;
    let mut missing = vec![
        ("memory", ExternalKind::Memory),
        (EXPORT_EXCHANGE, ExternalKind::Func),
        (EXPORT_ON_PACKET, ExternalKind::Func),
        (EXPORT_ALLOCATE, ExternalKind::Func),
        (EXPORT_CONFIGURE, ExternalKind::Func),
    ];
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::CustomSection(section) if section.name() == MANIFEST_SECTION => {
                name = Some(Manifest::from_bytes(section.data())?.name.to_owned());
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if import.module != IMPORT_MODULE {
                        let (module, name) = (import.module.to_owned(), import.name.to_owned());
                        return Err(ModuleError::Import { module, name });
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    missing.retain(|(name, kind)| (*name, *kind) != (export.name, export.kind));
                }
            }
            // Everything else was validated above and says nothing of a plugin.
            _ => {}
        }
    }
    let name = name.ok_or(ModuleError::NoManifest)?;
    match missing.first() {
        Some((export, _)) => Err(ModuleError::Export(export)),
        None => Ok(name),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_abi::{HEADER_WINDOW, hooks, protocols};

    use super::*;

    /// A module in text form with a manifest and what `body` adds.
    pub(crate) fn module(name: &str, body: &str) -> Vec<u8> {
        let manifest = Manifest {
            name,
            version: "1",
            hooks: hooks::EGRESS,
            protocols: protocols::ALL,
            per_flow: false,
            skip_on_fault: false,
            capabilities: 0,
            window: HEADER_WINDOW,
            map_entries: 0,
        };
        let mut bytes = wat::parse_str(format!("(module {body})")).unwrap();
        let data = manifest.to_bytes();
        // A custom section: id 0, length, length of its name, name, data; both lengths in LEB128.
        let length = 1 + MANIFEST_SECTION.len() + data.len();
        bytes.extend([0, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        bytes.push(MANIFEST_SECTION.len() as u8);
        bytes.extend(MANIFEST_SECTION.as_bytes());
        bytes.extend(data);
        bytes
    }

    /// Everything a plugin exports.
    pub(crate) const EXPORTS: &str = r#"
        (memory (export "memory") 1)
        (func (export "weft_exchange") (result i32) i32.const 0)
        (func (export "weft_on_packet") (result i32) i32.const 0)
        (func (export "weft_allocate") (param i32) (result i32) i32.const 0)
        (func (export "weft_configure") (param i32 i32) (result i64) i64.const 0)"#;

    #[test]
    fn plugin_is_known_by_its_manifest() {
        assert_eq!(check_module(&module("block", EXPORTS)).unwrap(), "block");
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_the_reason() {
        let refused = |bytes: &[u8]| check_module(bytes).unwrap_err();
        assert!(matches!(refused(b"not wasm"), ModuleError::NotWasm));
        let cut = refused(b"\0asm, it says");
        assert!(matches!(cut, ModuleError::Wasm(_)));
        assert_eq!(cut.to_string().lines().count(), 1, "{cut}");
        assert!(matches!(refused(&vec![0; MODULE_MAX + 1]), ModuleError::TooLarge(_)));
        let bare = wat::parse_str("(module)").unwrap();
        assert!(matches!(refused(&bare), ModuleError::NoManifest));
        let wasi = format!(r#"(import "wasi_snapshot_preview1" "fd_write" (func)) {EXPORTS}"#);
        assert!(matches!(refused(&module("x", &wasi)), ModuleError::Import { .. }));
        assert!(matches!(refused(&module("x", "")), ModuleError::Export("memory")));
        assert!(matches!(refused(&module("Bad_Name", EXPORTS)), ModuleError::Manifest(_)));
    }
}
