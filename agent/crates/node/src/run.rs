//! Puts the agent's parts together.

use std::fs::File;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep};
use tonic::transport::Server;
use weft_control::{KeptSocket, ensure_free, serve_unix, socket};
use weft_netio::{Netlink, nft};
use weft_proto::v1::agent_server::AgentServer;

use crate::cni::{self, Attachments, Records};
use crate::config::{AgentConfig, check_socket_path};
use crate::core::{Core, State};
use crate::durable;
use crate::hub::{HubLink, HubTask};
use crate::identity::{IdentityStore, vtep_mac};
use crate::install::{self, Installer};
use crate::keys::KeyStore;
use crate::metrics;
use crate::modules::Modules;
use crate::network::{KernelPorts, NFT_TABLE, NetworkTask, OldSysctls, announce, listeners};
use crate::service::AgentService;
use crate::snapshot_file::SnapshotFile;
use crate::witness;

/// How often the files of CNI are looked at.
const INSTALL_INTERVAL: Duration = Duration::from_millis(500);
/// How often the end of a key's overlap is looked at.
const KEY_INTERVAL: Duration = Duration::from_millis(500);
/// How often modules that no plugin uses are removed.
const MODULES_INTERVAL: Duration = Duration::from_secs(60);

/// Runs the agent until SIGTERM or SIGINT; what it made for the packets stays.
///
/// # Errors
/// One line for the operator, if it cannot start or no waiting can help it: no privilege, no
/// `nft`, a socket in use, a wrong token, an expired certificate without a token, clocks that differ.
pub fn run(config: AgentConfig) -> Running {
    Box::pin(async move {
        let stop = stop_signal().context("cannot listen for signals")?;
        run_until(config, stop).await
    })
}

/// Boxed, so that this crate's machine code is made once, here, and not by each caller again.
type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// [`run`], until `stop` is done instead of a signal.
///
/// # Errors
/// As [`run`].
pub async fn run_until(config: AgentConfig, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    config.check()?;
    preflight(&config).await?;
    let state_dir = config.state_dir.clone();
    durable::private_dir(&state_dir)
        .with_context(|| format!("cannot use the state directory {}", state_dir.display()))?;
    let _only = only_agent(&state_dir)?;
    let identity = IdentityStore::open(config.state("identity"))?;
    let uid = identity.uid(config.node_uid.as_deref())?;
    let keys = Arc::new(KeyStore::open(config.state("keys"))?);
    let records = Records::open(config.attachments_dir()).context("cannot keep attachments")?;
    let modules = Modules::open(config.state("modules")).context("cannot keep modules")?;
    let sysctls = OldSysctls::open(config.state(SYSCTLS)).context("cannot keep old settings")?;
    let snapshot_file = SnapshotFile::new(&state_dir);
    let netlink = Netlink::new().context("cannot talk to the kernel's network")?;
    let cni_socket = KeptSocket::bind(&config.socket(weft_model::cni::SOCKET)).await?;
    let mac = vtep_mac(&uid);
    let core = Arc::new(Core::new(config, uid, mac));
    let first_keys = keys.keys()?;
    let kept = snapshot_file.load().context("cannot read the last snapshot")?;
    core.update(|state| {
        state.keys = first_keys;
        if let Some((snapshot, resume)) = kept {
            state.snapshot = Some(snapshot);
            state.resume = resume;
        }
    });
    let ports = KernelPorts::new(
        netlink.clone(),
        core.config.interface.clone(),
        core.config.direct_delivery,
    );
    let attachments = Arc::new(Attachments::new(core.clone(), records, ports.clone()));
    attachments.restore().await.context("cannot read the attachments on disk")?;
    let names = Arc::new(witness::Store::open(&core).context("cannot keep names that pods know")?);
    names.restore(&core).context("cannot read the names that pods know")?;
    let link = Arc::new(HubLink::default());
    let spoofed = Arc::new(AtomicU64::new(0));
    let agent =
        Parts { core, keys, link, modules, spoofed, attachments, names, netlink: netlink.clone() };
    let hub = HubTask {
        core: agent.core.clone(),
        link: agent.link.clone(),
        identity,
        keys: agent.keys.clone(),
        snapshot_file,
    };
    let network =
        NetworkTask::new(agent.core.clone(), netlink, ports, sysctls, agent.spoofed.clone());
    agent.serve(cni_socket, hub, network, stop).await
}

/// File of old settings in the state directory.
pub(crate) const SYSCTLS: &str = "sysctls.json";

struct Parts {
    core: Arc<Core>,
    keys: Arc<KeyStore>,
    link: Arc<HubLink>,
    modules: Modules,
    spoofed: Arc<AtomicU64>,
    attachments: Arc<Attachments<KernelPorts>>,
    names: Arc<witness::Store>,
    netlink: Netlink,
}

