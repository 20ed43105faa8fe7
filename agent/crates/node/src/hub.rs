//! The hub's client: joins, follows the snapshot, reports, renews the certificate.
//!
//! A hub that is away is tried for ever while the last known tables keep serving. What no waiting
//! can cure ends the agent: a wrong token, clocks that differ, a name that belongs to another node.

mod join;
mod session;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use weft_control::{MODULE_MAX, operator_text};
use weft_proto::v1::FetchModuleRequest;
use weft_proto::v1::hub_client::HubClient;

use crate::core::Core;
use crate::identity::IdentityStore;
use crate::keys::KeyStore;
use crate::modules::Modules;
use crate::snapshot_file::SnapshotFile;

/// First pause after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

const WHO: &str = "hub";

/// Why a session with the hub ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Trying again cannot help.
    Final(anyhow::Error),
    /// Trying again may help; one line that says why.
    Retry(String),
    /// Everything is well: come back at once, with the new certificate.
    Renewed,
}

impl End {
    fn io(error: impl Into<anyhow::Error>) -> Self {
        Self::Final(error.into())
    }
}

/// What a session needs.
pub(crate) struct HubTask {
    pub core: Arc<Core>,
    pub link: Arc<HubLink>,
    pub identity: IdentityStore,
    pub keys: Arc<KeyStore>,
    pub snapshot_file: SnapshotFile,
}

impl HubTask {
    /// Serves for ever.
    ///
    /// # Errors
    /// One line for the operator, if no waiting can help.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut pause = BACKOFF_MIN;
        loop {
            let (end, worked) = self.session().await;
            self.link.set(None);
            self.core.update(|s| s.hub_connected = false);
            if worked {
                pause = BACKOFF_MIN;
            }
            match end {
                End::Final(error) => return Err(error),
                End::Renewed => continue,
                End::Retry(line) => self.core.set_problems(WHO, vec![line]),
            }
            tokio::select! {
                () = sleep(jitter(pause)) => {}
                // As when the node's network is back: most likely the hub is as well.
                () = self.network_changed() => {}
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }
}

impl HubTask {
    /// Returns when the node has got other addresses.
    async fn network_changed(&self) {
        let mut changes = self.core.changes();
        let before = self.core.read(|s| s.host_addresses.clone());
        while changes.changed().await.is_ok() {
            if self.core.read(|s| s.host_addresses != before) {
                return;
            }
        }
    }
}

/// Half to all of `pause`, so that a thousand agents do not come back at once.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// The connection to the hub while there is one, for those who have a question.
#[derive(Debug, Default)]
pub(crate) struct HubLink(Mutex<Option<HubClient<Channel>>>);

/// A module that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the hub is not connected")]
    Away,
    #[error("{}", operator_text(.0))]
    Call(#[from] tonic::Status),
    #[error("the module has more than {MODULE_MAX} bytes")]
    TooLarge,
    #[error("the hub sent other bytes than the digest says")]
    OtherDigest,
    #[error("cannot keep the module: {0}")]
    Io(#[from] std::io::Error),
}

impl HubLink {
    fn set(&self, client: Option<HubClient<Channel>>) {
        *self.0.lock() = client;
    }

    /// Fetches a module and keeps it.
    ///
    /// # Errors
    /// [`FetchError`]; trying again later may help.
    pub(crate) async fn fetch_module(
        &self,
        digest: &[u8],
        modules: &Modules,
    ) -> Result<Vec<u8>, FetchError> {
        let mut client = self.0.lock().clone().ok_or(FetchError::Away)?;
        let request = FetchModuleRequest { digest: digest.to_vec() };
        let mut parts = client.fetch_module(request).await?.into_inner();
        let mut module = Vec::new();
        while let Some(part) = parts.next().await {
            module.extend_from_slice(&part?.bytes);
            if module.len() > MODULE_MAX {
                return Err(FetchError::TooLarge);
            }
        }
        if modules.put(digest, &module)? { Ok(module) } else { Err(FetchError::OtherDigest) }
    }
}

#[cfg(test)]
mod tests;
