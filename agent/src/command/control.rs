//! Reaching the hub's control service, for every command that needs it.

use std::path::PathBuf;

use clap::Args;
use tonic::Status;
use tonic::transport::Channel;
use weft_control::{MESSAGE_MAX, connect_unix, operator_text};
use weft_proto::v1::control_client::ControlClient;

/// Where the hub is.
#[derive(Args)]
pub(crate) struct HubSocket {
    /// Control socket of the hub on this machine.
    #[arg(long, env = "WEFT_HUB_SOCKET", default_value = "/run/weft/hub.sock")]
    hub_socket: PathBuf,
}

impl HubSocket {
    pub(crate) async fn client(&self) -> anyhow::Result<ControlClient<Channel>> {
        let channel = connect_unix(&self.hub_socket).await?;
        Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_MAX))
    }
}

/// A failed call as one line.
pub(crate) fn refused(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", operator_text(&status))
}
