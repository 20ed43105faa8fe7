//! Native code of modules on disk: what was compiled once is not compiled again after a restart.
#![allow(unsafe_code)]

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

type Digest32 = [u8; 32];

/// A directory of files, each named after a module's digest (hex) and holding the native code of that module
/// behind the code's own digest.
#[derive(Debug)]
pub(crate) struct CodeDirectory(PathBuf);

impl CodeDirectory {
    /// Takes a directory that is there. Code in it is executed, so it has to be this user's, and nobody
    /// else may write to it.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        let found = directory.metadata()?;
        if found.uid() != Path::new("/proc/self").metadata()?.uid() || found.mode() & 0o022 != 0 {
            let line = format!("{} can be written by others", directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, line));
        }
        Ok(Self(directory))
    }

    /// The module with that digest out of its code; `None` if there is none that is whole and made for this
    /// runtime and this CPU.
    pub(crate) fn module(
        &self,
        engine: &wasmtime::Engine,
        digest: &Digest32,
    ) -> Option<wasmtime::Module> {
        let path = self.path(digest);
        let file = std::fs::read(&path).ok()?;
        let (own, code) = file.split_first_chunk::<32>()?;
        if Digest32::from(Sha256::digest(code)) != *own {
            return None;
        }
        // Whoever removes what is old sees that it is in use.
        let used = std::fs::File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        if let Err(error) = used {
            tracing::debug!(%error, path = %path.display(), "native code is not marked as used");
        }
        // SAFETY: nobody but this user writes to the directory, and the code is as `put` wrote it.
        unsafe { wasmtime::Module::deserialize(engine, code) }.ok()
    }

    /// Keeps the code of the module with that digest.
    pub(crate) fn put(&self, digest: &Digest32, module: &wasmtime::Module) -> io::Result<()> {
        let code = module.serialize().map_err(io::Error::other)?;
        let path = self.path(digest);
        // Several processes may do this at once.
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(&Sha256::digest(&code))?;
        file.write_all(&code)?;
        std::fs::rename(&temporary, path)
    }

    fn path(&self, digest: &Digest32) -> PathBuf {
        let mut name = String::new();
        for byte in digest {
            let _ = write!(name, "{byte:02x}");
        }
        self.0.join(name)
    }
}
