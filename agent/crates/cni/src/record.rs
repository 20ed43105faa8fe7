//! What is kept on disk for each attachment, so that DEL can undo it whatever else is lost.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_model::cni::Attachment;

use crate::CniError;
use crate::error::code::{EXISTS, IO};
use crate::interface::Made;

/// The delegate, the configuration it was given, and what it made.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) delegate: String,
    pub(crate) config: Value,
    /// Records of earlier versions lack it.
    #[serde(default)]
    pub(crate) made: Option<Made>,
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("delegates")
}

fn path_of(state_dir: &Path, attachment: &Attachment) -> PathBuf {
    // Neither part can hold `/`, and the first two no `,`, so names cannot collide or leave the directory.
    let Attachment { network, container_id, ifname } = attachment;
    directory(state_dir).join(format!("{network},{container_id},{ifname}.json"))
}

/// Attachments of a network that there are records of.
///
/// # Errors
/// Code 5 if the disk refuses.
pub(crate) fn all(state_dir: &Path, network: &str) -> Result<Vec<Attachment>, CniError> {
    let directory = directory(state_dir);
    let entries = match fs::read_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed(&directory, "read", &e))?,
    };
    let attachment = |name: String| {
        let mut parts = name.strip_suffix(".json")?.splitn(3, ',');
        let mut part = || parts.next().map(ToOwned::to_owned);
        Some(Attachment { network: part()?, container_id: part()?, ifname: part()? })
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(attachment).filter(|a| a.network == network).collect())
}

fn failed(path: &Path, doing: &str, error: &io::Error) -> CniError {
    CniError::new(IO, format!("cannot {doing} {}: {error}", path.display()))
}

/// Writes the record before the delegate runs.
///
/// # Errors
/// Code 100 if the attachment exists; code 5 if the disk refuses.
pub(crate) fn create(
    state_dir: &Path,
    attachment: &Attachment,
    record: &Record,
) -> Result<(), CniError> {
    let path = path_of(state_dir, attachment);
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(state_dir))?;
        let bytes = serde_json::to_vec(record)?;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let Attachment { container_id, ifname, network } = attachment;
            let message =
                format!("{ifname} of container {container_id} is already attached to {network}");
            CniError::new(EXISTS, message)
        }
        _ => failed(&path, "write", &e),
    })
}

/// Puts a record in the place of the one that is there.
///
/// # Errors
/// Code 5 if the disk refuses.
pub(crate) fn replace(
    state_dir: &Path,
    attachment: &Attachment,
    record: &Record,
) -> Result<(), CniError> {
    let path = path_of(state_dir, attachment);
    let temporary = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|e: io::Error| failed(&path, "write", &e))
}

/// Reads the record; `None` if there is none. A file cut short by a crash counts as none: the
/// delegate had not been called yet.
pub(crate) fn load(state_dir: &Path, attachment: &Attachment) -> Result<Option<Record>, CniError> {
    let path = path_of(state_dir, attachment);
    match fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(&path, "read", &e)),
    }
}

/// Removes the record; fine if there is none.
pub(crate) fn remove(state_dir: &Path, attachment: &Attachment) -> Result<(), CniError> {
    let path = path_of(state_dir, attachment);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&path, "remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// CNI-043, CNI-062
    #[test]
    fn second_record_of_one_attachment_is_refused_and_the_first_kept() {
        let dir = tempfile::tempdir().unwrap();
        let attachment =
            Attachment { network: "weft".into(), container_id: "c1".into(), ifname: "eth0".into() };
        let record =
            |mtu: u32| Record { delegate: "ptp".into(), config: json!({ "mtu": mtu }), made: None };
        create(dir.path(), &attachment, &record(1400)).unwrap();
        let error = create(dir.path(), &attachment, &record(1500)).unwrap_err();
        assert!(error.to_string().contains("code 100"), "{error}");
        assert_eq!(load(dir.path(), &attachment).unwrap(), Some(record(1400)));
        let made = Some(Made { netns: (1, 2), interface: None });
        let replaced = || Record { made: made.clone(), ..record(1400) };
        replace(dir.path(), &attachment, &replaced()).unwrap();
        assert_eq!(load(dir.path(), &attachment).unwrap(), Some(replaced()));
        assert_eq!(fs::read_dir(dir.path().join("delegates")).unwrap().count(), 1);
        assert_eq!(all(dir.path(), "weft").unwrap(), std::slice::from_ref(&attachment));
        assert_eq!(all(dir.path(), "other").unwrap(), []);
        remove(dir.path(), &attachment).unwrap();
        remove(dir.path(), &attachment).unwrap();
        assert_eq!(load(dir.path(), &attachment).unwrap(), None);
    }
}
