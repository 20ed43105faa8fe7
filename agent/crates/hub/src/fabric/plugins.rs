//! Plugins: from the API, kept in the store, and from manifests, kept in memory.

use std::sync::Arc;

use prost::Message as _;
use weft_control::{FromProto as _, ToProto as _};
use weft_model::{BUILT_IN_PLUGINS, Generation, PluginSpec, USER_PLUGINS_MAX};
use weft_proto::v1;

use super::extent::Extent;
use super::state::{State, Trial};
use super::{Fabric, FabricError};
use crate::module::check_module;
use crate::source::index::Defined;
use crate::source::modules::Module;
use crate::source::object::{Object, is_label};
use crate::store::{Change, Table};

const CONFIG_MAX: usize = 1 << 20;

impl Fabric {
    /// Checks what can be told here of a plugin to load, or to put in another's place.
    pub(super) fn candidate(&self, request: v1::LoadPluginRequest) -> Result<Trial, FabricError> {
        let declared_name = check_module(&request.module)?;
        let name = if request.name.is_empty() { declared_name } else { request.name };
        check_name(&name)?;
        if BUILT_IN_PLUGINS.contains(&name.as_str()) {
            return Err(FabricError::PluginBuiltIn(name));
        }
        let module = Module::new(request.module);
        let mut state = self.state();
        if let Some(defined) = declaration(&state, &name) {
            return Err(FabricError::PluginDeclared { name, file: defined.file.clone() });
        }
        let before = match (state.plugins.get(&name), request.replace) {
            (Some(_), false) => return Err(FabricError::PluginExists(name)),
            (None, true) => return Err(FabricError::NoPlugin(name)),
            (before, _) => before.map(|b| b.to_proto()),
        };
        if before.is_none() && self.history.newest().snapshot.plugins.len() >= USER_PLUGINS_MAX {
            return Err(FabricError::TooManyPlugins);
        }
        // What is not said stays as it was.
        let before = before.unwrap_or_default();
        let said = |value: i32, before: i32| if value == 0 { before } else { value };
        let spec = PluginSpec::from_proto(v1::PluginSpec {
            name,
            digest: module.digest.to_vec(),
            config: request.config.unwrap_or(before.config),
            priority: request.priority.unwrap_or(before.priority),
            position: said(request.position, before.position),
            on_fault: said(request.on_fault, before.on_fault),
            deadline_us: request.deadline_us.or(before.deadline_us),
        })?;
        check_config(&spec.config)?;
        let trial = Trial { spec, module: Some(Arc::new(module)) };
        state.trial = Some(trial.clone());
        Ok(trial)
    }

    /// As [`Fabric::candidate`], of another configuration.
    pub(super) fn reconfigured(&self, name: &str, config: Vec<u8>) -> Result<Trial, FabricError> {
        check_config(&config)?;
        let mut state = self.state();
        let spec = PluginSpec { config, ..loaded(&state, name)? };
        let trial = Trial { spec, module: None };
        state.trial = Some(trial.clone());
        Ok(trial)
    }

    /// Takes a plugin for good.
    pub(super) fn keep(&self, trial: &Trial) -> Result<(), FabricError> {
        let mut state = self.state();
        state.trial = None;
        let spec = &trial.spec;
        let before = state.plugins.insert(spec.name.clone(), spec.clone());
        let unused = before.map(|b| b.digest).filter(|d| !in_use(&state, d)).map(|d| hex(&d));
        let (key, bytes) = (hex(&spec.digest), spec.to_proto().encode_to_vec());
        let mut changes = vec![Change::Put(Table::Plugins, &spec.name, &bytes)];
        changes.extend(trial.module.iter().map(|m| Change::Put(Table::Modules, &key, &m.bytes)));
        changes.extend(unused.as_deref().map(|d| Change::Remove(Table::Modules, d)));
        self.commit(&mut state, &changes).map(drop)
    }

