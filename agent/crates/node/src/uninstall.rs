//! Takes the fabric off the node.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use weft_netio::{Netlink, link, nft, tc};

use crate::cni::Records;
use crate::config::AgentConfig;
use crate::durable;
use crate::install::BINARY;
use crate::network::{NFT_TABLE, OldSysctls, look, perform, plan_removal};
use crate::run::SYSCTLS;

/// The bridge that `weft-cni` has the delegate `bridge` make.
const BRIDGE: &str = "weft-br0";

/// Removes everything that the fabric made on the node and nothing else; the CNI configuration
/// first, so that no pod is started meanwhile. Neither agent nor datapath need be alive; they should
/// not be. Can be repeated.
///
/// # Errors
/// One line for the operator. What could be removed is removed all the same.
pub async fn uninstall(config: AgentConfig) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("uninstall needs root: it changes routes, rules and interfaces of the node");
    }
    let mut done = vec![
        ("CNI configuration", remove(&config.conflist())),
        ("CNI plugin", remove(&config.cni_bin_dir.join(BINARY))),
        ("network", network(&config).await),
        ("nftables", nft::delete_table("inet", NFT_TABLE).await.map_err(Into::into)),
        ("settings", settings(&config)),
    ];
    if done.iter().all(|(_, result)| result.is_ok()) {
        // What is left to be done stands in there.
        done.push(("state directory", remove_dir(&config.state_dir)));
        done.push(("run directory", remove_dir(&config.run_dir)));
    }
    let failures: Vec<String> = done
        .iter()
        .filter_map(|(what, result)| Some(format!("{what}: {:#}", result.as_ref().err()?)))
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("not everything could be removed: {}", failures.join("; "))
}

async fn network(config: &AgentConfig) -> anyhow::Result<()> {
    let netlink = Netlink::new().context("cannot talk to the kernel's network")?;
    let attachments = config.attachments_dir();
    if attachments.is_dir() {
        for record in Records::open(attachments)?.load()? {
            tc::remove_port(&netlink, &record.wiring.host_interface).await?;
        }
    }
    let actual = look(&netlink).await?;
    for action in plan_removal(&config.interface, &actual) {
        perform(&netlink, &config.interface, &action).await?;
    }
    match actual.link(&config.interface).map(|l| l.kind.as_str()) {
        Some("tun") => drop(link::remove(&netlink, &config.interface).await?),
        Some(_) => bail!("{} is no TUN device and was left alone", config.interface),
        None => {}
    }
    if actual.link(BRIDGE).is_some_and(|l| l.kind == "bridge") {
        link::remove(&netlink, BRIDGE).await?;
    }
    Ok(())
}

fn settings(config: &AgentConfig) -> anyhow::Result<()> {
    let path = config.state(SYSCTLS);
    if path.exists() { Ok(OldSysctls::open(path)?.restore()?) } else { Ok(()) }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match durable::remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| path.display().to_string()),
    }
}

fn remove_dir(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| path.display().to_string()),
    }
}
