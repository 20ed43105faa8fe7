//! Kernel settings under `/proc/sys`, of the calling thread's network namespace.
//!
//! Keys are written with slashes (`net/ipv4/conf/weft0/rp_filter`), since interface names may have
//! dots in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Ensured;

/// Reads a setting, without the final newline.
///
/// # Errors
/// `NotFound` if the kernel does not have it, `InvalidInput` for a key that leaves `/proc/sys`.
pub fn get(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(key)?)?.trim_end().to_owned())
}

/// Writes a setting.
///
/// # Errors
/// As [`get`], and `PermissionDenied` where `/proc/sys` is read-only.
pub fn set(key: &str, value: &str) -> io::Result<()> {
    fs::write(path(key)?, value)
}

/// Writes a setting unless it has the value. A setting that is right is never opened for writing,
/// so this works on a read-only `/proc/sys` prepared by somebody else.
///
/// # Errors
/// As [`set`].
pub fn ensure(key: &str, value: &str) -> io::Result<Ensured> {
    if get(key)? == value {
        return Ok(Ensured::Unchanged);
    }
    set(key, value)?;
    Ok(Ensured::Changed)
}

fn path(key: &str) -> io::Result<PathBuf> {
    if key.is_empty() || key.starts_with('/') || key.split('/').any(|part| part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a key under /proc/sys"));
    }
    Ok(Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_cannot_leave_the_tree() {
        assert_eq!(get("../version").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(get("/etc/passwd").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn setting_is_read_without_newline() {
        assert_eq!(get("kernel/ostype").unwrap(), "Linux");
    }
}
