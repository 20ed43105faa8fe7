//! An operator on another machine: `weft` against the hub's TCP port, with a certificate.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::outsider::Outsider;
use weft_tests::{TestLab, binaries, can_run};

use crate::refusals::refused;

const HUB: &str = "198.18.0.2:7443";

fn weft(machine: &Outsider, certificates: &Path, words: &[&str]) -> Result<Command> {
    let mut command = machine.command(binaries()?.join("weft"))?;
    command.args(words).args(["--hub", HUB, "--cert-dir"]).arg(certificates);
    Ok(command)
}

/// Writes the certificate of an operator of the hub whose state that is.
fn issue(state: &Path, out: &Path) -> Result<()> {
    let mut command = Command::new(binaries()?.join("weft"));
    command.args(["token", "admin", "ann", "--state-dir"]).arg(state).arg("--out").arg(out);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// And nobody else does: not without a certificate, not with a node's, not with another hub's.
#[tokio::test]
async fn an_operator_far_away_operates_the_fabric_with_a_certificate() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    let dir = tempfile::tempdir()?;
    let own = dir.path().join("own");
    issue(&lab.manifests().with_file_name("hub").join("state"), &own)?;
    for (words, shows) in [
        (&["status"][..], "node-1"),
        (&["plugin", "list"], "PLUGIN"),
        (&["keys", "rotate"], "node-1"),
    ] {
        let output = weft(&machine, &own, words)?.output()?;
        let said = String::from_utf8(output.stdout)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said.contains(shows), "{words:?}: {said}{error}");
    }
    let missing = refused(weft(&machine, &dir.path().join("none"), &["status"])?)?;
    ensure!(missing.contains("weft token admin"), "{missing}");
    let other = dir.path().join("other");
    let other_hub = dir.path().join("other-hub");
    Command::new(binaries()?.join("weft"))
        .args(["token", "show", "--state-dir"])
        .arg(&other_hub)
        .output()?;
    issue(&other_hub, &other)?;
    let foreign = refused(weft(&machine, &other, &["status"])?)?;
    ensure!(foreign.contains("certificate") && foreign.contains(HUB), "{foreign}");
    let node = dir.path().join("node");
    as_node(&lab, &node)?;
    let denied = refused(weft(&machine, &node, &["status"])?)?;
    ensure!(denied.contains("operator") || denied.contains("admin"), "{denied}");
    let mut without = machine.command(binaries()?.join("weft"))?;
    let without = refused({
        without.args(["status", "--hub", HUB]);
        without
    })?;
    ensure!(without.contains("--cert-dir"), "{without}");
    Ok(())
}

/// A node's own certificate in the shape of an operator's.
fn as_node(lab: &TestLab, out: &Path) -> Result<()> {
    let path = lab.node("node-1").state().join("identity/credentials.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    std::fs::create_dir(out)?;
    for (file, field) in [("ca.pem", "ca"), ("admin.pem", "certificate"), ("admin.key", "key")] {
        std::fs::write(out.join(file), kept[field].as_str().context("no text")?)?;
    }
    Ok(())
}
