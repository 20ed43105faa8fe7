//! The Wasm runtime of the process: compiler, pool of instances, clock, host functions.

use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::{Config, InstanceAllocationStrategy, Linker, OptLevel, PoolingAllocationConfig};

use crate::code::CodeDirectory;
use crate::error::{EngineError, RuntimeError};
use crate::host::{self, HostState};
use crate::{MEMORY_BYTES_MAX, TABLE_ELEMENTS_MAX, clock};

/// Live instances of all plugins and workers at most, unless told otherwise. An instance slot
/// reserves 4 GiB of address space and no memory.
pub const INSTANCES_DEFAULT: u32 = 512;

/// The Wasm runtime. One for each process; clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<HostState>,
    code: Option<CodeDirectory>,
}

impl Engine {
    /// Sets the runtime up for up to [`INSTANCES_DEFAULT`] live instances.
    ///
    /// # Errors
    /// [`EngineError`] if the address space or a signal is not to be had.
    pub fn new() -> Result<Self, EngineError> {
        Self::with_instances(INSTANCES_DEFAULT)
    }

    /// As [`Self::new`], for up to `instances` live instances.
    ///
    /// # Errors
    /// [`EngineError`] if the address space or a signal is not to be had.
    pub fn with_instances(instances: u32) -> Result<Self, EngineError> {
        Self::make(instances, None)
    }

    /// As [`Self::with_instances`]; keeps native code of modules in `directory`, in files named after the
    /// digests of the modules, and does not compile what it finds there. Who owns the directory removes what
    /// is not needed any more.
    ///
    /// # Errors
    /// [`EngineError`] as before, and if others than this user can write to the directory.
    pub fn with_code_in(directory: PathBuf, instances: u32) -> Result<Self, EngineError> {
        let code = CodeDirectory::open(directory).map_err(EngineError::Code)?;
        Self::make(instances, Some(code))
    }

    fn make(instances: u32, code: Option<CodeDirectory>) -> Result<Self, EngineError> {
        let runtime = |e| EngineError::Runtime(RuntimeError::from(e));
        let engine = wasmtime::Engine::new(&config(instances)).map_err(runtime)?;
        let mut linker = Linker::new(&engine);
        host::define(&mut linker).map_err(runtime)?;
        clock::install().map_err(EngineError::Clock)?;
        Ok(Self { inner: Arc::new(Inner { engine, linker, code }) })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.engine
    }

    pub(crate) fn code(&self) -> Option<&CodeDirectory> {
        self.inner.code.as_ref()
    }

    pub(crate) fn linker(&self) -> &Linker<HostState> {
        &self.inner.linker
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

fn config(instances: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(instances)
        .total_memories(instances)
        .total_tables(instances)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .max_memory_size(MEMORY_BYTES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        // Remaking an instance after a fault clears this much instead of remapping it.
        .linear_memory_keep_resident(64 << 10);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(None)
        .max_wasm_stack(256 << 10)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_wide_arithmetic(false);
    config
}
