//! Plugins come, change and go while the fabric runs.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::Options;
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::plugin_status::State;
use weft_proto::v1::{ListPluginsRequest, PluginStatus};
use weft_tests::traffic::{EchoService, Echoes, Family, echo_once};
use weft_tests::{TestLab, can_run, eventually, plugin};

const SOON: Duration = Duration::from_secs(5);

async fn lab() -> Result<TestLab> {
    TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await
}

/// What each node says of a plugin; empty if there is none of that name.
pub(crate) async fn on_nodes(lab: &TestLab, name: &str) -> Result<Vec<PluginStatus>> {
    let channel = weft_control::connect_unix(lab.hub_socket()).await?;
    let answer = ControlClient::new(channel).list_plugins(ListPluginsRequest {}).await?;
    let plugins = answer.into_inner().plugins.into_iter();
    let of_name = plugins.filter(|p| p.spec.as_ref().is_some_and(|s| s.name == name));
    Ok(of_name.flat_map(|p| p.nodes).filter_map(|n| n.status).collect())
}

/// Waits until both nodes run a plugin.
pub(crate) async fn runs(lab: &TestLab, name: &str) -> Result<()> {
    eventually(SOON, async || {
        let nodes = on_nodes(lab, name).await?;
        let running = nodes.iter().filter(|n| n.state() == State::Running).count();
        ensure!(running == 2, "{name} runs on {running} nodes: {nodes:?}");
        Ok(())
    })
    .await
}

fn opens(lab: &TestLab, to: &TcpListener) -> Result<()> {
    let address = to.local_addr()?;
    lab.connect("a1", address)?.with_context(|| format!("port {} is shut", address.port()))?;
    to.accept()?;
    Ok(())
}

fn is_refused(lab: &TestLab, to: SocketAddr) -> Result<()> {
    match lab.connect("a1", to)? {
        Ok(_) => bail!("port {} is open", to.port()),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => bail!("port {} is not refused: {e}", to.port()),
    }
}

#[tokio::test]
async fn a_port_is_blocked_while_the_plugin_says_so() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab().await?;
    let one = lab.listen("b1", Family::V4, 5201)?;
    let two = lab.listen("b1", Family::V6, 5202)?;
    let mut on_one = (lab.connect("a1", one.local_addr()?)??, one.accept()?.0);
    let mut on_two = (lab.connect("a1", two.local_addr()?)??, two.accept()?.0);

    let module = plugin("port-block")?;
    let module = module.to_str().context("path")?;
    lab.weft(&["plugin", "load", "port-block", module, "--config", "tcp/5201"])?;
    runs(&lab, "port-block").await?;
    is_refused(&lab, one.local_addr()?)?;
    opens(&lab, &two)?;
    // A connection from before the load meets the plugin as well.
    on_one.0.set_read_timeout(Some(SOON))?;
    std::io::Write::write_all(&mut on_one.0, b"x")?;
    let cut = on_one.0.read(&mut [0; 1]).map_err(|e| e.kind());
    ensure!(cut == Err(std::io::ErrorKind::ConnectionReset), "live connection: {cut:?}");
    echo_once(&mut on_two.0, &mut on_two.1, b"untouched")?;
    let list = lab.weft(&["plugin", "list"])?;
    ensure!(list.lines().filter(|l| l.contains("running")).count() == 2, "{list}");

    lab.weft(&["plugin", "config", "port-block", "--config", "tcp/5202"])?;
    eventually(SOON, async || is_refused(&lab, two.local_addr()?)).await?;
    opens(&lab, &one)?;

    lab.weft(&["plugin", "unload", "port-block"])?;
    eventually(SOON, async || opens(&lab, &two)).await?;
    opens(&lab, &one)?;
    let list = lab.weft(&["plugin", "list"])?;
    ensure!(!list.contains("port-block"), "{list}");
    Ok(())
}

#[tokio::test]
async fn replacing_a_plugin_loses_no_packet() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab().await?;
    let (blocking, limiting) = (plugin("port-block")?, plugin("sni-allow")?);
    let (blocking, limiting) =
        (blocking.to_str().context("path")?, limiting.to_str().context("path")?);
    lab.weft(&["plugin", "load", "guard", blocking, "--config", "udp/9"])?;
    runs(&lab, "guard").await?;
    let service = EchoService::start(&lab, "b1", Family::V4, 0)?;
    let echoes = Echoes::start(&lab, "a1", &service)?;
    for module in [limiting, blocking, blocking, limiting, blocking] {
        let config = if module == blocking { "udp/9" } else { "allow = *.example.org" };
        lab.weft(&["plugin", "replace", "guard", module, "--config", config])?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        runs(&lab, "guard").await?;
    }
    lab.weft(&["plugin", "unload", "guard"])?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (sent, back) = echoes.stop()?;
    println!("five replacements and an unload: {sent} datagrams sent, {back} back");
    ensure!(sent > 500, "only {sent} datagrams were sent");
    ensure!(sent == back, "{} of {sent} datagrams were lost", sent - back);
    Ok(())
}

