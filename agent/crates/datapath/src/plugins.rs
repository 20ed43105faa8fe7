//! Which plugins run: modules loaded and checked, instances made, all off the packet path.
//!
//! What cannot be used is refused by name and does not hold up the others; the version that ran
//! before stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_control::{ConvertError, FromProto};
use weft_model::Timestamp;
use weft_pipeline::PLUGINS_MAX;
use weft_proto::v1::plugin_status::State;
use weft_proto::v1::{PluginSpec, PluginStatus};
use weft_wasm_host::{
    Engine, LoadError, MEMORY_BYTES_MAX, Module, PluginInstance, Settings, SharedState, Status,
};

use crate::store::{Store, hex};

type Digest = [u8; 32];

/// Why a plugin does not run as it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Spec(#[from] ConvertError),
    #[error("module {0} is not here yet")]
    Missing(String),
    #[error("module {digest} cannot be read: {source}")]
    Unreadable { digest: String, source: std::io::Error },
    #[error("module {0} is not what its digest says")]
    WrongDigest(String),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{PLUGINS_MAX} plugins run already, more are not possible")]
    TooMany,
}

/// One plugin that works.
struct Running {
    spec: PluginSpec,
    module: Arc<Module>,
    settings: Settings,
    /// Bytes of the changes that instances took since they were made.
    changed_bytes: usize,
}

/// Configurations of built-in plugins by name, which do not stand in their specs.
pub(crate) type BuiltIn<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// Bytes of changes after which instances are made anew from the whole, if that is not longer:
/// each instance keeps them for when it is remade.
const CHANGES_MAX: usize = 1 << 20;

/// Every plugin that was asked for.
pub(crate) struct Plugins {
    engine: Engine,
    workers: usize,
    modules: HashMap<Digest, Arc<Module>>,
    running: BTreeMap<String, Running>,
    refused: BTreeMap<String, (PluginSpec, Refusal)>,
    /// Outlives a replace, so that maps and counters do.
    shared: BTreeMap<String, Arc<SharedState>>,
    /// What is asked for and not in the store.
    missing: Vec<Digest>,
    /// Modules that stay in the store though nothing asks for them.
    standby: BTreeSet<Digest>,
}

impl Plugins {
    pub(crate) fn new(engine: Engine, workers: usize) -> Self {
        Self {
            engine,
            workers,
            modules: HashMap::new(),
            running: BTreeMap::new(),
            refused: BTreeMap::new(),
            shared: BTreeMap::new(),
            missing: Vec::new(),
            standby: BTreeSet::new(),
        }
    }

    /// What modules are loaded with, also by who does not hold this.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Keeps a module that was loaded from these bytes: for a while, or on standby for as long as this lives.
    pub(crate) fn put(
        &mut self,
        store: &Store,
        bytes: &[u8],
        module: &Arc<Module>,
        standby: bool,
    ) -> std::io::Result<()> {
        let digest = module.info().digest;
        store.put_module(&digest, bytes)?;
        self.modules.insert(digest, Arc::clone(module));
        if standby {
            self.standby.insert(digest);
        }
        Ok(())
    }

    /// Makes `wanted` what runs, as far as it can be used. The answer is whether anything changed:
    /// then [`Self::instances`] has to be called and its result handed to the workers.
    pub(crate) fn set(
        &mut self,
        store: &Store,
        wanted: &BTreeMap<String, PluginSpec>,
        built_in: BuiltIn<'_>,
        now: Timestamp,
    ) -> bool {
        let before = self.running.len();
        self.running.retain(|name, _| wanted.contains_key(name));
        self.shared.retain(|name, _| wanted.contains_key(name));
        let mut changed = self.running.len() != before;
        self.refused.clear();
        self.missing.clear();
        for (name, spec) in wanted {
            if self.running.get(name).is_some_and(|running| running.spec == *spec) {
                continue;
            }
            match self.try_run(store, spec, built_in(name), now) {
                Ok(running) => {
                    self.running.insert(name.clone(), running);
                    changed = true;
                }
                Err(refusal) => {
                    tracing::warn!(plugin = name, "plugin refused: {refusal}");
                    self.refused.insert(name.clone(), (spec.clone(), refusal));
                }
            }
        }
        self.forget_modules();
        changed
    }

