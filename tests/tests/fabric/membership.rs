//! Nodes that the hub takes out, and a hub that has lost its nodes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_proto::v1::NodeStatus;
use weft_tests::machine::{Node, token};
use weft_tests::outsider::Outsider;
use weft_tests::{TestLab, can_run, eventually};

use crate::refusals::refused;

const ADVICE: [&str; 2] = ["does not admit this node", "weft uninstall"];

async fn status_of(lab: &TestLab, name: &str) -> Result<NodeStatus> {
    let nodes = lab.status().await?.nodes;
    let named = |n: &NodeStatus| n.node.as_ref().is_some_and(|n| n.name == name);
    nodes.into_iter().find(named).with_context(|| format!("the hub has no node {name}"))
}

async fn subnets(lab: &TestLab, name: &str) -> Result<Vec<String>> {
    Ok(status_of(lab, name).await?.node.context("no node")?.subnets)
}

fn advises(said: &str) -> Result<()> {
    for word in ADVICE {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    Ok(())
}

/// Takes a node out while its agent runs, and has it come back as a new one.
async fn removed_and_back(lab: &TestLab, node: &mut Node, token_file: &Path) -> Result<()> {
    std::fs::copy(token(lab), token_file)?;
    node.spawn(node.weft("datapath")?)?;
    node.spawn(node.joining(token_file)?)?;
    lab.wait_connected("by-hand").await?;
    let before = subnets(lab, "by-hand").await?;
    lab.weft(&["node", "remove", "by-hand"])?;
    advises(&node.ended_by_itself().await?)?;
    ensure!(status_of(lab, "by-hand").await.is_err(), "still a node");
    // Whoever starts the agent again, as supervisors do, has the same answer.
    advises(&refused(node.joining(token_file)?)?)?;
    ensure!(status_of(lab, "by-hand").await.is_err(), "a node again");
    node.stop()?;
    let output = node.weft("uninstall")?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.spawn(node.weft("datapath")?)?;
    node.spawn(node.joining(token_file)?)?;
    lab.wait_connected("by-hand").await?;
    let after = subnets(lab, "by-hand").await?;
    ensure!(before.iter().all(|s| !after.contains(s)), "{before:?} does not rest: {after:?}");
    node.stop()
}

#[tokio::test]
async fn removed_node_says_what_to_do_and_comes_back_as_a_new_one() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    let mut node = Node::at(&machine.namespace)?;
    let token_file = node.path("token");
    removed_and_back(&lab, &mut node, &token_file).await
}

/// Without the token at hand, as it should be once a node has joined.
#[tokio::test]
async fn removed_node_without_a_token_says_what_to_do() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    let mut node = Node::at(&machine.namespace)?;
    let token_file = node.path("token");
    std::fs::copy(token(&lab), &token_file)?;
    node.spawn(node.weft("datapath")?)?;
    node.spawn(node.joining(&token_file)?)?;
    lab.wait_connected("by-hand").await?;
    std::fs::remove_file(&token_file)?;
    lab.weft(&["node", "remove", "by-hand"])?;
    advises(&node.ended_by_itself().await?)?;
    node.stop()
}

/// The token is the hub's still, so agents join with it by themselves.
#[tokio::test]
async fn nodes_join_anew_when_the_hub_has_lost_its_store() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 2, ..Options::default() }).await?;
    let store = lab.hub_socket().with_file_name("../state/hub.redb");
    std::fs::remove_file(&store).with_context(|| store.display().to_string())?;
    let agents = [lab.pid("node-1-agent")?, lab.pid("node-2-agent")?];
    kill(Pid::from_raw(lab.pid("hub")?), Signal::SIGKILL)?;
    eventually(Duration::from_secs(15), async || {
        for node in lab.nodes() {
            let status = status_of(&lab, &node).await?;
            ensure!(status.connected, "{node} is away");
            ensure!(!subnets(&lab, &node).await?.is_empty(), "{node} has no subnet");
        }
        Ok(())
    })
    .await?;
    let now = [lab.pid("node-1-agent")?, lab.pid("node-2-agent")?];
    ensure!(agents == now, "agents were started again: {agents:?}, {now:?}");
    Ok(())
}
