//! What cannot work is refused: one line that says what to do, a status other than 0, and nothing
//! left half-made.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_netio::netns;
use weft_tests::machine::{Node, differences, token};
use weft_tests::outsider::Outsider;
use weft_tests::{TestLab, binaries, can_run, command_in};

/// How long a process that cannot work may think about it.
const PATIENCE: Duration = Duration::from_secs(20);
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// A network namespace with nothing in it; taken away when dropped.
pub(crate) struct Empty(pub(crate) String);

impl Empty {
    pub(crate) fn new() -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-empty-{number}", std::process::id());
        netns::create(&name)?;
        Ok(Self(name))
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(&self.0) {
            eprintln!("cannot take {} away: {error}", self.0);
        }
    }
}

/// Runs a command that must end by itself with a status other than 0 and one line, which it returns.
pub(crate) fn refused(mut command: Command) -> Result<String> {
    // What was logged before is for who follows the process; the refusal stands for itself.
    command
        .env("WEFT_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let until = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let still_there = child.try_wait()?.is_none();
    if still_there {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    ensure!(!still_there, "not refused within {PATIENCE:?}: {said}");
    ensure!(output.status.code().is_some_and(|c| c > 0), "{}: {said}", output.status);
    ensure!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
    ensure!(said.lines().count() == 1, "not one line:\n{said}");
    ensure!(said.starts_with("weft: error: "), "{said}");
    println!("{said}");
    Ok(said)
}

/// [`refused`], with all of `words` in the line and nothing left behind.
pub(crate) fn refused_for(node: &Node, command: Command, words: &[&str]) -> Result<()> {
    let before = node.traces()?;
    let said = refused(command)?;
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    left_nothing(node, &before)
}

fn left_nothing(node: &Node, before: &BTreeMap<String, String>) -> Result<()> {
    let left = differences(before, &node.traces()?);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

/// `program` with `arguments`, in front of another command, in its namespace.
fn through(namespace: &str, program: &[&str], command: &Command) -> Result<Command> {
    let (first, rest) = program.split_first().context("no program")?;
    let mut wrapped = command_in(namespace, first)?;
    wrapped.args(rest).arg(command.get_program()).args(command.get_args());
    Ok(wrapped)
}

/// A machine whose kernel or container has no `/dev/net/tun`.
#[test]
fn a_datapath_without_the_tun_device_says_what_to_load() -> Result<()> {
    if !can_run(&["unshare", "ip", "nft", "tc"]) {
        return Ok(());
    }
    let machine = Empty::new()?;
    let node = Node::at(&machine.0)?;
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let datapath = through(&machine.0, &hidden, &node.weft("datapath")?)?;
    refused_for(&node, datapath, &["/dev/net/tun", "load the module"])
}

/// Users other than root, and root in a container without the capability.
#[test]
fn every_role_without_privilege_says_which_it_needs() -> Result<()> {
    if !can_run(&["setpriv", "ip", "nft", "tc"]) {
        return Ok(());
    }
    let machine = Empty::new()?;
    let node = Node::at(&machine.0)?;
    let name = &machine.0;
    std::fs::create_dir(node.path("manifests"))?;
    let nobody = [&["setpriv"][..], &NOBODY].concat();
    let bounded = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let agent = || -> Result<Command> {
        let mut agent = node.weft("agent")?;
        agent.args(["--node-name=a", "--hub=127.0.0.1:1"]);
        Ok(agent)
    };
    let mut hub = command_in(name, binaries()?.join("weft"))?;
    hub.arg("hub").arg(format!("--manifests={}", node.path("manifests").display()));
    hub.arg(format!("--state-dir={}", node.path("hub").display()));
    hub.arg(format!("--run-dir={}", node.path("run-dir").display()));
    let mut lab = command_in(name, binaries()?.join("weft"))?;
    lab.args(["lab", "up", "--name", "nobodys"]);
    let (datapath, uninstall) = (node.weft("datapath")?, node.weft("uninstall")?);
    for (privilege, command, words) in [
        (&nobody[..], &datapath, &["CAP_NET_ADMIN", "root"][..]),
        (&nobody, &agent()?, &["root"]),
        (&nobody, &uninstall, &["root"]),
        (&nobody, &lab, &["root"]),
        (&bounded, &datapath, &["CAP_NET_ADMIN"]),
        (&bounded, &agent()?, &["CAP_NET_ADMIN"]),
    ] {
        refused_for(&node, through(name, privilege, command)?, words)?;
    }
    // So that it is the hub itself that meets the refusal.
    std::fs::set_permissions(node.path(""), std::fs::Permissions::from_mode(0o755))?;
    refused_for(&node, through(name, &nobody, &hub)?, &["hub", "may this user write there"])
}

/// The agent asks `nft` to load its table.
#[test]
fn an_agent_without_nft_says_what_to_install() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let machine = Empty::new()?;
    let node = Node::at(&machine.0)?;
    let mut agent = node.weft("agent")?;
    agent.args(["--node-name=a", "--hub=127.0.0.1:1"]).env("PATH", "/nonexistent");
    refused_for(&node, agent, &["nft", "install"])
}

/// What a hub tells those who should not join, or not like that.
#[tokio::test]
async fn a_node_that_may_not_join_says_why_and_leaves_its_network_alone() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    machine.settle().await?;
    let node = Node::at(&machine.namespace)?;
    let right = std::fs::read_to_string(token(&lab))?;
    let foreign = foreign_token(&node.path("other"))?;
    for (given, words) in [
        // The right hub, a secret of somebody else.
        (spliced(&right, &foreign)?, &["does not admit", "token"][..]),
        // A hub that another token speaks of.
        (foreign, &["198.18.0.2:7443", "not the one of the join token", "weft token show"]),
        (String::new(), &["token"]),
    ] {
        let file = node.path("token");
        std::fs::write(&file, given)?;
        no_identity_left(&node, node.joining(&file)?, words)?;
    }
    no_identity_left(&node, node.joining(&node.path("nowhere"))?, &["cannot read", "nowhere"])?;
    // A name that another machine has.
    let mut namesake = node.weft("agent")?;
    namesake.args(["--node-name=node-1", "--hub=198.18.0.2:7443"]);
    namesake.arg(format!("--token-file={}", token(&lab).display()));
    no_identity_left(&node, namesake, &["node-1", "does not admit"])
}

/// The token of a hub that is not there.
fn foreign_token(state: &Path) -> Result<String> {
    let mut show = Command::new(binaries()?.join("weft"));
    let output = show.args(["token", "show", "--state-dir"]).arg(state).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The secret of one token with the certificate of another.
fn spliced(certificate: &str, secret: &str) -> Result<String> {
    let own: weft_control::JoinToken = certificate.trim().parse()?;
    let other: weft_control::JoinToken = secret.trim().parse()?;
    Ok(weft_control::JoinToken::try_new(*other.secret(), own.ca_der().to_vec())?.to_string())
}

/// Of a node that has not joined, its uid and keys stay for the next try and an empty run directory,
/// and nothing else.
fn no_identity_left(node: &Node, agent: Command, words: &[&str]) -> Result<()> {
    let before = node.traces()?;
    let said = refused(agent)?;
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    let mut after = node.traces()?;
    let state = node.path("state-dir");
    let run = node.path("run-dir");
    let stays = |path: &Path| path.starts_with(&state) || path == run;
    after.retain(|path, _| !stays(Path::new(path)) || before.contains_key(path));
    let left = differences(&before, &after);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    let credentials = state.join("identity/credentials.json");
    ensure!(!credentials.exists(), "{} is there", credentials.display());
    Ok(())
}

/// A node that was away for longer than its certificate holds.
#[tokio::test]
async fn an_expired_certificate_is_made_anew_by_the_token_and_by_nothing_else() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let hub_arguments = vec!["--certificate-ttl=4".to_owned()];
    let lab = TestLab::up(Options { nodes: 1, hub_arguments, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    let mut node = Node::at(&machine.namespace)?;
    let with_token = node.path("token");
    std::fs::copy(token(&lab), &with_token)?;
    node.spawn(node.weft("datapath")?)?;
    node.spawn(node.joining(&with_token)?)?;
    lab.wait_connected("by-hand").await?;
    node.stop()?;
    std::fs::remove_file(&with_token)?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let said = refused(node.joining(&with_token)?)?;
    for word in ["expired", "--token-file", "weft token show"] {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    std::fs::copy(token(&lab), &with_token)?;
    node.spawn(node.weft("datapath")?)?;
    node.spawn(node.joining(&with_token)?)?;
    lab.wait_connected("by-hand").await
}

/// Certificates cannot be trusted across clocks that differ; it is the clock that is named.
#[tokio::test]
async fn a_node_whose_clock_is_wrong_is_told_to_set_it() -> Result<()> {
    if !can_run(&["ip", "nft", "tc", "faketime"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let machine = Outsider::join(&lab)?;
    machine.settle().await?;
    let node = Node::at(&machine.namespace)?;
    for (offset, words) in [
        // The hub says by how much.
        ("-1h", &["clock", "set the one that is wrong"][..]),
        ("+1h", &["clock", "set the one that is wrong"]),
        // Not even the hub's certificate is valid.
        ("-400d", &["clock", "NTP"]),
        ("+20y", &["clock", "NTP"]),
    ] {
        let mut agent = node.joining(&token(&lab))?;
        agent.env("LD_PRELOAD", faketime()?).env("FAKETIME", offset);
        agent.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        no_identity_left(&node, agent, words).with_context(|| format!("at {offset}"))?;
    }
    Ok(())
}

/// The library that shifts the clock of one process.
fn faketime() -> Result<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib")?.flatten();
    let paths = libraries.map(|e| e.path().join("faketime/libfaketime.so.1"));
    paths.into_iter().find(|p| p.is_file()).context("libfaketime is not below /usr/lib")
}
