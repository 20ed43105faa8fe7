//! Weft as a case: a lab, as in the tests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_abi::Manifest;
use weft_lab::Options;
use weft_policy_sdk::Export;
use weft_proto::v1::ListPluginsRequest;
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::plugin_status::State;
use weft_tests::{TestLab, eventually};

use crate::bed::{self, Bed};
use crate::names::{Plugins, Underlay};

const USER_PLUGINS: [&str; 3] = ["bench-1", "bench-2", "bench-3"];
/// No load uses any of them, and each packet is compared with all.
const BLOCKED: &str = "block = tcp/1, udp/1, tcp/2-9, udp/2-9, tcp/22";
const IN_FORCE_MAX: Duration = Duration::from_secs(15);

pub(crate) async fn make(options: Options, plugins: Plugins, underlay: Underlay) -> Result<Bed> {
    let mut lab = TestLab::up(options).await?;
    bed::apply(underlay, &lab)?;
    for (node, pod) in [("node-1", "a1"), ("node-1", "a2"), ("node-2", "b1")] {
        lab.pod_add(node, pod).await?;
    }
    if plugins == Plugins::ThreeWasm {
        load(&lab).await?;
    }
    let pods = [lab.party("a1", 0)?, lab.party("a2", 0)?, lab.party("b1", 0)?];
    Ok(Bed::new(lab, Vec::new(), pods))
}

async fn load(lab: &TestLab) -> Result<()> {
    let module = tempfile::NamedTempFile::new()?;
    std::fs::write(module.path(), asked_each_packet()?)?;
    let path = module.path().to_str().context("path")?;
    for name in USER_PLUGINS {
        lab.weft(&["plugin", "load", name, path, "--config", BLOCKED])?;
    }
    eventually(IN_FORCE_MAX, async || check_plugins(lab).await.map(drop)).await
}

/// `port-block`, whose manifest says that it is asked once for each flow, with one that says
/// otherwise: a million packets later its calls would not show in the figures.
fn asked_each_packet() -> Result<Vec<u8>> {
    let manifest = port_block::PortBlock::MANIFEST;
    let (is, shall_be) = (manifest.to_bytes(), Manifest { per_flow: false, ..manifest }.to_bytes());
    ensure!(is != shall_be, "port-block is asked about each packet already");
    let mut module = std::fs::read(weft_tests::plugin("port-block")?)?;
    let at = module.windows(is.len()).position(|bytes| bytes == is);
    let at = at.context("port-block.wasm was built from another source: run ./dev plugins")?;
    module[at..at + is.len()].copy_from_slice(&shall_be);
    Ok(module)
}

/// Fails unless every plugin runs on both nodes and has not faulted; returns how often they were
/// asked.
pub(crate) async fn check_plugins(lab: &TestLab) -> Result<u64> {
    let channel = weft_control::connect_unix(lab.hub_socket()).await?;
    let answer = ControlClient::new(channel).list_plugins(ListPluginsRequest {}).await?;
    let mut calls = 0;
    for plugin in answer.into_inner().plugins {
        let name = plugin.spec.map(|spec| spec.name).unwrap_or_default();
        let nodes: Vec<_> = plugin.nodes.into_iter().filter_map(|node| node.status).collect();
        ensure!(nodes.len() == 2, "{name} is known to {} of 2 nodes", nodes.len());
        for status in nodes {
            let well = status.state() == State::Running && status.faults == 0;
            ensure!(well, "plugin {name}: {status:?}");
            calls += status.calls;
        }
    }
    Ok(calls)
}
