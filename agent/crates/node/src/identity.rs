//! Who the node is: its uid, and the certificate that the hub gave it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, KeyPair};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_control::TlsIdentity;
use weft_control::identity::BACKDATE;
use weft_model::{MacAddr, NodeName};

use crate::durable;

/// An identity that cannot be kept or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot keep the node's identity in {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a key and a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    #[error("the certificate from the hub cannot be read: is it of the same version of Weft?")]
    Certificate,
}

/// A certificate with its key and who signed it, PEM; one file, so that they always belong together.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub certificate: String,
    pub key: String,
    pub ca: String,
}

/// Seconds of Unix time between which a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub from: i64,
    pub until: i64,
}

impl Validity {
    /// When the certificate should be replaced: after two thirds of its life. What lies before it
    /// was signed does not count, or a short life would seem over from the start.
    pub(crate) fn renew_at(self) -> i64 {
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or(0);
        let signed = self.from + backdate;
        signed + (self.until - signed) * 2 / 3
    }

    /// True at and after its last second.
    pub(crate) fn is_over(self, now: i64) -> bool {
        now >= self.until
    }
}

impl Credentials {
    /// Reads the validity out of the certificate.
    pub(crate) fn validity(&self) -> Result<Validity, IdentityError> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes())
            .map_err(|_| IdentityError::Certificate)?;
        let certificate = pem.parse_x509().map_err(|_| IdentityError::Certificate)?;
        let validity = certificate.validity();
        Ok(Validity {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// For the TLS client.
    pub(crate) fn tls(&self) -> TlsIdentity {
        TlsIdentity { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

/// A fresh key with a request to certify it, both PEM.
pub(crate) struct CertificateRequest {
    pub key: String,
    pub request: String,
}

impl CertificateRequest {
    /// Makes a key pair for the node.
    pub(crate) fn new(node: &NodeName) -> Result<Self, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        Ok(Self { request: params.serialize_request(&key)?.pem()?, key: key.serialize_pem() })
    }
}

/// The directory `identity`.
#[derive(Debug)]
pub(crate) struct IdentityStore {
    dir: PathBuf,
}

impl IdentityStore {
    /// Opens the directory, making it if need be.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, IdentityError> {
        let store = Self { dir };
        durable::private_dir(&store.dir).map_err(|e| store.io(e))?;
        Ok(store)
    }

    /// The node's uid: `fixed`, or the one on disk, or a new one. A certificate for another uid is
    /// forgotten.
    pub(crate) fn uid(&self, fixed: Option<&str>) -> Result<String, IdentityError> {
        let path = self.dir.join("uid");
        let known = durable::read_text(&path).map_err(|e| self.io(e))?;
        let known = known.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        if let Some(known) = known
            && fixed.is_none_or(|f| f == known)
        {
            return Ok(known);
        }
        let uid = fixed.map_or_else(random_uid, str::to_owned);
        self.forget()?;
        durable::write(&path, uid.as_bytes(), durable::PRIVATE).map_err(|e| self.io(e))?;
        Ok(uid)
    }

    /// The credentials on disk; damaged ones count as none.
    pub(crate) fn load(&self) -> Result<Option<Credentials>, IdentityError> {
        let bytes = durable::read(&self.credentials()).map_err(|e| self.io(e))?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    /// Replaces the credentials.
    pub(crate) fn save(&self, credentials: &Credentials) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec_pretty(credentials).map_err(|e| self.io(e.into()))?;
        durable::write(&self.credentials(), &bytes, durable::PRIVATE).map_err(|e| self.io(e))
    }

    /// Forgets the credentials.
    pub(crate) fn forget(&self) -> Result<(), IdentityError> {
        durable::remove(&self.credentials()).map_err(|e| self.io(e))
    }

    fn credentials(&self) -> PathBuf {
        self.dir.join("credentials.json")
    }

    fn io(&self, source: io::Error) -> IdentityError {
        IdentityError::Io { path: self.dir.clone(), source }
    }
}

/// Address of the node's VTEP: locally administered, unicast, the same for one uid.
pub(crate) fn vtep_mac(uid: &str) -> MacAddr {
    let digest = Sha256::digest(uid.as_bytes());
    let mut mac = [0; 6];
    mac.iter_mut().zip(digest.iter()).for_each(|(m, d)| *m = *d);
    mac[0] = (mac[0] | 0x02) & 0xfe;
    MacAddr(mac)
}

/// Unix time in seconds.
pub(crate) fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A random UUID (RFC 9562, version 4).
fn random_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, IdentityStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::open(dir.path().join("identity")).unwrap();
        (dir, store)
    }

    fn credentials() -> Credentials {
        let certified = rcgen::generate_simple_self_signed(vec!["a".into()]).unwrap();
        let certificate = certified.cert.pem();
        let key = certified.signing_key.serialize_pem();
        Credentials { ca: certificate.clone(), certificate, key }
    }

    #[test]
    fn uid_stays_until_another_is_given() {
        let (_dir, store) = store();
        let uid = store.uid(None).unwrap();
        assert_eq!(uid.len(), 36);
        assert_eq!(store.uid(None).unwrap(), uid);
        store.save(&credentials()).unwrap();
        assert_eq!(store.uid(Some("fixed")).unwrap(), "fixed");
        assert!(store.load().unwrap().is_none());
        assert_eq!(store.uid(None).unwrap(), "fixed");
    }

    #[test]
    fn renewal_is_due_after_two_thirds() {
        let validity = Validity { from: 700, until: 4000 };
        assert_eq!(validity.renew_at(), 3000);
        // Shorter than the time before it was signed.
        assert_eq!(Validity { from: 700, until: 1006 }.renew_at(), 1004);
        assert!(!validity.is_over(3999));
        assert!(validity.is_over(4000));
    }

    #[test]
    fn credentials_are_private_and_damaged_ones_are_none() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, store) = store();
        store.save(&credentials()).unwrap();
        assert!(store.load().unwrap().unwrap().validity().unwrap().until > unix_now());
        let path = store.credentials();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(path, "{").unwrap();
        assert!(store.load().unwrap().is_none());
    }

    #[test]
    fn vtep_address_is_local_unicast_and_stable() {
        let mac = vtep_mac("uid-1");
        assert_eq!(mac, vtep_mac("uid-1"));
        assert_ne!(mac, vtep_mac("uid-2"));
        assert_eq!(mac.0[0] & 0x03, 0x02);
    }
}
