//! One connection to the hub, from the certificate to the end of the stream.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use weft_control::{
    ConnectError, FromProto, MESSAGE_MAX, Update, UpdateBody, connect_hub, operator_text,
};
use weft_proto::v1::hub_client::HubClient;
use weft_proto::v1::{self, RenewRequest, WatchRequest};

use super::join::connect_end;
use super::{End, HubTask, WHO};
use crate::explain;
use crate::identity::{CertificateRequest, Credentials, Validity, unix_now};

/// Changes that come together are reported together.
const REPORT_DEBOUNCE: Duration = Duration::from_millis(50);
/// How soon a report or a renewal that failed is tried again on a connection that lives.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How often the snapshot is written at most.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);

impl HubTask {
    /// Returns why it ended, and whether the hub had spoken.
    pub(super) async fn session(&self) -> (End, bool) {
        let mut worked = false;
        let end = match self.serve(&mut worked).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        (end, worked)
    }

    async fn serve(&self, worked: &mut bool) -> Result<std::convert::Infallible, End> {
        let credentials = self.credentials().await?;
        let validity = credentials.validity().map_err(End::io)?;
        self.core.update(|s| s.certificate_expires = validity.until);
        if validity.from > unix_now() + 60 {
            return Err(End::Retry(
                "the certificate of this node is not valid yet: the clock of this node is behind, set it (NTP)".to_owned(),
            ));
        }
        let config = &self.core.config;
        let tls = credentials.tls();
        let hub = config.hub.read().map_err(|e| End::Retry(e.to_string()))?;
        let channel = connect_hub(&hub, &credentials.ca, Some(&tls)).await;
        let channel = channel.map_err(|e| match e {
            // The certificate was good once: what fails is out there.
            ConnectError::Hub { .. } => End::Retry(e.to_string()),
            other => connect_end(other),
        })?;
        let mut client = HubClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let resume = self.core.read(|s| s.resume.clone());
        let stream = client.watch(WatchRequest { resume }).await.map_err(|s| self.call_end(&s))?;
        self.link.set(Some(client.clone()));
        self.core.update(|s| s.hub_connected = true);
        self.core.set_problems(WHO, Vec::new());
        tokio::select! {
            end = self.follow(stream.into_inner(), worked) => Err(end),
            end = self.report(client.clone()) => Err(end),
            never = explain::serve(self.core.clone(), client.clone()) => match never {},
            end = self.renew(client, &credentials, validity) => Err(end),
            end = self.moved() => Err(end),
            never = self.persist() => match never {},
        }
    }

    async fn follow(&self, mut updates: Streaming<v1::Update>, worked: &mut bool) -> End {
        loop {
            let update = match updates.next().await {
                Some(Ok(update)) => update,
                Some(Err(status)) => return self.call_end(&status),
                None => return End::Retry("the hub ended the stream".to_owned()),
            };
            let update = match Update::from_proto(update) {
                Ok(update) => update,
                Err(error) => {
                    self.core.update(|s| s.resume.clear());
                    return End::Retry(format!("the hub sent what cannot be understood: {error}"));
                }
            };
            *worked = true;
            if let Err(end) = self.take(update) {
                return end;
            }
        }
    }

    fn take(&self, update: Update) -> Result<(), End> {
        let rotated = self.keys.handle_epoch(update.key_epoch).map_err(End::io)?;
        let keys = rotated.then(|| self.keys.keys()).transpose().map_err(End::io)?;
        if rotated {
            tracing::info!(
                epoch = update.key_epoch,
                "new WireGuard key; the old one stays for the overlap"
            );
        }
        self.core.update(|state| {
            if let Some(keys) = keys {
                state.keys = keys;
            }
            match update.body {
                UpdateBody::Snapshot(snapshot) => state.snapshot = Some(snapshot),
                UpdateBody::Delta(delta) => {
                    let fits = state.snapshot.as_mut().map(|s| s.apply(delta));
                    if !matches!(fits, Some(Ok(()))) {
                        state.resume.clear();
                        return Err(End::Retry(
                            "a delta of the hub does not fit: asking for everything".to_owned(),
                        ));
                    }
                }
            }
            state.resume = update.resume;
            state.updated = unix_now();
            Ok(())
        })
    }

    /// Keeps the snapshot on disk.
    async fn persist(&self) -> std::convert::Infallible {
        let mut changes = self.core.changes();
        let mut saved = Vec::new();
        loop {
            let (snapshot, resume) = self.core.read(|s| (s.snapshot.clone(), s.resume.clone()));
            if let Some(snapshot) = snapshot.filter(|_| resume != saved) {
                let file = self.snapshot_file.clone();
                let token = resume.clone();
                let write = tokio::task::spawn_blocking(move || file.save(&snapshot, &token));
                match write.await {
                    Ok(Ok(())) => saved = resume,
                    Ok(Err(error)) => tracing::warn!(%error, "snapshot not kept on disk"),
                    Err(error) => tracing::warn!(%error, "snapshot not kept on disk"),
                }
            }
            sleep(SAVE_INTERVAL).await;
            // The core outlives this task.
            let _ = changes.changed().await;
        }
    }