impl Parts {
    async fn serve(
        self,
        cni_socket: KeptSocket,
        hub: HubTask,
        network: NetworkTask,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let (_stopping, stopped) = oneshot::channel::<()>();
        let service = AgentService { core: self.core.clone(), spoofed: self.spoofed.clone() };
        let service = Arc::new(service);
        let router = Server::builder().add_service(AgentServer::from_arc(service.clone()));
        let agent_socket = KeptSocket::bind(&self.core.config.socket(socket::AGENT)).await?;
        let end = async { drop(stopped.await) };
        let left = async {
            stop.await;
            // What is asked meanwhile is still answered.
            self.core.leave();
            sleep(LEAVING).await;
        };
        tokio::select! {
            () = left => Ok(()),
            result = hub.run() => result,
            result = network.run() => result,
            result = serve_unix(agent_socket, router, end) => result.map_err(Into::into),
            () = crate::datapath::run(self.core.clone(), self.link.clone(), self.modules.clone()) => Ok(()),
            () = cni::serve(cni_socket, self.attachments.clone()) => Ok(()),
            () = keep_installed(&self.core) => Ok(()),
            () = crate::health::run(self.core.clone()) => Ok(()),
            () = listeners::run(self.core.clone()) => Ok(()),
            () = crate::resolver::run(self.core.clone(), self.netlink.clone(), self.names.clone()) => Ok(()),
            () = witness::run(self.core.clone(), self.names.clone()) => Ok(()),
            () = metrics::run(self.core.clone(), service) => Ok(()),
            () = announce::run(self.core.clone(), self.netlink.clone()) => Ok(()),
            result = drop_old_keys(&self.core, &self.keys) => result,
            () = drop_old_modules(&self.core, &self.modules) => Ok(()),
        }
    }
}

/// Keeps other agents out of a state directory: two would write each other's keys and attachments.
///
/// # Errors
/// If there is one, or the file cannot be made.
pub(crate) fn only_agent(state_dir: &Path) -> anyhow::Result<File> {
    let locked = durable::lock(&state_dir.join(LOCK));
    let locked = locked.with_context(|| format!("cannot lock {}", state_dir.display()))?;
    locked.with_context(|| {
        format!(
            "{} is in use by another agent: stop that one, or give this one its own --state-dir",
            state_dir.display()
        )
    })
}

/// File in the state directory that the running agent has locked.
const LOCK: &str = "lock";

/// How long it takes at most until names are asked for elsewhere, and what was asked before is answered.
const LEAVING: Duration = Duration::from_millis(200);

async fn preflight(config: &AgentConfig) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent needs root: it changes routes, rules and interfaces of the node");
    }
    if !weft_netio::may_change_network() {
        bail!("the agent needs CAP_NET_ADMIN: give this capability to root, or to its container");
    }
    for name in [socket::AGENT, socket::DATAPATH, weft_model::cni::SOCKET] {
        check_socket_path(&config.socket(name))?;
    }
    for name in [socket::AGENT, weft_model::cni::SOCKET] {
        ensure_free(&config.socket(name)).await?;
    }
    if let Some(binary) = &config.cni_binary {
        let found = std::fs::metadata(binary);
        found.with_context(|| format!("cannot read the CNI plugin {}", binary.display()))?;
    }
    nft::list_table("inet", NFT_TABLE).await?;
    Ok(())
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; packets go on under the last tables");
    })
}

/// Installs once ADD would work, and puts back what anybody deletes or edits.
async fn keep_installed(core: &Core) {
    let mut installer = Installer::new(&core.config);
    let mut ready = core.applied();
    // The sender lives in the core, so this ends when the first tables are in force.
    let _ = ready.wait_for(|a| a.version > 0).await;
    let mut ticks = interval(INSTALL_INTERVAL);
    loop {
        ticks.tick().await;
        let text = core.read(|state| {
            let cidrs = &state.snapshot.as_ref()?.cluster.pod_cidrs;
            let delegation = state.delegation(&core.config)?;
            Some(install::subnet_env(cidrs, &delegation, core.config.masquerade))
        });
        let Some(text) = text else { continue };
        let mut problems = Vec::new();
        match installer.ensure(&text) {
            Ok(true) => tracing::info!("CNI configuration installed"),
            Ok(false) => {}
            Err(error) => problems.push(error.to_string()),
        }
        problems.extend(install::problems(&core.config));
        core.set_problems("cni", problems);
        let unknown = core.read(State::unknown_pods).into_iter();
        let line = |pod| {
            format!(
                "pod {pod} is closed: the hub is away and has not said which policies are for it"
            )
        };
        core.set_problems("policies", unknown.map(line).collect());
    }
}

/// Ends the overlap of a rotation: first nobody is told of the old key any more and the datapath
/// stops using it, then it is deleted.
async fn drop_old_keys(core: &Core, keys: &KeyStore) -> anyhow::Result<()> {
    loop {
        sleep(KEY_INTERVAL).await;
        let Some(end) = keys.overlap_ends(core.config.key_overlap)? else { continue };
        let in_use = core.read(|s| s.keys.clone());
        let confirmed = core.target().is_some_and(|t| {
            let applied = core.applied();
            let applied = applied.borrow();
            applied.connected
                && applied.version >= t.version
                && t.tables.keys().len() == in_use.len()
        });
        if in_use.len() > 1 && SystemTime::now() >= end && confirmed {
            core.update(|s| s.keys.truncate(1));
        } else if in_use.len() == 1 && confirmed {
            keys.drop_previous()?;
            tracing::info!("old WireGuard key deleted");
        }
    }
}

async fn drop_old_modules(core: &Core, modules: &Modules) {
    loop {
        sleep(MODULES_INTERVAL).await;
        let digests = core.read(|s| {
            s.snapshot.as_ref().map(|s| s.plugins.values().map(|p| p.digest).collect::<Vec<_>>())
        });
        let Some(digests) = digests else { continue };
        if let Err(error) = modules.keep(digests.iter()) {
            tracing::warn!(%error, "unused modules not removed");
        }
    }
}

#[cfg(test)]
mod tests;