    /// The names of `before` and of what runs are more than workers have room for at one time:
    /// what goes has to go first.
    pub(crate) fn needs_two_steps(&self, before: &BTreeSet<String>) -> bool {
        let coming = self.running.keys().filter(|name| !before.contains(*name)).count();
        before.len() + coming > PLUGINS_MAX
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.running.keys().cloned().collect()
    }

    /// One set of instances for each worker, of the plugins that `pick` wants. A plugin that cannot
    /// be made any more is refused.
    pub(crate) fn instances(
        &mut self,
        pick: impl Fn(&str) -> bool,
        built_in: BuiltIn<'_>,
    ) -> Vec<Vec<PluginInstance>> {
        let mut sets: Vec<Vec<PluginInstance>> = Vec::new();
        sets.resize_with(self.workers, Vec::new);
        let mut failed = Vec::new();
        for (name, running) in self.running.iter_mut().filter(|(name, _)| pick(name)) {
            if let Some(config) = built_in(name) {
                running.settings.config = config;
                running.changed_bytes = 0;
            }
            let shared = self.shared.get(name).cloned();
            let shared = shared.unwrap_or_else(|| SharedState::new(name.clone()));
            let make = |_| {
                let settings = running.settings.clone();
                PluginInstance::new(&running.module, settings, Arc::clone(&shared))
            };
            match (0..self.workers).map(make).collect::<Result<Vec<_>, _>>() {
                Ok(made) => sets.iter_mut().zip(made).for_each(|(set, one)| set.push(one)),
                Err(error) => failed.push((name.clone(), error)),
            }
        }
        for (name, error) in failed {
            tracing::error!(plugin = name, "plugin cannot be made: {error}");
            if let Some(running) = self.running.remove(&name) {
                self.refused.insert(name, (running.spec, error.into()));
            }
        }
        sets
    }

    /// Notes that the instances of a built-in plugin are to take a change of so many bytes, as of
    /// `now`. False if it does not run, or if its instances shall rather be made anew.
    pub(crate) fn takes_change(&mut self, name: &str, bytes: usize, now: Timestamp) -> bool {
        let Some(running) = self.running.get_mut(name) else { return false };
        running.changed_bytes += bytes;
        running.settings.revision = now.0;
        running.changed_bytes <= CHANGES_MAX.max(running.settings.config.len())
    }

    /// What runs, to be saved.
    pub(crate) fn running(&self) -> Vec<PluginSpec> {
        self.running.values().map(|running| running.spec.clone()).collect()
    }

    /// Digests asked for whose modules were never put.
    pub(crate) fn missing(&self) -> Vec<Vec<u8>> {
        self.missing.iter().map(|digest| digest.to_vec()).collect()
    }

    /// Whether a module of this name (hex of its digest) is asked for, runs or is on standby.
    pub(crate) fn uses(&self, module: &str) -> bool {
        let running = self.running.values().map(|running| &running.spec);
        let refused = self.refused.values().map(|(spec, _)| spec);
        let asked_for = running.chain(refused).map(|spec| spec.digest.as_slice());
        asked_for.chain(self.standby.iter().map(<[u8; 32]>::as_slice)).any(|d| hex(d) == module)
    }

    /// Drops expired entries of every plugin's map.
    pub(crate) fn expire(&self, now: Timestamp) {
        self.shared.values().for_each(|shared| shared.map().expire(now));
    }

