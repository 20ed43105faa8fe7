//! The loop that looks and puts right: at each announcement of the kernel, at each change of what
//! is wanted, and from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use weft_netio::monitor::{Change, Monitor};
use weft_netio::nft::{self, NftError};
use weft_netio::{Netlink, NetlinkError, addr, link, route, rule, sysctl, tc};

use super::forward::{self, Passing};
use super::plan::{Action, Actual, Desired, NFT_TABLE, plan, plan_ports, unbridged};
use super::ports::{KernelPorts, ensure_settings, has_ipv6, port_and_bridge};
use super::sysctls::OldSysctls;
use super::underlay::{self, source_anywhere, source_towards};
use super::{input, kube_proxy};
use crate::cni::Record;
use crate::core::Core;
use crate::health;

/// Settings are announced by nobody, and drops are counted in the kernel: they are looked at this
/// often.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Announcements of nftables and of ports are heeded; this is for one that got lost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the hub's name is resolved.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a name server may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Announcements that come together are handled together.
const DEBOUNCE: Duration = Duration::from_millis(20);

const WHO: &str = "network";

/// A pod's port as it was put right.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    index: u32,
    /// Index of the interface it redirects to.
    into: u32,
    record: Record,
}

/// What was found out about tables of others.
#[derive(Debug, Default)]
struct Firewalls {
    checked: Option<Instant>,
    /// One of them was changed since, or the fabric was.
    changed: bool,
    cidrs: Vec<IpNet>,
    direct: bool,
    health_ports: BTreeSet<u16>,
    problems: Vec<String>,
}

/// Keeps the node's network right.
pub(crate) struct NetworkTask {
    core: Arc<Core>,
    netlink: Netlink,
    port_wiring: KernelPorts,
    sysctls: OldSysctls,
    spoofed: Arc<AtomicU64>,
    /// Pods' ports that are as they should be, unless something was announced of them since.
    ports: BTreeMap<String, Port>,
    ports_checked: Instant,
    /// Index of the interface that delivers to pods, unless something was announced of it, or a
    /// port vanished, since.
    delivering: Option<u32>,
    /// Drops last seen, by interface index.
    drops: BTreeMap<u32, u64>,
    /// The ruleset that is wanted, and how nft lists it.
    nft: Option<(String, Option<String>)>,
    nft_checked: Option<Instant>,
    firewalls: Firewalls,
    hub: Option<SocketAddr>,
    resolved: Option<Instant>,
}

