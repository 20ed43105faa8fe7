//! The directory: read at the start, when the kernel says that something changed, and now and then
//! in case it did not say so.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::Problem;
use super::index::Index;
use super::modules::{Modules, Stamp, stamp};
use super::objects::Objects;

/// Changes that come within this time of each other are read at once.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// How long a stream of changes can put off reading.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Everything is looked at again this often.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Greatest manifest in bytes.
const FILE_MAX: u64 = 16 << 20;

/// The directory and what was read of it.
pub(crate) struct Directory {
    root: PathBuf,
    index: Index,
    stamps: BTreeMap<PathBuf, Stamp>,
    modules: Modules,
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Self {
        let (index, stamps, modules) = Default::default();
        Self { root, index, stamps, modules }
    }

    /// Reads what has changed since the last time.
    pub(crate) fn scan(&mut self) -> Objects {
        let mut found = BTreeMap::new();
        let mut unreadable = Vec::new();
        list(&self.root, &mut found, &mut unreadable);
        // A directory that cannot be listed says nothing of what is in it.
        let hidden = |path: &Path| unreadable.iter().any(|p| path.starts_with(&p.file));
        for path in self.index.paths() {
            if !found.contains_key(&path) && !hidden(&path) {
                self.index.remove(&path);
                self.stamps.remove(&path);
            }
        }
        for (path, stamp) in found {
            if self.stamps.get(&path) == Some(&stamp) {
                continue;
            }
            match read(&path, FILE_MAX) {
                Ok(text) => {
                    self.index.set(&path, &text);
                    self.stamps.insert(path, stamp);
                }
                Err((line, reason)) => self.index.set_unreadable(&path, line, reason),
            }
        }
        let (objects, mut problems) = self.index.objects();
        let complete = unreadable.is_empty() && self.index.is_complete();
        problems.append(&mut unreadable);
        let modules = self.modules.read(&objects, &mut problems);
        Objects { objects, problems, complete, modules }
    }
}

/// The text of a file, or the line of what is wrong with it (0: all of it) and what that is.
fn read(path: &Path, max: u64) -> Result<String, (usize, String)> {
    let failed = |e: io::Error| (0, e.to_string());
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > max {
        let reason = format!("{length} bytes are too many, {max} at most are read: split the file");
        return Err((0, reason));
    }
    String::from_utf8(fs::read(path).map_err(failed)?).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + good.filter(|b| **b == b'\n').count();
        (line, "this is not UTF-8: save the file in that encoding".to_owned())
    })
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|e| e.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn list(directory: &Path, found: &mut BTreeMap<PathBuf, Stamp>, unreadable: &mut Vec<Problem>) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            let (file, reason) = (directory.to_owned(), error.to_string());
            unreadable.push(Problem { file, line: 0, reason });
            return;
        }
    };
    for path in entries.filter_map(Result::ok).map(|e| e.path()) {
        // Follows links: a mounted ConfigMap is made of them. Gone in between: not there.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let link = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        if metadata.is_dir() && !hidden && !link {
            list(&path, found, unreadable);
        } else if metadata.is_file() && is_manifest(&path) {
            found.insert(path, stamp(&metadata));
        }
    }
}

/// Reads the directory for ever and hands over what it says, whenever it may have changed.
/// `publish` is called on a thread that may block.
pub(crate) async fn follow(
    directory: Directory,
    publish: impl Fn(Objects) + Send + Sync + 'static,
) -> io::Result<()> {
    let (sender, mut changes) = mpsc::channel(1);
    // A full channel already holds a wake-up.
    let on_event = move |_: notify::Result<notify::Event>| {
        let _ = sender.try_send(());
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(&directory.root, RecursiveMode::Recursive).map(|()| watcher)
    });
    if let Err(error) = &watcher {
        tracing::warn!(%error, every = ?RESCAN_INTERVAL, "manifests are polled");
    }
    let publish = Arc::new(publish);
    let mut directory = directory;
    loop {
        let read = {
            let publish = publish.clone();
            move || {
                publish(directory.scan());
                directory
            }
        };
        directory = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?;
        tokio::select! {
            Some(()) = changes.recv() => settle(&mut changes).await,
            () = tokio::time::sleep(RESCAN_INTERVAL) => {}
        }
    }
}

/// Returns when no change came for a while.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let quiet =
        async { while let Ok(Some(())) = tokio::time::timeout(DEBOUNCE, changes.recv()).await {} };
    // Out of patience: read what there is.
    let _ = tokio::time::timeout(DEBOUNCE_MAX, quiet).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_utf8_is_reported_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), b"# one\n# two\n# \xff\n").unwrap();
        let problems = Directory::new(dir.path().to_owned()).scan().problems;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].line, 3);
        assert!(problems[0].reason.contains("UTF-8"), "{problems:?}");
    }
}
