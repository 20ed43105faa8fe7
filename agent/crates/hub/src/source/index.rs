//! What is good of all files, and what is not. Files in, objects and problems out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Problem;
use super::document::{Document, split};
use super::object::{self, Key, Object, ObjectError, Parse, Read};

/// An object and where it is defined.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Defined {
    pub(crate) object: Object,
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
}

#[derive(Default)]
struct File {
    objects: Vec<(Key, Arc<Defined>)>,
    problems: Vec<Problem>,
    /// For documents that are bad and that nothing good is known of.
    stand_ins: Vec<(Key, Arc<Defined>)>,
    unknown: Vec<(String, usize)>,
}

/// Every file of the source.
#[derive(Default)]
pub(crate) struct Index {
    files: BTreeMap<PathBuf, File>,
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
        let before = self.files.remove(path).unwrap_or_default();
        file.keep_what_is_as_before(&before);
        if !file.problems.is_empty() {
            let present: BTreeSet<_> = file.objects.iter().map(|(k, _)| k.clone()).collect();
            let kept = before.objects.into_iter().filter(|(k, _)| !present.contains(k));
            file.objects.extend(kept);
            let known: BTreeSet<_> = file.objects.iter().map(|(k, _)| k.clone()).collect();
            let stand_ins = std::mem::take(&mut file.stand_ins).into_iter();
            file.objects.extend(stand_ins.filter(|(k, _)| !known.contains(k)));
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

    /// Every good object, once: of two of one name the first by path and line counts.
    pub(crate) fn objects(&self) -> (BTreeMap<Key, Arc<Defined>>, Vec<Problem>) {
        let mut objects: BTreeMap<Key, Arc<Defined>> = BTreeMap::new();
        let mut problems: Vec<_> = self.files.values().flat_map(|f| f.problems.clone()).collect();
        let mut unknown = BTreeSet::new();
        for (path, file) in &self.files {
            for (kind, line) in &file.unknown {
                if unknown.insert(kind) {
                    let reason =
                        format!("{kind} is not used by Weft; objects of this kind are ignored");
                    problems.push(Problem { file: path.clone(), line: *line, reason });
                }
            }
            for (key, defined) in &file.objects {
                if let Some(first) = objects.get(key) {
                    let place = format!("{}:{}", first.file.display(), first.line);
                    let reason = format!("{key} is defined in {place} already; that one counts");
                    problems.push(Problem { file: path.clone(), line: defined.line, reason });
                } else {
                    objects.insert(key.clone(), Arc::clone(defined));
                }
            }
        }
        problems.sort();
        (objects, problems)
    }
}

impl File {
    /// Whoever asks what has changed compares pointers.
    fn keep_what_is_as_before(&mut self, before: &Self) {
        let known: BTreeMap<_, _> = before.objects.iter().map(|(k, d)| (k, d)).collect();
        for (key, defined) in &mut self.objects {
            if let Some(old) = known.get(key).filter(|old| ***old == *defined) {
                *defined = Arc::clone(old);
            }
        }
    }

    fn take(&mut self, path: &Path, document: Document<'_>) {
        let line = document.line;
        // A map, unlike the readers of objects, notices a key that is there twice.
        let unique = serde_yaml_ng::from_str::<serde_yaml_ng::Value>(document.text);
        let read = unique.map_err(ObjectError::from).and_then(|_| object::read(document.text));
        match read {
            Ok(Read::List(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.take_item(path, line, i, item);
                }
            }
            Ok(read) => self.add(path, line, read),
            Err(error) => {
                self.stand_in(path, line, document.text);
                let (line, reason) = explain(document, &error);
                self.problems.push(Problem { file: path.to_owned(), line, reason });
            }
        }
    }

    fn take_item(&mut self, path: &Path, line: usize, i: usize, item: &(impl Parse + ?Sized)) {
        let problem = |reason| Problem { file: path.to_owned(), line, reason };
        match object::read(item) {
            Ok(Read::List(_)) => {
                self.problems.push(problem(format!("items[{i}]: a list in a list is not read")));
            }
            Ok(read) => self.add(path, line, read),
            Err(error) => {
                self.stand_in(path, line, item);
                self.problems.push(problem(one_line(&format!("items[{i}]: {error}"))));
            }
        }
    }

    fn stand_in(&mut self, path: &Path, line: usize, document: &(impl Parse + ?Sized)) {
        if let Some((key, object)) = object::stand_in(document) {
            let defined = Defined { object, file: path.to_owned(), line };
            self.stand_ins.push((key, Arc::new(defined)));
        }
    }

    fn add(&mut self, path: &Path, line: usize, read: Read) {
        match read {
            Read::Object(key, object) => {
                let defined = Defined { object: *object, file: path.to_owned(), line };
                self.objects.push((key, Arc::new(defined)));
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
