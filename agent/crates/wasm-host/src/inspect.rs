//! What can be told of a module without compiling it: manifest and imports.

use wasmparser::{Encoding, Parser, Payload};
use weft_abi::{
    IMPORT_LOG, IMPORT_MAP_GET, IMPORT_MAP_PUT, IMPORT_MAP_REMOVE, IMPORT_MAP_SWAP,
    IMPORT_MAP_TAKE, IMPORT_MODULE, MANIFEST_SECTION, Manifest, capability,
};

use crate::error::LoadError;

/// Imports and exports at most; a plugin has a dozen.
const ITEMS_MAX: usize = 256;

/// Reads the manifest of a module and checks its imports against it.
///
/// Does not validate the code: the compiler does.
///
/// # Errors
/// [`LoadError`] says which check failed.
pub fn inspect(module: &[u8]) -> Result<Manifest<'_>, LoadError> {
    let not_wasm = |e: wasmparser::BinaryReaderError| LoadError::NotWasm(e.into());
    let mut manifest = None;
    let mut imports = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(not_wasm)? {
            Payload::Version { encoding: Encoding::Component, .. } => {
                return Err(LoadError::NotWasm(
                    wasmtime::Error::msg("a component; build a core module").into(),
                ));
            }
            Payload::CustomSection(section) if section.name() == MANIFEST_SECTION => {
                let read = Manifest::from_bytes(section.data()).map_err(LoadError::Manifest)?;
                if manifest.replace(read).is_some() {
                    return Err(LoadError::SeveralManifests);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(not_wasm)?;
                    imports.push((import.module, import.name));
                    if imports.len() > ITEMS_MAX {
                        return Err(LoadError::TooManyItems(ITEMS_MAX));
                    }
                }
            }
            Payload::ExportSection(section)
                if usize::try_from(section.count()).is_ok_and(|n| n > ITEMS_MAX) =>
            {
                return Err(LoadError::TooManyItems(ITEMS_MAX));
            }
            _ => {}
        }
    }
    let manifest = manifest.ok_or(LoadError::NoManifest)?;
    imports.iter().try_for_each(|(module, name)| check_import(&manifest, module, name))?;
    Ok(manifest)
}

fn check_import(manifest: &Manifest<'_>, module: &str, name: &str) -> Result<(), LoadError> {
    let needed = match (module, name) {
        (IMPORT_MODULE, IMPORT_LOG) => (capability::LOG, "capability::LOG"),
        (
            IMPORT_MODULE,
            IMPORT_MAP_GET | IMPORT_MAP_PUT | IMPORT_MAP_SWAP | IMPORT_MAP_TAKE | IMPORT_MAP_REMOVE,
        ) => (capability::MAP, "capability::MAP"),
        _ => {
            return Err(LoadError::UnknownImport { module: shorten(module), name: shorten(name) });
        }
    };
    if manifest.capabilities & needed.0 == 0 {
        return Err(LoadError::UndeclaredCapability { name: shorten(name), capability: needed.1 });
    }
    Ok(())
}

/// Names come from the module: keeps them to one short line.
fn shorten(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
