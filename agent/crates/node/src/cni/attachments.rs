//! Attaching and detaching pods: each verb is done whole or leaves nothing.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Mutex, MutexGuard};
use weft_model::cni::{Attachment, Delegation, RESERVATIONS, Range, Response, Wiring};

use super::records::{Record, Records, key};
use crate::core::{Core, State};

/// Error codes of the CNI specification that the agent answers with.
pub(crate) mod code {
    /// A variable or a name is not legal.
    pub(crate) const ENVIRONMENT: u32 = 4;
    /// The disk or the kernel refused.
    pub(crate) const IO: u32 = 5;
    /// The request cannot be decoded.
    pub(crate) const DECODE: u32 = 6;
    /// Try again later.
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// STATUS: no pod could be attached now.
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no pod could, and those that are attached may be cut off.
    pub(crate) const LIMITED: u32 = 51;
    /// The attachment exists, or is not what it should be.
    pub(crate) const ATTACHMENT: u32 = 100;
}

/// How long the datapath may take to use a new pod; `weft-cni` waits for 9 s.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(7);
/// How long a pod's end waits for the datapath; it never fails for it.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Attachments that are worked on at once at most; a prime, and well above what kubelets do.
const LOCKS: usize = 251;

/// The kernel's side of a pod's port.
pub(crate) trait Ports: Send + Sync + 'static {
    /// Whether the interface is there.
    fn exists(&self, interface: &str) -> impl Future<Output = bool> + Send;
    /// Redirects what the pod sends from its addresses, drops the rest, and lets the host hear it.
    fn ensure(&self, record: &Record) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Takes the redirect away; fine if there is none, or no interface.
    fn remove(&self, interface: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Takes the interface away; fine if there is none.
    fn delete(&self, interface: &str) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Whether all that [`Ports::ensure`] does is in place; changes nothing.
    fn check(&self, record: &Record) -> impl Future<Output = anyhow::Result<bool>> + Send;
}

/// Why a verb was not done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub code: u32,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn io(error: &io::Error) -> Self {
        Self::new(code::IO, format!("cannot keep the attachment on disk: {error}"))
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        Self::Failed { code: failure.code, message: failure.message }
    }
}

/// The verbs of the CNI socket.
pub(crate) struct Attachments<P> {
    core: Arc<Core>,
    records: Records,
    ports: P,
    locks: Vec<Mutex<()>>,
}

impl<P: Ports> Attachments<P> {
    /// Serves from `core`, keeps `records`.
    pub(crate) fn new(core: Arc<Core>, records: Records, ports: P) -> Self {
        let locks = (0..LOCKS).map(|_| Mutex::default()).collect();
        Self { core, records, ports, locks }
    }

    /// Takes the pods on disk over, but for those whose interface has vanished with its pod.
    pub(crate) async fn restore(&self) -> io::Result<()> {
        let mut live = Vec::new();
        for record in self.records.load()? {
            if self.ports.exists(&record.wiring.host_interface).await {
                live.push(record);
            } else {
                tracing::info!(attachment = key(&record.attachment), "pod vanished, forgotten");
                self.records.remove(&record.attachment)?;
            }
        }
        self.core.update(|state| {
            state.attachments = live.into_iter().map(|r| (key(&r.attachment), r)).collect();
        });
        Ok(())
    }

    /// Before the delegate runs: what it shall be told.
    pub(crate) async fn prepare(&self, attachment: &Attachment) -> Result<Delegation, Failure> {
        legal(attachment)?;
        let _turn = self.turn(attachment).await;
        let config = &self.core.config;
        let (delegation, known) = self
            .core
            .read(|s| (s.delegation(config), s.attachments.get(&key(attachment)).cloned()));
        let Some(delegation) = delegation else { return Err(self.not_ready()) };
        self.require_datapath(code::TRY_AGAIN)?;
        if let Some(known) = known {
            self.refuse_if_live(&known).await?;
        }
        self.require_room(&delegation, &attachment.network, code::TRY_AGAIN)?;
        Ok(delegation)
    }

    /// Whether [`Attachments::prepare`] would give an answer for a new pod now.
    pub(crate) fn status(&self, network: &str) -> Result<(), Failure> {
        let delegation = self.core.read(|s| s.delegation(&self.core.config));
        let not_ready = || Failure { code: code::NOT_AVAILABLE, ..self.not_ready() };
        let delegation = delegation.ok_or_else(not_ready)?;
        self.require_datapath(code::LIMITED)?;
        self.require_room(&delegation, network, code::NOT_AVAILABLE)
    }

