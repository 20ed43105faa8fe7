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
    /// CIDR of the Services' cluster IPs; one for each family. Unless set, 10.96.0.0/16 if there are
    /// IPv4 pods and fd00:10:96::/112 if there are IPv6 pods.
    #[arg(long, env = "WEFT_SERVICE_CIDR", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    /// CIDR of the nodes' addresses that serve node ports; may be given several times. Unless set,
    /// all of a node's addresses do.
    #[arg(long, env = "WEFT_NODE_PORT_CIDR", value_delimiter = ',')]
    node_port_cidr: Vec<IpNet>,
    /// Serve externalIPs of Services. Who may write a Service can then draw the traffic to any address
    /// to it (CVE-2020-8554).
    #[arg(long, env = "WEFT_ALLOW_EXTERNAL_IPS")]
    allow_external_ips: bool,
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
            service_cidrs: self.service_cidr,
            node_port_cidrs: self.node_port_cidr,
            allow_external_ips: self.allow_external_ips,
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
