//! Takes the fabric off the node.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use weft_control::{ensure_free, socket};
use weft_netio::{Netlink, link, nft, tc};

use crate::cni::Records;
use crate::config::AgentConfig;
use crate::durable;
use crate::install::BINARY;
use crate::network::{
    NFT_TABLE, OldSysctls, announce, forward, input, look, perform, plan_removal,
};
use crate::run::{SYSCTLS, only_agent};

/// The bridge that `weft-cni` has the delegate `bridge` make.
pub(crate) const BRIDGE: &str = "weft-br0";

/// Where a hub on the same machine keeps its state, in the agent's state directory, by default.
const HUB_STATE: &str = "hub";

/// What `weft-cni` keeps in the directory of attachments: a file for each, and reserved addresses.
const DELEGATES: &str = "delegates";
const ADDRESSES: &str = "addresses";

/// Removes everything that the fabric made on the node and nothing else; the CNI configuration
/// first, so that no pod is started meanwhile. Can be repeated.
///
/// The runtime will still call DEL for pods that are attached. So the plugin and what it keeps stay
/// as long as there are any; returns how many.
///
/// # Errors
/// One line for the operator. What could be removed is removed all the same; nothing is while agent
/// or datapath run, since they would put it back.
pub async fn uninstall(config: AgentConfig) -> anyhow::Result<usize> {
    if !nix::unistd::geteuid().is_root() {
        bail!("uninstall needs root: it changes routes, rules and interfaces of the node");
    }
    if !weft_netio::may_change_network() {
        bail!("uninstall needs CAP_NET_ADMIN: give this capability to root, or to its container");
    }
    for name in [socket::AGENT, socket::DATAPATH] {
        ensure_free(&config.socket(name)).await?;
    }
    // An agent whose socket somebody removed.
    let _only = if config.state_dir.is_dir() { Some(only_agent(&config.state_dir)?) } else { None };
    let attached = attached(&config.attachments_dir())?;
    let mut done = vec![
        ("CNI configuration", remove(&config.conflist())),
        ("network", network(&config).await),
        ("nftables", nft::delete_table("inet", NFT_TABLE).await.map_err(Into::into)),
        ("firewall", forward::remove(&config.interface).await.map_err(Into::into)),
        ("health checks", input::remove().await.map_err(Into::into)),
        ("settings", settings(&config)),
    ];
    if done.iter().all(|(_, result)| result.is_ok()) {
        // What is left to be done stands in there.
        done.push(("run directory", remove_ours(&config.run_dir, &config.socket(socket::HUB))));
        if attached == 0 {
            done.push(("CNI plugin", remove(&config.cni_bin_dir.join(BINARY))));
            let hub = config.state(HUB_STATE);
            done.push(("state directory", remove_ours(&config.state_dir, &hub)));
        } else {
            done.push(("state directory", keep_for_del(&config)));
        }
    }
    let failures: Vec<String> = done
        .iter()
        .filter_map(|(what, result)| Some(format!("{what}: {:#}", result.as_ref().err()?)))
        .collect();
    if failures.is_empty() {
        return Ok(attached);
    }
    bail!("not everything could be removed: {}", failures.join("; "))
}

/// Attachments that the runtime has not called DEL for.
fn attached(attachments: &Path) -> anyhow::Result<usize> {
    let path = attachments.join(DELEGATES);
    match fs::read_dir(&path) {
        Ok(entries) => Ok(entries.count()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Empties the state directory but for what DEL needs.
fn keep_for_del(config: &AgentConfig) -> anyhow::Result<()> {
    let attachments = config.attachments_dir();
    remove_all_but(&config.state_dir, &[&attachments, &config.state(HUB_STATE)])?;
    remove_all_but(&attachments, &[&attachments.join(DELEGATES), &attachments.join(ADDRESSES)])
}

/// Removes a directory, unless the hub of this machine has its part of it there.
fn remove_ours(directory: &Path, of_hub: &Path) -> anyhow::Result<()> {
    if of_hub.exists() { remove_all_but(directory, &[of_hub]) } else { remove_dir(directory) }
}

fn remove_all_but(directory: &Path, kept: &[&Path]) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if kept.contains(&path.as_path()) {
            continue;
        }
        if path.is_dir() { remove_dir(&path)? } else { remove(&path)? }
    }
    Ok(())
}

async fn network(config: &AgentConfig) -> anyhow::Result<()> {
    let netlink = Netlink::new().context("cannot talk to the kernel's network")?;
    let attachments = config.attachments_dir();
    if attachments.is_dir() {
        for record in Records::open(attachments)?.load()? {
            tc::remove_port(&netlink, &record.wiring.host_interface).await?;
        }
    }
    announce::withdraw(&netlink).await?;
    crate::resolver::remove_addresses(&netlink).await?;
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