    /// How every plugin that was asked for is doing, by name.
    pub(crate) fn status(&self) -> Vec<PluginStatus> {
        let mut all: BTreeMap<&String, PluginStatus> = BTreeMap::new();
        for (name, running) in &self.running {
            all.insert(name, self.running_status(running));
        }
        for (name, (spec, refusal)) in &self.refused {
            let old = all.remove(name);
            let stays = if old.is_some() { "; the version before stays" } else { "" };
            let status = PluginStatus {
                name: name.clone(),
                digest: spec.digest.clone(),
                state: State::Refused.into(),
                message: format!("{refusal}{stays}"),
                ..old.unwrap_or_default()
            };
            all.insert(name, status);
        }
        all.into_values().collect()
    }

    fn running_status(&self, running: &Running) -> PluginStatus {
        let status = self.shared.get(&running.spec.name).map(|shared| shared.status());
        let counters = status.as_ref().map(|s| s.counters).unwrap_or_default();
        let cut_off = status.as_ref().map_or(0, |s| s.cut_off);
        let numbers = |of: fn(&Status) -> &BTreeMap<u32, u64>| {
            status.as_ref().into_iter().flat_map(of).map(|(n, c)| (*n, *c)).collect()
        };
        let drops_by_number = numbers(|s| &s.drops_by_number);
        let would_drop_by_number = numbers(|s| &s.would_drop_by_number);
        let replies_by_number = numbers(|s| &s.replies_by_number);
        let state = match status.as_ref().is_some_and(|s| s.taken_out) {
            true => State::TakenOut,
            false if cut_off > 0 => State::Impaired,
            false => State::Running,
        };
        let fault = status.and_then(|s| s.last_fault).unwrap_or_default();
        let message = match cut_off {
            0 => fault,
            1 => format!("not asked for a minute about 1 conversation it faults on: {fault}"),
            n => format!("not asked for a minute about {n} conversations it faults on: {fault}"),
        };
        PluginStatus {
            name: running.spec.name.clone(),
            digest: running.spec.digest.clone(),
            state: state.into(),
            message,
            calls: counters.calls,
            faults: counters.traps + counters.deadlines,
            drops: counters.drops,
            drops_by_number,
            would_drop_by_number,
            replies_by_number,
        }
    }

    /// Loads the module and makes one instance, so that a bad configuration shows here.
    fn try_run(
        &mut self,
        store: &Store,
        spec: &PluginSpec,
        built_in: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Result<Running, Refusal> {
        let checked = weft_model::PluginSpec::from_proto(spec.clone())?;
        if !self.running.contains_key(&spec.name) && self.running.len() >= PLUGINS_MAX {
            return Err(Refusal::TooMany);
        }
        let module = self.module(store, checked.digest)?;
        // Rises from change to change, also over a restart: flows remember it.
        let mut settings = Settings::from_spec(&checked, now.0);
        if let Some(config) = built_in {
            settings.config = config;
            settings.memory_max = MEMORY_BYTES_MAX;
        }
        let name = spec.name.clone();
        let shared =
            self.shared.entry(name.clone()).or_insert_with(|| SharedState::new(name)).clone();
        PluginInstance::new(&module, settings.clone(), shared)?;
        Ok(Running { spec: spec.clone(), module, settings, changed_bytes: 0 })
    }

    fn module(&mut self, store: &Store, digest: Digest) -> Result<Arc<Module>, Refusal> {
        if let Some(module) = self.modules.get(&digest) {
            return Ok(Arc::clone(module));
        }
        let bytes = match store.module(&digest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.missing.push(digest);
                return Err(Refusal::Missing(hex(&digest)));
            }
            Err(source) => return Err(Refusal::Unreadable { digest: hex(&digest), source }),
        };
        let module = Module::load(&self.engine, &bytes)?;
        if module.info().digest != digest {
            return Err(Refusal::WrongDigest(hex(&digest)));
        }
        self.modules.insert(digest, Arc::clone(&module));
        Ok(module)
    }

    /// Compiled code of what does not run is given back; the store still has the bytes.
    fn forget_modules(&mut self) {
        let running = &self.running;
        self.modules.retain(|_, m| running.values().any(|r| Arc::ptr_eq(&r.module, m)));
    }
}

/// Why a module is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the module cannot be kept: {0}")]
    Store(#[from] std::io::Error),
}
