//! What an API server has. What watches say goes in, objects and problems come out: synchronous, without a
//! client or a clock.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_yaml_ng::Value;
use weft_model::SharedMap;

use super::super::Problem;
use super::super::index::Defined;
use super::super::object::{self, Key, Object, Read};
use super::super::objects::of_kind;

/// What the watch of one kind says.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A list of every object begins.
    Listing,
    /// An object of that list.
    Listed(Key, Value),
    /// That was all of them.
    ListEnded,
    /// An object is new or has changed.
    Applied(Key, Value),
    /// An object is gone.
    Deleted(Key),
    /// The server has no such kind, and so no objects of it.
    NoSuchKind,
    /// The server does not say; what it said last holds.
    Failed(String),
}

/// One kind.
#[derive(Default)]
struct Kind {
    /// Every object was told once.
    synced: bool,
    /// Of a list that has not ended: what is in it. What is not stays until its end.
    listed: Option<BTreeSet<Key>>,
    failure: Option<String>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Index {
    objects: SharedMap<Key, Arc<Defined>>,
    /// Of objects that cannot be read.
    problems: BTreeMap<Key, String>,
    kinds: BTreeMap<&'static str, Kind>,
    /// Where modules of packet filters are.
    modules: PathBuf,
}

impl Index {
    /// An index of these kinds. Paths of modules are relative to `modules`.
    pub(super) fn new(kinds: impl IntoIterator<Item = &'static str>, modules: &Path) -> Self {
        let kinds = kinds.into_iter().map(|kind| (kind, Kind::default())).collect();
        Self { kinds, modules: modules.to_owned(), ..Self::default() }
    }

    /// Takes what the watch of a kind says. True if there may be something new to tell.
    pub(super) fn take(&mut self, kind: &'static str, event: Event) -> bool {
        let state = self.kinds.entry(kind).or_default();
        // That a list begins does not say that it can be had.
        if !matches!(event, Event::Failed(_) | Event::Listing) {
            state.failure = None;
        }
        match event {
            Event::Listing => {
                state.listed = Some(BTreeSet::new());
                false
            }
            Event::Listed(key, object) => {
                state.listed.get_or_insert_default().insert(key.clone());
                self.set(key, &object)
            }
            Event::ListEnded => {
                let listed = state.listed.take().unwrap_or_default();
                self.keep(kind, &listed);
                self.is_told(kind)
            }
            Event::Applied(key, object) => self.set(key, &object),
            Event::Deleted(key) => {
                self.problems.remove(&key);
                self.objects.remove(&key).is_some()
            }
            Event::NoSuchKind => {
                self.keep(kind, &BTreeSet::new());
                self.is_told(kind)
            }
            Event::Failed(reason) => {
                let news = state.failure.as_ref() != Some(&reason);
                state.failure = Some(reason);
                news
            }
        }
    }

    fn is_told(&mut self, kind: &'static str) -> bool {
        self.kinds.entry(kind).or_default().synced = true;
        true
    }

    /// Whether every kind was told once. Before that, what is not here may be there all the same.
    pub(super) fn is_synced(&self) -> bool {
        self.kinds.values().all(|kind| kind.synced)
    }

    /// Why kinds are not told of, by kind.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.kinds.iter().filter_map(|(kind, state)| Some((*kind, state.failure.as_deref()?)))
    }

    /// Whether every object could be read.
    pub(super) fn is_complete(&self) -> bool {
        self.problems.is_empty()
    }

    /// Every good object, and what is wrong with the others and with the watches.
    pub(super) fn objects(&self) -> (SharedMap<Key, Arc<Defined>>, Vec<Problem>) {
        let problem =
            |file: PathBuf, reason: &str| Problem { file, line: 0, reason: reason.into() };
        let unreadable = self.problems.iter().map(|(key, reason)| problem(place(key), reason));
        let failed = self.failures().map(|(kind, reason)| problem(PathBuf::from(kind), reason));
        (self.objects.clone(), unreadable.chain(failed).collect())
    }

    /// Takes out all objects of a kind but these.
    fn keep(&mut self, kind: &'static str, wanted: &BTreeSet<Key>) {
        let known = of_kind(&self.objects, kind).map(|(key, _)| key);
        let gone: Vec<_> = known.filter(|key| !wanted.contains(key)).cloned().collect();
        for key in gone {
            self.objects.remove(&key);
        }
        self.problems.retain(|key, _| key.kind != kind || wanted.contains(key));
    }

    /// True if the object is not what it was.
    fn set(&mut self, key: Key, document: &Value) -> bool {
        match object::read(document) {
            Ok(Read::Object(_, mut object)) => {
                if let Object::PacketFilter(filter) = &mut *object {
                    let module = self.modules.join(&filter.module);
                    filter.module = module.to_string_lossy().into_owned();
                }
                let solved = self.problems.remove(&key).is_some();
                self.put(key, *object) || solved
            }
            // Kinds that are not read are not watched.
            Ok(Read::Unknown(_) | Read::List(_)) => false,
            Err(error) => {
                let reason = error.to_string();
                let known = self.problems.insert(key.clone(), reason.clone());
                // What was good of it before holds on.
                if !self.objects.contains_key(&key)
                    && let Some((_, object)) = object::stand_in(document)
                {
                    self.put(key, object);
                }
                known != Some(reason)
            }
        }
    }

    /// What is the same stays where it is: whoever asks what has changed compares pointers.
    fn put(&mut self, key: Key, object: Object) -> bool {
        if self.objects.get(&key).is_some_and(|known| known.object == object) {
            return false;
        }
        let defined = Defined { object, file: place(&key), line: 0 };
        self.objects.insert(key, Arc::new(defined));
        true
    }
}

/// Where an object is, for people.
fn place(key: &Key) -> PathBuf {
    PathBuf::from(key.to_string())
}
