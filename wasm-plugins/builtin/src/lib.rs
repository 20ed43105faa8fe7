//! The built-in plugins, as the modules that nodes run.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// A built-in plugin.
#[derive(Debug)]
pub struct BuiltIn {
    /// The Wasm module.
    pub module: &'static [u8],
    digest: LazyLock<[u8; 32]>,
}

impl BuiltIn {
    /// SHA-256 of the module.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

/// Translates what is sent to Services.
pub static SERVICE: BuiltIn = BuiltIn {
    module: include_bytes!(concat!(env!("OUT_DIR"), "/service.wasm")),
    digest: LazyLock::new(|| Sha256::digest(SERVICE.module).into()),
};

/// Enforces network policies.
pub static POLICY: BuiltIn = BuiltIn {
    module: include_bytes!(concat!(env!("OUT_DIR"), "/policy.wasm")),
    digest: LazyLock::new(|| Sha256::digest(POLICY.module).into()),
};

/// Answers queries for names of the cluster.
pub static DNS: BuiltIn = BuiltIn {
    module: include_bytes!(concat!(env!("OUT_DIR"), "/dns.wasm")),
    digest: LazyLock::new(|| Sha256::digest(DNS.module).into()),
};

/// Each of them.
pub static ALL: [&BuiltIn; 3] = [&SERVICE, &POLICY, &DNS];

/// The module with that digest, if it is one of these.
#[must_use]
pub fn by_digest(digest: &[u8]) -> Option<&'static [u8]> {
    ALL.into_iter().find(|b| b.digest().as_slice() == digest).map(|b| b.module)
}
