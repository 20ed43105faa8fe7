//! Why a module, a configuration or an engine was refused. Every text is one line for an operator.

use std::fmt;

use weft_abi::ManifestError;

/// What the Wasm runtime said, cut to one line.
#[derive(Debug)]
pub struct RuntimeError(Box<dyn std::error::Error + Send + Sync>);

impl From<wasmtime::Error> for RuntimeError {
    fn from(error: wasmtime::Error) -> Self {
        Self(error.into())
    }
}

impl From<wasmparser::BinaryReaderError> for RuntimeError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next: Option<&dyn std::error::Error> = Some(self.0.as_ref());
        let mut separator = "";
        while let Some(error) = next {
            let text = error.to_string();
            write!(f, "{separator}{}", text.lines().next().unwrap_or_default().trim())?;
            separator = ": ";
            next = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for RuntimeError {}

/// The Wasm runtime cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The runtime refused its settings or could not reserve address space.
    #[error("the Wasm runtime cannot start: {0}; is the address space limited (`ulimit -v`)?")]
    Runtime(#[source] RuntimeError),
    /// No signal for the clock that ends calls which run too long.
    #[error("cannot watch the deadlines of plugins: {0}")]
    Clock(#[source] std::io::Error),
    /// The directory for compiled code cannot be used.
    #[error("cannot keep compiled plugins: {0}")]
    Code(#[source] std::io::Error),
}

/// A module that is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Larger than [`crate::MODULE_BYTES_MAX`].
    #[error("the module has {size} bytes, at most {max} are allowed: build it with `strip = true`")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not a core Wasm module.
    #[error("not a core WebAssembly module: {0}")]
    NotWasm(#[source] RuntimeError),
    /// No section [`weft_abi::MANIFEST_SECTION`].
    #[error(
        "the module has no `weft.manifest` section: is it built with `export_plugin!` for wasm32?"
    )]
    NoManifest,
    /// More than one section [`weft_abi::MANIFEST_SECTION`].
    #[error("the module has more than one `weft.manifest` section")]
    SeveralManifests,
    /// The section is there but wrong.
    #[error("bad `weft.manifest`: {0}")]
    Manifest(#[source] ManifestError),
    /// An import that the host does not have.
    #[error("the module imports `{module}.{name}`, which no Weft host offers")]
    UnknownImport {
        /// Wasm module name of the import.
        module: String,
        /// Name of the import.
        name: String,
    },
    /// An import whose capability the manifest does not declare.
    #[error("the module imports `weft.{name}` but its manifest does not declare `{capability}`")]
    UndeclaredCapability {
        /// Name of the import.
        name: String,
        /// The capability as the SDK names it.
        capability: &'static str,
    },
    /// More sections of imports or exports than any plugin needs.
    #[error("the module has more than {0} imports and exports")]
    TooManyItems(usize),
    /// An export of the ABI is not there.
    #[error("the module does not export `{0}`")]
    MissingExport(&'static str),
    /// An export of the ABI is of another type.
    #[error("the module's export `{name}` has the wrong type: `{expected}` expected")]
    ExportType {
        /// Name of the export.
        name: &'static str,
        /// The right type.
        expected: &'static str,
    },
    /// Wants more memory at the start than any plugin may have.
    #[error("the module wants {wanted} bytes of memory at the start, at most {max} are allowed")]
    Memory {
        /// What it declares, in bytes.
        wanted: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The compiler or the linker refused it.
    #[error("the module does not compile or link: {0}")]
    Compile(#[source] RuntimeError),
    /// It does not come to life: its start function trapped, or a limit of the host is reached.
    #[error("the module cannot be instantiated: {0}")]
    Instantiate(#[source] RuntimeError),
    /// No timer for the clock that ends calls which run too long.
    #[error("cannot watch the deadlines of plugins: {0}")]
    Clock(#[source] std::io::Error),
    /// The exchange area is not inside the memory.
    #[error("the module's exchange area at {address:#x} is outside its memory")]
    Exchange {
        /// What `weft_exchange` returned.
        address: u32,
    },
    /// A setting is out of range.
    #[error("setting `{0}` of the plugin is out of range")]
    Setting(&'static str),
    /// The first configuration was refused.
    #[error(transparent)]
    Configure(#[from] ConfigureError),
}

/// A configuration that is refused. The one in force stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// The plugin said why.
    #[error("the plugin refuses its configuration: {0}")]
    Refused(String),
    /// The plugin trapped over it.
    #[error("the plugin trapped while it read its configuration: {0}")]
    Trap(String),
    /// It took longer than [`crate::CONFIGURE_DEADLINE`].
    #[error("the plugin took longer than 100 ms to read its configuration")]
    Deadline,
    /// The plugin has no memory for it, or returned a bad address.
    #[error("the plugin has no room for a configuration of {0} bytes")]
    NoRoom(usize),
    /// Longer than [`crate::CONFIG_BYTES_MAX`], deltas since the last full one counted in.
    #[error("the configuration has {size} bytes with its deltas, at most {max} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The plugin was taken out after too many faults.
    #[error("the plugin was taken out after too many faults: replace it")]
    TakenOut,
}
