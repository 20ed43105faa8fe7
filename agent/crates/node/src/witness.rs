//! Has the datapath know the addresses that pods are told by name, before they are told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use weft_netio::clock;
use weft_resolver::{Found, Witness};

use crate::core::{Core, State};
use crate::durable;
use crate::learned::Saved;

/// How long an answer waits for the datapath. Clients wait for 5 s, as a rule.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// What a pod was told holds for so much longer, since it may look at it last thing, or be told that there is
/// no time left at all.
const GRACE: Duration = Duration::from_secs(2);
/// How often what is over is forgotten.
const INTERVAL: Duration = Duration::from_secs(1);
/// Changes with each start of the kernel, at which the clock begins anew.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// In the run directory, which is memory as a rule: an answer does not wait for a slow disk.
const DIRECTORY: &str = "names";

/// What pods know, on disk: a file for each.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    boot: String,
    /// Held while a file is written, so that the last to write writes the newest.
    writing: Mutex<()>,
}

/// A file.
#[derive(Serialize, Deserialize)]
struct Content {
    boot: String,
    pod: Saved,
}

impl Store {
    /// Nothing is made before there is something to keep: a node that is refused leaves nothing.
    ///
    /// # Errors
    /// The kernel does not tell its boot.
    pub(crate) fn open(core: &Core) -> io::Result<Self> {
        let directory = core.config.run_dir.join(DIRECTORY);
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        Ok(Self { directory, boot, writing: Mutex::default() })
    }

    /// Gives the core what is on disk of pods that are attached, and removes the rest.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn restore(&self, core: &Core) -> io::Result<()> {
        let mut all = Vec::new();
        for path in self.files()? {
            let content = fs::read(&path)
                .and_then(|bytes| Ok(serde_json::from_slice::<Content>(&bytes)?))
                .inspect_err(|error| {
                    tracing::warn!(path = %path.display(), %error, "names that a pod knows are lost");
                });
            match content {
                Ok(content) if content.boot == self.boot => all.push(content.pod),
                _ => fs::remove_file(&path)?,
            }
        }
        core.update(|state| {
            all.into_iter().for_each(|saved| state.learned.restore(saved, clock::now()));
        });
        self.remove_gone(core)
    }

    /// Writes a pod's file. It outlives the agent, and need not outlive the kernel.
    fn write(&self, core: &Core, attachment: &str) -> io::Result<()> {
        let _only = self.writing.lock();
        let Some(pod) = core.save_learned(attachment) else { return Ok(()) };
        durable::private_dir(&self.directory)?;
        let bytes = serde_json::to_vec(&Content { boot: self.boot.clone(), pod })?;
        durable::write_unsynced(&self.path(attachment), &bytes, durable::PRIVATE)
    }

    fn remove_gone(&self, core: &Core) -> io::Result<()> {
        let _only = self.writing.lock();
        let kept: BTreeSet<_> = core.read(|state| {
            let known = state.attachments.keys().filter(|key| state.learned.known(key).is_some());
            known.map(|key| self.path(key)).collect()
        });
        for path in self.files()? {
            if !kept.contains(&path) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        match fs::read_dir(&self.directory) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Parts of an attachment have neither `/` nor `,`.
    fn path(&self, attachment: &str) -> PathBuf {
        self.directory.join(format!("{}.json", attachment.replace('/', ",")))
    }
}

/// Forgets what is over, and keeps the files as they should be; never ends.
pub(crate) async fn run(core: Arc<Core>, store: Arc<Store>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whose files are there.
    let mut kept = None;
    loop {
        ticks.tick().await;
        core.forget_learned(clock::now());
        let look = |state: &State| (state.learned.unsaved(), Some(state.learned.pods()));
        let (unsaved, known) = core.read(look);
        if unsaved.is_empty() && known == kept {
            continue;
        }
        let (core, store) = (Arc::clone(&core), Arc::clone(&store));
        let work = move || {
            unsaved.iter().try_for_each(|attachment| store.write(&core, attachment))?;
            store.remove_gone(&core)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Err(error)) => {
                kept = None;
                tracing::warn!(%error, "names that pods know are not kept: they ask again after a restart");
            }
            _ => kept = known,
        }
    }
}

/// Hears of answers for the policies.
#[derive(Debug)]
pub(crate) struct Ear {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<Store>,
}

impl Witness for Ear {
    fn cares(&self, client: IpAddr) -> bool {
        self.core.read(|state| state.domains_of(client).is_some())
    }

    fn hear(&self, client: IpAddr, found: Found) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let concerned = self.core.read(|state| concerned(state, client, &found.names));
            let Some((attachment, names)) = concerned else { return true };
            let now = clock::now();
            let until = now + found.ttl + GRACE;
            let (version, is_new) =
                self.core.learn(&attachment, &names, &found.addresses, now, until);
            if is_new {
                let (core, store) = (Arc::clone(&self.core), Arc::clone(&self.store));
                let write = tokio::task::spawn_blocking(move || store.write(&core, &attachment));
                let applied = self.core.wait_version(version, APPLY_TIMEOUT).await;
                if let Ok(Err(error)) = write.await {
                    tracing::warn!(%error, "names that a pod knows are not kept");
                }
                return applied;
            }
            self.core.wait_version(version, APPLY_TIMEOUT).await
        })
    }
}

/// The attachment of a pod, and which of the names its rules have. A name of the cluster that stands for
/// another was made to by the cluster: so who asks for it asks for the other as well.
fn concerned(state: &State, client: IpAddr, chain: &[String]) -> Option<(String, Vec<String>)> {
    let domains = state.domains_of(client)?;
    let zones = state.zones();
    let of_cluster = |name: &String| {
        let below = |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
        zones.iter().any(|zone| below(zone))
    };
    let own = chain.iter().take_while(|name| of_cluster(name)).count();
    let asked = chain.iter().take(own + 1);
    let names = asked.filter(|name| domains.values().any(|domain| domain.matches(name)));
    let names: Vec<_> = names.cloned().collect();
    let attachment = state.attachment_at(client).filter(|_| !names.is_empty())?;
    Some((attachment.to_owned(), names))
}

#[cfg(test)]
mod tests;
