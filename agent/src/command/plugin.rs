//! `weft plugin`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use tonic::transport::Channel;
use weft_control::MODULE_MAX;
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::plugin_status::State;
use weft_proto::v1::{
    ConfigurePluginRequest, GetStatusRequest, ListPluginsRequest, LoadPluginRequest, OnFault,
    PluginInFabric, Position, UnloadPluginRequest,
};

use super::control::{HubArguments, refused};
use crate::output::{print, row, short_digest, table};

/// How long a change of plugins may take until every connected node has applied it.
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The hub has waited for the nodes already.
const JUDGED: Duration = Duration::from_millis(500);
/// Pause between looks at how far the nodes are.
const IN_FORCE_PAUSE: Duration = Duration::from_millis(20);
const NO_CONFIG: &str = "no configuration given: pass --config or --config-file";

/// Wasm plugins of the fabric.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Adds a plugin to every node.
    Load(Load),
    /// Puts a new module in the place of a running plugin; no packet is lost. What is not given
    /// stays as it was.
    Replace(Load),
    /// Shows every plugin, and how it does on each node.
    List(HubArguments),
    /// Takes a plugin out of every node.
    Unload {
        /// Name of the plugin.
        name: String,
        #[command(flatten)]
        hub: HubArguments,
    },
    /// Gives a running plugin another configuration.
    Config {
        /// Name of the plugin.
        name: String,
        #[command(flatten)]
        config: Configuration,
        #[command(flatten)]
        hub: HubArguments,
    },
}

/// A plugin and how to run it.
#[derive(Args)]
pub(crate) struct Load {
    /// Name in the fabric: a DNS label.
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// The Wasm module.
    module: PathBuf,
    #[command(flatten)]
    config: Configuration,
    /// Order among plugins of one position: lower first; 0 unless set.
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Where in the packet's way; what the module declares unless set.
    #[arg(long)]
    position: Option<PositionArgument>,
    /// What becomes of a packet when the plugin fails; what the module declares unless set.
    #[arg(long)]
    on_fault: Option<OnFaultArgument>,
    /// Deadline of one call in microseconds.
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    deadline_us: Option<u32>,
    #[command(flatten)]
    hub: HubArguments,
}

/// The configuration of a plugin: text, or a file.
#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct Configuration {
    /// Configuration, handed to the plugin as it is.
    #[arg(long)]
    config: Option<String>,
    /// File with the configuration.
    #[arg(long)]
    config_file: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PositionArgument {
    Egress,
    Ingress,
    Both,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnFaultArgument {
    Drop,
    Skip,
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Load(load) => load.run(false).await,
            Self::Replace(load) => load.run(true).await,
            Self::List(hub) => list(&hub).await,
            Self::Unload { name, hub } => {
                let request = UnloadPluginRequest { name: name.clone() };
                let mut client = hub.client().await?;
                let answer = client.unload_plugin(request).await.map_err(refused)?.into_inner();
                let where_from = in_force(&mut client, answer.generation, IN_FORCE_TIMEOUT).await?;
                print(&format!("unloaded {name} {where_from}\n"))
            }
            Self::Config { name, config, hub } => {
                let request = ConfigurePluginRequest {
                    name: name.clone(),
                    config: config.read()?.context(NO_CONFIG)?,
                };
                let mut client = hub.client().await?;
                let answer = client.configure_plugin(request).await.map_err(refused)?.into_inner();
                let where_to = in_force(&mut client, answer.generation, JUDGED).await?;
                print(&format!("configured {name} {where_to}\n"))
            }
        }
    }
}

