//! `weft node`.

use clap::Subcommand;
use weft_proto::v1::RemoveNodeRequest;

use super::control::{HubArguments, refused};
use crate::output::print;

/// Nodes of the fabric.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Takes a node out for good: its certificate is no longer accepted, its subnet rests and is
    /// then leased again. Run `weft uninstall` on the node first.
    Remove {
        /// Name of the node.
        name: String,
        #[command(flatten)]
        hub: HubArguments,
    },
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self::Remove { name, hub } = self;
        let request = RemoveNodeRequest { node: name.clone() };
        hub.client().await?.remove_node(request).await.map_err(refused)?;
        print(&format!("removed {name}\n"))
    }
}
