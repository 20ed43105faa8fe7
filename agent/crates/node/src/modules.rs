//! Wasm modules by digest: kept on disk so that a datapath can be served without a hub.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::durable;

/// The directory `modules` of the state directory.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    dir: PathBuf,
}

impl Modules {
    /// Opens the directory, making it if need be.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        durable::private_dir(&dir)?;
        Ok(Self { dir })
    }

    /// The module, if it is here and whole.
    pub(crate) fn get(&self, digest: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let module = durable::read(&self.dir.join(hex(digest)))?;
        Ok(module.filter(|m| Sha256::digest(m).as_slice() == digest))
    }

    /// Keeps a module if its digest is the one asked for; false if it is not.
    pub(crate) fn put(&self, digest: &[u8], module: &[u8]) -> io::Result<bool> {
        if Sha256::digest(module).as_slice() != digest {
            return Ok(false);
        }
        durable::write(&self.dir.join(hex(digest)), module, durable::PRIVATE)?;
        Ok(true)
    }

    /// Removes every module but those named.
    pub(crate) fn keep<'a>(&self, digests: impl Iterator<Item = &'a [u8; 32]>) -> io::Result<()> {
        let names: BTreeSet<String> = digests.map(|d| hex(d)).collect();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|n| !names.contains(n)) {
                durable::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_is_kept_under_its_own_digest_only() {
        let dir = tempfile::tempdir().unwrap();
        let modules = Modules::open(dir.path().join("modules")).unwrap();
        let digest: [u8; 32] = Sha256::digest(b"module").into();
        assert!(!modules.put(&digest, b"another").unwrap());
        assert!(modules.put(&digest, b"module").unwrap());
        assert_eq!(modules.get(&digest).unwrap().unwrap(), b"module");
        fs::write(modules.dir.join(hex(&digest)), "damaged").unwrap();
        assert!(modules.get(&digest).unwrap().is_none());
        modules.keep([].iter()).unwrap();
        assert_eq!(fs::read_dir(&modules.dir).unwrap().count(), 0);
    }
}