impl Load {
    async fn run(self, replace: bool) -> anyhow::Result<()> {
        let position = match self.position {
            None => Position::Unspecified,
            Some(PositionArgument::Egress) => Position::Egress,
            Some(PositionArgument::Ingress) => Position::Ingress,
            Some(PositionArgument::Both) => Position::Both,
        };
        let on_fault = match self.on_fault {
            None => OnFault::Unspecified,
            Some(OnFaultArgument::Drop) => OnFault::Drop,
            Some(OnFaultArgument::Skip) => OnFault::Skip,
        };
        let request = LoadPluginRequest {
            name: self.name.clone(),
            module: read_module(&self.module)?,
            config: self.config.read()?,
            priority: self.priority,
            position: position.into(),
            on_fault: on_fault.into(),
            deadline_us: self.deadline_us,
            replace,
        };
        let mut client = self.hub.client().await?;
        let generation =
            client.load_plugin(request).await.map_err(refused)?.into_inner().generation;
        let where_to = in_force(&mut client, generation, JUDGED).await?;
        print(&format!(
            "{} {} {where_to}\n",
            if replace { "replaced" } else { "loaded" },
            self.name
        ))
    }
}

impl Configuration {
    fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        match (&self.config, &self.config_file) {
            (Some(text), _) => Ok(Some(text.clone().into_bytes())),
            (None, Some(path)) => read(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// A module that is too long is not even sent.
fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    let length = std::fs::metadata(path).map_or(0, |m| m.len());
    ensure!(
        length <= u64::try_from(MODULE_MAX).unwrap_or(u64::MAX),
        "{} has {length} bytes, a plugin has {MODULE_MAX} at most: build it in release mode",
        path.display()
    );
    read(path)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Waits until every connected node has applied `generation`, and says on how many that is. Nodes
/// that are away catch up when they return.
async fn in_force(
    client: &mut ControlClient<Channel>,
    generation: u64,
    patience: Duration,
) -> anyhow::Result<String> {
    let until = Instant::now() + patience;
    loop {
        let status = client.get_status(GetStatusRequest {}).await.map_err(refused)?.into_inner();
        let nodes = status.nodes.iter().filter(|n| !n.static_peer);
        let (there, away): (Vec<_>, Vec<_>) = nodes.partition(|n| n.connected);
        let applied = there.iter().filter(|n| n.applied_generation >= generation).count();
        if applied == there.len() {
            let rest =
                if away.is_empty() { String::new() } else { format!(", {} away", away.len()) };
            let unjudged = if there.is_empty() { "; no node is there to judge it" } else { "" };
            return Ok(format!("on {applied} nodes{rest}{unjudged}"));
        }
        ensure!(
            Instant::now() < until,
            "only {applied} of {} connected nodes have applied it so far: see `weft status`",
            there.len()
        );
        tokio::time::sleep(IN_FORCE_PAUSE).await;
    }
}

async fn list(hub: &HubArguments) -> anyhow::Result<()> {
    let answer = hub.client().await?.list_plugins(ListPluginsRequest {}).await.map_err(refused)?;
    let heading =
        ["PLUGIN", "MODULE", "PRIORITY", "NODE", "STATE", "CALLS", "DROPS", "FAULTS", "MESSAGE"];
    let mut rows = vec![row(heading)];
    for plugin in answer.into_inner().plugins {
        rows.extend(rows_of(&plugin));
    }
    print(&table(&rows))
}

fn rows_of(plugin: &PluginInFabric) -> Vec<Vec<String>> {
    let Some(spec) = &plugin.spec else { return Vec::new() };
    let head = [spec.name.clone(), short_digest(&spec.digest), spec.priority.to_string()];
    if plugin.nodes.is_empty() {
        return vec![[head.as_slice(), &row(["-", "waiting"])].concat()];
    }
    let nodes = plugin.nodes.iter().map(|node| {
        let status = node.status.clone().unwrap_or_default();
        let state = match status.state() {
            State::Unspecified => "waiting",
            State::Running => "running",
            State::Refused => "refused",
            State::TakenOut => "taken out",
            State::Impaired => "impaired",
        };
        let counts = [status.calls, status.drops, status.faults].map(|n| n.to_string());
        let rest = [node.node.clone(), state.to_owned()];
        [head.as_slice(), &rest, &counts, &[status.message]].concat()
    });
    nodes.collect()
}
