//! `weft plugin`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use weft_proto::v1::plugin_status::State;
use weft_proto::v1::{
    ConfigurePluginRequest, ListPluginsRequest, LoadPluginRequest, OnFault, PluginInFabric,
    Position, UnloadPluginRequest,
};

use super::control::{HubSocket, refused};
use crate::output::{print, row, short_digest, table};

/// Wasm plugins of the fabric.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Adds a plugin to every node.
    Load(Load),
    /// Puts a new module in the place of a running plugin; no packet is lost.
    Replace(Load),
    /// Shows every plugin, and how it does on each node.
    List(HubSocket),
    /// Takes a plugin out of every node.
    Unload {
        /// Name of the plugin.
        name: String,
        #[command(flatten)]
        hub: HubSocket,
    },
    /// Gives a running plugin another configuration.
    Config {
        /// Name of the plugin.
        name: String,
        #[command(flatten)]
        config: Configuration,
        #[command(flatten)]
        hub: HubSocket,
    },
}

/// A plugin and how to run it.
#[derive(Args)]
pub(crate) struct Load {
    /// Name in the fabric: a DNS label.
    name: String,
    /// The Wasm module.
    module: PathBuf,
    #[command(flatten)]
    config: Configuration,
    /// Order among plugins of one position: lower first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
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
    hub: HubSocket,
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
                hub.client().await?.unload_plugin(request).await.map_err(refused)?;
                print(&format!("unloaded {name}\n"))
            }
            Self::Config { name, config, hub } => {
                let request = ConfigurePluginRequest { name: name.clone(), config: config.read()? };
                hub.client().await?.configure_plugin(request).await.map_err(refused)?;
                print(&format!("configured {name}\n"))
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
            module: read(&self.module)?,
            config: self.config.read()?,
            priority: self.priority,
            position: position.into(),
            on_fault: on_fault.into(),
            deadline_us: self.deadline_us,
            replace,
        };
        self.hub.client().await?.load_plugin(request).await.map_err(refused)?;
        print(&format!("{} {}\n", if replace { "replaced" } else { "loaded" }, self.name))
    }
}

impl Configuration {
    fn read(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.config, &self.config_file) {
            (Some(text), _) => Ok(text.clone().into_bytes()),
            (None, Some(path)) => read(path),
            (None, None) => Ok(Vec::new()),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

async fn list(hub: &HubSocket) -> anyhow::Result<()> {
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
        };
        let counts = [status.calls, status.drops, status.faults].map(|n| n.to_string());
        let rest = [node.node.clone(), state.to_owned()];
        [head.as_slice(), &rest, &counts, &[status.message]].concat()
    });
    nodes.collect()
}
