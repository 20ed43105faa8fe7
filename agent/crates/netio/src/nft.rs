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

/// A chain that the kernel runs for IP packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its policy drops what none of its rules accepts.
    pub drops: bool,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// In the nft language, its words parted by single spaces; without counters' values.
    pub text: String,
    /// For `delete rule`.
    pub handle: u64,
}

/// The chains at a hook (`forward`...), whoever made them; not those of `iptables-legacy`.
///
/// # Errors
/// See [`NftError`].
pub async fn base_chains(hook: &str) -> Result<Vec<BaseChain>, NftError> {
    Ok(parse_chains(&run(nft().args(["list", "chains"]), "").await?, hook))
}

/// The rules of a chain in their order; none if there is no such chain.
///
/// # Errors
/// See [`NftError`].
pub async fn list_chain(family: &str, table: &str, name: &str) -> Result<Vec<Rule>, NftError> {
    let arguments = ["--stateless", "--handle", "list", "chain", family, table, name];
    let listed = self::table(run(nft().args(arguments), "").await)?;
    Ok(listed.as_deref().map(parse_rules).unwrap_or_default())
}

fn parse_chains(listed: &str, hook: &str) -> Vec<BaseChain> {
    let mut chains = Vec::new();
    let (mut family, mut table, mut name) = ("", "", "");
    for line in listed.lines() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["table", f, t, "{"] => (family, table) = (f, t),
            ["chain", n, "{"] => name = n,
            ["type", _, "hook", at, ..] if *at == hook && family.starts_with('i') => {
                chains.push(BaseChain {
                    family: family.to_owned(),
                    table: table.to_owned(),
                    name: name.to_owned(),
                    drops: line.contains("policy drop;"),
                });
            }
            _ => {}
        }
    }
    chains
}

fn parse_rules(listed: &str) -> Vec<Rule> {
    let rule = |line: &str| {
        let (text, handle) = line.rsplit_once(" # handle ")?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // The other lines with handles begin a table or a chain.
        (!text.ends_with('{')).then_some(Rule { text, handle: handle.trim().parse().ok()? })
    };
    listed.lines().filter_map(rule).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_a_hook_are_found_with_their_policies() {
        let listed = "table inet own {
	chain f {
		type filter hook forward priority filter + 10; policy accept;
	}
	chain jumped_to {
	}
}
table bridge b {
	chain f {
		type filter hook forward priority filter; policy drop;
	}
}
table ip filter {
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
";
        let chain = |family: &str, table: &str, name: &str, drops| BaseChain {
            family: family.into(),
            table: table.into(),
            name: name.into(),
            drops,
        };
        assert_eq!(
            parse_chains(listed, "forward"),
            [chain("inet", "own", "f", false), chain("ip", "filter", "FORWARD", true)]
        );
    }

    #[test]
    fn rules_are_found_with_their_handles() {
        let listed = "table ip filter { # handle 1
	chain FORWARD { # handle 2
		type filter hook forward priority filter; policy drop;
		iifname \"weft0\"  counter accept # handle 5
		counter jump DOCKER-USER # handle 12
	}
}
";
        let rule = |text: &str, handle| Rule { text: text.into(), handle };
        assert_eq!(
            parse_rules(listed),
            [rule("iifname \"weft0\" counter accept", 5), rule("counter jump DOCKER-USER", 12)]
        );
    }
}
