//! Keys change while pods talk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::traffic::{Family, Transfer, echo_once};
use weft_tests::{TestLab, can_run, eventually};

/// Overlap of old and new key that the agents are started with, in seconds.
const OVERLAP: &str = "--key-overlap=3";

/// Each node's public keys, preferred first, in the order of the nodes' names.
async fn keys(lab: &TestLab) -> Result<Vec<Vec<Vec<u8>>>> {
    let mut nodes: Vec<_> = lab.status().await?.nodes.into_iter().filter_map(|n| n.node).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes.into_iter().map(|n| n.keys).collect())
}

#[tokio::test]
async fn keys_rotate_twice_and_no_connection_notices() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let agent_arguments = vec![OVERLAP.to_owned()];
    let options = Options { nodes: 2, agent_arguments, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let (mut client, mut server) = lab.connection(("b1", "a1"), Family::V6)?;
    let transfer = Transfer::start(lab.connection(("a1", "b1"), Family::V4)?);
    let mut old = keys(&lab).await?;
    ensure!(old.len() == 2 && old.iter().all(|k| k.len() == 1), "before: {old:?}");
    for round in ["first", "second"] {
        lab.weft(&["keys", "rotate"])?;
        eventually(Duration::from_secs(5), async || {
            let now = keys(&lab).await?;
            let changed = now.iter().zip(&old).all(|(now, old)| now.first() != old.first());
            ensure!(changed, "{round} rotation: the preferred keys are the old ones");
            let overlap = now.iter().zip(&old).all(|(now, old)| now.get(1) == old.first());
            ensure!(overlap, "{round} rotation: the old key is gone at once");
            Ok(())
        })
        .await?;
        echo_once(&mut client, &mut server, round.as_bytes())?;
        old = eventually(Duration::from_secs(10), async || {
            let now = keys(&lab).await?;
            ensure!(now.iter().all(|k| k.len() == 1), "{round} rotation: the old key stays");
            Ok(now)
        })
        .await?;
        echo_once(&mut client, &mut server, round.as_bytes())?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let stall = transfer.longest_stall();
        println!("{round} rotation: longest stall {stall:.0?}");
        ensure!(stall < Duration::from_secs(5), "the transfer stood for {stall:?}");
    }
    let bytes = transfer.stop()?;
    println!("two rotations: {} MiB transferred all the while", bytes >> 20);
    Ok(())
}

/// CNI-011
#[tokio::test]
async fn a_new_underlay_address_is_followed_without_a_restart() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let (mut client, mut server) = lab.connection(("a1", "b1"), Family::V4)?;
    let processes = ["node-2-agent", "node-2-datapath", "node-1-agent", "node-1-datapath"];
    let before = processes.map(|p| lab.pid(p).ok());
    let old = lab.node_addresses("node-2").into_iter().find(|a| a.is_ipv4()).context("address")?;
    lab.run("node-2", &["ip", "address", "add", "198.18.0.99/24", "dev", "eth0"])?;
    lab.run("node-2", &["ip", "address", "del", &format!("{old}/24"), "dev", "eth0"])?;
    // Linux takes a secondary address away with its primary one.
    lab.run("node-2", &["ip", "address", "replace", "198.18.0.99/24", "dev", "eth0"])?;
    let gateway = "198.18.0.1";
    lab.run("node-2", &["ip", "route", "replace", "default", "via", gateway, "dev", "eth0"])?;
    let start = std::time::Instant::now();
    for (from, to) in [("a1", "b1"), ("b1", "a1")] {
        let listener = lab.listen(to, Family::V4, 0)?;
        let address = listener.local_addr()?;
        eventually(Duration::from_secs(10).saturating_sub(start.elapsed()), async || {
            lab.connect(from, address)?.with_context(|| format!("{from} cannot reach {to}"))?;
            Ok(())
        })
        .await?;
        println!("{from} to {to}: {:.0?} after the underlay address changed", start.elapsed());
    }
    echo_once(&mut client, &mut server, b"still here")?;
    eventually(Duration::from_secs(10), async || {
        let told = lab.status().await?.nodes.into_iter().filter_map(|n| n.node);
        let endpoints: Vec<_> = told.map(|n| n.endpoint).collect();
        ensure!(endpoints.iter().any(|e| e.starts_with("198.18.0.99:")), "{endpoints:?}");
        Ok(())
    })
    .await?;
    println!("the hub knows of it {:.0?} after", start.elapsed());
    ensure!(before == processes.map(|p| lab.pid(p).ok()), "a process was started again");
    Ok(())
}
