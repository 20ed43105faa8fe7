//! Files that are either whole or not there, also after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of everything that holds a secret.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of what the container runtime reads.
pub(crate) const PUBLIC: u32 = 0o644;
/// Mode of a program.
pub(crate) const PROGRAM: u32 = 0o755;

static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Creates `path` and what leads to it, mode 0700; an existing directory stays as it is.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes `path` for this process until the file is dropped; `None` if another process has it.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Replaces `path` with `bytes`: temporary file in the same directory, fsync, rename, fsync of the
/// directory. The temporary file's suffix is one that no container runtime reads.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, mode, Outlives::Kernel, |file| file.write_all(bytes))
}

/// As [`write()`], for what need not outlive the kernel.
pub(crate) fn write_unsynced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, mode, Outlives::Process, |file| file.write_all(bytes))
}

/// Copies the file `source` over `path` in the same way.
pub(crate) fn copy(source: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let mut from = File::open(source)?;
    replace(path, mode, Outlives::Kernel, |file| io::copy(&mut from, file).map(drop))
}

/// What a file is still there after.
#[derive(PartialEq)]
enum Outlives {
    Process,
    Kernel,
}

fn replace(
    path: &Path,
    mode: u32,
    outlives: Outlives,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_name(path);
    let result = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        fill(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if outlives == Outlives::Kernel {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    })();
    if result.is_err() {
        // The error that is told is the one that stopped the write.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    if outlives == Outlives::Process {
        return Ok(());
    }
    sync_parent(path)
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Reads a file; `None` if it is not there.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a text file; `None` if it is not there.
pub(crate) fn read_text(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{sequence}.tmp", std::process::id()));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_file_has_the_mode_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", PUBLIC).unwrap();
        write(&path, b"two", PRIVATE).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", PUBLIC).unwrap();
        assert!(
            replace(&path, PUBLIC, Outlives::Kernel, |_| Err(io::Error::other("disk full")))
                .is_err()
        );
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_there_is_removed_and_read_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("a")).unwrap();
        assert!(read(&dir.path().join("a")).unwrap().is_none());
    }
}
