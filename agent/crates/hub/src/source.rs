//! Where the objects come from: a directory of Kubernetes manifests, or a cluster's API server.
//!
//! [`files`] reads the directory, [`document`] cuts a file into documents, [`index`] holds what is good
//! of all of them; [`kube`] watches an API server. [`object`] reads one object of either, and [`objects`]
//! is what they come to.

mod check;
pub(crate) mod document;
mod fields;
pub(crate) mod files;
pub(crate) mod fqdn;
pub(crate) mod index;
pub(crate) mod kube;
pub(crate) mod modules;
pub(crate) mod object;
pub(crate) mod objects;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod pool;

use std::path::PathBuf;

/// A document or object that could not be taken, for the status and the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// The file; the object if it is of no file.
    pub(crate) file: PathBuf,
    /// Line, from 1; 0 if it is the file as a whole.
    pub(crate) line: usize,
    /// One line.
    pub(crate) reason: String,
}
