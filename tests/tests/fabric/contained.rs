//! A plugin that does what none should harms nobody but, at most, its own traffic.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_proto::v1::plugin_status::State;
use weft_tests::traffic::{EchoService, Echoes, Family, Transfer};
use weft_tests::{TestLab, can_run, eventually, plugin};

use super::plugins::{on_nodes, runs};

const SOON: Duration = Duration::from_secs(5);
/// The only destination port that the plugin is told to misbehave over.
const ITS_PORT: u16 = 7777;
/// Faults after which a plugin is not asked about a conversation any more.
const FAULTS_MAX: u64 = 16;

/// Far less than the megabyte that one behaviour gives as its reason.
const REASON_MAX: usize = 8 * 1024;

/// Loads it with one behaviour, from both nodes on.
fn load(lab: &TestLab, behaviour: &str, on_fault: &str) -> Result<()> {
    let output = try_load(lab, behaviour, on_fault)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn try_load(lab: &TestLab, behaviour: &str, on_fault: &str) -> Result<Output> {
    let module = plugin("misbehaving")?;
    let module = module.to_str().context("path")?;
    let config = format!("behaviour = {behaviour}\nport = {ITS_PORT}");
    let options = ["--config", &config, "--on-fault", on_fault];
    lab.weft_output(&[["plugin", "load", "bad", module].as_slice(), &options].concat())
}

async fn unload(lab: &TestLab) -> Result<()> {
    lab.weft(&["plugin", "unload", "bad"])?;
    eventually(SOON, async || {
        ensure!(on_nodes(lab, "bad").await?.is_empty(), "still there");
        lab.wait_ready().await
    })
    .await
}

/// Datagrams to the plugin's port, one after another; gives how many came back.
fn knock(lab: &TestLab, service: &EchoService, count: usize) -> Result<usize> {
    let socket = lab.datagrams("a1", Family::V4, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut back = 0;
    for _ in 0..count {
        socket.send_to(b"knock", service.address())?;
        back += usize::from(socket.recv(&mut [0; 16]).is_ok());
    }
    Ok(back)
}

async fn behaves_badly(behaviours: &[&str]) -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let its = EchoService::start(&lab, "b1", Family::V4, ITS_PORT)?;
    let other = EchoService::start(&lab, "b1", Family::V4, 0)?;
    for behaviour in behaviours {
        is_contained(&lab, behaviour, &its, &other)
            .await
            .with_context(|| format!("behaviour {behaviour}"))?;
    }
    Ok(())
}

async fn is_contained(
    lab: &TestLab,
    behaviour: &str,
    its: &EchoService,
    other: &EchoService,
) -> Result<()> {
    let echoes = Echoes::start(lab, "a1", other)?;
    let transfer = Transfer::start(lab.connection(("b1", "a1"), Family::V6)?);
    load(lab, behaviour, "skip")?;
    runs(lab, "bad").await?;
    let back = knock(lab, its, 10)?;
    eventually(SOON, async || {
        let nodes = on_nodes(lab, "bad").await?;
        let faults: u64 = nodes.iter().map(|n| n.faults).sum();
        ensure!(faults > 0, "no fault is shown: {nodes:?}");
        Ok(())
    })
    .await?;
    ensure!(back == 10, "on_fault skip: {back} of 10 datagrams came back");

    let back = knock(lab, its, 40)?;
    ensure!(back == 40, "on_fault skip, going on: {back} of 40 datagrams came back");
    eventually(SOON, async || {
        let nodes = on_nodes(lab, "bad").await?;
        let spared = nodes.iter().filter(|n| n.state() == State::Impaired).count();
        ensure!(spared > 0, "it is asked again and again: {nodes:?}");
        ensure!(nodes.iter().all(|n| n.faults <= 2 * FAULTS_MAX), "{nodes:?}");
        Ok(())
    })
    .await?;
    let stall = transfer.longest_stall();
    unload(lab).await?;
    let bytes = transfer.stop()?;
    let (sent, back) = echoes.stop()?;
    println!(
        "{behaviour}: others: {sent} datagrams, {back} back; {} MiB, stall {stall:.0?}",
        bytes >> 20
    );
    ensure!(sent == back, "{} of {sent} datagrams of others were lost", sent - back);
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_never_returns_or_traps_harms_nobody_else() -> Result<()> {
    behaves_badly(&["loop", "trap"]).await
}

#[tokio::test]
async fn a_plugin_that_recurses_or_points_outside_its_memory_harms_nobody_else() -> Result<()> {
    behaves_badly(&["recurse", "pointer"]).await
}

#[tokio::test]
async fn a_plugin_that_breaks_its_own_manifest_harms_nobody_else() -> Result<()> {
    behaves_badly(&["reply", "undeclared"]).await
}

/// Memory has an end, which is no fault of a plugin that sees it.
#[tokio::test]
async fn a_plugin_that_takes_all_memory_gets_its_limit_only() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let its = EchoService::start(&lab, "b1", Family::V4, ITS_PORT)?;
    let other = EchoService::start(&lab, "b1", Family::V4, 0)?;
    let echoes = Echoes::start(&lab, "a1", &other)?;
    load(&lab, "grow", "skip")?;
    runs(&lab, "bad").await?;
    let back = knock(&lab, &its, 20)?;
    let process = lab.pid("node-1-datapath")?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").trim().parse()?;
    let (sent, echoed) = echoes.stop()?;
    println!(
        "grow: others: {sent} datagrams, {echoed} back; datapath holds {} MiB",
        kilobytes >> 10
    );
    ensure!(back == 20, "{back} of 20 datagrams came back");
    ensure!(sent == echoed, "{} of {sent} datagrams of others were lost", sent - echoed);
    ensure!(kilobytes < 512 << 10, "the datapath holds {kilobytes} kB");
    Ok(())
}

#[tokio::test]
async fn with_on_fault_drop_a_failing_plugin_drops_its_own_traffic_only() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let its = EchoService::start(&lab, "b1", Family::V4, ITS_PORT)?;
    let other = EchoService::start(&lab, "b1", Family::V4, 0)?;
    load(&lab, "trap", "drop")?;
    runs(&lab, "bad").await?;
    let echoes = Echoes::start(&lab, "a1", &other)?;
    let many = 2 * usize::try_from(FAULTS_MAX)?;
    let back = knock(&lab, &its, many)?;
    let (sent, echoed) = echoes.stop()?;
    ensure!(back == 0, "{back} datagrams passed a plugin that failed over them");
    ensure!(sent == echoed, "{} of {sent} datagrams of others were lost", sent - echoed);
    unload(&lab).await?;
    let back = knock(&lab, &its, 5)?;
    ensure!(back == 5, "unloaded: {back} of 5 datagrams came back");
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_fails_over_its_configuration_is_refused_with_one_line() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let other = EchoService::start(&lab, "b1", Family::V4, 0)?;
    let echoes = Echoes::start(&lab, "a1", &other)?;
    for behaviour in ["configure-loop", "configure-trap", "configure-refuse"] {
        let output = try_load(&lab, behaviour, "drop")?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success(), "{behaviour} was taken");
        ensure!(text.trim_end().lines().count() == 1 && text.len() < REASON_MAX, "{text}");
        ensure!(text.contains("refused it"), "{behaviour}: {text}");
        ensure!(on_nodes(&lab, "bad").await?.is_empty(), "{behaviour}: it stayed");
    }
    let (sent, echoed) = echoes.stop()?;
    println!("refused configurations: {sent} datagrams of others, {echoed} back");
    ensure!(sent == echoed, "{} of {sent} datagrams of others were lost", sent - echoed);
    Ok(())
}
