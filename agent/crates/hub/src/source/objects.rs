//! What a source says at one moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_model::{Pod, PodName, SharedMap};

use super::Problem;
use super::index::Defined;
use super::modules::Module;
use super::object::{Key, Object, PacketFilter};

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    pub(crate) objects: SharedMap<Key, Arc<Defined>>,
    pub(crate) problems: Vec<Problem>,
    /// Every document was read. If not, an object that is not here may still be meant to be.
    pub(crate) complete: bool,
    /// Modules of packet filters, by the path of the module; only good ones.
    pub(crate) modules: BTreeMap<PathBuf, Arc<Module>>,
}

/// Those of one kind, without a look at the others.
pub(crate) fn of_kind<'a>(
    objects: &'a SharedMap<Key, Arc<Defined>>,
    kind: &'a str,
) -> impl Iterator<Item = (&'a Key, &'a Arc<Defined>)> {
    let (namespace, name) = (String::new(), String::new());
    let first = Key { kind: kind.to_owned(), namespace, name };
    objects.range_from(&first).take_while(move |(key, _)| key.kind == kind)
}

impl Objects {
    /// Nodes that run an agent, and static peers.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Object> {
        of_kind(&self.objects, "Node").map(|(_, defined)| &defined.object)
    }

    /// A pod as its manifest has it.
    pub(crate) fn pod(&self, name: &PodName) -> Option<&Arc<Pod>> {
        match &self.objects.get(&Key::pod(name))?.object {
            Object::Pod(manifest) => Some(&manifest.pod),
            _ => None,
        }
    }

    /// Path of a filter's module, seen from the manifest.
    pub(crate) fn module_path(manifest: &Path, filter: &PacketFilter) -> PathBuf {
        manifest.parent().unwrap_or(Path::new("")).join(&filter.module)
    }

    /// Objects that came, went or are not what they were in `before`; in the order of their keys.
    pub(crate) fn changed_from<'a>(&'a self, before: &'a Self) -> Vec<&'a Key> {
        self.objects.differences(&before.objects).into_iter().map(|found| found.key).collect()
    }

    /// True if everything but the objects is as in `before`.
    pub(crate) fn differs_in_objects_only(&self, before: &Self) -> bool {
        let (ours, theirs) = (self.modules.iter(), before.modules.iter());
        let ours = ours.map(|(path, module)| (path, module.digest));
        self.complete == before.complete
            && ours.eq(theirs.map(|(path, module)| (path, module.digest)))
    }
}