    /// Forgets every attachment of a network but these, and takes away what is left of it on the node. What
    /// cannot be done does not stop the rest.
    pub(crate) async fn collect(&self, network: &str, valid: &[Attachment]) -> Result<(), Failure> {
        let stale = self.core.read(|s| {
            let of_network = s.attachments.values().filter(|r| r.attachment.network == network);
            of_network.filter(|r| !valid.contains(&r.attachment)).cloned().collect::<Vec<_>>()
        });
        let mut failures = Vec::new();
        for Record { attachment, wiring, .. } in stale {
            tracing::info!(attachment = key(&attachment), "the runtime does not know it any more");
            if let Err(failure) = self.detach(&attachment).await {
                failures.push(failure.message);
            }
            if let Err(error) = self.delete_port(&wiring.host_interface).await {
                failures.push(format!("{}: {error:#}", wiring.host_interface));
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(code::IO, failures.join("; "))),
        }
    }

    fn require_datapath(&self, code: u32) -> Result<(), Failure> {
        if self.core.applied().borrow().connected {
            return Ok(());
        }
        let message = "the datapath does not run or has no tables yet: see `weft status`";
        Err(Failure::new(code, message))
    }

    fn require_room(
        &self,
        delegation: &Delegation,
        network: &str,
        code: u32,
    ) -> Result<(), Failure> {
        let directory = self.core.config.attachments_dir().join(RESERVATIONS).join(network);
        let given = given(&directory);
        for Range { subnet, .. } in &delegation.ranges {
            let used = given.iter().filter(|address| subnet.contains(*address)).count();
            if u128::try_from(used).is_ok_and(|used| used >= room(subnet)) {
                let message = format!("no address is left in {subnet}: {used} are given to pods");
                return Err(Failure::new(code, message));
            }
        }
        Ok(())
    }

    /// The delegate has run: records the pod, redirects its packets, waits for the datapath.
    pub(crate) async fn attach(&self, record: Record) -> Result<(), Failure> {
        legal(&record.attachment)?;
        let _turn = self.turn(&record.attachment).await;
        self.refuse_foreign_addresses(&record)?;
        for other in self.core.read(|s| in_conflict(s, &record)) {
            self.refuse_if_live(&other).await?;
        }
        let claimed = self.core.update(|state| {
            if !in_conflict(state, &record).is_empty() {
                return false;
            }
            state.attachments.insert(key(&record.attachment), record.clone());
            true
        });
        if !claimed {
            return Err(Failure::new(code::ATTACHMENT, "another pod just got the same address"));
        }
        let done = self.attach_claimed(&record).await;
        if done.is_err() {
            self.undo(&record).await;
        }
        done
    }

    /// Forgets the attachment; fine if it is not known.
    pub(crate) async fn detach(&self, attachment: &Attachment) -> Result<(), Failure> {
        let _turn = self.turn(attachment).await;
        let record = self.core.update(|s| s.attachments.remove(&key(attachment)));
        self.records.remove(attachment).map_err(|e| Failure::io(&e))?;
        let Some(record) = record else { return Ok(()) };
        self.release_port(&record.wiring).await;
        if self.core.applied().borrow().connected {
            self.core.wait_applied(DETACH_TIMEOUT).await;
        }
        Ok(())
    }

    /// Compares the attachment with what it should be; changes nothing.
    pub(crate) async fn check(
        &self,
        attachment: &Attachment,
        wiring: &Wiring,
    ) -> Result<(), Failure> {
        let wrong = |m: String| Err(Failure::new(code::ATTACHMENT, m));
        let known = self.core.read(|s| s.attachments.get(&key(attachment)).cloned());
        let Some(known) = known else {
            return wrong(format!("the agent does not know the attachment {}", key(attachment)));
        };
        let interface = &known.wiring.host_interface;
        if *interface != wiring.host_interface || known.addresses() != addresses(wiring) {
            return wrong(format!(
                "the pod was attached as {interface} with {:?}, not as {} with {:?}",
                known.addresses(),
                wiring.host_interface,
                addresses(wiring)
            ));
        }
        match self.ports.check(&known).await {
            Ok(true) => {}
            Ok(false) => {
                return wrong(format!(
                    "{interface} does not check and redirect what the pod sends as it should"
                ));
            }
            Err(error) => return wrong(format!("{interface} cannot be checked: {error:#}")),
        }
        if !self.core.wait_applied(DETACH_TIMEOUT).await {
            return wrong("the datapath does not know the pod: does it run?".to_owned());
        }
        Ok(())
    }

