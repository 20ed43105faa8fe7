//! Who is at the other end of a TLS connection.
//!
//! The certificate's common name is the name, its organisation the role. Both were set by the hub
//! when it signed, never by the one who asked.

use tonic::Request;
use weft_model::NodeName;
use x509_parser::prelude::X509Certificate;

/// A certificate is valid from this long before it is signed, for clocks that are behind.
pub const BACKDATE: std::time::Duration = std::time::Duration::from_secs(300);
/// Organisation in the certificate of a node.
pub const ORGANISATION_NODE: &str = "weft:node";
/// Organisation in the certificate of an operator.
pub const ORGANISATION_ADMIN: &str = "weft:admin";

/// What a certificate allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent of this node.
    Node(NodeName),
    /// An operator, by name.
    Admin(String),
}

/// A verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who.
    pub role: Role,
    /// When the certificate expires, in Unix seconds. TLS checks it once, when the connection is
    /// made; who keeps connections for long has to look again.
    pub expires_unix: i64,
    /// Serial number: tells one certificate of a name from another.
    pub serial: Vec<u8>,
}

/// A certificate that says nothing Weft understands.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not X.509.
    #[error("the client certificate cannot be read")]
    NotACertificate,
    /// No common name.
    #[error("the client certificate has no common name")]
    NoName,
    /// Not `weft:node` or `weft:admin`.
    #[error("the client certificate is neither of organisation `weft:node` nor of `weft:admin`")]
    UnknownOrganisation,
    /// A node's certificate whose common name is no node name.
    #[error(transparent)]
    NodeName(#[from] weft_model::IdError),
}

/// The identity behind a request; `None` if the client showed no certificate, or came over a unix
/// socket.
///
/// # Errors
/// [`IdentityError`] if there is a certificate that says nothing Weft understands.
pub fn peer_identity<T>(request: &Request<T>) -> Result<Option<PeerIdentity>, IdentityError> {
    let Some(certificates) = request.peer_certs() else { return Ok(None) };
    let Some(certificate) = certificates.first() else { return Ok(None) };
    PeerIdentity::from_der(certificate.as_ref()).map(Some)
}

impl PeerIdentity {
    /// Reads the identity from a certificate that TLS has verified.
    ///
    /// # Errors
    /// [`IdentityError`] says what is missing.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| IdentityError::NotACertificate)?;
        let name = subject(&certificate, Part::Name).ok_or(IdentityError::NoName)?;
        let role = match subject(&certificate, Part::Organisation).as_deref() {
            Some(ORGANISATION_NODE) => Role::Node(NodeName::try_new(name)?),
            Some(ORGANISATION_ADMIN) => Role::Admin(name),
            _ => return Err(IdentityError::UnknownOrganisation),
        };
        Ok(Self {
            role,
            expires_unix: certificate.validity().not_after.timestamp(),
            serial: certificate.raw_serial().to_vec(),
        })
    }
}

enum Part {
    Name,
    Organisation,
}

fn subject(certificate: &X509Certificate<'_>, part: Part) -> Option<String> {
    let subject = certificate.subject();
    let first = match part {
        Part::Name => subject.iter_common_name().next(),
        Part::Organisation => subject.iter_organization().next(),
    };
    first.and_then(|a| a.as_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn certificate(name: Option<&str>, organisation: Option<&str>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        if let Some(organisation) = organisation {
            params.distinguished_name.push(DnType::OrganizationName, organisation);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn organisation_decides_the_role() {
        let role = |o| PeerIdentity::from_der(&certificate(Some("a"), Some(o))).unwrap().role;
        assert_eq!(role("weft:node"), Role::Node("a".parse().unwrap()));
        assert_eq!(role("weft:admin"), Role::Admin("a".into()));
    }

    #[test]
    fn certificate_without_name_or_role_is_refused() {
        let read = |n, o| PeerIdentity::from_der(&certificate(n, o)).unwrap_err();
        assert_eq!(read(None, Some("weft:node")), IdentityError::NoName);
        assert_eq!(read(Some("a"), None), IdentityError::UnknownOrganisation);
        assert_eq!(read(Some("a"), Some("other")), IdentityError::UnknownOrganisation);
        assert!(matches!(read(Some("A b"), Some("weft:node")), IdentityError::NodeName(_)));
        assert_eq!(PeerIdentity::from_der(b"x").unwrap_err(), IdentityError::NotACertificate);
    }
}
