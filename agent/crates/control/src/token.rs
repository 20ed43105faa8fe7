//! The join token: one line of text that lets a new node trust the hub, and the hub the node.
//!
//! `weft1.<secret>.<CA certificate>`: the secret and the DER of the hub's CA certificate, both in
//! base64url without padding. The CA inside means that the first connection is already verified.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::tls::pem_of;

const PREFIX: &str = "weft1";

/// Length of the secret in bytes.
pub const SECRET_LEN: usize = 32;

/// What a node needs to join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; SECRET_LEN],
    ca: Vec<u8>,
}

/// A text that is no join token. Never quotes the text: it may hold a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Nothing there.
    #[error("the join token is empty: put the output of `weft token show` there")]
    Empty,
    /// Another beginning.
    #[error(
        "the join token does not begin with `weft1.`: copy the whole line of `weft token show`"
    )]
    Version,
    /// Not three parts.
    #[error("the join token is not complete: copy the whole line of `weft token show`")]
    Parts,
    /// The secret is not 32 bytes in base64url.
    #[error("the secret in the join token is damaged: copy the line of `weft token show` again")]
    Secret,
    /// The CA is no certificate in base64url.
    #[error(
        "the certificate in the join token is damaged: copy the line of `weft token show` again"
    )]
    Certificate,
}

impl JoinToken {
    /// Puts a token together from the secret and the CA certificate's DER.
    ///
    /// # Errors
    /// [`TokenError::Certificate`] if `ca` is no X.509 certificate.
    pub fn try_new(secret: [u8; SECRET_LEN], ca: Vec<u8>) -> Result<Self, TokenError> {
        match x509_parser::parse_x509_certificate(&ca) {
            Ok(([], _)) => Ok(Self { secret, ca }),
            Ok(_) | Err(_) => Err(TokenError::Certificate),
        }
    }

    /// The secret.
    #[must_use]
    pub fn secret(&self) -> &[u8; SECRET_LEN] {
        &self.secret
    }

    /// The secret in base64url: `token` of a `JoinRequest`.
    #[must_use]
    pub fn secret_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }

    /// The CA certificate as DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca
    }

    /// The CA certificate as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        pem_of("CERTIFICATE", &self.ca)
    }
}

/// Reads the secret of a `JoinRequest`.
///
/// # Errors
/// [`TokenError::Secret`] if it is not 32 bytes in base64url.
pub fn parse_secret(text: &str) -> Result<[u8; SECRET_LEN], TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Secret)?;
    bytes.try_into().map_err(|_| TokenError::Secret)
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Reads the text form; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let mut parts = text.split('.');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::Version);
        }
        let (Some(secret), Some(ca), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Parts);
        };
        let ca = URL_SAFE_NO_PAD.decode(ca).map_err(|_| TokenError::Certificate)?;
        Self::try_new(parse_secret(secret)?, ca)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.secret_text(), URL_SAFE_NO_PAD.encode(&self.ca))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let ca = rcgen::generate_simple_self_signed(vec!["ca".into()]).unwrap();
        JoinToken::try_new([7; 32], ca.cert.der().to_vec()).unwrap()
    }

    #[test]
    fn text_form_round_trips() {
        let token = token();
        assert_eq!(format!(" {token}\n").parse(), Ok(token));
    }

    #[test]
    fn damaged_text_is_refused_with_what_is_wrong() {
        let text = token().to_string();
        let parse = |t: &str| t.parse::<JoinToken>().unwrap_err();
        assert_eq!(parse(""), TokenError::Empty);
        assert_eq!(parse(&text.replace("weft1", "weft2")), TokenError::Version);
        assert_eq!(parse("weft1.abc"), TokenError::Parts);
        assert_eq!(parse(&text.replacen("weft1.", "weft1.A", 1)), TokenError::Secret);
        assert_eq!(parse(&text[..text.len() - 40]), TokenError::Certificate);
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let token = token();
        assert!(!format!("{token:?}").contains(&token.secret_text()));
    }
}
