//! How a node gets its certificate.

use std::io;
use std::path::Path;

use tonic::Code;
use weft_control::{ConnectError, Distrust, JoinToken, connect_hub, distrust, operator_text};
use weft_proto::v1::JoinRequest;
use weft_proto::v1::hub_client::HubClient;

use super::{End, HubTask};
use crate::config::TokenSource;
use crate::identity::{CertificateRequest, Credentials, unix_now};

/// What the hub admits a node for.
pub(super) struct Ticket {
    secret: String,
    /// The authority that signs the hub's certificate, PEM.
    ca: String,
}

impl From<JoinToken> for Ticket {
    fn from(token: JoinToken) -> Self {
        Self { secret: token.secret_text(), ca: token.ca_pem() }
    }
}

impl HubTask {
    /// The certificate on disk, or a new one for the token.
    pub(super) async fn credentials(&self) -> Result<Credentials, End> {
        let token = self.token()?;
        if let Some(kept) = self.identity.load().map_err(End::io)?
            && let Ok(validity) = kept.validity()
        {
            let same_hub = token.as_ref().is_none_or(|t| t.ca.trim() == kept.ca.trim());
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

    /// What admits the node; `None` if nothing was given. A file that is not there is fine for a node that
    /// has joined.
    pub(super) fn token(&self) -> Result<Option<Ticket>, End> {
        match &self.core.config.token {
            TokenSource::None => Ok(None),
            TokenSource::Text(text) => join_token(text).map(Some),
            TokenSource::File(path) => {
                self.read("token", path)?.as_deref().map(join_token).transpose()
            }
            TokenSource::ServiceAccount { token, ca } => {
                let secret = self.read("token", token)?.map(|token| token.trim().to_owned());
                Ok(secret.zip(self.read("CA", ca)?).map(|(secret, ca)| Ticket { secret, ca }))
            }
        }
    }

    fn read(&self, what: &str, path: &Path) -> Result<Option<String>, End> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.has_joined() => Ok(None),
            Err(e) => Err(End::Final(anyhow::anyhow!(
                "cannot read the {what} file {}: {e}",
                path.display()
            ))),
        }
    }

    fn has_joined(&self) -> bool {
        matches!(self.identity.load(), Ok(Some(_)))
    }

    async fn join(&self, ticket: &Ticket) -> Result<Credentials, End> {
        let config = &self.core.config;
        let hub = config.hub.read().map_err(|e| End::Retry(e.to_string()))?;
        // Files that are mounted are written anew, and the cluster may not have said everything yet.
        let mounted = matches!(config.token, TokenSource::ServiceAccount { .. });
        let connected = connect_hub(&hub, &ticket.ca, None).await;
        let channel = connected.map_err(|error| match mounted {
            true => End::Retry(error.to_string()),
            false => connect_end(error),
        })?;
        let request = CertificateRequest::new(&config.node_name).map_err(End::io)?;
        let asked = JoinRequest {
            token: ticket.secret.clone(),
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
                | Code::InvalidArgument
                    if !mounted =>
                {
                    End::Final(anyhow::anyhow!("the hub does not admit this node: {text}"))
                }
                _ => End::Retry(format!("joining at {hub} failed: {text}")),
            }
        })?;
        let answer = answer.into_inner();
        let credentials =
            Credentials { certificate: answer.certificate, key: request.key, ca: answer.ca };
        credentials.validity().map_err(End::io)?;
        self.identity.save(&credentials).map_err(End::io)?;
        // What another hub published means nothing here.
        self.core.update(|s| s.resume.clear());
        tracing::info!(hub, subnets = ?answer.subnets, "joined");
        Ok(credentials)
    }
}

fn join_token(text: &str) -> Result<Ticket, End> {
    text.parse::<JoinToken>().map(Ticket::from).map_err(End::io)
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