/// Fails if the command succeeds or says more or less than one line.
fn refused_in_one_line(lab: &TestLab, command: &[&str], reason: &str) -> Result<()> {
    let output = lab.weft_output(command)?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success(), "{command:?} succeeded");
    ensure!(text.trim_end().lines().count() == 1, "{command:?} says {text:?}");
    ensure!(text.contains(reason), "{command:?} says {text:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_good_plugin_is_refused_and_the_running_one_stays() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab().await?;
    let module = plugin("port-block")?;
    let module = module.to_str().context("path")?;
    let junk = tempfile::NamedTempFile::new()?;
    std::fs::write(junk.path(), b"\0asm, it says")?;
    let junk = junk.path().to_str().context("path")?;
    let port = lab.listen("b1", Family::V4, 5201)?;

    refused_in_one_line(&lab, &["plugin", "load", "junk", junk], "module")?;
    refused_in_one_line(&lab, &["plugin", "load", "none", "/nonexistent.wasm"], "cannot read")?;
    refused_in_one_line(&lab, &["plugin", "replace", "guard", module], "guard")?;
    refused_in_one_line(&lab, &["plugin", "config", "guard", "--config", ""], "guard")?;
    lab.weft(&["plugin", "load", "guard", module, "--config", "tcp/5201"])?;
    runs(&lab, "guard").await?;
    refused_in_one_line(&lab, &["plugin", "load", "guard", module], "guard")?;
    refused_in_one_line(&lab, &["plugin", "replace", "guard", junk], "module")?;
    is_refused(&lab, port.local_addr()?)?;

    // Nodes judge a configuration: what one refuses is given up everywhere.
    let bad = ["plugin", "config", "guard", "--config", "tcp/0"];
    refused_in_one_line(&lab, &bad, "a port is 1 to 65535")?;
    runs(&lab, "guard").await?;
    refused_in_one_line(
        &lab,
        &["plugin", "load", "fresh", module, "--config", "tcp/0"],
        "refused",
    )?;
    ensure!(on_nodes(&lab, "fresh").await?.is_empty(), "a refused plugin stayed");
    // What a replacement does not name stays.
    lab.weft(&["plugin", "replace", "guard", module])?;
    runs(&lab, "guard").await?;
    is_refused(&lab, port.local_addr()?)?;
    lab.weft(&["plugin", "config", "guard", "--config", "tcp/5202"])?;
    runs(&lab, "guard").await?;
    opens(&lab, &port)
}

/// Declared by a manifest, a plugin with a configuration that it does not take: the status says where
/// and why, what ran before runs on, and what is written right is taken up.
#[tokio::test]
async fn bad_configuration_in_a_manifest_is_named_in_the_status() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab().await?;
    let port = lab.listen("b1", Family::V4, 5201)?;
    std::fs::copy(plugin("port-block")?, lab.manifests().join("port-block.wasm"))?;
    let manifest = lab.manifests().join("ports.yaml");
    let declare = |config: &str| {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: PacketFilter\nmetadata: {{name: ports}}\nspec: {{module: port-block.wasm, config: {config}}}\n"
        );
        std::fs::write(&manifest, text)
    };
    let is_named = async || {
        eventually(SOON, async || {
            let status = lab.weft(&["status"])?;
            for node in ["node-1", "node-2"] {
                let line = format!("ports.yaml:1: plugin ports is refused on {node}: ");
                let line = status.lines().find(|l| l.contains(&line));
                let line = line.with_context(|| format!("not named for {node}: {status}"))?;
                ensure!(line.contains("`tcp/abc`") && line.contains("1 to 65535"), "{line}");
            }
            Ok(())
        })
        .await
    };
    declare("tcp/abc")?;
    is_named().await?;
    opens(&lab, &port)?;
    declare("tcp/5201")?;
    runs(&lab, "ports").await?;
    let status = lab.weft(&["status"])?;
    ensure!(!status.contains("problem"), "{status}");
    is_refused(&lab, port.local_addr()?)?;
    declare("tcp/abc")?;
    is_named().await?;
    is_refused(&lab, port.local_addr()?)
}
