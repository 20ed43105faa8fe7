//! The nftables ruleset, through the `nft` program.
//!
//! A whole ruleset goes in as one text and is applied in one transaction, all or nothing. The program
//! is used rather than its netlink protocol, because it is what checks and compiles the language; the
//! Kubernetes project does the same. Everything works in the calling thread's network namespace.

use std::io;
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::netns::{InNetNs, NetNs};

const LIST_TABLE: [&str; 3] = ["--stateless", "list", "table"];

/// Why nftables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("the program `nft` is missing: install nftables")]
    Missing,
    /// The program could not be run.
    #[error("cannot run `nft`: {0}")]
    Run(#[source] io::Error),
    /// The program or the kernel refused; the ruleset is as it was.
    #[error("nft refused: {text}")]
    Refused {
        /// What it printed: line, column and reason.
        text: String,
    },
}

/// Applies a ruleset in one transaction, as `nft -f -` does.
///
/// To replace a table write `table inet NAME` (makes it, if need be), `delete table inet NAME` and
/// then its new contents into the same text.
///
/// # Errors
/// See [`NftError`]. On an error nothing is changed.
pub async fn apply(ruleset: &str) -> Result<(), NftError> {
    run(nft().args(["-f", "-"]), ruleset).await.map(drop)
}

/// Deletes the table `name` of `family` (`inet`, `ip`, `ip6`...) if it is there.
///
/// # Errors
/// See [`NftError`].
pub async fn delete_table(family: &str, name: &str) -> Result<(), NftError> {
    // Adding first makes the deletion succeed whether or not there is one.
    apply(&format!("add table {family} {name}\ndelete table {family} {name}\n")).await
}

/// The rules of the table `name` of `family` in the nft language, without counters' values;
/// `None` if there is no such table.
///
/// # Errors
/// See [`NftError`].
pub async fn list_table(family: &str, name: &str) -> Result<Option<String>, NftError> {
    table(run(nft().args(LIST_TABLE).args([family, name]), "").await)
}

/// What [`list_table`] gives after [`apply`] of `ruleset` if nobody interferes; changes nothing here.
///
/// nft shows a ruleset otherwise than it was written. To tell by comparison whether a table is as it
/// was applied, one needs its listing as nobody else can have changed it: it is made in an empty
/// network namespace.
///
/// # Errors
/// See [`NftError`].
pub async fn as_listed(
    ruleset: &str,
    family: &str,
    name: &str,
) -> Result<Option<String>, NftError> {
    let aside = NetNs::unnamed().map_err(NftError::Run)?;
    run(nft().in_netns(&aside).args(["-f", "-"]), ruleset).await?;
    table(run(nft().in_netns(&aside).args(LIST_TABLE).args([family, name]), "").await)
}

/// The whole ruleset in the nft language, without counters' values.
///
/// # Errors
/// See [`NftError`].
pub async fn list() -> Result<String, NftError> {
    run(nft().args(["--stateless", "list", "ruleset"]), "").await
}

fn nft() -> Command {
    Command::new("nft")
}

fn table(listed: Result<String, NftError>) -> Result<Option<String>, NftError> {
    match listed {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused { text }) if text.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

async fn run(command: &mut Command, input: &str) -> Result<String, NftError> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NftError::Missing,
            _ => NftError::Run(error),
        })?;
    let stdin = child.stdin.take();
    let feed = async {
        let Some(mut stdin) = stdin else { return };
        // A program that ends before it has read everything tells why on its own.
        let _ = stdin.write_all(input.as_bytes()).await;
        let _ = stdin.shutdown().await;
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let Output { status, stdout, stderr } = output.map_err(NftError::Run)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    // One line, as every error is told: it shows the rule and points at the place below it.
    let text = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = if text.is_empty() { status.to_string() } else { text };
    Err(NftError::Refused { text })
}
