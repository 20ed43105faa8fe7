//! A kernel may lack any offload: without them the fabric carries the same packets, only slower.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use weft_aead::Engine;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_tests::traffic::Family;
use weft_tests::{TestLab, can_run};

use crate::matrix::complete_matrix;
use crate::transfer::{largest_datagrams_echo, transfer_both_ways};

const NONE: &str = "tun-tso,tun-uso,tun-checksum,tun-cpu,udp-gso,udp-gro,wg-avx512";
const TRANSFER: usize = 8 << 20;

/// Offloads that a node's datapath has and does not use, by the names of the command line.
async fn unused(lab: &TestLab, node: &str) -> Result<BTreeSet<String>> {
    let datapath = lab.agent_status(node).await?.datapath.context("no datapath")?;
    let off = datapath.offloads.iter().filter(|o| !o.on);
    Ok(off.map(|o| o.name.replace('_', "-")).collect())
}

/// What should not be used if `off` was switched off.
fn unused_without(off: &str, encapsulation: Encapsulation) -> BTreeSet<String> {
    let mut unused: BTreeSet<_> = off.split(',').map(str::to_owned).collect();
    unused.remove("");
    match encapsulation {
        // Not every processor has it.
        Encapsulation::WireGuard if !Engine::fastest().is_avx512() => {
            unused.insert("wg-avx512".into());
        }
        Encapsulation::WireGuard => {}
        Encapsulation::Vxlan => drop(unused.remove("wg-avx512")),
    }
    unused
}

async fn everything_passes_without(
    off: &str,
    encapsulation: Encapsulation,
    on_nodes: &[&str],
) -> Result<()> {
    if !can_run(&["ping", "nft"]) {
        return Ok(());
    }
    let arguments = on_nodes.iter().map(|n| ((*n).to_owned(), vec![format!("--no-offload={off}")]));
    let datapath_arguments_of: BTreeMap<_, _> = arguments.collect();
    // The host's routing is what is left of delivery, on all nodes or on none.
    let direct = on_nodes.len() < 2;
    let agent_arguments = if direct { Vec::new() } else { vec!["--no-direct-delivery".into()] };
    let options = Options {
        nodes: 2,
        encapsulation,
        datapath_arguments_of,
        agent_arguments,
        ..Options::default()
    };
    let lab = TestLab::with_pods(options, 2).await?;
    for node in lab.nodes() {
        let off = if on_nodes.contains(&node.as_str()) { off } else { "" };
        let (unused, expected) = (unused(&lab, &node).await?, unused_without(off, encapsulation));
        ensure!(unused == expected, "{node} does not use {unused:?}, expected {expected:?}");
        ensure!(lab.agent_status(&node).await?.direct_delivery == direct, "{node}: not {direct}");
    }
    complete_matrix(&lab, 2).await?;
    for family in [Family::V4, Family::V6] {
        for pods in [("a1", "b1"), ("b1", "a1"), ("a1", "a2")] {
            largest_datagrams_echo(&lab, pods, family)?;
        }
        transfer_both_ways(&lab, ("a1", "b1"), family, TRANSFER)?;
        transfer_both_ways(&lab, ("a1", "a2"), family, TRANSFER)?;
    }
    Ok(())
}

#[tokio::test]
async fn wireguard_works_without_any_offload() -> Result<()> {
    everything_passes_without(NONE, Encapsulation::WireGuard, &["node-1", "node-2"]).await
}

#[tokio::test]
async fn vxlan_works_without_any_offload() -> Result<()> {
    everything_passes_without(NONE, Encapsulation::Vxlan, &["node-1", "node-2"]).await
}

/// What one node merges the other has to take apart, and the other way round.
#[tokio::test]
async fn nodes_with_and_without_offloads_work_together() -> Result<()> {
    everything_passes_without(NONE, Encapsulation::WireGuard, &["node-2"]).await?;
    everything_passes_without(NONE, Encapsulation::Vxlan, &["node-1"]).await
}

/// Segments of TCP stay whole while those of UDP, or the datagrams of the mesh, do not.
#[tokio::test]
async fn some_offloads_work_without_the_others() -> Result<()> {
    let all = &["node-1", "node-2"][..];
    let off = "tun-uso,tun-cpu,udp-gso";
    everything_passes_without(off, Encapsulation::WireGuard, all).await?;
    everything_passes_without("tun-tso,udp-gro", Encapsulation::Vxlan, all).await
}
