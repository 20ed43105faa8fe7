//! `weft lab`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use weft_lab::{Lab, Matrix, Options, UnderlayFamily};
use weft_model::Encapsulation;

use crate::output::{print, row, table};

/// A fabric of network namespaces on this machine.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a fabric: underlay, hub, nodes with agents and datapaths.
    Up(Box<Up>),
    /// Takes it away.
    Down(Name),
    /// Shows nodes and pods.
    Status(Name),
    /// Runs a command in a node or pod.
    Exec {
        /// Name of a node or pod.
        target: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
        #[command(flatten)]
        lab: Name,
    },
    /// Adds and removes pods, through the CNI binary.
    #[command(subcommand)]
    Pod(PodCommand),
    /// Tries every pair of pods: TCP, UDP, ICMP at every address. Fails if one fails.
    Matrix(Name),
    /// Looks after the processes of a lab; `up` starts it.
    #[command(hide = true)]
    Supervise(Name),
}

#[derive(Args)]
pub(crate) struct Name {
    /// Which lab.
    #[arg(long, env = "WEFT_LAB", default_value = "lab")]
    name: String,
}

#[derive(Subcommand)]
pub(crate) enum PodCommand {
    /// Adds a pod to a node.
    Add {
        /// Name of the node.
        node: String,
        /// Name of the new pod; NAMESPACE/POD if its namespace is not `default`.
        pod: String,
        #[command(flatten)]
        lab: Name,
    },
    /// Removes a pod.
    Delete {
        /// Name of the pod, as it was added.
        pod: String,
        #[command(flatten)]
        lab: Name,
    },
}

#[derive(Args)]
pub(crate) struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How nodes talk to each other.
    #[arg(long, default_value = "wireguard")]
    encapsulation: EncapsulationArgument,
    /// Family of the addresses that nodes talk between.
    #[arg(long, default_value = "v4")]
    underlay: UnderlayArgument,
    /// MTU of the underlay in bytes.
    #[arg(long, default_value_t = 1500)]
    underlay_mtu: u32,
    /// CIDR that pod subnets are leased from, one for each family.
    #[arg(long)]
    pod_cidr: Vec<IpNet>,
    /// CNI plugin that wires pods.
    #[arg(long, default_value = "ptp")]
    delegate: super::agent::DelegateArgument,
    #[command(flatten)]
    lab: Name,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum EncapsulationArgument {
    Wireguard,
    Vxlan,
}

impl From<EncapsulationArgument> for Encapsulation {
    fn from(argument: EncapsulationArgument) -> Self {
        match argument {
            EncapsulationArgument::Wireguard => Self::WireGuard,
            EncapsulationArgument::Vxlan => Self::Vxlan,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum UnderlayArgument {
    V4,
    V6,
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up(up) => up.run().await?,
            Self::Down(lab) => Lab::down(&lab.name).await?,
            Self::Status(lab) => status(&Lab::open(&lab.name)?).await?,
            Self::Exec { target, command, lab } => return exec(&lab.name, &target, &command),
            Self::Pod(PodCommand::Add { node, pod, lab }) => {
                let pod = Lab::open(&lab.name)?.pod_add(&node, &pod).await?;
                let addresses: Vec<String> =
                    pod.addresses.iter().map(ToString::to_string).collect();
                print(&format!("pod {} on {}: {}\n", pod.name, pod.node, addresses.join(", ")))?;
            }
            Self::Pod(PodCommand::Delete { pod, lab }) => {
                Lab::open(&lab.name)?.pod_delete(&pod).await?;
            }
            Self::Matrix(lab) => {
                let pods = Lab::open(&lab.name)?.pods();
                let matrix = tokio::task::spawn_blocking(move || Matrix::run(&pods)).await??;
                print(&matrix.to_string())?;
                let failed = matrix.failures().count();
                ensure!(failed == 0, "{failed} of {} failed", matrix.cells.len());
            }
            Self::Supervise(lab) => weft_lab::supervise(&lab.name).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Up {
    async fn run(self) -> anyhow::Result<()> {
        let defaults = Options::default();
        let options = Options {
            nodes: self.nodes,
            encapsulation: self.encapsulation.into(),
            underlay: match self.underlay {
                UnderlayArgument::V4 => UnderlayFamily::V4,
                UnderlayArgument::V6 => UnderlayFamily::V6,
            },
            underlay_mtu: self.underlay_mtu,
            pod_cidrs: if self.pod_cidr.is_empty() { defaults.pod_cidrs } else { self.pod_cidr },
            delegate: self.delegate.to_string(),
            ..Options::default()
        };
        let name = &self.lab.name;
        // Before anything is made.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let lab = tokio::select! {
            lab = Lab::up(name, options) => lab?,
            _ = interrupt.recv() => return interrupted(name).await,
            _ = terminate.recv() => return interrupted(name).await,
        };
        status(&lab).await?;
        let socket = lab.hub_socket();
        print(&format!("hub socket: {} (WEFT_HUB_SOCKET for other commands)\n", socket.display()))
    }
}

async fn interrupted(name: &str) -> anyhow::Result<()> {
    Lab::down(name).await?;
    bail!("interrupted: what was there of lab `{name}` is gone again")
}

async fn status(lab: &Lab) -> anyhow::Result<()> {
    let fabric = lab.status().await?;
    let mut rows = vec![row(["NODE", "STATE", "SUBNETS"])];
    for node in &fabric.nodes {
        let known = node.node.clone().unwrap_or_default();
        let state = if node.connected { "connected" } else { "away" };
        rows.push(vec![known.name, state.to_owned(), known.subnets.join(", ")]);
    }
    let mut text = table(&rows);
    let pods = lab.pods();
    if !pods.is_empty() {
        let mut rows = vec![row(["POD", "NODE", "ADDRESSES"])];
        for pod in pods {
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            rows.push(vec![pod.name, pod.node, addresses.join(", ")]);
        }
        text.push_str(&table(&rows));
    }
    print(&text)
}

fn exec(lab: &str, target: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let mut command = Lab::open(lab)?.command(target, program)?;
    command.args(arguments);
    // In place of this process: signals reach it, and its end is seen as it is.
    Err(command.exec()).with_context(|| format!("cannot run {program}"))
}
