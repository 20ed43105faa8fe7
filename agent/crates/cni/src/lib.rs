//! The CNI plugin: reads its environment and stdin, asks the agent over a local socket, lets a
//! standard plugin (`ptp` or `bridge`, with `host-local`) wire the pod, prints the result.
//!
//! Called by container runtimes, once for each verb; keeps nothing but one record on disk for each
//! attachment, so that DEL works with the agent gone. Stdout carries the result or the error object
//! and nothing else.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod agent;
mod commands;
mod config;
mod delegate;
mod environment;
mod error;
mod interface;
mod record;
mod reservation;
mod result;

use std::io;

pub use error::CniError;

/// What goes to stdout, and whether the exit status is a failure.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// A result, an error object, or nothing.
    pub stdout: String,
    /// Exit status is not 0.
    pub failed: bool,
}

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Serves one call. `stdin` is all of standard input, or why it could not be read.
#[must_use]
pub fn run(environment: Environment<'_>, stdin: io::Result<Vec<u8>>) -> Reply {
    match commands::serve(environment, stdin) {
        Ok(stdout) => Reply { stdout, failed: false },
        Err(error) => Reply { stdout: error.to_json(), failed: true },
    }
}
