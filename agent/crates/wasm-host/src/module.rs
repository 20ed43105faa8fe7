//! A checked and compiled module.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::{ExternType, FuncType, InstancePre, ValType};
use weft_abi::{
    Descriptor, EXPORT_ALLOCATE, EXPORT_CONFIGURE, EXPORT_EXCHANGE, EXPORT_ON_PACKET, Manifest,
    hooks,
};
use weft_model::{HookPosition, OnFault, PluginMode};

use crate::engine::Engine;
use crate::error::LoadError;
use crate::host::HostState;
use crate::inspect::inspect;
use crate::{MEMORY_BYTES_MAX, MODULE_BYTES_MAX};

/// Name of the memory that a module exports.
pub(crate) const MEMORY: &str = "memory";

/// A module that keeps to the ABI, compiled and linked once, ready for any number of instances.
pub struct Module {
    engine: Engine,
    pre: InstancePre<HostState>,
    info: ModuleInfo,
}

/// What a module's manifest says, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Name the author gave it; in the fabric it may have another.
    pub name: String,
    /// The author's version.
    pub version: String,
    /// SHA-256 of the module's bytes.
    pub digest: [u8; 32],
    /// Size of the module in bytes.
    pub size: usize,
    /// Where it wants to be asked.
    pub position: HookPosition,
    /// Bits of [`weft_abi::protocols`].
    pub protocols: u8,
    /// How often it is asked.
    pub mode: PluginMode,
    /// When a call faults, unless the settings say otherwise.
    pub on_fault: OnFault,
    /// Bits of [`weft_abi::capability`].
    pub capabilities: u32,
    /// Bytes of a packet it is shown at most.
    pub window: usize,
    /// Entries of its map at most.
    pub map_entries: usize,
}

impl Module {
    /// Checks, compiles and links a module. Takes from tens of milliseconds to seconds, or some milliseconds
    /// if its code is kept: not for the data path, and not while anybody waits for tables.
    ///
    /// # Errors
    /// [`LoadError`] says which check failed.
    pub fn load(engine: &Engine, bytes: &[u8]) -> Result<Arc<Self>, LoadError> {
        if bytes.len() > MODULE_BYTES_MAX {
            return Err(LoadError::TooLarge { size: bytes.len(), max: MODULE_BYTES_MAX });
        }
        let manifest = inspect(bytes)?;
        let info = ModuleInfo::new(&manifest, bytes);
        let compile = |e: wasmtime::Error| LoadError::Compile(e.into());
        let module = compiled(engine, bytes, &info.digest).map_err(compile)?;
        check_exports(engine, &module)?;
        let pre = engine.linker().instantiate_pre(&module).map_err(compile)?;
        Ok(Arc::new(Self { engine: engine.clone(), pre, info }))
    }

    /// What the manifest says.
    #[must_use]
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn pre(&self) -> &InstancePre<HostState> {
        &self.pre
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("info", &self.info).finish_non_exhaustive()
    }
}

impl ModuleInfo {
    fn new(manifest: &Manifest<'_>, bytes: &[u8]) -> Self {
        let egress = manifest.hooks & hooks::EGRESS != 0;
        let ingress = manifest.hooks & hooks::INGRESS != 0;
        Self {
            name: manifest.name.to_owned(),
            version: manifest.version.to_owned(),
            digest: Sha256::digest(bytes).into(),
            size: bytes.len(),
            position: match (egress, ingress) {
                (true, true) => HookPosition::Both,
                (false, true) => HookPosition::Ingress,
                (_, false) => HookPosition::Egress,
            },
            protocols: manifest.protocols,
            mode: if manifest.per_flow { PluginMode::Flow } else { PluginMode::Packet },
            on_fault: if manifest.skip_on_fault { OnFault::Skip } else { OnFault::Drop },
            capabilities: manifest.capabilities,
            window: usize::try_from(manifest.window).unwrap_or(Descriptor::LEN),
            map_entries: usize::try_from(manifest.map_entries).unwrap_or(0),
        }
    }
}

fn compiled(
    engine: &Engine,
    bytes: &[u8],
    digest: &[u8; 32],
) -> wasmtime::Result<wasmtime::Module> {
    let compile = || wasmtime::Module::from_binary(engine.wasmtime(), bytes);
    let Some(kept) = engine.code() else { return compile() };
    if let Some(module) = kept.module(engine.wasmtime(), digest) {
        return Ok(module);
    }
    let module = compile()?;
    if let Err(error) = kept.put(digest, &module) {
        tracing::warn!(%error, "a compiled plugin is not kept: the next start compiles it again");
    }
    Ok(module)
}

fn check_exports(engine: &Engine, module: &wasmtime::Module) -> Result<(), LoadError> {
    let function = |params: &[ValType], results: &[ValType]| {
        FuncType::new(engine.wasmtime(), params.to_vec(), results.to_vec())
    };
    let (i32, i64) = (ValType::I32, ValType::I64);
    let functions = [
        (EXPORT_EXCHANGE, "() -> i32", function(&[], std::slice::from_ref(&i32))),
        (EXPORT_ON_PACKET, "() -> i32", function(&[], std::slice::from_ref(&i32))),
        (
            EXPORT_ALLOCATE,
            "(i32) -> i32",
            function(std::slice::from_ref(&i32), std::slice::from_ref(&i32)),
        ),
        (EXPORT_CONFIGURE, "(i32, i32) -> i64", function(&[i32.clone(), i32.clone()], &[i64])),
    ];
    for (name, expected, wanted) in functions {
        match module.get_export(name) {
            None => return Err(LoadError::MissingExport(name)),
            Some(ExternType::Func(found)) if FuncType::eq(&found, &wanted) => {}
            Some(_) => return Err(LoadError::ExportType { name, expected }),
        }
    }
    match module.get_export(MEMORY) {
        None => Err(LoadError::MissingExport(MEMORY)),
        Some(ExternType::Memory(memory)) if !memory.is_64() && !memory.is_shared() => {
            let wanted = memory.minimum().saturating_mul(memory.page_size());
            let max = u64::try_from(MEMORY_BYTES_MAX).unwrap_or(u64::MAX);
            if wanted > max { Err(LoadError::Memory { wanted, max }) } else { Ok(()) }
        }
        Some(_) => Err(LoadError::ExportType { name: MEMORY, expected: "32-bit memory" }),
    }
}
