//! `weft hub`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use weft_hub::HubConfig;
use weft_model::Vni;

use super::lab::EncapsulationArgument;

/// Runs the hub: reads manifests, leases a pod subnet to each node, admits nodes that show the join
/// token (`weft token show` prints it), publishes the fabric's state.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Directory of Kubernetes manifests; re-read when it changes.
    #[arg(long, env = "WEFT_MANIFESTS")]
    manifests: PathBuf,
    /// What has to survive: certificate authority, join token, leases.
    #[arg(long, env = "WEFT_HUB_STATE_DIR", default_value = "/var/lib/weft/hub")]
    state_dir: PathBuf,
    /// Directory of the control socket.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    /// Address and port that agents connect to.
    #[arg(long, env = "WEFT_HUB_LISTEN", default_value = "[::]:7443")]
    listen: SocketAddr,
    /// CIDR that pod subnets are leased from; one for each family.
    #[arg(long, env = "WEFT_POD_CIDR", value_delimiter = ',', default_value = "10.244.0.0/16")]
    pod_cidr: Vec<IpNet>,
    /// Prefix length of a node's IPv4 subnet.
    #[arg(long, env = "WEFT_NODE_PREFIX_V4", default_value_t = weft_hub::NODE_PREFIX_V4)]
    node_prefix_v4: u8,
    /// Prefix length of a node's IPv6 subnet.
    #[arg(long, env = "WEFT_NODE_PREFIX_V6", default_value_t = weft_hub::NODE_PREFIX_V6)]
    node_prefix_v6: u8,
    /// How nodes talk to each other.
    #[arg(long, env = "WEFT_ENCAPSULATION", default_value = "wireguard")]
    encapsulation: EncapsulationArgument,
    /// UDP port of the mesh; 51820 for WireGuard and 4789 for VXLAN unless set.
    #[arg(long, env = "WEFT_MESH_PORT")]
    mesh_port: Option<u16>,
    /// VXLAN network identifier.
    #[arg(long, env = "WEFT_VNI", default_value_t = Vni::DEFAULT.get())]
    vni: u32,
    /// MTU for pods in bytes; each agent derives it from its underlay unless set.
    #[arg(long, env = "WEFT_MTU")]
    mtu: Option<u16>,
    /// Seconds that a node's certificate is valid.
    #[arg(long, env = "WEFT_CERTIFICATE_TTL", default_value_t = weft_hub::CERTIFICATE_TTL.as_secs())]
    certificate_ttl: u64,
    /// Seconds that a freed subnet is not given to another node.
    #[arg(long, env = "WEFT_QUARANTINE", default_value_t = weft_hub::QUARANTINE.as_secs())]
    quarantine: u64,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        weft_hub::run(HubConfig {
            manifests: self.manifests,
            state: self.state_dir,
            run_dir: self.run_dir,
            listen: self.listen,
            pod_cidrs: self.pod_cidr,
            node_prefix_v4: self.node_prefix_v4,
            node_prefix_v6: self.node_prefix_v6,
            encapsulation: self.encapsulation.into(),
            mesh_port: self.mesh_port,
            vni: Vni::try_new(self.vni)?,
            mtu: self.mtu,
            certificate_ttl: Duration::from_secs(self.certificate_ttl),
            quarantine: Duration::from_secs(self.quarantine),
        })
        .await
    }
}
