//! The API server of a cluster: what it has, and then every change.
//!
//! Each kind is watched by a task of its own, with pauses that grow while the server does not answer;
//! [`index`] puts together what they say.

mod index;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, TypeMeta};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event as Watched};
use kube::{Client, Config, CustomResourceExt as _};
use serde_yaml_ng::Value;
use tokio::sync::mpsc;

use self::index::{Event, Index};
use super::fqdn::FqdnPolicyResource;
use super::modules::Modules;
use super::object::{Key, PacketFilterResource};
use super::objects::Objects;
use super::pool::AddressPoolResource;

/// Changes that come within this time of each other are told at once.
const SETTLE: Duration = Duration::from_millis(10);
/// How long a stream of changes can put off telling.
const SETTLE_MAX: Duration = Duration::from_millis(100);
/// How often modules of packet filters are looked at.
const MODULES_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is asked whether a kind that was not there is there now.
const MISSING_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a watch has failed; doubles up to [`PAUSE_MAX`] while nothing can be listed.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is said that the hub waits for the server.
const PATIENCE: Duration = Duration::from_secs(10);
/// Objects in one answer to a list.
const PAGE: u32 = 500;
/// What was said and not yet taken.
const EVENTS: usize = 1024;

/// Definitions of Weft's own kinds, for an API server.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![AddressPoolResource::crd(), FqdnPolicyResource::crd(), PacketFilterResource::crd()]
}

/// A kind that is watched.
struct Watch {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Every API server has it; others know it by a definition that may be missing.
    core: bool,
}

const fn core(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Watch {
    Watch { group, version, kind, plural, core: true }
}

const fn defined(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Watch {
    Watch { group, version, kind, plural, core: false }
}

/// Everything that [`super::object::read`] reads.
const WATCHES: [Watch; 10] = [
    core("", "v1", "Node", "nodes"),
    core("", "v1", "Namespace", "namespaces"),
    core("", "v1", "Pod", "pods"),
    core("", "v1", "Service", "services"),
    core("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    core("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    defined(
        "policy.networking.k8s.io",
        "v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
    ),
    defined("weft.dev", "v1alpha1", "FqdnPolicy", "fqdnpolicies"),
    defined("weft.dev", "v1alpha1", "PacketFilter", "packetfilters"),
    defined("weft.dev", "v1alpha1", "AddressPool", "addresspools"),
];

/// Where the API server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// How to reach it; `None`: as the pod that this runs in is told.
    pub kubeconfig: Option<PathBuf>,
    /// Directory that the paths of packet filters' modules are relative to.
    pub modules: PathBuf,
    /// Namespace and name of the ServiceAccount that agents run as. What agents have to know of the hub is
    /// written to that namespace.
    pub agents: (String, String),
    /// `host:port` at which they reach the hub; `None`: they are not told.
    pub advertise: Option<String>,
}

impl KubernetesConfig {
    /// A client. It has not asked anything yet.
    pub(crate) async fn client(&self) -> Result<Client, KubernetesError> {
        let settings = match &self.kubeconfig {
            Some(path) => {
                let wrong = |source| KubernetesError::Kubeconfig {
                    path: path.clone(),
                    source: Box::new(source),
                };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
            }
            None => {
                Config::incluster().map_err(|error| KubernetesError::InCluster(Box::new(error)))?
            }
        };
        Client::try_from(settings).map_err(|error| KubernetesError::Client(Box::new(error)))
    }
}

/// Why an API server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// No usable file.
    #[error("kubeconfig {}: {source}", .path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// No pod of a cluster.
    #[error(
        "this is no pod with a ServiceAccount of a cluster ({0}): say where the API server is with --kubeconfig"
    )]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// No client of these settings.
    #[error("the API server cannot be asked: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A cluster whose API server is asked.
pub(crate) struct Cluster {
    index: Index,
    modules: Modules,
    events: mpsc::Receiver<(&'static str, Event)>,
    /// Ends the watches with this.
    _watches: tokio::task::JoinSet<()>,
}

impl Cluster {
    /// Begins to watch. Paths of packet filters' modules are relative to `modules`.
    pub(crate) fn watch(client: &Client, modules: &Path) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let mut watches = tokio::task::JoinSet::new();
        for watch in &WATCHES {
            watches.spawn(follow_kind(watch, client.clone(), sender.clone()));
        }
        let index = Index::new(WATCHES.iter().map(|watch| watch.kind), modules);
        Self { index, modules: Modules::default(), events, _watches: watches }
    }

    /// Waits until every kind was listed once, and gives what there is. It says now and then what it waits
    /// for.
    pub(crate) async fn synced(&mut self) -> Objects {
        let mut patience = tokio::time::interval(PATIENCE);
        patience.tick().await;
        while !self.index.is_synced() {
            tokio::select! {
                said = self.events.recv() => match said {
                    Some((kind, event)) => drop(self.index.take(kind, event)),
                    // Not while there are watches, which do not end.
                    None => break,
                },
                _ = patience.tick() => {
                    tracing::warn!("waiting for the API server");
                    for (kind, reason) in self.index.failures() {
                        tracing::warn!(kind, reason, "not listed yet");
                    }
                }
            }
        }
        self.objects()
    }

