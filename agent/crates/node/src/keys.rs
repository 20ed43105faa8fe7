//! WireGuard keys of the node: made here, never leave it.
//!
//! `current` and `previous` hold a private key each, as `wg genkey` prints it. A rotation makes
//! `previous` out of `current`; both are in use until the overlap is over.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use weft_model::PublicKey;
use x25519_dalek::StaticSecret;

use crate::durable;

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The directory or a file in it cannot be read or written.
    #[error("cannot keep WireGuard keys in {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A key file holds something else.
    #[error("{0} holds no WireGuard key: remove the file and the node makes a new one")]
    NotAKey(PathBuf),
}

/// One key that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// Where the private key is.
    pub path: PathBuf,
    /// Its public key.
    pub public: PublicKey,
}

/// The keys on disk.
#[derive(Debug)]
pub(crate) struct KeyStore {
    dir: PathBuf,
}

impl KeyStore {
    /// Opens the directory and makes the first key if there is none.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, KeyError> {
        let store = Self { dir };
        durable::private_dir(&store.dir).map_err(|e| store.io(e))?;
        if store.read("current")?.is_none() {
            store.write("current", &generate())?;
        }
        Ok(store)
    }

    /// The keys in use, the one to prefer first.
    pub(crate) fn keys(&self) -> Result<Vec<KeyFile>, KeyError> {
        let mut keys: Vec<KeyFile> = Vec::with_capacity(2);
        for name in ["current", "previous"] {
            if let Some(public) = self.read(name)?
                && keys.iter().all(|k| k.public != public)
            {
                keys.push(KeyFile { path: self.dir.join(name), public });
            }
        }
        Ok(keys)
    }

    /// Takes note of the epoch the hub asks for; true if a new key was made for it.
    ///
    /// The first epoch that is ever seen is only noted: the key is new then.
    pub(crate) fn handle_epoch(&self, epoch: u64) -> Result<bool, KeyError> {
        let known = self.epoch()?;
        if known.is_some_and(|known| epoch <= known) {
            return Ok(false);
        }
        if known.is_some() {
            self.rotate()?;
        }
        let path = self.dir.join("epoch");
        durable::write(&path, epoch.to_string().as_bytes(), durable::PRIVATE)
            .map_err(|e| self.io(e))?;
        Ok(known.is_some())
    }

    /// When the overlap of the last rotation is over; `None` if there is one key only.
    pub(crate) fn overlap_ends(&self, overlap: Duration) -> Result<Option<SystemTime>, KeyError> {
        let path = self.dir.join("current");
        if durable::read(&self.dir.join("previous")).map_err(|e| self.io(e))?.is_none() {
            return Ok(None);
        }
        let made = std::fs::metadata(&path).and_then(|m| m.modified()).map_err(|e| self.io(e))?;
        Ok(made.checked_add(overlap))
    }

    /// Forgets the previous key.
    pub(crate) fn drop_previous(&self) -> Result<(), KeyError> {
        durable::remove(&self.dir.join("previous")).map_err(|e| self.io(e))
    }

    fn rotate(&self) -> Result<(), KeyError> {
        let current = durable::read(&self.dir.join("current")).map_err(|e| self.io(e))?;
        if let Some(current) = current {
            durable::write(&self.dir.join("previous"), &current, durable::PRIVATE)
                .map_err(|e| self.io(e))?;
        }
        self.write("current", &generate())
    }

    fn epoch(&self) -> Result<Option<u64>, KeyError> {
        let text = durable::read_text(&self.dir.join("epoch")).map_err(|e| self.io(e))?;
        Ok(text.and_then(|t| t.trim().parse().ok()))
    }

    fn read(&self, name: &str) -> Result<Option<PublicKey>, KeyError> {
        let path = self.dir.join(name);
        let Some(text) = durable::read_text(&path).map_err(|e| self.io(e))? else {
            return Ok(None);
        };
        public_of(&text).map(Some).ok_or(KeyError::NotAKey(path))
    }

    fn write(&self, name: &str, secret: &[u8; 32]) -> Result<(), KeyError> {
        let text = format!("{}\n", STANDARD.encode(secret));
        durable::write(&self.dir.join(name), text.as_bytes(), durable::PRIVATE)
            .map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> KeyError {
        KeyError::Io { path: self.dir.clone(), source }
    }
}

fn generate() -> [u8; 32] {
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    // Clamped as `wg genkey` does it, so that every implementation accepts the file.
    StaticSecret::from(clamp(secret)).to_bytes()
}

fn clamp(mut secret: [u8; 32]) -> [u8; 32] {
    secret[0] &= 248;
    secret[31] = (secret[31] & 127) | 64;
    secret
}

fn public_of(text: &str) -> Option<PublicKey> {
    let secret: [u8; 32] = STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
    let public = x25519_dalek::PublicKey::from(&StaticSecret::from(secret));
    Some(PublicKey(public.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &std::path::Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn store() -> (tempfile::TempDir, KeyStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path().join("keys")).unwrap();
        (dir, store)
    }

    #[test]
    fn public_key_is_the_one_that_wg_pubkey_prints() {
        // RFC 7748 section 6.1, Alice.
        let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let public = public_of(secret).unwrap();
        assert_eq!(public.to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn key_is_private_and_stays_over_a_restart() {
        let (_dir, store) = store();
        let keys = store.keys().unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(mode_of(&keys[0].path), 0o600);
        assert_eq!(KeyStore::open(store.dir.clone()).unwrap().keys().unwrap(), keys);
    }

    #[test]
    fn rising_epoch_makes_one_new_key_and_keeps_the_old_one() {
        let (_dir, store) = store();
        let old = store.keys().unwrap()[0].public;
        assert!(!store.handle_epoch(3).unwrap());
        assert!(!store.handle_epoch(3).unwrap());
        assert!(store.handle_epoch(4).unwrap());
        assert!(!store.handle_epoch(4).unwrap());
        let keys = store.keys().unwrap();
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0].public, old);
        assert_eq!(keys[1].public, old);
        assert!(store.overlap_ends(Duration::from_secs(1)).unwrap().is_some());
        store.drop_previous().unwrap();
        assert_eq!(store.keys().unwrap(), keys[..1]);
        assert!(store.overlap_ends(Duration::from_secs(1)).unwrap().is_none());
    }

    #[test]
    fn rotation_that_stopped_half_way_counts_as_one_key() {
        let (_dir, store) = store();
        let current = std::fs::read(store.dir.join("current")).unwrap();
        std::fs::write(store.dir.join("previous"), current).unwrap();
        assert_eq!(store.keys().unwrap().len(), 1);
    }

    #[test]
    fn file_that_holds_no_key_is_named() {
        let (_dir, store) = store();
        std::fs::write(store.dir.join("current"), "hello").unwrap();
        let error = store.keys().unwrap_err().to_string();
        assert!(error.contains("current holds no WireGuard key"), "{error}");
    }
}
