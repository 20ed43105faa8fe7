//! How a node gets its certificate.

use std::io;

use tonic::Code;
use weft_control::{ConnectError, Distrust, JoinToken, connect_hub, distrust, operator_text};
use weft_proto::v1::JoinRequest;
use weft_proto::v1::hub_client::HubClient;

use super::{End, HubTask};
use crate::config::TokenSource;
use crate::identity::{CertificateRequest, Credentials, unix_now};

impl HubTask {
    /// The certificate on disk, or a new one for the token.
    pub(super) async fn credentials(&self) -> Result<Credentials, End> {
        let token = self.token()?;
        if let Some(kept) = self.identity.load().map_err(End::io)?
            && let Ok(validity) = kept.validity()
        {
            let same_hub = token.as_ref().is_none_or(|t| t.ca_pem().trim() == kept.ca.trim());
            if same_hub && !validity.is_over(unix_now()) {
                return Ok(kept);
            }
            if token.is_none() {
                return Err(End::Final(anyhow::anyhow!(
                    "the certificate of this node has expired and there is no token to join again: give one with --token-file, `weft token show` on the hub prints it"
                )));
            }
        }
        let Some(token) = token else {
            return Err(End::Final(anyhow::anyhow!(
                "this node has not joined yet and there is no token: give one with --token-file, `weft token show` on the hub prints it"
            )));
        };
        self.join(&token).await
    }

    /// The token; `None` if none was given. A file that is not there is fine for a node that has
    /// joined.
    pub(super) fn token(&self) -> Result<Option<JoinToken>, End> {
        let text = match &self.core.config.token {
            TokenSource::None => return Ok(None),
            TokenSource::Text(text) => text.clone(),
            TokenSource::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.has_joined() => {
                    return Ok(None);
                }
                Err(e) => {
                    return Err(End::Final(anyhow::anyhow!(
                        "cannot read the token file {}: {e}",
                        path.display()
                    )));
                }
            },
        };
        text.parse().map(Some).map_err(End::io)
    }

    fn has_joined(&self) -> bool {
        matches!(self.identity.load(), Ok(Some(_)))
    }

    async fn join(&self, token: &JoinToken) -> Result<Credentials, End> {
        let config = &self.core.config;
        let channel = connect_hub(&config.hub, &token.ca_pem(), None).await.map_err(connect_end)?;
        let request = CertificateRequest::new(&config.node_name).map_err(End::io)?;
        let asked = JoinRequest {
            token: token.secret_text(),
            node: config.node_name.to_string(),
            uid: self.core.uid.clone(),
            certificate_request: request.request,
            unix_time: unix_now(),
        };
        let answer = HubClient::new(channel).join(asked).await.map_err(|status| {
            let text = operator_text(&status);
            match status.code() {
                Code::Unauthenticated
                | Code::PermissionDenied
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::InvalidArgument => {
                    End::Final(anyhow::anyhow!("the hub does not admit this node: {text}"))
                }
                _ => End::Retry(format!("joining at {} failed: {text}", config.hub)),
            }
        })?;
        let answer = answer.into_inner();
        let credentials =
            Credentials { certificate: answer.certificate, key: request.key, ca: answer.ca };
        credentials.validity().map_err(End::io)?;
        self.identity.save(&credentials).map_err(End::io)?;
        // What another hub published means nothing here.
        self.core.update(|s| s.resume.clear());
        tracing::info!(hub = config.hub, subnets = ?answer.subnets, "joined");
        Ok(credentials)
    }
}

/// What no waiting cures: a hub that is not the one of the token, and clocks that differ by more than
/// the hub's certificate allows for. Smaller differences are told by the hub.
pub(super) fn connect_end(error: ConnectError) -> End {
    let ConnectError::Hub { addr, source } = &error else {
        return match error {
            ConnectError::Address(_) | ConnectError::Tls(_) => {
                End::Final(anyhow::anyhow!("{error}"))
            }
            ConnectError::Hub { .. } | ConnectError::Unix { .. } => End::Retry(error.to_string()),
        };
    };
    match distrust(source) {
        Some(Distrust::Clock) => End::Final(anyhow::anyhow!(
            "the certificate of the hub at {addr} is not valid by the clock of this node: set the clocks of both (NTP)"
        )),
        Some(Distrust::Other) => End::Final(anyhow::anyhow!(
            "the hub at {addr} is not the one of the join token: copy the line that `weft token show` prints there"
        )),
        None => End::Retry(error.to_string()),
    }
}
