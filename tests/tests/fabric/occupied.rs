//! Two of a kind in one place, and ports that somebody has: the second is refused, the first goes on.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_netio::netns;
use weft_tests::machine::{Node, differences, picture, token};
use weft_tests::outsider::Outsider;
use weft_tests::talk::udp_both_ways;
use weft_tests::{TestLab, binaries, can_run, command_in, eventually};

use crate::refusals::{refused, refused_for};

fn still_talk(lab: &TestLab) -> Result<()> {
    udp_both_ways(&lab.party("a1", 0)?, &lab.party("b1", 0)?, b"undisturbed")
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Whose message names the directory or device, and whose start changes nothing.
#[tokio::test]
async fn a_second_process_in_one_place_is_refused_and_the_first_goes_on() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let (first, spare) = (lab.node("node-1"), Node::at(&lab.namespace_of("node-1")?)?);
    let (run, state) = (first.run(), first.state());
    let weft = |role: &str| -> Result<Command> {
        let mut command = command_in(&first.namespace, binaries()?.join("weft"))?;
        command.arg(role);
        Ok(command)
    };
    let before = picture(&first.namespace)?;
    let mut datapath = weft("datapath")?;
    datapath.arg(flag("run-dir", &run));
    refused_for(&spare, datapath, &["datapath.sock", "another process"])?;
    for (run_dir, state_dir, words) in [
        (&run, &spare.path("state"), ["agent.sock", "another process"]),
        (&spare.path("run"), &state, [state.to_str().context("no text")?, "another agent"]),
    ] {
        let mut agent = weft("agent")?;
        agent.args(["--node-name=second", "--hub=198.18.0.2:7443"]);
        agent.arg(flag("token-file", &token(&lab)));
        agent.args([flag("run-dir", run_dir), flag("state-dir", state_dir)]);
        refused_for(&spare, agent, &words)?;
    }
    let mut uninstall = weft("uninstall")?;
    uninstall.args([flag("run-dir", &run), flag("state-dir", &state)]);
    refused_for(&spare, uninstall, &["agent.sock", "stop that one first"])?;
    second_hubs(&lab, &spare)?;
    let mut up = Command::new(binaries()?.join("weft"));
    up.args(["lab", "up", "--name", lab.name()]);
    refused_for(&spare, up, &[lab.name(), "weft lab down"])?;
    let changed = differences(&before, &picture(&first.namespace)?);
    ensure!(changed.is_empty(), "{changed:#?}");
    lab.wait_ready().await?;
    still_talk(&lab)
}

/// In the hub's namespace: its port, its socket, its state.
fn second_hubs(lab: &TestLab, spare: &Node) -> Result<()> {
    let namespace = lab.hub_namespace();
    let dir = lab.manifests().with_file_name("hub");
    let (run, state) = (dir.join("run"), dir.join("state"));
    for (run_dir, state_dir, listen, words) in [
        (&spare.path("run"), &spare.path("state"), "[::]:7443", ["7443", "choose another"]),
        (&run, &spare.path("state"), "[::]:7444", ["hub.sock", "another process"]),
        (&spare.path("run"), &state, "[::]:7444", ["in use by another hub", "stop that one"]),
    ] {
        let mut hub = command_in(&namespace, binaries()?.join("weft"))?;
        hub.args(["hub", &format!("--listen={listen}"), &flag("manifests", &lab.manifests())]);
        hub.args([flag("run-dir", run_dir), flag("state-dir", state_dir)]);
        refused_for(spare, hub, &words)?;
    }
    Ok(())
}

/// Two datapaths on one machine, each in a directory of its own: the interface tells.
#[tokio::test]
async fn a_second_datapath_on_a_machine_leaves_the_interface_to_the_first() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let second = tempfile::tempdir()?;
    // It starts from tables like the first one's.
    std::fs::copy(lab.node("node-1").run().join("tables"), second.path().join("tables"))?;
    let mut datapath = command_in(&lab.namespace_of("node-1")?, binaries()?.join("weft"))?;
    datapath.arg("datapath").arg(flag("run-dir", second.path()));
    let said = refused(datapath)?;
    ensure!(said.contains("weft0 is in use by another process"), "{said}");
    ensure!(!second.path().join("datapath.sock").exists(), "its socket is left");
    still_talk(&lab)
}

/// The port of the mesh, taken before the node joins: the agent's status says it, and once the port
/// is free the node comes up. A restarted datapath that finds it taken ends with one line.
async fn a_taken_port_is_named(encapsulation: Encapsulation) -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let port = encapsulation.default_port();
    let options = Options { nodes: 1, encapsulation, ..Options::default() };
    let lab = TestLab::up(options).await?;
    let machine = Outsider::join(&lab)?;
    let mut node = Node::at(&machine.namespace)?;
    let take = || netns::enter(&machine.namespace, || UdpSocket::bind(("0.0.0.0", port)));
    let taken = take()??;
    node.start(&lab)?;
    let words = [format!("UDP port {port} is in use"), "stop what uses it".to_owned()];
    eventually(Duration::from_secs(10), async || {
        let mut status = machine.command(binaries()?.join("weft"))?;
        let output = status
            .args(["status", "--node"])
            .arg(flag("run-dir", &node.path("run-dir")))
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let named = |l: &str| l.starts_with("problem: ") && words.iter().all(|w| l.contains(w));
        ensure!(text.lines().any(named), "{text}");
        Ok(())
    })
    .await?;
    ensure!(!machine.tool("ip -o link")?.contains("weft0"), "the interface is there already");
    drop(taken);
    lab.wait_connected("by-hand").await?;
    eventually(Duration::from_secs(10), async || machine.tool("ip link show weft0").map(drop))
        .await?;
    node.stop()?;
    let _taken = take()??;
    let said = refused(node.weft("datapath")?)?;
    ensure!(words.iter().all(|w| said.contains(w)), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_taken_wireguard_port_is_named_and_waited_for() -> Result<()> {
    a_taken_port_is_named(Encapsulation::WireGuard).await
}

#[tokio::test]
async fn a_taken_vxlan_port_is_named_and_waited_for() -> Result<()> {
    a_taken_port_is_named(Encapsulation::Vxlan).await
}
