//! Where the objects come from: a directory of Kubernetes manifests.
//!
//! [`files`] reads the directory, [`document`] cuts a file into documents, [`object`] reads one,
//! and [`index`] holds what is good of all of them: synchronous, without a clock or a file system.

mod check;
pub(crate) mod document;
mod fields;
pub(crate) mod files;
pub(crate) mod fqdn;
pub(crate) mod index;
pub(crate) mod object;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod pool;

use std::path::PathBuf;

/// A document that could not be taken, for the status and the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// The file.
    pub(crate) file: PathBuf,
    /// Line, from 1; 0 if it is the file as a whole.
    pub(crate) line: usize,
    /// One line.
    pub(crate) reason: String,
}
