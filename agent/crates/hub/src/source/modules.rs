//! Modules of packet filters, which are files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use weft_control::MODULE_MAX;
use weft_model::SharedMap;

use super::Problem;
use super::index::Defined;
use super::object::{Key, Object};
use super::objects::{Objects, of_kind};
use crate::module::{ModuleError, check_module};

/// A checked module.
pub(crate) struct Module {
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: Vec<u8>,
}

impl Module {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: Sha256::digest(&bytes).into(), bytes }
    }
}

/// What tells that a file was written: modification time, length, inode.
pub(super) type Stamp = (i64, i64, u64, u64);

pub(super) fn stamp(metadata: &fs::Metadata) -> Stamp {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino())
}

/// The files that were read.
#[derive(Default)]
pub(crate) struct Modules {
    known: BTreeMap<PathBuf, (Stamp, Result<Arc<Module>, String>)>,
}

impl Modules {
    /// Reads those that have changed since the last time, of the filters there are. Gives the good ones
    /// by path.
    pub(crate) fn read(
        &mut self,
        objects: &SharedMap<Key, Arc<Defined>>,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<PathBuf, Arc<Module>> {
        let mut before = std::mem::take(&mut self.known);
        let mut good = BTreeMap::new();
        for (_, defined) in of_kind(objects, "PacketFilter") {
            let Object::PacketFilter(filter) = &defined.object else { continue };
            let path = Objects::module_path(&defined.file, filter);
            let stamp = fs::metadata(&path).map(|m| stamp(&m)).unwrap_or_default();
            let known = before.remove(&path).or_else(|| self.known.get(&path).cloned());
            let last = known.as_ref().and_then(|(_, module)| module.clone().ok());
            let module = match known {
                Some((at, module)) if at == stamp => module,
                _ => read(&path),
            };
            match (&module, last) {
                (Ok(module), _) => drop(good.insert(path.clone(), module.clone())),
                (Err(reason), last) => {
                    let (file, line, reason) = (defined.file.clone(), defined.line, reason.clone());
                    problems.push(Problem { file, line, reason });
                    // Half-written or gone: the last good one stays in force while we live.
                    if let Some(last) = last {
                        good.insert(path.clone(), last.clone());
                        self.known.insert(path, (Stamp::default(), Ok(last)));
                        continue;
                    }
                }
            }
            self.known.insert(path, (stamp, module));
        }
        good
    }
}

fn read(path: &Path) -> Result<Arc<Module>, String> {
    let failed = |e: io::Error| format!("module {}: {e}", path.display());
    let length = fs::metadata(path).map_err(failed)?.len();
    if let Ok(length) = usize::try_from(length)
        && length > MODULE_MAX
    {
        let error = ModuleError::TooLarge(length);
        return Err(format!("module {}: {error}", path.display()));
    }
    let bytes = fs::read(path).map_err(failed)?;
    check_module(&bytes).map_err(|e| format!("module {}: {e}", path.display()))?;
    Ok(Arc::new(Module::new(bytes)))
}
