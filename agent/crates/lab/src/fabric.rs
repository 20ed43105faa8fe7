//! A lab: making it, finding it again, taking it away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_model::Encapsulation;
use weft_netio::{InNetNs as _, NetNs, netns};
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::{FabricStatus, GetStatusRequest};

use crate::layout::{Layout, NodeLayout};
use crate::{cni, supervisor, underlay};

/// How long a fabric may take until every node has applied the current generation.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// More nodes than that do not fit the underlay's address plan.
const NODES_MAX: usize = 64;

/// The CNI container id carries it.
const POD_NAME_MAX: usize = 40;
/// Where pods are unless their name says otherwise.
const DEFAULT_NAMESPACE: &str = "default";

/// Family of the addresses that nodes reach each other with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnderlayFamily {
    /// 198.18.0.0/24, the range for benchmarks of RFC 2544.
    #[default]
    V4,
    /// fd00:198:18::/64.
    V6,
}

/// The control plane of a cluster whose nodes are a lab's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// The hub's way to the API server.
    pub kubeconfig: PathBuf,
    /// Directory of what an agent's pod would have mounted: `address` and `ca.crt` of the hub, and a token
    /// of the agent's ServiceAccount for each node, by its name.
    pub mounted: PathBuf,
}

/// What a lab is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The `weft` binary; the running program unless set. `weft-cni` stands beside it.
    pub binary: Option<PathBuf>,
    /// Number of nodes, 1 to 64, named `node-1`, `node-2` and so on.
    pub nodes: usize,
    /// Encapsulation between them.
    pub encapsulation: Encapsulation,
    /// Family of the underlay.
    pub underlay: UnderlayFamily,
    /// MTU of the underlay in bytes.
    pub underlay_mtu: u32,
    /// CIDRs that pod subnets are leased from.
    pub pod_cidrs: Vec<IpNet>,
    /// CNI plugin that wires pods: `ptp` or `bridge`.
    pub delegate: String,
    /// Added to the command line of the hub.
    pub hub_arguments: Vec<String>,
    /// Added to the command line of every agent.
    pub agent_arguments: Vec<String>,
    /// Added to the command line of every datapath.
    pub datapath_arguments: Vec<String>,
    /// Added to the command line of one node's datapath, by name of the node.
    #[serde(default)]
    pub datapath_arguments_of: BTreeMap<String, Vec<String>>,
    /// Where objects come from instead of [`Lab::manifests`].
    #[serde(default)]
    pub cluster: Option<Cluster>,
}

impl Default for Options {
    fn default() -> Self {
        let cidrs = ["10.244.0.0/16", "fd00:10:244::/48"];
        Self {
            binary: None,
            nodes: 3,
            encapsulation: Encapsulation::WireGuard,
            underlay: UnderlayFamily::V4,
            underlay_mtu: 1500,
            pod_cidrs: cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
            delegate: "ptp".into(),
            hub_arguments: Vec::new(),
            agent_arguments: Vec::new(),
            datapath_arguments: Vec::new(),
            datapath_arguments_of: BTreeMap::new(),
            cluster: None,
        }
    }
}

impl Options {
    pub(crate) fn encapsulation_flag(&self) -> &'static str {
        match self.encapsulation {
            Encapsulation::WireGuard => "wireguard",
            Encapsulation::Vxlan => "vxlan",
        }
    }
}

/// A node as the lab wrote it down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpNet>,
}

/// A pod of the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// `POD` in the namespace `default`, `NAMESPACE/POD` in another one.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The CNI result of its ADD.
    pub(crate) result: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) hub_address: IpAddr,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: BTreeMap<String, Pod>,
}

/// A lab that is up, or was.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    state: State,
}

impl Lab {
    /// Makes a lab and waits until every node serves.
    ///
    /// # Errors
    /// If the name is in use or illegal, a privilege is missing, or a process does not come up; what
    /// was made until then is taken away again, and the error shows the end of the logs.
    pub async fn up(name: &str, options: Options) -> Result<Self> {
        Self::make(name, options, true).await
    }