impl NetworkTask {
    /// Touches nothing yet. `spoofed` is where drops at ports are counted.
    pub(crate) fn new(
        core: Arc<Core>,
        netlink: Netlink,
        port_wiring: KernelPorts,
        sysctls: OldSysctls,
        spoofed: Arc<AtomicU64>,
    ) -> Self {
        Self {
            core,
            netlink,
            port_wiring,
            sysctls,
            spoofed,
            ports: BTreeMap::new(),
            ports_checked: Instant::now(),
            delivering: None,
            drops: BTreeMap::new(),
            nft: None,
            nft_checked: None,
            firewalls: Firewalls::default(),
            hub: None,
            resolved: None,
        }
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// If the kernel does not let changes be followed.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut monitor = Monitor::new().context("cannot follow changes of the network")?;
        let mut changes = self.core.changes();
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changes.borrow_and_update();
            let problems = self.pass().await;
            self.core.set_problems(WHO, problems);
            tokio::select! {
                _ = changes.changed() => {}
                _ = ticks.tick() => self.count_drops().await,
                change = monitor.next() => {
                    let Ok(change) = change else {
                        monitor = Monitor::new().context("cannot follow changes of the network")?;
                        self.heed(&Change::Lost);
                        continue;
                    };
                    self.heed(&change);
                    sleep(DEBOUNCE).await;
                    while let Ok(Ok(change)) = timeout(Duration::ZERO, monitor.next()).await {
                        self.heed(&change);
                    }
                }
            }
        }
    }

    /// The network is looked at anyway. nftables, which takes a process, and the many ports only if
    /// something was said of them.
    fn heed(&mut self, change: &Change) {
        let index = match change {
            Change::Nftables { table } => {
                if table == NFT_TABLE {
                    self.nft_checked = None;
                } else {
                    self.firewalls.changed = true;
                }
                return;
            }
            Change::Lost => {
                self.nft_checked = None;
                self.firewalls.changed = true;
                self.delivering = None;
                return self.ports.clear();
            }
            Change::LinkSet(link) | Change::LinkDeleted(link) => link.index,
            Change::AddressSet(address) | Change::AddressDeleted(address) => address.index,
            Change::TrafficControlSet { index } | Change::TrafficControlDeleted { index } => *index,
            Change::RouteSet(_)
            | Change::RouteDeleted(_)
            | Change::RuleSet(_)
            | Change::RuleDeleted(_) => return,
        };
        // What was delivered to a port that vanished has to be forgotten.
        let gone = matches!(change, Change::LinkDeleted(_));
        self.delivering = self.delivering.filter(|delivering| !gone && *delivering != index);
        self.ports.retain(|_, port| port.index != index);
    }

    /// Looks at everything and puts right what is wrong; returns what could not be.
    async fn pass(&mut self) -> Vec<String> {
        let actual = match look(&self.netlink).await {
            Ok(actual) => actual,
            Err(error) => return vec![format!("cannot look at the network: {error:#}")],
        };
        let mut problems = Vec::new();
        problems.extend(self.learn(&actual).await);
        let config = &self.core.config;
        let (desired, mtu, overlap, generation) = self.core.read(|s| {
            let generation = s.snapshot.as_ref().map_or(0, |s| s.generation.0);
            (Desired::new(config, s), s.mtu(config), s.overlap(), generation)
        });
        problems.extend(overlap);
        let mtu = match mtu {
            Some(Err(error)) => {
                problems.push(error.to_string());
                None
            }
            Some(Ok(mtu)) => Some(mtu),
            None => None,
        };
        let Some(desired) = desired else { return problems };
        problems.extend(self.settings(&desired, &actual));
        problems.extend(unbridged(&desired, &actual));
        problems.extend(failed(self.nftables(&desired.ruleset).await));
        problems.extend(failed(self.firewalls(&desired, &actual).await));
        problems.extend(self.firewalls.problems.iter().cloned());
        if actual.link(&desired.interface).is_none() {
            problems.push(format!(
                "there is no interface {} yet: does the datapath run?",
                desired.interface
            ));
            return problems;
        }
        problems.extend(self.interface(&desired, &actual, mtu).await);
        for action in plan(&desired, &actual) {
            tracing::info!(?action, "network put right");
            problems.extend(failed(perform(&self.netlink, &desired.interface, &action).await));
        }
        for action in plan_ports(&desired, &actual) {
            match perform(&self.netlink, &desired.interface, &action).await {
                Ok(()) => tracing::info!(?action, "port of a pod put right"),
                // The pod just went.
                Err(error) if error.is_absent() => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        problems.extend(self.ports(&desired, &actual).await);
        problems.extend(self.delivery(&desired, &actual).await);
        self.core.set_applied(|a| a.network = generation);
        problems
    }

    /// Takes note of the underlay and of the host's addresses.
    async fn learn(&mut self, actual: &Actual) -> Option<String> {
        self.resolve().await;
        let routed = self.hub.and_then(source_towards);
        let sources: Vec<_> = routed.or_else(source_anywhere).into_iter().collect();
        let config = &self.core.config;
        let found = underlay::find(&config.underlay, &config.interface, actual, &sources);
        let hosts = underlay::host_addresses(actual);
        let (found, problem) = match found {
            Ok(found) => (Some(found), None),
            Err(line) => (None, Some(line)),
        };
        let hub = self.hub.map(|h| h.ip());
        let same = self.core.read(|s| {
            s.looked
                && s.host_addresses == hosts
                && s.hub == hub
                && (found.is_none() || s.underlay == found)
        });
        if !same {
            self.core.update(|s| {
                s.looked = true;
                s.host_addresses = hosts;
                s.hub = hub;
                if found.is_some() {
                    s.underlay = found;
                }
            });
        }
        problem
    }

    async fn resolve(&mut self) {
        let interval = if self.hub.is_some() { RESOLVE_INTERVAL } else { RESOLVE_TIMEOUT };
        if self.resolved.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.resolved = Some(Instant::now());
        // Whoever connects says what is wrong with it.
        let Ok(hub) = self.core.config.hub.read() else { return };
        let looked_up = tokio::net::lookup_host(hub);
        if let Ok(Ok(mut found)) = timeout(RESOLVE_TIMEOUT, looked_up).await {
            self.hub = found.next().or(self.hub);
        }
    }

    fn settings(&mut self, desired: &Desired, actual: &Actual) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note = |key: &str, result: std::io::Result<()>| {
            problems.extend(result.err().map(|e| format!("cannot set {key}: {e}")));
        };
        let underlay = self.core.read(|s| s.underlay.as_ref().map(|u| u.interface.clone()));
        if let Some(key) = underlay.map(|u| format!("net/ipv6/conf/{u}/accept_ra"))
            && desired.node_sysctls.iter().any(|(k, _)| k.starts_with("net/ipv6"))
            && sysctl::get(&key).is_ok_and(|v| v == "1")
        {
            // A host that forwards ignores router advertisements unless told to heed them.
            note(&key, self.sysctls.ensure(&key, "2"));
        }
        for (key, value) in &desired.node_sysctls {
            note(key, self.sysctls.ensure(key, value));
        }
        // A bridge is that of many pods.
        let mut devices = BTreeSet::new();
        for record in desired.ports.values() {
            let Ok((port, bridge)) = port_and_bridge(&actual.links, record) else { continue };
            let ipv6 = has_ipv6(record);
            devices.extend([Some(port), bridge].into_iter().flatten().map(|d| (&d.name, ipv6)));
        }
        for (device, ipv6) in devices {
            for (key, error) in ensure_settings(device, ipv6) {
                note(&key, Err(error));
            }
        }
        if actual.link(&desired.interface).is_some() {
            for (key, value) in &desired.interface_sysctls {
                match sysctl::ensure(key, value) {
                    // The interface vanished, or the kernel has no IPv6.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    result => note(key, result.map(drop)),
                }
            }
        }
        problems
    }

    async fn nftables(&mut self, ruleset: &str) -> Result<(), NftError> {
        let wanted = match &self.nft {
            Some((text, listed)) if text == ruleset => {
                if self.nft_checked.is_some_and(|at| at.elapsed() < RECHECK_INTERVAL) {
                    return Ok(());
                }
                listed.clone()
            }
            _ => nft::as_listed(ruleset, "inet", NFT_TABLE).await?,
        };
        // What is changed from here on is announced, and looked at in the next pass.
        let checked = Instant::now();
        if nft::list_table("inet", NFT_TABLE).await? != wanted {
            nft::apply(ruleset).await?;
            tracing::info!("nftables table put right");
        }
        self.nft = Some((ruleset.to_owned(), wanted));
        self.nft_checked = Some(checked);
        Ok(())
    }

    /// Others change their tables often, and each look is a few processes.
    async fn firewalls(&mut self, desired: &Desired, actual: &Actual) -> Result<(), NftError> {
        let cidrs: Vec<IpNet> = desired.routes.iter().map(|(cidr, _)| *cidr).collect();
        let known = &mut self.firewalls;
        let direct = self.core.read(|s| s.direct_delivery);
        let health_ports = self.core.read(|s| {
            let snapshot = s.snapshot.as_ref();
            snapshot.map(|s| health::ports(s.services.values().map(Arc::as_ref)))
        });
        let health_ports = health_ports.unwrap_or_default().into_keys().collect();
        known.changed |= (&known.cidrs, known.direct) != (&cidrs, direct);
        known.changed |= known.health_ports != health_ports;
        let due = if known.changed { CHECK_INTERVAL } else { RECHECK_INTERVAL };
        if known.checked.is_some_and(|at| at.elapsed() < due) {
            return Ok(());
        }
        // What is changed from here on is announced, and looked at in a later pass.
        (known.checked, known.changed) = (Some(Instant::now()), false);
        let passing = Passing { interface: &desired.interface, cidrs: &cidrs, direct };
        known.problems = forward::ensure(passing).await?;
        if self.core.read(|s| s.snapshot.as_ref().is_some_and(|s| !s.services.is_empty())) {
            known.problems.extend(kube_proxy::problem(&actual.links).await?);
        }
        input::ensure(&health_ports).await?;
        (known.cidrs, known.direct, known.health_ports) = (cidrs, direct, health_ports);
        Ok(())
    }

    /// The interface is the datapath's; up and of the right MTU is what the agent sees to.
    async fn interface(&self, desired: &Desired, actual: &Actual, mtu: Option<u16>) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(there) = actual.link(&desired.interface) else { return problems };
        if !self.core.applied().borrow().connected {
            return problems;
        }
        if !there.up {
            problems.extend(failed(link::ensure_up(&self.netlink, &desired.interface).await));
        }
        if let Some(mtu) = mtu.map(u32::from).filter(|mtu| *mtu != there.mtu) {
            problems.extend(failed(link::ensure_mtu(&self.netlink, &desired.interface, mtu).await));
        }
        problems
    }

    async fn ports(&mut self, desired: &Desired, actual: &Actual) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(into) = actual.link(&desired.interface).map(|l| l.index) else { return problems };
        if self.ports_checked.elapsed() >= RECHECK_INTERVAL {
            self.ports.clear();
            self.delivering = None;
            self.ports_checked = Instant::now();
        }
        self.ports.retain(|name, _| desired.ports.contains_key(name));
        for (name, record) in &desired.ports {
            let Some(link) = actual.link(name) else { continue };
            let port = Port { index: link.index, into, record: record.clone() };
            if self.ports.get(name) == Some(&port) {
                continue;
            }
            match self.port_wiring.ensure_into(into, record).await {
                Ok(done) => {
                    if done.changed() {
                        tracing::debug!(port = name, "redirect put in place");
                    }
                    self.ports.insert(name.clone(), port);
                }
                Err(error) if error.is_absent() => {}
                Err(error) => problems.push(error.to_string()),
            }
        }
        problems
    }

    /// After the ports, so that a program that takes the place of another knows all pods.
    async fn delivery(&mut self, desired: &Desired, actual: &Actual) -> Option<String> {
        let done = self.ensure_delivery(desired, actual).await;
        let direct = done.is_ok() && self.port_wiring.delivers().await;
        if self.core.read(|s| s.direct_delivery) != direct {
            self.core.update(|s| s.direct_delivery = direct);
        }
        done.err().filter(|error| !error.is_absent()).map(|error| error.to_string())
    }

    async fn ensure_delivery(
        &mut self,
        desired: &Desired,
        actual: &Actual,
    ) -> Result<(), NetlinkError> {
        let interface = actual.link(&desired.interface).map(|link| link.index);
        if self.delivering.is_none() || self.delivering != interface {
            self.delivering = None;
            self.port_wiring.forget_gone().await?;
            if self.port_wiring.ensure_delivery().await?.changed() {
                tracing::debug!("delivery to pods put in place");
            }
            self.delivering = interface;
        }
        Ok(())
    }

    /// Adds what our ports dropped since the last time.
    async fn count_drops(&mut self) {
        let now = match tc::all_drops(&self.netlink).await {
            Ok(now) => now,
            Err(error) => return tracing::debug!(%error, "drops of the ports not read"),
        };
        self.drops.retain(|index, _| now.contains_key(index));
        let mut dropping = Vec::new();
        for index in self.ports.values().map(|port| port.index) {
            let Some(drops) = now.get(&index).copied() else { continue };
            let before = self.drops.get(&index).copied().unwrap_or(0);
            // The kernel's counter has 32 bits, and begins anew with a new qdisc.
            let more = if drops >= before { drops - before } else { drops };
            if more > 0 {
                // Perhaps the pod has another Ethernet address by now.
                dropping.push(index);
            }
            self.spoofed.fetch_add(more, Ordering::Relaxed);
            self.drops.insert(index, drops);
        }
        self.ports.retain(|_, port| !dropping.contains(&port.index));
    }
}