    async fn report(&self, mut client: HubClient<Channel>) -> End {
        let mut changes = self.core.changes();
        let mut applied = self.core.applied();
        let mut last = None;
        loop {
            changes.borrow_and_update();
            applied.borrow_and_update();
            if let Some(report) = self.core.report()
                && last.as_ref() != Some(&report)
            {
                match client.report(report.clone()).await {
                    Ok(_) => {
                        self.core.set_problems("report", Vec::new());
                        last = Some(report);
                    }
                    Err(status) if is_gone(&status) => return self.call_end(&status),
                    Err(status) => {
                        let text = operator_text(&status);
                        self.core.set_problems(
                            "report",
                            vec![format!("the hub refused what this node says of itself: {text}")],
                        );
                        sleep(RETRY_INTERVAL).await;
                        continue;
                    }
                }
            }
            either(&mut changes, &mut applied).await;
            sleep(REPORT_DEBOUNCE).await;
        }
    }

    /// Ends when the node's address has changed: the connection is bound to the old one, and would
    /// be found dead only seconds after.
    async fn moved(&self) -> End {
        let mut changes = self.core.changes();
        let address = || self.core.read(|s| s.underlay.as_ref().map(|u| u.address));
        let mut before = address();
        loop {
            if changes.changed().await.is_err() {
                return End::Retry("the agent is ending".to_owned());
            }
            match (before, address()) {
                (Some(old), Some(new)) if old != new => {
                    return End::Retry(format!("this node's address changed from {old} to {new}"));
                }
                (_, now) => before = now.or(before),
            }
        }
    }

    async fn renew(
        &self,
        mut client: HubClient<Channel>,
        credentials: &Credentials,
        validity: Validity,
    ) -> End {
        let wait = u64::try_from(validity.renew_at() - unix_now()).unwrap_or(0);
        sleep_until(Instant::now() + Duration::from_secs(wait)).await;
        loop {
            match self.renew_once(&mut client, credentials).await {
                Ok(()) => return End::Renewed,
                Err(End::Retry(line)) => tracing::warn!("certificate not renewed: {line}"),
                Err(end) => return end,
            }
            if validity.is_over(unix_now()) {
                return End::Retry("the certificate of this node has expired".to_owned());
            }
            sleep(super::jitter(RETRY_INTERVAL)).await;
        }
    }

    async fn renew_once(
        &self,
        client: &mut HubClient<Channel>,
        credentials: &Credentials,
    ) -> Result<(), End> {
        let request = CertificateRequest::new(&self.core.config.node_name).map_err(End::io)?;
        let asked = RenewRequest { certificate_request: request.request };
        let answer = client.renew(asked).await.map_err(|s| self.call_end(&s))?;
        let fresh = Credentials {
            certificate: answer.into_inner().certificate,
            key: request.key,
            ca: credentials.ca.clone(),
        };
        fresh.validity().map_err(|e| End::Retry(e.to_string()))?;
        self.identity.save(&fresh).map_err(End::io)
    }

    /// A hub that does not know this certificate may still admit the node anew.
    fn call_end(&self, status: &Status) -> End {
        let text = operator_text(status);
        match status.code() {
            Code::Unauthenticated => match self.identity.forget() {
                Ok(()) => End::Retry(format!("the hub does not accept the certificate: {text}")),
                Err(error) => End::io(error),
            },
            // A hub that lost its nodes takes the token; one that removed this node says so.
            Code::PermissionDenied if matches!(self.token(), Ok(Some(_))) => {
                match self.identity.forget() {
                    Ok(()) => End::Retry(format!("the hub does not admit this node: {text}")),
                    Err(error) => End::io(error),
                }
            }
            Code::PermissionDenied => {
                End::Final(anyhow::anyhow!("the hub does not admit this node: {text}"))
            }
            _ => End::Retry(format!("the hub at {} does not answer: {text}", self.core.config.hub)),
        }
    }
}

/// The connection or the certificate is no good any more; anything else concerns one call only.
fn is_gone(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Unauthenticated
            | Code::PermissionDenied
    )
}

async fn either<A, B>(a: &mut watch::Receiver<A>, b: &mut watch::Receiver<B>) {
    tokio::select! {
        _ = a.changed() => {}
        _ = b.changed() => {}
    }
}
