//! The death of one process is no outage: what pods talk about goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_tests::traffic::{Family, Transfer, echo_once};
use weft_tests::{TestLab, can_run, eventually};

const IDLE: usize = 100;
/// The aim is one second; a busy machine gets room.
const STALL_MAX: Duration = Duration::from_secs(5);

pub(crate) async fn kill_and_await_return(lab: &TestLab, process: &str) -> Result<()> {
    let old = lab.pid(process)?;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    eventually(Duration::from_secs(10), async || {
        ensure!(lab.pid(process)? != old, "{process} is not back");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    lab.wait_ready().await.with_context(|| format!("after the death of {process}"))
}

async fn connections_survive(encapsulation: Encapsulation) -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let mut idle = lab.connections(("a1", "b1"), Family::V4, IDLE / 2)?;
    idle.extend(lab.connections(("b1", "a1"), Family::V6, IDLE / 2)?);
    let transfer = Transfer::start(lab.connection(("a1", "b1"), Family::V4)?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!("{encapsulation:?}, nobody killed: stall {:.0?}", transfer.longest_stall());
    for process in ["hub", "node-1-agent", "node-1-datapath", "node-2-datapath"] {
        kill_and_await_return(&lab, process).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let stall = transfer.longest_stall();
        println!("{encapsulation:?}, {process} killed: longest stall {stall:.0?}");
        ensure!(stall < STALL_MAX, "{process} killed: the transfer stood for {stall:?}");
        for (number, (client, server)) in idle.iter_mut().enumerate() {
            echo_once(client, server, process.as_bytes())
                .with_context(|| format!("idle connection {number}, {process} killed"))?;
        }
    }
    let bytes = transfer.stop()?;
    println!("{encapsulation:?}: {} MiB transferred all the while", bytes >> 20);
    Ok(())
}

#[tokio::test]
async fn no_wireguard_connection_breaks_when_any_process_is_killed() -> Result<()> {
    connections_survive(Encapsulation::WireGuard).await
}

#[tokio::test]
async fn no_vxlan_connection_breaks_when_any_process_is_killed() -> Result<()> {
    connections_survive(Encapsulation::Vxlan).await
}