    /// Takes a plugin out.
    pub(super) fn take_out(&self, name: &str) -> Result<Generation, FabricError> {
        let mut state = self.state();
        let spec = loaded(&state, name)?;
        state.plugins.remove(name);
        let unused = (!in_use(&state, &spec.digest)).then(|| hex(&spec.digest));
        let mut changes = vec![Change::Remove(Table::Plugins, name)];
        changes.extend(unused.as_deref().map(|d| Change::Remove(Table::Modules, d)));
        self.commit(&mut state, &changes)
    }

    /// A module by its digest, if some plugin uses it.
    pub(crate) fn module(&self, digest: &[u8; 32]) -> Result<Arc<Module>, FabricError> {
        let declared = {
            let state = self.state();
            let tried = state.trial.iter().filter_map(|t| t.module.as_ref());
            let mut modules = state.source.modules.values().chain(tried);
            modules.find(|m| m.digest == *digest).cloned()
        };
        if let Some(module) = declared {
            return Ok(module);
        }
        let bytes = self.store.get(Table::Modules, &hex(digest))?;
        bytes.map(|b| Arc::new(Module::new(b))).ok_or(FabricError::NoModule)
    }

    /// Every plugin with what each node says of it.
    pub(crate) fn list_plugins(&self) -> Vec<v1::PluginInFabric> {
        let snapshot = self.history.newest().snapshot;
        let state = self.state();
        let on_nodes = |name: &str| {
            let nodes = state
                .nodes
                .iter()
                .flat_map(|(node, joined)| joined.plugins.iter().map(move |status| (node, status)));
            let nodes = nodes.filter(|(_, status)| status.name == name);
            let one = |(node, status): (&weft_model::NodeName, &v1::PluginStatus)| {
                v1::PluginOnNode { node: node.to_string(), status: Some(status.clone()) }
            };
            nodes.map(one).collect()
        };
        let one = |spec: &PluginSpec| v1::PluginInFabric {
            spec: Some(spec.to_proto()),
            nodes: on_nodes(&spec.name),
        };
        snapshot.plugins.values().map(one).collect()
    }

    /// Writes the changes, then publishes the state they were made in. If the disk does not take
    /// them, the state is read back from it.
    fn commit(&self, state: &mut State, changes: &[Change<'_>]) -> Result<Generation, FabricError> {
        if let Err(error) = self.store.write(changes) {
            state.plugins = State::load(&self.store, &self.leases)?.plugins;
            self.publish(state, &Extent::Everything)?;
            return Err(error.into());
        }
        self.publish(state, &Extent::Everything)?;
        Ok(self.history.newest().snapshot.generation)
    }
}

fn loaded(state: &State, name: &str) -> Result<PluginSpec, FabricError> {
    match (state.plugins.get(name), declaration(state, name)) {
        (Some(spec), _) => Ok(spec.clone()),
        (None, Some(defined)) => {
            let file = defined.file.clone();
            Err(FabricError::PluginDeclared { name: name.to_owned(), file })
        }
        (None, None) => Err(FabricError::NoPlugin(name.to_owned())),
    }
}

/// The manifest that declares a plugin of that name, if one does.
pub(super) fn declaration<'a>(state: &'a State, name: &str) -> Option<&'a Defined> {
    let declares = |object: &Object| matches!(object, Object::PacketFilter(f) if f.name == name);
    state.source.objects.values().find(|d| declares(&d.object)).map(|d| &**d)
}

fn in_use(state: &State, digest: &[u8; 32]) -> bool {
    state.plugins.values().any(|p| p.digest == *digest)
}

fn check_config(config: &[u8]) -> Result<(), FabricError> {
    if config.len() > CONFIG_MAX {
        return Err(FabricError::ConfigTooLarge(config.len()));
    }
    Ok(())
}

/// A DNS-1123 label.
fn check_name(name: &str) -> Result<(), FabricError> {
    if is_label(name) { Ok(()) } else { Err(FabricError::PluginName(name.to_owned())) }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
