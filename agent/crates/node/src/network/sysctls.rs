//! Settings of the node that the fabric changes, with their old values on disk for uninstall.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use weft_netio::sysctl;

use crate::durable;

/// The file `sysctls.json` of the state directory: old values by key.
#[derive(Debug)]
pub(crate) struct OldSysctls {
    path: PathBuf,
    old: BTreeMap<String, String>,
}

impl OldSysctls {
    /// Reads what was kept; a damaged file counts as empty.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let bytes = durable::read(&path)?.unwrap_or_default();
        let old = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(Self { path, old })
    }

    /// Sets a value; the one before is on disk first, unless an older one is.
    pub(crate) fn ensure(&mut self, key: &str, value: &str) -> io::Result<()> {
        let now = sysctl::get(key)?;
        if now == value {
            return Ok(());
        }
        if !self.old.contains_key(key) {
            self.old.insert(key.to_owned(), now);
            let bytes = serde_json::to_vec_pretty(&self.old)?;
            durable::write(&self.path, &bytes, durable::PRIVATE)?;
        }
        sysctl::set(key, value)
    }

    /// Puts every old value back; a setting whose interface is gone is left out.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        for (key, value) in std::mem::take(&mut self.old) {
            match sysctl::ensure(&key, &value) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        durable::remove(&self.path)
    }
}