    /// Hands over what there is, whenever it may have changed, for ever. `publish` is called on a thread that
    /// may block.
    pub(crate) async fn follow(
        mut self,
        publish: impl Fn(Objects) + Send + Sync + 'static,
    ) -> std::io::Result<()> {
        let publish = Arc::new(publish);
        let mut modules = tokio::time::interval(MODULES_INTERVAL);
        loop {
            let changed = tokio::select! {
                Some((kind, event)) = self.events.recv() => {
                    let changed = self.index.take(kind, event);
                    if changed {
                        self.settle().await;
                    }
                    changed
                }
                _ = modules.tick() => true,
            };
            if changed {
                let publish = Arc::clone(&publish);
                let told = move || {
                    publish(self.objects());
                    self
                };
                let told = tokio::task::spawn_blocking(told).await;
                self = told.map_err(std::io::Error::other)?;
            }
        }
    }

    /// Takes what else is said until nothing is for a while.
    async fn settle(&mut self) {
        let quiet = async {
            while let Ok(Some((kind, event))) =
                tokio::time::timeout(SETTLE, self.events.recv()).await
            {
                self.index.take(kind, event);
            }
        };
        // Out of patience: tell what there is.
        let _ = tokio::time::timeout(SETTLE_MAX, quiet).await;
    }

    fn objects(&mut self) -> Objects {
        let (objects, mut problems) = self.index.objects();
        let modules = self.modules.read(&objects, &mut problems);
        Objects { objects, problems, complete: self.index.is_complete(), modules }
    }
}

/// Watches one kind until nobody listens. After an error it begins anew, with a list: only what was listed
/// shows that the server answers again, and what is there.
async fn follow_kind(
    watch: &'static Watch,
    client: Client,
    events: mpsc::Sender<(&'static str, Event)>,
) {
    let gvk = GroupVersionKind::gvk(watch.group, watch.version, watch.kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, watch.plural);
    let types = TypeMeta { api_version: resource.api_version.clone(), kind: watch.kind.into() };
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut pause = PAUSE_MIN;
    loop {
        let watched = watcher::watcher(api.clone(), watcher::Config::default().page_size(PAGE));
        let mut watched = std::pin::pin!(watched);
        let failure = loop {
            let event = match watched.next().await {
                Some(Ok(Watched::Init)) => Some(Event::Listing),
                Some(Ok(Watched::InitApply(object))) => {
                    read(watch, &types, object).map(|(key, value)| Event::Listed(key, value))
                }
                Some(Ok(Watched::InitDone)) => {
                    pause = PAUSE_MIN;
                    Some(Event::ListEnded)
                }
                Some(Ok(Watched::Apply(object))) => {
                    read(watch, &types, object).map(|(key, value)| Event::Applied(key, value))
                }
                Some(Ok(Watched::Delete(object))) => Some(Event::Deleted(key(watch, &object))),
                Some(Err(error)) => break Some(error),
                None => break None,
            };
            if let Some(event) = event
                && events.send((watch.kind, event)).await.is_err()
            {
                return;
            }
        };
        let mut rest = pause.mul_f64(rand::random_range(0.5..=1.0));
        if let Some(error) = failure {
            tracing::debug!(kind = watch.kind, %error, "watch");
            let event = if !watch.core && is_missing(&error) {
                rest = MISSING_INTERVAL;
                Event::NoSuchKind
            } else {
                pause = (pause * 2).min(PAUSE_MAX);
                Event::Failed(reason(watch, &error))
            };
            if events.send((watch.kind, event)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(rest).await;
    }
}

/// The object as a document.
fn read(watch: &Watch, types: &TypeMeta, mut object: DynamicObject) -> Option<(Key, Value)> {
    // Items of a list do not say it.
    object.types = Some(types.clone());
    // They change with every write, and nothing of ours depends on them.
    let metadata = &mut object.metadata;
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.generation = None;
    let key = key(watch, &object);
    match serde_yaml_ng::to_value(&object) {
        Ok(value) => Some((key, value)),
        Err(error) => {
            tracing::warn!(%key, %error, "an object that cannot be read");
            None
        }
    }
}

fn key(watch: &Watch, object: &DynamicObject) -> Key {
    let metadata = &object.metadata;
    Key {
        kind: watch.kind.to_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Only a list says so: a watch that is not found may be one of a server that has just started.
fn is_missing(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(_)) && status(error) == Some(404)
}

/// One line for the operator.
fn reason(watch: &Watch, error: &watcher::Error) -> String {
    let plural = watch.plural;
    match status(error) {
        Some(403) => format!(
            "the API server does not let the hub list and watch {plural}: give its ServiceAccount the ClusterRole of the manifest"
        ),
        Some(401) => "the API server does not know the hub's token or certificate".to_owned(),
        _ => format!("{plural} cannot be watched ({error}); what was known last holds"),
    }
}
