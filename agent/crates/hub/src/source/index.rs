//! What is good of all files, and what is not. Files in, objects and problems out.

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_yaml_ng::Value;
use weft_model::SharedMap;

use super::Problem;
use super::document::{Document, split};
use super::fields;
use super::object::{self, Key, Object, ObjectError, Parse, Read};

/// An object and where it is defined.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Defined {
    pub(crate) object: Object,
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
}

/// No object has a number that is not equal to itself. With it, two `Arc`s of the same are equal at once.
impl Eq for Defined {}

impl Defined {
    /// Of no file: it stands in for what nobody wrote.
    pub(crate) fn built_in(object: Object) -> Self {
        Self { object, file: PathBuf::from(BUILT_IN), line: 0 }
    }

    pub(crate) fn is_built_in(&self) -> bool {
        self.file.as_os_str() == BUILT_IN
    }
}

/// Files of a source have a directory.
const BUILT_IN: &str = "(built in)";

/// A definition, which counts if there is no older one of that name.
struct Definition {
    key: Key,
    defined: Arc<Defined>,
    /// The reading that it was first seen in.
    since: u64,
    /// Instead of a document that is bad, see [`object::stand_in`].
    stands_in: bool,
}

#[derive(Default)]
struct File {
    objects: Vec<Definition>,
    /// Why a document could not be read.
    problems: Vec<Problem>,
    /// What those that were read have too much.
    notices: Vec<Problem>,
    /// For documents that are bad and that nothing good is known of.
    stand_ins: Vec<Definition>,
    unknown: Vec<(String, usize)>,
}

/// Every file of the source.
#[derive(Default)]
pub(crate) struct Index {
    files: BTreeMap<PathBuf, File>,
    /// Number of this reading: files that are set between two calls of [`Self::objects`] are of one.
    reading: u64,
}

impl Index {
    /// Takes the text of a file.
    ///
    /// If a document of it is bad, the good ones count, and those that were good before and are
    /// not there now are kept: the file may be half-written.
    pub(crate) fn set(&mut self, path: &Path, text: &str) {
        let mut file = File::default();
        // Some editors put a byte order mark before everything.
        for document in split(text.trim_start_matches('\u{feff}')) {
            file.take(path, document);
        }
        let all = file.objects.iter_mut().chain(&mut file.stand_ins);
        all.for_each(|d| d.since = self.reading);
        let before = self.files.remove(path).unwrap_or_default();
        file.inherit(&before);
        if !file.problems.is_empty() {
            let present: BTreeSet<_> = file.objects.iter().map(|d| d.key.clone()).collect();
            let stand_ins = std::mem::take(&mut file.stand_ins);
            let replaced = |d: &Definition| d.stands_in && stand_ins.iter().any(|s| s.key == d.key);
            let kept = before.objects.into_iter();
            let kept = kept.filter(|d| !present.contains(&d.key) && !replaced(d));
            file.objects.extend(kept.collect::<Vec<_>>());
            let known: BTreeSet<_> = file.objects.iter().map(|d| d.key.clone()).collect();
            file.objects.extend(stand_ins.into_iter().filter(|d| !known.contains(&d.key)));
        }
        self.files.insert(path.to_owned(), file);
    }

    /// The file cannot be read: its objects stay, the problem shows.
    pub(crate) fn set_unreadable(&mut self, path: &Path, line: usize, reason: String) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.problems = vec![Problem { file: path.to_owned(), line, reason }];
    }

    /// The file is gone.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// Paths of every file that is known.
    pub(crate) fn paths(&self) -> BTreeSet<PathBuf> {
        self.files.keys().cloned().collect()
    }

    /// Whether every document could be read.
    pub(crate) fn is_complete(&self) -> bool {
        self.files.values().all(|f| f.problems.is_empty())
    }

    /// Every good object, once: of two of one name the one that was there first counts, and of those
    /// that came at once the first by path and line.
    pub(crate) fn objects(&mut self) -> (SharedMap<Key, Arc<Defined>>, Vec<Problem>) {
        self.reading += 1;
        let mut oldest: BTreeMap<&Key, &Definition> = BTreeMap::new();
        let mut duplicates = Vec::new();
        for definition in self.files.values().flat_map(|file| &file.objects) {
            match oldest.entry(&definition.key) {
                Entry::Vacant(entry) => drop(entry.insert(definition)),
                Entry::Occupied(mut entry) if definition.since < entry.get().since => {
                    duplicates.push(entry.insert(definition));
                }
                Entry::Occupied(_) => duplicates.push(definition),
            }
        }
        let of_files = self.files.values().flat_map(|f| f.problems.iter().chain(&f.notices));
        let mut problems: Vec<_> = of_files.cloned().collect();
        for Definition { key, defined, .. } in duplicates {
            let Some(Definition { defined: first, .. }) = oldest.get(key) else { continue };
            let place = format!("{}:{}", first.file.display(), first.line);
            let reason = format!("{key} is defined in {place} already; that one counts");
            let (file, line) = (defined.file.clone(), defined.line);
            problems.push(Problem { file, line, reason });
        }
        let mut unknown = BTreeSet::new();
        for (path, file) in &self.files {
            for (kind, line) in &file.unknown {
                if unknown.insert(kind) {
                    let reason =
                        format!("{kind} is not used by Weft; objects of this kind are ignored");
                    problems.push(Problem { file: path.clone(), line: *line, reason });
                }
            }
        }
        problems.sort();
        let objects = oldest.into_iter().map(|(k, d)| (k.clone(), Arc::clone(&d.defined)));
        (objects.collect(), problems)
    }
}

