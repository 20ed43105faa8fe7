//! Addresses that the delegate `host-local` has given, and that nobody may be left to give back.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use weft_model::cni::Attachment;

use crate::CniError;
use crate::error::code::IO;

/// `host-local` holds it while it changes anything in the directory.
const LOCK: &str = "lock";

/// Frees every address in the directory of a network but those of these attachments.
///
/// # Errors
/// Code 5 if the disk refuses.
pub(crate) fn free_all_but(directory: &Path, valid: &[Attachment]) -> Result<(), CniError> {
    match free(directory, valid) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            let message = format!("cannot free addresses in {}: {e}", directory.display());
            Err(CniError::new(IO, message))
        }
        _ => Ok(()),
    }
}

fn free(directory: &Path, valid: &[Attachment]) -> io::Result<()> {
    let lock = File::open(directory.join(LOCK))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        // Beside them are the lock and the last address of each range.
        let is_address = name.to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
        if is_address && !is_of(&fs::read_to_string(entry.path())?, valid) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The file has the container in its first line and the interface in the second; older versions wrote none.
fn is_of(text: &str, valid: &[Attachment]) -> bool {
    let mut lines = text.lines().map(str::trim);
    let (container, ifname) = (lines.next().unwrap_or_default(), lines.next());
    valid.iter().any(|a| a.container_id == container && ifname.is_none_or(|i| i == a.ifname))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CNI-074
    #[test]
    fn addresses_of_valid_attachments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(LOCK, "");
        write("last_reserved_ip.0", "10.1.0.4");
        write("10.1.0.2", "c1\r\neth0");
        write("10.1.0.3", "c1\r\nnet1");
        write("10.1.0.4", "gone\r\neth0");
        write("fd00::2", "c1\r\neth0");
        write("10.1.0.5", "c1");
        let attachment = Attachment {
            network: "weft".to_owned(),
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        free_all_but(dir.path(), &[attachment]).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["10.1.0.2", "10.1.0.5", "fd00::2", "last_reserved_ip.0", LOCK]);
        free_all_but(&dir.path().join("none"), &[]).unwrap();
    }
}
