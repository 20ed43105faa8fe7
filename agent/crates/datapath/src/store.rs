//! What outlives the process in the run directory: the last complete state, the modules and their code.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message;
use weft_proto::v1::{ApplyRequest, PluginSpec};

use crate::tables::Desired;

/// Files of one datapath; every write is to a new file that then takes the name.
pub(crate) struct Store {
    directory: PathBuf,
    /// Where code is kept that outlives the directory.
    lasting_code: Option<PathBuf>,
}

/// What was saved: the state asked for, and the plugins that really ran.
#[derive(Default)]
pub(crate) struct Saved {
    pub(crate) desired: ApplyRequest,
    pub(crate) running: Vec<PluginSpec>,
}

const TABLES: &str = "tables";
const MODULES: &str = "modules";
/// Native code of modules, under the same names.
const CODE: &str = "code";
/// How long code is kept that nobody uses, where it outlives the run directory.
const CODE_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// First bytes of the tables file; the last one is the version of its form.
const MAGIC: &[u8; 8] = b"wefttab\x01";

impl Store {
    /// Makes the directories for modules and code. `code`: where code is kept instead, for longer, and
    /// maybe by others as well.
    pub(crate) fn open(directory: &Path, code: Option<&Path>) -> io::Result<Self> {
        std::fs::create_dir_all(directory.join(MODULES))?;
        let store =
            Self { directory: directory.to_owned(), lasting_code: code.map(Path::to_owned) };
        DirBuilder::new().recursive(true).mode(0o700).create(store.code_directory())?;
        Ok(store)
    }

    /// Saves the state, readable by root only: it says who may talk to whom.
    pub(crate) fn save(&self, desired: &Desired, running: &[PluginSpec]) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        let running = ApplyRequest { plugins: running.to_vec(), ..ApplyRequest::default() };
        // Encoding to a Vec has no way to fail.
        let _ = desired.to_request().encode_length_delimited(&mut bytes);
        let _ = running.encode_length_delimited(&mut bytes);
        write_atomically(&self.directory.join(TABLES), &bytes)
    }

    /// The state saved last; `None` if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is no state of this version.
    pub(crate) fn load(&self) -> io::Result<Option<Saved>> {
        let bytes = match std::fs::read(self.directory.join(TABLES)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a saved state");
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(bad)?;
        let mut next = || ApplyRequest::decode_length_delimited(&mut rest).map_err(|_| bad());
        Ok(Some(Saved { desired: next()?, running: next()?.plugins }))
    }

    /// Keeps a module under the name of its digest.
    pub(crate) fn put_module(&self, digest: &[u8; 32], module: &[u8]) -> io::Result<()> {
        write_atomically(&self.module_path(digest), module)
    }

    /// The module of that digest; `None` if it was never put.
    pub(crate) fn module(&self, digest: &[u8; 32]) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.module_path(digest)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where native code of modules is kept, by whoever compiles them.
    pub(crate) fn code_directory(&self) -> PathBuf {
        self.lasting_code.clone().unwrap_or_else(|| self.directory.join(CODE))
    }

    /// Removes the modules, and the code of them, that `keep` does not want, given their names and ages.
    pub(crate) fn keep_modules(
        &self,
        now: SystemTime,
        keep: impl Fn(&str, Duration) -> bool,
    ) -> io::Result<()> {
        retain(&self.directory.join(MODULES), now, &keep)?;
        match &self.lasting_code {
            // Others may keep other things there.
            Some(code) => {
                retain(code, now, &|name, age| age < CODE_KEPT || !is_code(name) || keep(name, age))
            }
            None => retain(&self.code_directory(), now, &keep),
        }
    }

    fn module_path(&self, digest: &[u8; 32]) -> PathBuf {
        self.directory.join(MODULES).join(hex(digest))
    }
}

/// Removes the files that `keep` does not want, given their names and ages.
fn retain(
    directory: &Path,
    now: SystemTime,
    keep: &dyn Fn(&str, Duration) -> bool,
) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let written = entry.metadata()?.modified()?;
        let age = now.duration_since(written).unwrap_or_default();
        if !keep(&entry.file_name().to_string_lossy(), age) {
            match std::fs::remove_file(entry.path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a file has native code, or part of it: it is named after a module's digest.
fn is_code(name: &str) -> bool {
    let digest = name.split('.').next().unwrap_or_default();
    digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Lower-case hex, as file names and messages show digests.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Readers see the old bytes or the new ones. The run directory is a tmpfs that a crash of the
/// machine empties, so nothing is synced.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file: File =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn saved_state_comes_back_and_is_for_root_only() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), None).unwrap();
        assert!(store.load().unwrap().is_none());
        let desired = Desired { generation: 7, ..Desired::default() };
        let running = vec![PluginSpec { name: "a".into(), ..PluginSpec::default() }];
        store.save(&desired, &running).unwrap();
        let saved = store.load().unwrap().unwrap();
        assert_eq!(saved.desired, desired.to_request());
        assert_eq!(saved.running, running);
        let mode = std::fs::metadata(directory.path().join(TABLES)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_no_state_is_an_error_and_not_a_state() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), None).unwrap();
        for bytes in [&b""[..], b"something else", b"wefttab\x01\xff\xff"] {
            std::fs::write(directory.path().join(TABLES), bytes).unwrap();
            assert!(store.load().is_err());
        }
    }

    #[test]
    fn modules_are_kept_by_digest() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), None).unwrap();
        store.put_module(&[1; 32], b"one").unwrap();
        store.put_module(&[2; 32], b"two").unwrap();
        let code = [[1; 32], [2; 32]].map(|d| store.code_directory().join(hex(&d)));
        code.iter().for_each(|path| std::fs::write(path, b"code").unwrap());
        store.keep_modules(SystemTime::now(), |name, _| name == hex(&[2; 32])).unwrap();
        assert_eq!(code.map(|path| path.exists()), [false, true]);
        assert_eq!(store.module(&[1; 32]).unwrap(), None);
        assert_eq!(store.module(&[2; 32]).unwrap().as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn code_that_outlives_the_run_directory_is_kept_for_long() {
        let (directory, lasting) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lasting = lasting.path().join("code");
        let store = Store::open(directory.path(), Some(&lasting)).unwrap();
        assert_eq!(store.code_directory(), lasting);
        let mode = std::fs::metadata(&lasting).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let code = lasting.join(hex(&[1; 32]));
        std::fs::write(&code, b"code").unwrap();
        store.keep_modules(SystemTime::now(), |_, _| false).unwrap();
        assert!(code.exists());
        let other = lasting.join("node.key");
        std::fs::write(&other, b"not ours").unwrap();
        let later = SystemTime::now() + CODE_KEPT;
        store.keep_modules(later, |_, _| true).unwrap();
        assert!(code.exists(), "it is in use");
        store.keep_modules(later, |_, _| false).unwrap();
        assert!(!code.exists() && other.exists());
    }
}
