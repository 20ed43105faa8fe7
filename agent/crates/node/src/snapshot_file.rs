//! The last snapshot on disk: an agent that starts without a hub serves pods from it.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use weft_control::{FromProto, ToProto, Update, UpdateBody};
use weft_model::Snapshot;
use weft_proto::v1;

use crate::durable;

/// The file `snapshot` of the state directory: an encoded `Update` that holds a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile(PathBuf);

impl SnapshotFile {
    /// In `state_dir`; nothing is read yet.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("snapshot"))
    }

    /// The snapshot and its resume token; a damaged file counts as none.
    pub(crate) fn load(&self) -> io::Result<Option<(Snapshot, Vec<u8>)>> {
        let Some(bytes) = durable::read(&self.0)? else { return Ok(None) };
        let update = v1::Update::decode(bytes.as_slice()).ok();
        let update = update.and_then(|u| Update::from_proto(u).ok());
        Ok(update.and_then(|u| match u.body {
            UpdateBody::Snapshot(snapshot) => Some((snapshot, u.resume)),
            UpdateBody::Delta(_) => None,
        }))
    }

    /// Replaces the file.
    pub(crate) fn save(&self, snapshot: &Snapshot, resume: &[u8]) -> io::Result<()> {
        let update = Update {
            resume: resume.to_vec(),
            key_epoch: 0,
            body: UpdateBody::Snapshot(snapshot.clone()),
        };
        durable::write(&self.0, &update.to_proto().encode_to_vec(), durable::PRIVATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_survives_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(dir.path());
        assert!(file.load().unwrap().is_none());
        let snapshot = crate::tables::tests::snapshot(7, &[1, 2]);
        file.save(&snapshot, b"here").unwrap();
        assert_eq!(file.load().unwrap(), Some((snapshot, b"here".to_vec())));
        std::fs::write(&file.0, [0xff; 9]).unwrap();
        assert!(file.load().unwrap().is_none());
    }
}
