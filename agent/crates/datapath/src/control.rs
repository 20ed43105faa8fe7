//! The control side: brings what the agent asks for to the workers.
//!
//! Everything here may block and runs on threads of its own; workers only take what is ready.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use weft_mesh::{ConfigError, MeshConfig};
use weft_model::{POLICY_PLUGIN, Timestamp};
use weft_netio::{Netlink, Offloads, Tun, TunError, UdpOffloads, UdpSocket, clock, link};
use weft_pipeline::{Routes, RoutesConfig};
use weft_proto::v1::{ApplyRequest, ApplyResponse, Offload};
use weft_wasm_host::{Module, PluginInstance};

use crate::built_in::BuiltInChange;
use crate::counters::Counters;
use crate::link::{PluginChange, TunEnd, Update, WorkerGone, WorkerLink};
use crate::plugins::{Plugins, PutError};
use crate::shared::Shared;
use crate::store::{Saved, Store, hex};
use crate::tables::{Desired, Settings, Tables, TablesError};

/// Modules that nothing uses are removed when they are older: an Apply follows a PutModule soon.
const MODULE_KEPT: Duration = Duration::from_secs(600);

/// Why a request was not carried out; nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error(transparent)]
    Mesh(#[from] ConfigError),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error("UDP port {port} is in use: stop what uses it, or choose another port")]
    PortInUse { port: u16 },
    #[error("UDP port {port} cannot be opened: {source}")]
    Udp { port: u16, source: std::io::Error },
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

/// The device in use.
struct Device {
    name: String,
    /// Number of it among those opened one after another.
    number: u64,
    mtu: u16,
    offloads: Offloads,
    /// Workers learn which CPU a packet was sent on.
    tells_cpu: bool,
}

/// The sockets in use.
struct Sockets {
    port: u16,
    offloads: UdpOffloads,
}

/// Sockets and queues that are open and not yet in use, one for each worker.
#[derive(Default)]
struct Opened {
    device: Option<(Device, Tun)>,
    sockets: Option<(Sockets, Vec<UdpSocket>)>,
}

pub(crate) struct Control {
    store: Store,
    shared: Arc<Shared>,
    counters: Vec<Arc<Counters>>,
    workers: Vec<WorkerLink>,
    plugins: Plugins,
    /// Names of the plugins that workers have.
    in_use: BTreeSet<String>,
    desired: Desired,
    /// The node's resolver serves names, says the agent.
    resolver: bool,
    tun_offloads: Offloads,
    tun_cpu: bool,
    udp_offloads: UdpOffloads,
    device: Option<Device>,
    sockets: Option<Sockets>,
    devices_opened: u64,
    /// For the few asynchronous calls to netlink.
    runtime: tokio::runtime::Handle,
}

/// What [`Control::new`] needs.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) workers: Vec<WorkerLink>,
    pub(crate) plugins: Plugins,
    pub(crate) tun_offloads: Offloads,
    pub(crate) tun_cpu: bool,
    pub(crate) udp_offloads: UdpOffloads,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Control {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            store,
            shared,
            counters,
            workers,
            plugins,
            tun_offloads,
            tun_cpu,
            udp_offloads,
            runtime,
        } = parts;
        Self {
            store,
            shared,
            counters,
            workers,
            plugins,
            in_use: BTreeSet::new(),
            desired: Desired::default(),
            resolver: false,
            tun_offloads,
            tun_cpu,
            udp_offloads,
            device: None,
            sockets: None,
            devices_opened: 0,
            runtime,
        }
    }

    /// Starts from the state saved last, if there is one.
    ///
    /// # Errors
    /// The interface or the port cannot be had. A saved state that is not valid is left aside.
    pub(crate) fn restore(&mut self) -> Result<(), ApplyError> {
        let saved = match self.store.load() {
            Ok(Some(saved)) => saved,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the saved tables are left aside: waiting for the agent");
                return Ok(());
            }
        };
        let Saved { desired, running } = saved;
        // What ran before stands in for what could not be used.
        let running = running.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        // A saved state is complete, so its changes are all there is.
        let change = BuiltInChange {
            services: desired.services.clone(),
            policies: desired.policies.clone(),
            names: desired.names.clone(),
        };
        self.plugins.set(&self.store, &running, &|name| change.of(name, false), clock::now());
        match self.apply(desired) {
            Ok(_) => Ok(()),
            Err(ApplyError::Tables(error)) => {
                tracing::warn!(%error, "the saved tables are left aside: waiting for the agent");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Carries out a request; returns when every worker uses the result.
    pub(crate) fn apply(&mut self, mut request: ApplyRequest) -> Result<ApplyResponse, ApplyError> {
        let now = clock::now();
        // Live instances first: what is to hold for a pod is in force before the pod is reached.
        let mut failed = false;
        if self.device.is_some()
            && let Some(change) = self.desired.take_built_in(&mut request)?
        {
            failed = !self.change_built_in(&change, now)?;
            self.desired.change_built_in(change);
            if !failed && self.desired.is_all_of(&request) {
                return Ok(self.applied());
            }
        }
        let desired = self.desired.after(request)?;
        let tables = Tables::try_new(&desired)?;
        let opened = self.open(&tables.settings)?;
        let applied = self.shared.mesh.apply(&tables.mesh, now)?;
        for conflict in applied.conflicts {
            tracing::warn!(?conflict, "two peers claim the same; the first has it");
        }
        let built_in = |name: &str| desired.built_in_config(name, self.resolver);
        let plugins_changed = self.plugins.set(&self.store, &desired.plugins, &built_in, now)
            || self.device.is_none()
            || failed
            || desired.services != self.desired.services
            || desired.policies != self.desired.policies
            || desired.names != self.desired.names;
        let first = self.desired.generation == 0;
        self.desired = desired;
        self.hand_over(&tables, opened, plugins_changed)?;
        if first {
            let generation = self.desired.generation;
            tracing::info!(generation, "tables in force");
        }
        Ok(self.applied())
    }

    /// Saves what is in force, and says what that is.
    fn applied(&self) -> ApplyResponse {
        self.save();
        ApplyResponse {
            generation: self.desired.generation,
            plugins: self.plugins.status(),
            missing_modules: self.plugins.missing(),
        }
    }

    /// Notes whether the node's resolver serves names. While it does not, the endpoints of the Service that
    /// clients ask are asked, if there are any.
    ///
    /// # Errors
    /// A worker is gone.
    pub(crate) fn set_resolver(&mut self, serves: bool) -> Result<(), WorkerGone> {
        if std::mem::replace(&mut self.resolver, serves) == serves || self.device.is_none() {
            return Ok(());
        }
        let Some(services) = self.desired.services.of_resolver() else { return Ok(()) };
        if serves {
            tracing::info!("the agent serves names again");
        } else {
            tracing::warn!("the agent serves no names: endpoints of the DNS Service are asked");
        }
        let change = BuiltInChange { services: Some(services), ..BuiltInChange::default() };
        if !self.change_built_in(&change, clock::now())? {
            let instances = self.instances();
            self.send_all(Opened::default(), None, Some(instances))?;
        }
        Ok(())
    }

    /// Has the live instances of built-in plugins take a change. False if they cannot: then they have to
    /// be made anew.
    fn change_built_in(
        &mut self,
        change: &BuiltInChange,
        now: Timestamp,
    ) -> Result<bool, WorkerGone> {
        for (plugin, config) in change.by_plugin(self.resolver) {
            if !self.plugins.takes_change(plugin, config.len(), now) {
                return Ok(false);
            }
            let failed = AtomicBool::new(false);
            let change = Arc::new(PluginChange { plugin, config, revision: now.0, failed });
            let update = || Update { change: Some(Arc::clone(&change)), ..Update::default() };
            let sent = self.workers.iter().map(|worker| worker.send(update()));
            wait_for(sent.collect::<Result<Vec<_>, _>>()?)?;
            if change.failed.load(Ordering::Relaxed) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Keeps a module, which was loaded from these bytes, for an Apply to come: for
    /// a while, or on standby.
    pub(crate) fn put_module(
        &mut self,
        bytes: &[u8],
        module: &Arc<Module>,
        standby: bool,
    ) -> Result<(), PutError> {
        Ok(self.plugins.put(&self.store, bytes, module, standby)?)
    }

    /// Makes the interface anew after somebody deleted device number `device`.
    ///
    /// # Errors
    /// It cannot be had at the moment: try again.
    pub(crate) fn reopen(&mut self, device: u64) -> Result<(), ApplyError> {
        let Some(lost) = self.device.as_ref().filter(|d| d.number == device) else {
            return Ok(());
        };
        let (name, mtu) = (lost.name.clone(), lost.mtu);
        let device = Some(self.open_device(&name, mtu)?);
        let opened = Opened { device, ..Opened::default() };
        self.send_all(opened, None, None)?;
        tracing::warn!(interface = name, "the interface was deleted and has been made again");
        Ok(())
    }

    /// Sets the interface up after somebody set it down.
    pub(crate) fn bring_up(&self) {
        let Some(device) = &self.device else { return };
        let result: anyhow::Result<_> = self.runtime.block_on(async {
            let netlink = Netlink::new()?;
            Ok(link::ensure_up(&netlink, &device.name).await?)
        });
        match result {
            Ok(_) => {
                tracing::warn!(interface = device.name, "the interface was down: set up again")
            }
            Err(error) => tracing::warn!(interface = device.name, %error, "cannot set up"),
        }
    }

    /// What is due once in a second.
    pub(crate) fn tick(&self, now: Timestamp) {
        self.plugins.expire(now);
    }

    pub(crate) fn desired(&self) -> &Desired {
        &self.desired
    }

    pub(crate) fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// Which offloads are in use; none before the first tables.
    pub(crate) fn offloads(&self) -> Vec<Offload> {
        let tun = self.device.iter().flat_map(|d| d.offloads.named());
        let cpu = self.device.iter().map(|d| ("tun_cpu", d.tells_cpu));
        let udp = self.sockets.iter().flat_map(|s| s.offloads.named());
        let cipher = self.shared.mesh.uses_avx512().map(|on| ("wg_avx512", on));
        tun.chain(cpu)
            .chain(udp)
            .chain(cipher)
            .map(|(name, on)| Offload { name: name.to_owned(), on })
            .collect()
    }

    /// Opens what `settings` need and is not open. Sockets first: a device would stay behind.
    fn open(&mut self, settings: &Settings) -> Result<Opened, ApplyError> {
        let mut opened = Opened::default();
        if self.sockets.as_ref().is_none_or(|s| s.port != settings.port) {
            opened.sockets = Some(self.bind(settings.port)?);
        }
        if self.device.as_ref().is_none_or(|d| d.name != settings.interface) {
            opened.device = Some(self.open_device(&settings.interface, settings.mtu)?);
        }
        Ok(opened)
    }

    fn bind(&self, port: u16) -> Result<(Sockets, Vec<UdpSocket>), ApplyError> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let bind = |_| UdpSocket::bind(any, self.udp_offloads);
        let all = (0..self.workers.len()).map(bind).collect::<Result<Vec<_>, _>>();
        let all = all.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => ApplyError::PortInUse { port },
            _ => ApplyError::Udp { port, source },
        })?;
        let offloads = all.first().map_or(UdpOffloads::NONE, UdpSocket::offloads);
        Ok((Sockets { port, offloads }, all))
    }

    fn open_device(&mut self, name: &str, mtu: u16) -> Result<(Device, Tun), ApplyError> {
        let mut tun = Tun::open(name, self.workers.len(), mtu, self.tun_offloads)?;
        self.devices_opened += 1;
        let (name, number, offloads) = (name.to_owned(), self.devices_opened, tun.offloads());
        let tells_cpu = self.tun_cpu && {
            let watched = tun.watch_senders();
            watched
                .inspect_err(|error| tracing::info!(%error, "workers do not follow pods"))
                .is_ok()
        };
        if !tells_cpu && let Err(error) = tun.unwatch_senders() {
            tracing::debug!(%error, "senders were not watched");
        }
        Ok((Device { name, number, mtu, offloads, tells_cpu }, tun))
    }

    /// Hands the tables to the workers and puts away what they left behind.
    fn hand_over(
        &mut self,
        tables: &Tables,
        opened: Opened,
        plugins_changed: bool,
    ) -> Result<(), ApplyError> {
        let settings = &tables.settings;
        let old = self.device.as_ref().map(|d| (d.name.clone(), d.mtu));
        let renamed = opened.device.is_some();
        if plugins_changed && self.plugins.needs_two_steps(&self.in_use) {
            let Self { plugins, in_use, desired, resolver, .. } = self;
            let built_in = |name: &str| desired.built_in_config(name, *resolver);
            let remaining = plugins.instances(|name| in_use.contains(name), &built_in);
            self.send_all(Opened::default(), None, Some(remaining))?;
        }
        let plugins = plugins_changed.then(|| self.instances());
        let mut routes = routes(tables);
        if self.is_unguarded() {
            tracing::error!("policies cannot be enforced: no pod of this node is reached");
            routes.local_pods.clear();
        }
        let routes = Arc::new(Routes::new(&routes));
        self.send_all(opened, Some((routes, settings.mtu)), plugins)?;
        self.in_use = self.plugins.names();
        match old {
            Some((name, _)) if renamed => {
                if let Err(error) = Tun::delete(&name) {
                    tracing::warn!(%error, "the interface used before is left behind");
                }
            }
            Some((name, mtu)) if mtu != settings.mtu => self.set_mtu(&name, settings.mtu),
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Instances of every plugin, for each worker.
    fn instances(&mut self) -> Vec<Vec<PluginInstance>> {
        let Self { plugins, desired, resolver, .. } = self;
        plugins.instances(|_| true, &|name| desired.built_in_config(name, *resolver))
    }

    /// True if there are policies and nobody to enforce them.
    fn is_unguarded(&self) -> bool {
        self.desired.plugins.contains_key(POLICY_PLUGIN)
            && !self.plugins.names().contains(POLICY_PLUGIN)
    }

    /// Gives every worker its part and waits until all of them use it.
    fn send_all(
        &mut self,
        opened: Opened,
        routes: Option<(Arc<Routes>, u16)>,
        plugins: Option<Vec<Vec<PluginInstance>>>,
    ) -> Result<(), WorkerGone> {
        let (mut queues, mut number, mut merge_udp) = (Vec::new(), 0, false);
        if let Some((device, tun)) = opened.device {
            (number, merge_udp) = (device.number, device.offloads.uso);
            queues = tun.into_queues();
            self.device = Some(device);
        }
        let mut sockets = Vec::new();
        if let Some((used, all)) = opened.sockets {
            sockets = all;
            self.sockets = Some(used);
        }
        let mut plugins = plugins.unwrap_or_default().into_iter();
        let mut sockets = sockets.into_iter();
        let mut queues = queues.into_iter();
        let mut waiting = Vec::new();
        for worker in &self.workers {
            let queue = queues.next();
            waiting.push(worker.send(Update {
                routes: routes.clone(),
                plugins: plugins.next(),
                tun: queue.map(|queue| TunEnd { queue, device: number, merge_udp }),
                udp: sockets.next(),
                change: None,
            })?);
        }
        wait_for(waiting)
    }

    fn set_mtu(&mut self, name: &str, mtu: u16) {
        let result: anyhow::Result<_> = self.runtime.block_on(async {
            let netlink = Netlink::new()?;
            Ok(link::ensure_mtu(&netlink, name, mtu.into()).await?)
        });
        match (result, &mut self.device) {
            (Ok(_), Some(device)) => device.mtu = mtu,
            (Ok(_), None) => {}
            (Err(error), _) => tracing::warn!(%error, "the interface keeps its MTU"),
        }
    }

    /// What cannot be saved costs a restart its head start, and nothing else.
    fn save(&self) {
        if let Err(error) = self.store.save(&self.desired, &self.plugins.running()) {
            tracing::warn!(%error, "tables are not saved: a restart will wait for the agent");
        }
        let wanted = |digest: &str| self.desired.plugins.values().any(|p| hex(&p.digest) == digest);
        let keep =
            |digest: &str, age| age < MODULE_KEPT || wanted(digest) || self.plugins.uses(digest);
        if let Err(error) = self.store.keep_modules(SystemTime::now(), keep) {
            tracing::warn!(%error, "modules that nothing uses are not removed");
        }
    }
}

/// Waits until every worker uses what it was sent.
fn wait_for(workers: Vec<oneshot::Receiver<()>>) -> Result<(), WorkerGone> {
    workers.into_iter().try_for_each(|done| done.blocking_recv().map_err(|_| WorkerGone))
}

fn routes(tables: &Tables) -> RoutesConfig {
    let MeshConfig { peers, .. } = &tables.mesh;
    RoutesConfig {
        host_addresses: tables.settings.addresses.clone(),
        local_subnets: tables.settings.subnets.clone(),
        local_pods: tables.pods.clone(),
        peers: peers.iter().map(|p| (p.id, p.allowed_ips.clone())).collect(),
        pod_cidrs: tables.settings.pod_cidrs.clone(),
        host_sources: tables.settings.host_sources.clone(),
    }
}

/// Where the datapath is reached in its run directory.
pub(crate) fn socket_path(run_dir: &std::path::Path) -> PathBuf {
    run_dir.join(weft_control::socket::DATAPATH)
}
