//! Plugins: from the API, kept in the store, and from manifests, kept in memory.

use std::path::PathBuf;
use std::sync::Arc;

use prost::Message as _;
use weft_control::{FromProto as _, ToProto as _};
use weft_model::{Generation, PluginSpec};
use weft_proto::v1;

use super::state::State;
use super::{Fabric, FabricError};
use crate::module::check_module;
use crate::source::files::Module;
use crate::source::object::Object;
use crate::store::{Change, Table};

const CONFIG_MAX: usize = 1 << 20;

impl Fabric {
    /// Loads or replaces a plugin.
    pub(crate) fn load_plugin(
        &self,
        request: v1::LoadPluginRequest,
    ) -> Result<Generation, FabricError> {
        let declared_name = check_module(&request.module)?;
        let name = if request.name.is_empty() { declared_name } else { request.name };
        check_name(&name)?;
        check_config(&request.config)?;
        let module = Module::new(request.module);
        let spec = PluginSpec::from_proto(v1::PluginSpec {
            name: name.clone(),
            digest: module.digest.to_vec(),
            config: request.config,
            priority: request.priority,
            position: request.position,
            on_fault: request.on_fault,
            deadline_us: request.deadline_us,
        })?;
        let mut state = self.state();
        if let Some(file) = declared_in(&state, &name) {
            return Err(FabricError::PluginDeclared { name, file });
        }
        match (state.plugins.contains_key(&name), request.replace) {
            (true, false) => return Err(FabricError::PluginExists(name)),
            (false, true) => return Err(FabricError::NoPlugin(name)),
            (true, true) | (false, false) => {}
        }
        let before = state.plugins.insert(name, spec.clone());
        let unused = before.map(|b| b.digest).filter(|d| !in_use(&state, d)).map(|d| hex(&d));
        let (key, bytes) = (hex(&spec.digest), spec.to_proto().encode_to_vec());
        let mut changes = vec![
            Change::Put(Table::Modules, &key, &module.bytes),
            Change::Put(Table::Plugins, &spec.name, &bytes),
        ];
        changes.extend(unused.as_deref().map(|d| Change::Remove(Table::Modules, d)));
        self.commit(&mut state, &changes)
    }

    /// Gives a plugin another configuration.
    pub(crate) fn configure_plugin(
        &self,
        name: &str,
        config: Vec<u8>,
    ) -> Result<Generation, FabricError> {
        check_config(&config)?;
        let mut state = self.state();
        let mut spec = loaded(&state, name)?;
        spec.config = config;
        let bytes = spec.to_proto().encode_to_vec();
        state.plugins.insert(name.to_owned(), spec);
        self.commit(&mut state, &[Change::Put(Table::Plugins, name, &bytes)])
    }

    /// Takes a plugin out.
    pub(crate) fn unload_plugin(&self, name: &str) -> Result<Generation, FabricError> {
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
            let mut modules = state.source.modules.values();
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
            return Err(error.into());
        }
        self.publish(state)?;
        Ok(self.history.newest().snapshot.generation)
    }
}

fn loaded(state: &State, name: &str) -> Result<PluginSpec, FabricError> {
    match (state.plugins.get(name), declared_in(state, name)) {
        (Some(spec), _) => Ok(spec.clone()),
        (None, Some(file)) => Err(FabricError::PluginDeclared { name: name.to_owned(), file }),
        (None, None) => Err(FabricError::NoPlugin(name.to_owned())),
    }
}

fn declared_in(state: &State, name: &str) -> Option<PathBuf> {
    let declares = |object: &Object| matches!(object, Object::PacketFilter(f) if f.name == name);
    state.source.objects.values().find(|d| declares(&d.object)).map(|d| d.file.clone())
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

/// A DNS-1123 label: a node name without dots and no longer than one label.
fn check_name(name: &str) -> Result<(), FabricError> {
    let label = !name.contains('.') && weft_model::NodeName::try_new(name).is_ok();
    if label { Ok(()) } else { Err(FabricError::PluginName(name.to_owned())) }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
