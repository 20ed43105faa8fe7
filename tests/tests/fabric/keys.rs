//! Keys change while pods talk.

use std::time::Duration;

use anyhow::{Result, ensure};
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
