//! `weft agent` and `weft uninstall`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use weft_model::NodeName;
use weft_node::{AgentConfig, DelegateKind, HubAddress, TokenSource, Underlay};

use crate::output::print;

/// Runs a node's agent.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    node: NodeArguments,
    #[command(flatten)]
    hub: HubArguments,
    /// Name of this node in the fabric; the host name unless set.
    #[arg(long, env = "WEFT_NODE_NAME")]
    node_name: Option<NodeName>,
    /// Identity of the node; random and kept in the state directory unless set.
    #[arg(long, env = "WEFT_NODE_UID")]
    node_uid: Option<String>,
    /// File with the join token (`weft hub` writes it).
    #[arg(long, env = "WEFT_TOKEN_FILE", conflicts_with = "service_account_token")]
    token_file: Option<PathBuf>,
    /// File with a token of the agent's ServiceAccount for the audience weft-hub, instead of a join token.
    #[arg(long, env = "WEFT_SERVICE_ACCOUNT_TOKEN", requires = "hub_ca")]
    service_account_token: Option<PathBuf>,
    /// File with the certificate of the authority that signs the hub's.
    #[arg(long, env = "WEFT_HUB_CA", requires = "service_account_token")]
    hub_ca: Option<PathBuf>,
    /// The `weft-cni` binary to install for the container runtime; nothing is installed unless set.
    #[arg(long, env = "WEFT_CNI_BINARY")]
    cni_binary: Option<PathBuf>,
    /// Address that peers send to; the source address towards the hub unless set.
    #[arg(long, env = "WEFT_UNDERLAY_ADDRESS", conflicts_with = "underlay_interface")]
    underlay_address: Option<IpAddr>,
    /// Interface whose address peers send to.
    #[arg(long, env = "WEFT_UNDERLAY_INTERFACE")]
    underlay_interface: Option<String>,
    /// CNI plugin that wires pods.
    #[arg(long, env = "WEFT_DELEGATE", default_value = "ptp")]
    delegate: DelegateArgument,
    /// Leave the pod's own address on what it sends out of the fabric.
    #[arg(long, env = "WEFT_NO_MASQUERADE")]
    no_masquerade: bool,
    /// Let what is for pods pass the host's routing and netfilter, whose rules do not see it otherwise:
    /// it goes straight from the fabric's interface to the pod (Linux 5.12 and `CAP_BPF`).
    #[arg(long, env = "WEFT_NO_DIRECT_DELIVERY")]
    no_direct_delivery: bool,
    /// MTU for pods in bytes; derived from the underlay unless set.
    #[arg(long, env = "WEFT_MTU")]
    mtu: Option<u16>,
    /// File that names the DNS servers to ask for names that are not the cluster's, unless the hub names
    /// some.
    #[arg(long, env = "WEFT_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// ADDRESS:PORT where metrics are served over HTTP, at /metrics; nowhere unless set.
    #[arg(long, env = "WEFT_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Seconds that a rotated WireGuard key is still answered to.
    #[arg(long, env = "WEFT_KEY_OVERLAP", default_value_t = 180)]
    key_overlap: u64,
}

/// Where the hub is: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct HubArguments {
    /// `host:port` of the hub.
    #[arg(long, env = "WEFT_HUB")]
    hub: Option<String>,
    /// File with `host:port` of the hub, read before each connection.
    #[arg(long, env = "WEFT_HUB_FILE")]
    hub_file: Option<PathBuf>,
}

impl HubArguments {
    fn address(self) -> HubAddress {
        match self.hub_file {
            Some(path) => HubAddress::File(path),
            // One of both is there.
            None => HubAddress::Fixed(self.hub.unwrap_or_default()),
        }
    }
}

/// Where everything of a node is.
#[derive(Args)]
pub(crate) struct NodeArguments {
    /// Keys, identity and attachments.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    state_dir: PathBuf,
    /// Sockets; emptied by a reboot.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    /// Where the container runtime reads network configurations.
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins.
    #[arg(long, env = "WEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Name of the fabric's interface.
    #[arg(long, env = "WEFT_INTERFACE", default_value = "weft0")]
    interface: String,
}

/// Takes everything that Weft made off this node: interface, routes, rules, the nftables table,
/// pods' redirects, CNI files, settings, state.
#[derive(Args)]
pub(crate) struct UninstallArguments {
    #[command(flatten)]
    node: NodeArguments,
}

/// Standard CNI plugin that wires a pod.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DelegateArgument {
    Ptp,
    Bridge,
}

impl fmt::Display for DelegateArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        })
    }
}

impl NodeArguments {
    fn config(self, node_name: NodeName, hub: HubAddress) -> AgentConfig {
        AgentConfig {
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            interface: self.interface,
            ..AgentConfig::new(node_name, hub)
        }
    }
}

fn host_name() -> anyhow::Result<NodeName> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    NodeName::try_new(name.trim().to_ascii_lowercase())
        .map_err(|e| anyhow::anyhow!("{e}; choose another one with --node-name"))
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let node_name = self.node_name.map_or_else(host_name, Ok)?;
        let underlay = match (self.underlay_address, self.underlay_interface) {
            (Some(address), _) => Underlay::Address(address),
            (None, Some(interface)) => Underlay::Interface(interface),
            (None, None) => Underlay::TowardsHub,
        };
        let config = AgentConfig {
            cni_binary: self.cni_binary,
            token: match (self.token_file, self.service_account_token.zip(self.hub_ca)) {
                (_, Some((token, ca))) => TokenSource::ServiceAccount { token, ca },
                (Some(file), None) => TokenSource::File(file),
                (None, None) => TokenSource::None,
            },
            node_uid: self.node_uid,
            underlay,
            delegate: match self.delegate {
                DelegateArgument::Ptp => DelegateKind::Ptp,
                DelegateArgument::Bridge => DelegateKind::Bridge,
            },
            direct_delivery: !self.no_direct_delivery,
            masquerade: !self.no_masquerade,
            mtu: self.mtu,
            resolv_conf: self.resolv_conf,
            metrics_listen: self.metrics_listen,
            key_overlap: Duration::from_secs(self.key_overlap),
            ..self.node.config(node_name, self.hub.address())
        };
        weft_node::run(config).await
    }
}

impl UninstallArguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let config =
            self.node.config(NodeName::try_new("uninstall")?, HubAddress::Fixed(String::new()));
        let attachments = config.attachments_dir();
        let attached = weft_node::uninstall(config).await?;
        if attached == 0 {
            return Ok(());
        }
        let pods =
            if attached == 1 { "1 pod is".to_owned() } else { format!("{attached} pods are") };
        print(&format!(
            "{pods} still attached: the plugin weft-cni and {} stay for their removal; run this again after it\n",
            attachments.display()
        ))
    }
}