    async fn attach_claimed(&self, record: &Record) -> Result<(), Failure> {
        let (records, saved) = (self.records.clone(), record.clone());
        let saved = tokio::task::spawn_blocking(move || records.save(&saved)).await;
        saved.map_err(io::Error::other).and_then(|s| s).map_err(|e| Failure::io(&e))?;
        let interface = &record.wiring.host_interface;
        self.ports.ensure(record).await.map_err(|e| {
            Failure::new(code::TRY_AGAIN, format!("cannot redirect what {interface} gets: {e:#}"))
        })?;
        if let Some(pod) = record.pod_name()
            && !self.core.wait_known(&pod, ATTACH_TIMEOUT).await
        {
            let message = format!("the hub did not say in time which policies are for pod {pod}");
            return Err(Failure::new(code::TRY_AGAIN, message));
        }
        if self.core.wait_applied(ATTACH_TIMEOUT).await {
            return Ok(());
        }
        Err(Failure::new(
            code::TRY_AGAIN,
            "the datapath did not take the pod in time: does it run?",
        ))
    }

    async fn undo(&self, record: &Record) {
        self.core.update(|s| s.attachments.remove(&key(&record.attachment)));
        self.release_port(&record.wiring).await;
        if let Err(error) = self.records.remove(&record.attachment) {
            tracing::warn!(%error, "record of a failed attachment not removed");
        }
    }

    /// True if another attachment has the interface of that name by now.
    fn is_reused(&self, interface: &str) -> bool {
        self.core.read(|s| s.attachments.values().any(|r| r.wiring.host_interface == interface))
    }

    async fn delete_port(&self, interface: &str) -> anyhow::Result<()> {
        if self.is_reused(interface) { Ok(()) } else { self.ports.delete(interface).await }
    }

    async fn release_port(&self, wiring: &Wiring) {
        let interface = &wiring.host_interface;
        if self.is_reused(interface) {
            return;
        }
        if let Err(error) = self.ports.remove(interface).await {
            tracing::debug!(interface, error = format!("{error:#}"), "redirect not removed");
        }
    }

    /// An attachment whose interface is there is in the way; a vanished one is forgotten.
    async fn refuse_if_live(&self, known: &Record) -> Result<(), Failure> {
        let name = key(&known.attachment);
        if self.ports.exists(&known.wiring.host_interface).await {
            let message = format!("{name} is attached already with {:?}", known.addresses());
            return Err(Failure::new(code::ATTACHMENT, message));
        }
        self.core.update(|s| s.attachments.remove(&name));
        self.records.remove(&known.attachment).map_err(|e| Failure::io(&e))
    }

    fn refuse_foreign_addresses(&self, record: &Record) -> Result<(), Failure> {
        let config = &self.core.config;
        let Some(delegation) = self.core.read(|s| s.delegation(config)) else {
            return Err(self.not_ready());
        };
        let ours =
            |a: &IpAddr| delegation.ranges.iter().any(|r| r.subnet.contains(a) && r.gateway != *a);
        match record.addresses().iter().find(|a| !ours(a)) {
            Some(address) => Err(Failure::new(
                code::ATTACHMENT,
                format!(
                    "{address} is not for pods of this node: the lease changed, or IPAM is configured by hand"
                ),
            )),
            None if record.wiring.addresses.is_empty() => {
                Err(Failure::new(code::ATTACHMENT, "the delegate gave the pod no address"))
            }
            None => Ok(()),
        }
    }

    fn not_ready(&self) -> Failure {
        let problem = self.core.read(|s| s.problems.values().flatten().next().cloned());
        let why = problem.unwrap_or_else(|| "the node has not joined the fabric yet".to_owned());
        Failure::new(code::TRY_AGAIN, format!("Weft is not ready on this node: {why}"))
    }

    /// Verbs of one attachment come one after the other.
    async fn turn(&self, attachment: &Attachment) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        attachment.hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0);
        match self.locks.get(slot) {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }
}

/// Addresses that the delegate has given.
fn given(directory: &Path) -> Vec<IpAddr> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// How many pods a subnet has addresses for: it has a first and a last one, which nobody gets, and the
/// gateway's.
fn room(subnet: &IpNet) -> u128 {
    let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(3)
}

fn legal(attachment: &Attachment) -> Result<(), Failure> {
    Records::check(attachment).map_err(|e| Failure::new(code::ENVIRONMENT, e.to_string()))
}

fn addresses(wiring: &Wiring) -> Vec<IpAddr> {
    wiring.addresses.iter().map(|a| a.addr()).collect()
}

/// Attachments that `record` cannot stand beside: itself, and those with an address or the
/// interface of it.
fn in_conflict(state: &State, record: &Record) -> Vec<Record> {
    let addresses = record.addresses();
    let clashes = |other: &&Record| {
        other.attachment == record.attachment
            || other.wiring.host_interface == record.wiring.host_interface
                && other.wiring != record.wiring
            || other.addresses().iter().any(|a| addresses.contains(a))
    };
    state.attachments.values().filter(clashes).cloned().collect()
}
