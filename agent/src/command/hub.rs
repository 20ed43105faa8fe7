//! `weft hub`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use weft_hub::{HubConfig, KubernetesConfig, Source};
use weft_model::{Dns, NoUpstream, PodNames, ServiceName, Upstream, Vni};

use super::lab::EncapsulationArgument;

/// Runs the hub: follows a cluster's objects or reads manifests, leases a pod subnet to each node, admits nodes that show the join
/// token (`weft token show` prints it), publishes the fabric's state.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Directory that modules of packet filters are in, where the source is a cluster.
    #[arg(long, env = "WEFT_PLUGIN_DIR", default_value = "/var/lib/weft/plugins")]
    plugin_dir: PathBuf,
    /// NAMESPACE/NAME of the ServiceAccount that agents of the cluster run as: its tokens for audience
    /// weft-hub admit nodes, as the join token does.
    #[arg(long, env = "WEFT_AGENT_ACCOUNT", default_value = "weft-system/weft-agent", value_parser = namespaced)]
    agent_account: (String, String),
    /// HOST:PORT at which agents of the cluster reach this hub: written, with the certificate of its
    /// authority, to the ConfigMap weft-hub of the agents' namespace. Nothing is written unless set.
    #[arg(long, env = "WEFT_ADVERTISE")]
    advertise: Option<String>,
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
    /// Leave DNS to others. Else nodes answer queries to the cluster's DNS Service: names of the cluster
    /// themselves, others by asking.
    #[arg(long, env = "WEFT_NO_DNS")]
    no_dns: bool,
    /// Domain of the cluster's names; may be given several times. The first is in answers to PTR.
    #[arg(
        long,
        env = "WEFT_CLUSTER_DOMAIN",
        value_delimiter = ',',
        default_value = "cluster.local"
    )]
    cluster_domain: Vec<String>,
    /// Time to live of the cluster's records in seconds, up to 3600.
    #[arg(long, env = "WEFT_DNS_TTL", default_value_t = weft_hub::DNS_TTL_S)]
    dns_ttl: u32,
    /// NAMESPACE/NAME of the Service whose addresses pods ask. Without a manifest it is there with number
    /// 10 of each service CIDR.
    #[arg(long, env = "WEFT_DNS_SERVICE", default_value = "kube-system/kube-dns", value_parser = service_name)]
    dns_service: ServiceName,
    /// Pods that have a name by their address.
    #[arg(long, env = "WEFT_DNS_POD_NAMES", default_value = "verified")]
    dns_pod_names: PodNamesArgument,
    /// Server for names that are not the cluster's: ADDRESS, ADDRESS:PORT or, over TLS,
    /// tls://ADDRESS#NAME, where NAME is that of its certificate; may be given several times. Unless set,
    /// each node asks those of its own /etc/resolv.conf.
    #[arg(long, env = "WEFT_DNS_UPSTREAM", value_delimiter = ',')]
    dns_upstream: Vec<Upstream>,
    /// DOMAIN=SERVER: server for names of this domain, as of --dns-upstream; may be given several times,
    /// for one domain too.
    #[arg(long, env = "WEFT_DNS_STUB_DOMAIN", value_delimiter = ',', value_parser = stub_domain)]
    dns_stub_domain: Vec<(String, Upstream)>,
    /// NAME=ADDRESS: an address of this name, whatever others say of it; may be given several times, for
    /// one name too.
    #[arg(long, env = "WEFT_DNS_HOST", value_delimiter = ',', value_parser = host)]
    dns_host: Vec<(String, IpAddr)>,
    /// Answer the first query that a pod's search list makes of a name with what the last one would find.
    #[arg(long, env = "WEFT_DNS_AUTOPATH")]
    dns_autopath: bool,
    /// Call endpoints that have no name of their own as their pods are called, instead of by their
    /// addresses.
    #[arg(long, env = "WEFT_DNS_ENDPOINT_POD_NAMES")]
    dns_endpoint_pod_names: bool,
    /// Queries of a pod, or of a node's host, that its node answers in a second; others are refused. 0: any
    /// number.
    #[arg(long, env = "WEFT_DNS_CLIENT_RATE", default_value_t = 0)]
    dns_client_rate: u32,
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

/// Where objects come from: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct SourceArguments {
    /// Directory of Kubernetes manifests; re-read when it changes.
    #[arg(long, env = "WEFT_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// The API server of the cluster that the hub is a pod of.
    #[arg(long, env = "WEFT_KUBERNETES")]
    kubernetes: bool,
    /// The API server that this file tells how to reach.
    #[arg(long, env = "WEFT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

impl SourceArguments {
    fn source(self, cluster: KubernetesConfig) -> Source {
        match self.manifests {
            Some(manifests) => Source::Manifests(manifests),
            None => Source::Kubernetes(KubernetesConfig { kubeconfig: self.kubeconfig, ..cluster }),
        }
    }
}

/// Which pods have a name by their address.
#[derive(Clone, Copy, clap::ValueEnum)]
enum PodNamesArgument {
    /// Those that are there.
    Verified,
    /// Any address, whether a pod has it or not.
    Insecure,
    /// None.
    Disabled,
}

impl From<PodNamesArgument> for PodNames {
    fn from(argument: PodNamesArgument) -> Self {
        match argument {
            PodNamesArgument::Verified => Self::Verified,
            PodNamesArgument::Insecure => Self::Insecure,
            PodNamesArgument::Disabled => Self::Disabled,
        }
    }
}

fn service_name(text: &str) -> Result<ServiceName, String> {
    namespaced(text).map(|(namespace, name)| ServiceName { namespace, name })
}

fn namespaced(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("give NAMESPACE/NAME".to_owned()),
    }
}

fn stub_domain(text: &str) -> Result<(String, Upstream), String> {
    let (domain, address) = text.split_once('=').ok_or("give DOMAIN=SERVER")?;
    Ok((domain.to_owned(), address.parse().map_err(|e: NoUpstream| e.to_string())?))
}

fn host(text: &str) -> Result<(String, IpAddr), String> {
    let parts = text.split_once('=').and_then(|(name, ip)| Some((name, ip.parse().ok()?)));
    parts.map(|(name, ip)| (name.to_owned(), ip)).ok_or_else(|| "give NAME=ADDRESS".to_owned())
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut stub_domains = BTreeMap::<String, Vec<Upstream>>::new();
        for (domain, server) in self.dns_stub_domain {
            stub_domains.entry(domain).or_default().push(server);
        }
        let mut hosts = BTreeMap::<String, Vec<IpAddr>>::new();
        for (name, address) in self.dns_host {
            hosts.entry(name).or_default().push(address);
        }
        let dns = Dns {
            zones: self.cluster_domain,
            ttl_s: self.dns_ttl,
            service: self.dns_service,
            pod_names: self.dns_pod_names.into(),
            upstreams: self.dns_upstream,
            stub_domains,
            hosts,
            autopath: self.dns_autopath,
            endpoint_pod_names: self.dns_endpoint_pod_names,
            client_rate: self.dns_client_rate,
            ..weft_hub::usual_dns()
        };
        weft_hub::run(HubConfig {
            dns: (!self.no_dns).then_some(dns),
            source: self.source.source(KubernetesConfig {
                kubeconfig: None,
                modules: self.plugin_dir,
                agents: self.agent_account,
                advertise: self.advertise,
            }),
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