fn failed<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<String> {
    result.err().map(|e| format!("{e:#}"))
}

/// Looks at the whole network of the node.
///
/// # Errors
/// The kernel's.
pub(crate) async fn look(netlink: &Netlink) -> anyhow::Result<Actual> {
    Ok(Actual {
        links: link::list(netlink).await?,
        addresses: addr::list(netlink).await?,
        routes: route::list(netlink).await?,
        rules: rule::list(netlink).await?,
    })
}

/// Does one thing to the node's network.
///
/// # Errors
/// The kernel's.
pub(crate) async fn perform(
    netlink: &Netlink,
    interface: &str,
    action: &Action,
) -> Result<(), weft_netio::NetlinkError> {
    match action {
        Action::AddAddress(net) => addr::ensure(netlink, interface, *net).await?,
        Action::RemoveAddress(net) => addr::remove(netlink, interface, *net).await?,
        Action::AddRoute(route) => route::ensure(netlink, route).await?,
        Action::RemoveRoute(route) => route::remove(netlink, route).await?,
        Action::AddRule(rule) => rule::ensure(netlink, rule).await?,
        Action::RemoveRule(rule) => rule::remove(netlink, rule).await?,
        Action::AddPortAddress(port, net) => addr::ensure(netlink, port, *net).await?,
        Action::AddPortRoute(route) => route::ensure(netlink, route).await?,
    };
    Ok(())
}