    /// Makes the nodes and the underlay of a lab and starts nothing on them: for another fabric, to
    /// compare with.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub async fn machines(name: &str, options: Options) -> Result<Self> {
        Self::make(name, options, false).await
    }

    async fn make(name: &str, options: Options, serving: bool) -> Result<Self> {
        let layout = Layout::new(name)?;
        ensure!((1..=NODES_MAX).contains(&options.nodes), "--nodes takes 1 to {NODES_MAX}");
        ensure!(
            nix::unistd::geteuid().is_root(),
            "`weft lab` makes namespaces and devices: run it as root"
        );
        let left = namespaces(&layout)?;
        if layout.dir().exists() || !left.is_empty() {
            bail!("lab `{name}` is there already: `weft lab down --name {name}` takes it away");
        }
        let made = Self::build(&layout, options).await;
        let made = match made {
            Ok(lab) if serving => lab.start().await.map(|()| lab),
            made => made,
        };
        match made {
            Ok(lab) => Ok(lab),
            Err(error) => {
                let said = supervisor::last_error(&layout);
                take_away(&layout).await?;
                Err(match said {
                    Some(line) => anyhow!("lab `{name}` did not come up: {line}"),
                    None => error.context(format!("lab `{name}` did not come up")),
                })
            }
        }
    }

    async fn build(layout: &Layout, options: Options) -> Result<Self> {
        let (hub_address, nodes) = underlay::plan(&options)?;
        let state = State { options, hub_address, nodes, pods: BTreeMap::new() };
        let lab = Self { layout: layout.clone(), state };
        for dir in lab.directories() {
            std::fs::create_dir_all(&dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        for node in &lab.state.nodes {
            cni::provide_standard_plugins(&layout.node(&node.name))?;
        }
        lab.save()?;
        underlay::make(layout, &lab.state).await?;
        Ok(lab)
    }

    /// Starts the fabric of a lab of [`Self::machines`], and waits until every node serves.
    ///
    /// # Errors
    /// If a process does not come up.
    pub async fn start(&self) -> Result<()> {
        crate::commands::write_token(&self.layout, &self.state)?;
        supervisor::start(&self.layout, self.state.options.binary.clone())?;
        tokio::select! {
            ready = self.wait_ready() => ready,
            () = supervisor::failing(&self.layout) => bail!("a process of it does not stay up"),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let layout = &self.layout;
        let mut all = vec![
            layout.manifests(),
            layout.hub_state(),
            layout.hub_run(),
            layout.dir().join("resolv"),
            layout.dir().join("pids"),
            layout.dir().join("logs"),
        ];
        let nodes = self.state.nodes.iter();
        all.extend(nodes.flat_map(|n| layout.node(&n.name).directories()));
        all
    }

    /// Finds a lab that is up.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let state = load(&layout)?;
        Ok(Self { layout, state })
    }

    /// Ends the processes and removes namespaces, devices and files. Fine for a lab that is not
    /// there or half there.
    ///
    /// # Errors
    /// If something resists; the rest is removed all the same.
    pub async fn down(name: &str) -> Result<()> {
        take_away(&Layout::new(name)?).await
    }

    /// Adds a pod through the CNI binary: `POD` to the namespace `default`, or `NAMESPACE/POD`.
    ///
    /// # Errors
    /// The CNI error, or a name that is unknown or in use.
    pub async fn pod_add(&mut self, node: &str, pod: &str) -> Result<Pod> {
        self.pod_add_after(node, pod, |_| Ok(())).await
    }

    /// As [`Self::pod_add`], with something that begins in the pod's network namespace, which it is told,
    /// before the CNI binary is called.
    ///
    /// # Errors
    /// As there, or what `begin` says.
    pub async fn pod_add_after(
        &mut self,
        node: &str,
        pod: &str,
        begin: impl FnOnce(&str) -> Result<()>,
    ) -> Result<Pod> {
        let known = |name: &str| self.state.nodes.iter().any(|n| n.name == name);
        ensure!(known(node), "there is no node `{node}`");
        ensure!(!known(pod), "`{pod}` is the name of a node");
        check_pod_name(pod)?;
        let namespace = self.layout.pod_namespace(pod);
        // Of two calls at once for one name, one makes it.
        netns::create(&namespace).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => anyhow!("there is a pod `{pod}` already"),
            _ => error.into(),
        })?;
        let made = match begin(&namespace) {
            Ok(()) => cni::add(&self.layout.node(node), pod, &namespace).await,
            Err(error) => Err(error),
        };
        let made = match made {
            Ok(pod) => Pod { node: node.to_owned(), ..pod },
            Err(error) => {
                let _ = cni::delete(&self.layout.node(node), pod, &namespace, None).await;
                netns::delete(&namespace)?;
                return Err(error);
            }
        };
        // As a kubelet does, which is told where and in which domain names are answered.
        if let Some(text) = self.status().await.ok().and_then(|s| resolv_conf(&s, pod)) {
            std::fs::write(self.layout.resolv_conf(pod), text)?;
        }
        self.change(|state| state.pods.insert(pod.to_owned(), made.clone()))?;
        Ok(made)
    }

    /// Removes a pod through the CNI binary.
    ///
    /// # Errors
    /// The CNI error, or an unknown name.
    pub async fn pod_delete(&mut self, pod: &str) -> Result<()> {
        self.state = load(&self.layout)?;
        let known = self.state.pods.get(pod).with_context(|| format!("there is no pod `{pod}`"))?;
        let node = self.layout.node(&known.node);
        cni::delete(&node, pod, &known.namespace, Some(&known.result)).await?;
        netns::delete(&known.namespace)?;
        match std::fs::remove_file(self.layout.resolv_conf(pod)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.change(|state| state.pods.remove(pod))?;
        Ok(())
    }

    /// The pods, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.state.pods.values().cloned().collect()
    }

    /// Names of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.state.nodes.iter().map(|n| n.name.clone()).collect()
    }

    /// Underlay addresses of a node, IPv4 first.
    #[must_use]
    pub fn node_addresses(&self, node: &str) -> Vec<IpAddr> {
        let nodes = self.state.nodes.iter().filter(|n| n.name == node);
        nodes.flat_map(|n| n.addresses.iter().map(|a| a.addr())).collect()
    }

    /// Paths of a node.
    #[must_use]
    pub fn node(&self, node: &str) -> NodeLayout {
        self.layout.node(node)
    }

    /// Namespace of the underlay's bridge: everything on the wire between nodes passes it.
    #[must_use]
    pub fn underlay_namespace(&self) -> String {
        self.layout.underlay_namespace()
    }

    /// Address of the hub in the underlay.
    #[must_use]
    pub fn hub_address(&self) -> IpAddr {
        self.state.hub_address
    }

    /// Namespace of the hub.
    #[must_use]
    pub fn hub_namespace(&self) -> String {
        self.layout.hub_namespace()
    }

    /// A name for a namespace of one's own, which is taken away with the lab.
    #[must_use]
    pub fn extra_namespace(&self, name: &str) -> String {
        self.layout.pod_namespace(name)
    }

    /// Directory of manifests that the hub reads.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.layout.manifests()
    }

    /// The hub's control socket.
    #[must_use]
    pub fn hub_socket(&self) -> PathBuf {
        self.layout.hub_run().join("hub.sock")
    }

    /// Log of a process: `hub`, `NODE-agent`, `NODE-datapath`.
    #[must_use]
    pub fn log_file(&self, process: &str) -> PathBuf {
        self.layout.log_file(process)
    }

    /// Changes what processes are started with; each takes it up when it starts the next time.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn change_options(&mut self, change: impl FnOnce(&mut Options)) -> Result<()> {
        self.change(|state| change(&mut state.options))
    }

    /// Process id of `hub`, `NODE-agent` or `NODE-datapath`, as of its last start.
    ///
    /// # Errors
    /// If it never started.
    pub fn pid(&self, process: &str) -> Result<i32> {
        supervisor::read_pid(&self.layout, process)
            .with_context(|| format!("process `{process}` has not started"))
    }

    /// Network namespace of a node or pod.
    ///
    /// # Errors
    /// If there is neither of that name.
    pub fn namespace_of(&self, name: &str) -> Result<String> {
        if let Some(pod) = self.state.pods.get(name) {
            return Ok(pod.namespace.clone());
        }
        ensure!(
            self.state.nodes.iter().any(|n| n.name == name),
            "there is no node or pod `{name}`"
        );
        Ok(self.layout.node(name).namespace)
    }

    /// A command that will run in a node or pod; in a pod with an `/etc/resolv.conf` of its own.
    ///
    /// # Errors
    /// If there is no such node or pod.
    pub fn command(&self, target: &str, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        command.in_netns(&NetNs::open(&self.namespace_of(target)?)?);
        let resolv_conf = self.layout.resolv_conf(target);
        if resolv_conf.exists() {
            command.with_file(&resolv_conf, Path::new("/etc/resolv.conf"))?;
        }
        Ok(command)
    }

    /// What the hub says of the fabric.
    ///
    /// # Errors
    /// If the hub does not answer.
    pub async fn status(&self) -> Result<FabricStatus> {
        let channel = weft_control::connect_unix(self.hub_socket()).await?;
        let answer = ControlClient::new(channel).get_status(GetStatusRequest {}).await?;
        Ok(answer.into_inner())
    }

    /// Waits until every node is connected, has applied the current generation and takes pods.
    ///
    /// # Errors
    /// After 30 seconds, naming the nodes that are not ready.
    pub async fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + READY_TIMEOUT;
        loop {
            let why = match self.status().await {
                Ok(status) => {
                    let unready = unready(&status, self.state.nodes.len());
                    let Some(why) = unready.or_else(|| self.closed()) else { return Ok(()) };
                    why
                }
                Err(error) => format!("{error:#}"),
            };
            ensure!(Instant::now() < until, "not ready after {READY_TIMEOUT:?}: {why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A node without its CNI configuration, which container runtimes wait for.
    fn closed(&self) -> Option<String> {
        let mut nodes = self.state.nodes.iter();
        let closed = |n: &&Node| !cni::is_configured(&self.layout.node(&n.name));
        nodes.find(closed).map(|n| format!("{} has no CNI configuration", n.name))
    }

    /// Changes what is written down, though other processes may do the same at this moment.
    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let path = self.layout.lock_file();
        let lock = std::fs::File::create(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        lock.lock()?;
        self.state = load(&self.layout)?;
        let result = change(&mut self.state);
        self.save()?;
        Ok(result)
    }

    fn save(&self) -> Result<()> {
        let path = self.layout.state_file();
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec_pretty(&self.state)?)?;
        std::fs::rename(&temporary, &path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn check_pod_name(pod: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_name =
        |part: &str| !part.is_empty() && part.len() <= POD_NAME_MAX && part.bytes().all(legal);
    let (kubernetes_namespace, name) = split_pod_name(pod);
    ensure!(
        is_name(kubernetes_namespace) && is_name(name),
        "`{pod}` is no pod name: up to {POD_NAME_MAX} lower-case letters, digits and `-`, after as many of its namespace and `/` if that is not `{DEFAULT_NAMESPACE}`"
    );
    // Else one pod would have two names.
    ensure!(
        name == pod || kubernetes_namespace != DEFAULT_NAMESPACE,
        "a pod of namespace `{DEFAULT_NAMESPACE}` goes by its name alone: `{name}`"
    );
    Ok(())
}

/// Kubernetes namespace and name of what the lab calls `pod`.
pub(crate) fn split_pod_name(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or((DEFAULT_NAMESPACE, pod))
}

/// As a kubelet writes it for a pod whose DNS policy is `ClusterFirst`; `None` if nodes answer no names.
fn resolv_conf(status: &FabricStatus, pod: &str) -> Option<String> {
    let zone = status.cluster.as_ref()?.dns.as_ref()?.zones.first()?;
    let (namespace, _) = split_pod_name(pod);
    let servers = status.name_servers.iter().map(|s| format!("nameserver {s}\n"));
    let servers: String = servers.collect();
    let search = format!("search {namespace}.svc.{zone} svc.{zone} {zone}\n");
    (!servers.is_empty()).then(|| format!("{search}{servers}options ndots:5\n"))
}

fn unready(status: &FabricStatus, expected: usize) -> Option<String> {
    let nodes: Vec<_> = status.nodes.iter().filter(|n| !n.static_peer).collect();
    if nodes.len() < expected {
        return Some(format!("{} of {expected} nodes have joined", nodes.len()));
    }
    let name = |n: &weft_proto::v1::NodeStatus| n.node.as_ref().map_or("", |n| &n.name).to_owned();
    let behind = nodes.iter().find(|n| {
        let addressed = n.node.as_ref().is_some_and(|n| !n.endpoint.is_empty());
        !n.connected || !addressed || n.applied_generation < status.generation
    })?;
    Some(format!("{} is not up to date", name(behind)))
}

pub(crate) fn load(layout: &Layout) -> Result<State> {
    let path = layout.state_file();
    let bytes = std::fs::read(&path)
        .with_context(|| format!("there is no lab `{}`: `weft lab up` makes one", layout.name()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// Works from names alone, so that a lab that never came up is taken away as well.
async fn take_away(layout: &Layout) -> Result<()> {
    supervisor::stop(layout).await?;
    for name in namespaces(layout)? {
        netns::delete(&name)?;
    }
    match std::fs::remove_dir_all(layout.dir()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", layout.dir().display()))
        }
        _ => Ok(()),
    }
}

fn namespaces(layout: &Layout) -> Result<Vec<String>> {
    let mut all = netns::list()?;
    all.retain(|name| name.starts_with(&layout.namespace_prefix()));
    Ok(all)
}