impl File {
    /// What was there before is as old as it was, and the same where nothing changed: whoever asks what
    /// has changed compares pointers. If a name is there twice now, it is whichever says what was said
    /// before, or else the first.
    fn inherit(&mut self, before: &Self) {
        let mut heirs: BTreeMap<&Key, Vec<&mut Definition>> = BTreeMap::new();
        // A key for the map, since the definitions themselves are changed.
        let keys: Vec<_> = self.objects.iter().map(|d| d.key.clone()).collect();
        for (key, definition) in keys.iter().zip(&mut self.objects) {
            heirs.entry(key).or_default().push(definition);
        }
        let mut oldest_first: Vec<_> = before.objects.iter().collect();
        oldest_first.sort_by_key(|d| d.since);
        for old in oldest_first {
            let Some(left) = heirs.get_mut(&old.key).filter(|left| !left.is_empty()) else {
                continue;
            };
            let same = left.iter().position(|d| d.defined.object == old.defined.object);
            let heir = left.remove(same.unwrap_or(0));
            heir.since = old.since;
            if heir.defined == old.defined {
                heir.defined = Arc::clone(&old.defined);
            }
        }
    }

    fn take(&mut self, path: &Path, document: Document<'_>) {
        let line = document.line;
        // A map, unlike the readers of objects, notices a key that is there twice.
        let unique = serde_yaml_ng::from_str::<Value>(document.text).map_err(ObjectError::from);
        let read = unique.and_then(|whole| Ok((object::read(document.text)?, whole)));
        match read {
            Ok((Read::List(items), _)) => {
                for (i, item) in items.iter().enumerate() {
                    self.take_item(path, line, i, item);
                }
            }
            Ok((read, whole)) => self.add(path, line, read, &whole),
            Err(error) => {
                self.stand_in(path, line, document.text);
                let (line, reason) = explain(document, &error);
                self.problems.push(Problem { file: path.to_owned(), line, reason });
            }
        }
    }

    fn take_item(&mut self, path: &Path, line: usize, i: usize, item: &Value) {
        let problem = |reason| Problem { file: path.to_owned(), line, reason };
        match object::read(item) {
            Ok(Read::List(_)) => {
                self.problems.push(problem(format!("items[{i}]: a list in a list is not read")));
            }
            Ok(read) => self.add(path, line, read, item),
            Err(error) => {
                self.stand_in(path, line, item);
                self.problems.push(problem(one_line(&format!("items[{i}]: {error}"))));
            }
        }
    }

    fn stand_in(&mut self, path: &Path, line: usize, document: &(impl Parse + ?Sized)) {
        if let Some((key, object)) = object::stand_in(document) {
            let defined = Defined { object, file: path.to_owned(), line };
            let defined = Arc::new(defined);
            self.stand_ins.push(Definition { key, defined, since: 0, stands_in: true });
        }
    }

    fn add(&mut self, path: &Path, line: usize, read: Read, whole: &Value) {
        match read {
            Read::Object(key, object) => {
                let unknown = fields::unknown(&key.kind, whole).into_iter();
                // Beside its `spec` it may be meant for a part of that, which is judged with the policy.
                let here = unknown.filter(|u| !(object.is_policy() && u.inside.is_empty()));
                self.notices.extend(here.map(|unknown| Problem {
                    file: path.to_owned(),
                    line,
                    reason: one_line(&format!("{key}: {unknown}")),
                }));
                let defined = Defined { object: *object, file: path.to_owned(), line };
                let defined = Arc::new(defined);
                self.objects.push(Definition { key, defined, since: 0, stands_in: false });
            }
            Read::Unknown(kind) => self.unknown.push((kind, line)),
            Read::List(_) => {}
        }
    }
}

/// Line in the file, and the reason with that line in it.
fn explain(document: Document<'_>, error: &ObjectError) -> (usize, String) {
    let text = error.to_string();
    let cause = match error {
        ObjectError::Of(_, cause) => cause,
        whole => whole,
    };
    let location = match cause {
        ObjectError::Yaml(yaml) => yaml.location(),
        _ => None,
    };
    let Some(location) = location else { return (document.line, one_line(&text)) };
    let before = document.line - 1;
    let (relative, absolute) = (location.line(), location.line() + before);
    let reason = text.replace(&format!("line {relative} "), &format!("line {absolute} "));
    (absolute, one_line(&reason))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
