//! Reaching the hub's control service, for every command that needs it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tonic::Status;
use tonic::transport::Channel;
use weft_control::{
    ConnectError, MESSAGE_MAX, TlsIdentity, connect_hub, connect_unix, operator_text,
};
use weft_proto::v1::control_client::ControlClient;

/// Files of an operator's certificate, as `weft token admin` writes them.
pub(crate) const CA: &str = "ca.pem";
pub(crate) const CERTIFICATE: &str = "admin.pem";
pub(crate) const KEY: &str = "admin.key";

/// Where the hub is.
#[derive(Args)]
pub(crate) struct HubArguments {
    /// Control socket of the hub on this machine.
    #[arg(long, env = "WEFT_HUB_SOCKET", default_value = "/run/weft/hub.sock")]
    hub_socket: PathBuf,
    /// `host:port` of a hub on another machine, instead of the socket; needs `--cert-dir`.
    #[arg(long, env = "WEFT_HUB_ADDRESS", requires = "cert_dir")]
    hub: Option<String>,
    /// Directory of the operator's certificate, written by `weft token admin`.
    #[arg(long, env = "WEFT_CERT_DIR", requires = "hub")]
    cert_dir: Option<PathBuf>,
}

impl HubArguments {
    pub(crate) async fn client(&self) -> anyhow::Result<ControlClient<Channel>> {
        let channel = match (&self.hub, &self.cert_dir) {
            (Some(hub), Some(certificates)) => remote(hub, certificates).await?,
            _ => connect_unix(&self.hub_socket).await.map_err(whole)?,
        };
        Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_MAX))
    }
}

async fn remote(hub: &str, certificates: &Path) -> anyhow::Result<Channel> {
    let read = |name: &str| {
        let path = certificates.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: `weft token admin`, run beside the hub, writes it",
                path.display()
            )
        })
    };
    let identity = TlsIdentity { certificate: read(CERTIFICATE)?, key: read(KEY)? };
    connect_hub(hub, &read(CA)?, Some(&identity)).await.map_err(whole)
}

/// A failed connection as one line: it tells its innermost cause itself.
pub(crate) fn whole(error: ConnectError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// A failed call as one line.
pub(crate) fn refused(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", operator_text(&status))
}
