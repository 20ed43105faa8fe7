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

impl Objects {
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
