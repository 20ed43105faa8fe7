//! The hub's own certificate authority and the join token. Both live in the state directory, mode
//! 0600, and are made when they are first needed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use weft_control::identity::{BACKDATE, ORGANISATION_ADMIN, ORGANISATION_NODE};
use weft_control::tls::HUB_SERVER_NAME;
use weft_control::token::{SECRET_LEN, parse_secret};
use weft_control::{JoinToken, TlsIdentity, TokenError};
use weft_model::NodeName;
use x509_parser::pem::Pem;

/// A node whose clock differs by more cannot join: its certificate would soon seem wrong to it.
pub(crate) const SKEW_MAX: Duration = Duration::from_secs(300);
/// The CA itself is valid from this long before it was made.
const CA_BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// Longest common name of a certificate. Source: RFC 5280, ub-common-name.
const ADMIN_NAME_MAX: usize = 64;
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Which joining of a node a certificate belongs to: the first bytes of its serial number. A
/// removed node's certificates stop working at once, even if the name joins again.
pub(crate) type Incarnation = [u8; 8];

/// Why the CA or the token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file system said no.
    #[error("{} cannot be read or written ({source}): may this user write there?", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what was written.
    #[error("{} is damaged: restore it, or remove it to start anew (every node has to join again)", .0.display())]
    Damaged(PathBuf),
    /// No hub has been here.
    #[error("{} is no state directory of a hub: give the one that `weft hub` runs with as --state-dir", .0.display())]
    NoHub(PathBuf),
    /// Not for a certificate.
    #[error("`{0}` is no name of an operator: use 1 to 64 letters, digits, `-`, `_`, `.` and `@`")]
    AdminName(String),
    /// rcgen failed.
    #[error("a certificate cannot be made: {0}")]
    Crypto(#[from] rcgen::Error),
    /// The CA does not fit a token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A certificate request that is not signed.
#[derive(Debug, thiserror::Error)]
#[error("the certificate request cannot be used ({0}): PEM of a PKCS #10 request is needed")]
pub(crate) struct RequestError(#[source] rcgen::Error);

/// Who a certificate is for.
pub(crate) enum Subject<'a> {
    Node(&'a NodeName, &'a Incarnation),
    Admin(&'a str),
}

/// The open authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    token: JoinToken,
}

impl Ca {
    /// Reads CA and token from `state`, or makes them.
    pub(crate) fn open(state: &Path, now: OffsetDateTime) -> Result<Self, CaError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| CaError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(io(state))?;
        let path = state.join("ca.pem");
        let text = read_or_make(&path, || new_authority(now))?;
        let (der, key) = parse_authority(&text).ok_or_else(|| CaError::Damaged(path.clone()))?;
        let pem = weft_control::pem_of("CERTIFICATE", &der);
        let issuer =
            Issuer::from_ca_cert_pem(&pem, key).map_err(|_| CaError::Damaged(path.clone()))?;
        let path = state.join("token");
        let new_secret = || {
            let secret = JoinToken::try_new(rand::random(), der.clone())?;
            Ok(secret.secret_text())
        };
        let secret = read_or_make(&path, new_secret)?;
        let secret = parse_secret(secret.trim()).map_err(|_| CaError::Damaged(path.clone()))?;
        let token = JoinToken::try_new(secret, der)?;
        Ok(Self { issuer, pem, token })
    }

    /// The CA certificate as PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether `text` is the secret. Takes the same time for every wrong one.
    pub(crate) fn admits(&self, text: &str) -> bool {
        let given = parse_secret(text).unwrap_or([0; SECRET_LEN]);
        bool::from(given.ct_eq(self.token.secret())) && parse_secret(text).is_ok()
    }

    /// The hub's own certificate: valid as long as the CA, made anew at each start.
    pub(crate) fn server_identity(&self, now: OffsetDateTime) -> Result<TlsIdentity, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![HUB_SERVER_NAME.to_owned()])?;
        params.distinguished_name = name(HUB_SERVER_NAME, "weft:hub");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // As old as a new CA: a node whose clock is behind gets as far as `Join`, which tells it.
        let certificate = self.finish(params, &key, now - CA_BACKDATE, CA_VALIDITY)?;
        Ok(TlsIdentity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Signs a request. Only the public key is taken from it: the name and what it may do are the
    /// hub's to say.
    pub(crate) fn sign(
        &self,
        request: &str,
        subject: &Subject<'_>,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<String, RequestError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(RequestError)?;
        let params = client_params(subject);
        let certificate = self.finish(params, &request.public_key, now, ttl);
        certificate.map(|c| c.pem()).map_err(RequestError)
    }

    /// A key and a certificate for an operator.
    pub(crate) fn admin_identity(
        &self,
        operator: &str,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<TlsIdentity, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = client_params(&Subject::Admin(operator));
        let certificate = self.finish(params, &key, now, ttl)?;
        Ok(TlsIdentity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    fn finish(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<Certificate, rcgen::Error> {
        params.not_before = now - BACKDATE;
        params.not_after = now + ttl;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer)
    }
}

/// The join token of the hub whose state is in `state`, which is made if there is none yet. Does
/// not need the hub to run.
///
/// # Errors
/// [`CaError`] if the directory cannot be used.
pub fn show_token(state: &Path) -> Result<JoinToken, CaError> {
    Ok(Ca::open(state, OffsetDateTime::now_utc())?.token)
}

/// A certificate and key for the operator `name`, with the CA certificate (PEM): what the Control
/// service asks for on the hub's TCP port.
///
/// # Errors
/// [`CaError`] if the directory cannot be used.
pub fn issue_admin(
    state: &Path,
    name: &str,
    ttl: Duration,
) -> Result<(TlsIdentity, String), CaError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > ADMIN_NAME_MAX || !name.chars().all(legal) {
        return Err(CaError::AdminName(name.to_owned()));
    }
    // A certificate of an authority made here and now would open nothing.
    if !state.join("ca.pem").exists() {
        return Err(CaError::NoHub(state.to_owned()));
    }
    let now = OffsetDateTime::now_utc();
    let ca = Ca::open(state, now)?;
    Ok((ca.admin_identity(name, now, ttl)?, ca.pem.clone()))
}

/// A new incarnation. Its first bit pattern keeps the serial positive and of full length.
pub(crate) fn new_incarnation() -> Incarnation {
    let mut bytes: Incarnation = rand::random();
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    bytes
}

fn client_params(subject: &Subject<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let incarnation = match subject {
        Subject::Node(node, incarnation) => {
            params.distinguished_name = name(node.as_str(), ORGANISATION_NODE);
            **incarnation
        }
        Subject::Admin(operator) => {
            params.distinguished_name = name(operator, ORGANISATION_ADMIN);
            new_incarnation()
        }
    };
    let serial: [u8; 8] = rand::random();
    params.serial_number = Some(SerialNumber::from([incarnation, serial].concat()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn name(common: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationName, organisation);
    name
}

fn new_authority(now: OffsetDateTime) -> Result<String, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name("weft hub CA", "weft:ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CA_BACKDATE;
    params.not_after = now + 2 * CA_VALIDITY;
    Ok(params.self_signed(&key)?.pem() + &key.serialize_pem())
}

fn parse_authority(text: &str) -> Option<(Vec<u8>, KeyPair)> {
    let mut blocks = Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok);
    let certificate = blocks.find(|b| b.label == "CERTIFICATE")?;
    let start = text.find("-----BEGIN PRIVATE KEY-----")?;
    let key = KeyPair::from_pem(text.get(start..)?).ok()?;
    x509_parser::parse_x509_certificate(&certificate.contents).ok()?;
    Some((certificate.contents, key))
}

/// The text of `path`; if there is none, makes it, whole or not at all, even if two do so at once.
fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<String, CaError>,
) -> Result<String, CaError> {
    let failed = |source| CaError::Io { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        found => return found.map_err(failed),
    }
    let unready = path.with_extension(format!("{}.new", std::process::id()));
    let text = make()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unready)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    // A link, unlike a rename, leaves a file that another process has made in the meantime.
    let linked = fs::hard_link(&unready, path);
    fs::remove_file(&unready).map_err(failed)?;
    match linked {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        Err(_) | Ok(()) => {}
    }
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use weft_control::{PeerIdentity, Role};

    use super::*;

    fn request(common: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name = name(common, ORGANISATION_ADMIN);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn ca_and_token_stay_and_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = show_token(dir.path()).unwrap();
        assert_eq!(show_token(dir.path()).unwrap(), first);
        for file in ["ca.pem", "token"] {
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn name_and_role_come_from_the_hub_and_never_from_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let ca = Ca::open(dir.path(), now).unwrap();
        let node = "node-a".parse().unwrap();
        let incarnation = new_incarnation();
        let subject = Subject::Node(&node, &incarnation);
        let ttl = Duration::from_secs(60);
        let pem = ca.sign(&request("root"), &subject, now, ttl).unwrap();
        let der = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap().contents;
        let identity = PeerIdentity::from_der(&der).unwrap();
        assert_eq!(identity.role, Role::Node(node));
        assert_eq!(identity.expires_unix, now.unix_timestamp() + 60);
        assert!(identity.serial.starts_with(&incarnation));
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        let from = certificate.validity().not_before.timestamp();
        assert_eq!(from, now.unix_timestamp() - 300);
        assert!(certificate.subject_alternative_name().unwrap().is_none());
    }

    #[test]
    fn only_the_secret_admits() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), OffsetDateTime::now_utc()).unwrap();
        assert!(ca.admits(&ca.token.secret_text()));
        assert!(!ca.admits(""));
        assert!(!ca.admits(
            &JoinToken::try_new([0; 32], ca.token.ca_der().to_vec()).unwrap().secret_text()
        ));
    }

    #[test]
    fn operator_needs_a_good_name_and_a_hub_that_has_been_there() {
        let dir = tempfile::tempdir().unwrap();
        let issue = |name: &str| issue_admin(dir.path(), name, Duration::from_secs(60));
        assert!(matches!(issue("ann"), Err(CaError::NoHub(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        show_token(dir.path()).unwrap();
        assert!(issue("ann@example.org").is_ok());
        for name in ["", "a b", "a\nb", &"a".repeat(65)] {
            assert!(matches!(issue(name), Err(CaError::AdminName(_))), "{name:?}");
        }
    }

    #[test]
    fn damaged_state_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), "x").unwrap();
        assert!(matches!(show_token(dir.path()), Err(CaError::Damaged(_))));
    }
}
