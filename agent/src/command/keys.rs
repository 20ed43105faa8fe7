//! `weft keys`.

use clap::Subcommand;
use weft_proto::v1::RotateKeysRequest;

use super::control::{HubArguments, refused};
use crate::output::print;

/// WireGuard keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Gives every node, or one, a new key; the old one is good until all peers have changed over.
    Rotate {
        /// Only this node.
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        hub: HubArguments,
    },
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self::Rotate { node, hub } = self;
        let request = RotateKeysRequest { node: node.unwrap_or_default() };
        let answer = hub.client().await?.rotate_keys(request).await.map_err(refused)?.into_inner();
        print(&format!("rotating the keys of {}\n", answer.nodes.join(", ")))
    }
}
