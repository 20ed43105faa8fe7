//! `weft explain`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weft_control::connect_unix;
use weft_explain::words;
use weft_proto::v1::agent_client::AgentClient;
use weft_proto::v1::{ExplainRequest, ExplainResponse, Verdict};

use super::control::{HubArguments, refused, whole};
use crate::output::print;

/// Status if something of what was asked is denied.
const DENIED: u8 = 3;
/// Status if nothing is denied, and something not known.
const UNKNOWN: u8 = 4;

/// Says whether policies let a connection pass, and which policy and rule decide, by what the nodes of
/// both ends have in force. Nothing is sent. Status 0: allowed; 3: something of it is denied; 4: a node
/// could not be asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Who begins: a pod (`NAMESPACE/NAME`, or `NAME` in namespace default), a node, or an address.
    from: String,
    /// The other end: likewise, or a Service (`svc/NAMESPACE/NAME`, or an address of one).
    to: String,
    /// `80`, `80/TCP`, `53/UDP`, `80/SCTP`, the name of a port of the other end, or `icmp`; without it,
    /// every port.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    port: String,
    /// Ask the agent of this node, without the hub: it knows its own pods' side.
    #[arg(long)]
    node: bool,
    /// The agent's run directory.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { from, to, port, node, run_dir, hub } = self;
        let request = ExplainRequest { from, to, port };
        let answer = if node {
            let socket = run_dir.join(weft_control::socket::AGENT);
            let channel = connect_unix(socket).await.map_err(whole)?;
            AgentClient::new(channel).explain(request).await
        } else {
            hub.client().await?.explain(request).await
        };
        let answer = answer.map_err(refused)?.into_inner();
        print(&words::explanation(&answer))?;
        Ok(status(&answer))
    }
}

fn status(answer: &ExplainResponse) -> ExitCode {
    let all = answer.connections.iter().flat_map(|connection| &connection.ports);
    let verdicts: Vec<_> = all.map(|ports| ports.verdict()).collect();
    // Nobody to answer is no way through either.
    if verdicts.is_empty() || verdicts.contains(&Verdict::Denied) {
        ExitCode::from(DENIED)
    } else if verdicts.contains(&Verdict::Unspecified) {
        ExitCode::from(UNKNOWN)
    } else {
        ExitCode::SUCCESS
    }
}
