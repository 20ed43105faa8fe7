//! Weft as a case: a lab, as in the tests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_abi::Manifest;
use weft_lab::Options;
use weft_policy_sdk::Export;
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::plugin_status::State;
use weft_proto::v1::{ListPluginsRequest, PluginStatus};
use weft_tests::{TestLab, eventually};

use crate::bed::{self, Bed};
use crate::names::{Plugins, Underlay};

const USER_PLUGINS: [&str; 3] = ["bench-1", "bench-2", "bench-3"];
/// No load uses any of them, and each packet is compared with all.
const BLOCKED: &str = "block = tcp/1, udp/1, tcp/2-9, udp/2-9, tcp/22";
/// Of each, on each node, whatever was measured: far more than there are flows.
const CALLS_MIN: u64 = 2000;
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
    eventually(IN_FORCE_MAX, async || {
        let plugins = plugins(lab).await?;
        let runs = |status: &PluginStatus| status.state() == State::Running;
        let running = plugins.iter().flat_map(|(_, nodes)| nodes).filter(|s| runs(s)).count();
        let expected = USER_PLUGINS.len() * lab.nodes().len();
        ensure!(running == expected, "{running} of {expected} run: {plugins:?}");
        Ok(())
    })
    .await
}

/// `port-block`, whose manifest says that it is asked once for each flow, with one that says
/// otherwise: a million packets later its calls would not show in the figures.
fn asked_each_packet() -> Result<Vec<u8>> {
    let manifest = port_block::PortBlock::MANIFEST;
    let (is, shall_be) = (manifest.to_bytes(), Manifest { per_flow: false, ..manifest }.to_bytes());
    ensure!(is != shall_be, "port-block is asked about each packet already");
    let mut module = std::fs::read(weft_tests::plugin("port-block")?)?;
    // The section, and what the compiler kept of it in the data.
    let mut found = 0;
    for at in 0..(module.len() + 1).saturating_sub(is.len()) {
        if module[at..].starts_with(&is) {
            module[at..at + is.len()].copy_from_slice(&shall_be);
            found += 1;
        }
    }
    ensure!(found > 0, "port-block.wasm was built from another source: run ./dev plugins");
    Ok(module)
}

/// Fails unless every plugin still runs on both nodes and was asked about the packets that passed.
pub(crate) async fn check_plugins(lab: &TestLab) -> Result<()> {
    for (name, nodes) in plugins(lab).await? {
        for status in nodes {
            let well = status.state() == State::Running && status.calls >= CALLS_MIN;
            ensure!(well, "plugin {name}: {status:?}");
            if status.faults > 0 {
                eprintln!("plugin {name}: {} faults in {} calls", status.faults, status.calls);
            }
        }
    }
    Ok(())
}

/// What the nodes say of each plugin.
async fn plugins(lab: &TestLab) -> Result<Vec<(String, Vec<PluginStatus>)>> {
    let channel = weft_control::connect_unix(lab.hub_socket()).await?;
    let answer = ControlClient::new(channel).list_plugins(ListPluginsRequest {}).await?;
    let plugins = answer.into_inner().plugins.into_iter().map(|plugin| {
        let name = plugin.spec.map(|spec| spec.name).unwrap_or_default();
        (name, plugin.nodes.into_iter().filter_map(|node| node.status).collect())
    });
    Ok(plugins.collect())
}
