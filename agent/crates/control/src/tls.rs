//! TLS settings of the hub's one TCP port.

use std::error::Error;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Why the other side's certificate was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It is good, but not by the clock of this machine.
    Clock,
    /// It is of somebody else, or TLS failed otherwise.
    Other,
}

/// What TLS says in the chain of `error`; `None` if TLS is not what failed.
#[must_use]
pub fn distrust(error: &(dyn Error + 'static)) -> Option<Distrust> {
    let mut next = Some(error);
    while let Some(error) = next {
        // TLS tells its errors as I/O errors of this kind, with its own inside.
        let io = error.downcast_ref::<io::Error>();
        if let Some(io) = io.filter(|e| e.kind() == io::ErrorKind::InvalidData) {
            let tls = io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            return Some(if tls.is_some_and(is_clock) { Distrust::Clock } else { Distrust::Other });
        }
        next = error.source();
    }
    None
}

fn is_clock(error: &rustls::Error) -> bool {
    use rustls::CertificateError as E;
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            E::NotValidYet | E::NotValidYetContext { .. } | E::Expired | E::ExpiredContext { .. }
        )
    )
}

/// Name in the hub's certificate, whatever address it is reached by: trust comes from the CA.
pub const HUB_SERVER_NAME: &str = "hub.weft.internal";

/// A certificate chain and its private key, both PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS #8.
    pub key: String,
}

impl TlsIdentity {
    pub(crate) fn to_tonic(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }
}

/// The server's side: presents `identity`, verifies client certificates of `ca` (PEM), and takes
/// clients without one; what those may call is for the services to say.
#[must_use]
pub fn hub_tls(ca: &str, identity: &TlsIdentity) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(identity.to_tonic())
        .client_ca_root(Certificate::from_pem(ca))
        .client_auth_optional(true)
        .timeout(std::time::Duration::from_secs(10))
}

/// DER as PEM under `label` (`CERTIFICATE`, `PRIVATE KEY`), lines of 64 characters.
#[must_use]
pub fn pem_of(label: &str, der: &[u8]) -> String {
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
