//! Support for the scenarios in `tests/tests`: a lab that is taken away at the end of a test,
//! whatever happens in it, and the rule for what a machine cannot do.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod connects;
pub mod cost;
pub mod dns;
pub mod machine;
pub mod names;
pub mod outsider;
pub mod race;
pub mod raw;
pub mod report;
pub mod routed;
pub mod service;
pub mod talk;
pub mod traffic;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Options};
use weft_netio::{InNetNs, NetNs};
use weft_proto::v1::AgentStatus;
use weft_proto::v1::agent_client::AgentClient;
use weft_proto::v1::{AgentStatusRequest, NodeStatus};

/// True if the machine can run namespace scenarios. Otherwise says what is missing; with `CI=true`
/// that is a failure, since a green run that skipped shows nothing.
///
/// # Panics
/// With `CI=true` if something is missing.
#[must_use]
#[allow(clippy::panic, clippy::print_stdout)]
pub fn can_run(tools: &[&str]) -> bool {
    let mut missing = Vec::new();
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun".to_owned());
    }
    if !std::fs::read_to_string("/proc/self/status").is_ok_and(|s| s.contains("\nUid:\t0\t0")) {
        missing.push("root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    missing.extend(tools.iter().filter(|t| !has(t)).map(|t| format!("`{t}`")));
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "missing: {missing}");
    println!("skipped: this machine lacks {missing}");
    false
}

/// Directory of the built binaries: `WEFT_BIN_DIR`, else where this test was built.
///
/// # Errors
/// If the running test is nowhere in a target directory.
pub fn binaries() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("WEFT_BIN_DIR") {
        return Ok(dir.into());
    }
    let test = std::env::current_exe()?;
    let deps = test.parent().context("the test has no directory")?;
    let dir = deps.parent().context("the test has no target directory")?;
    let weft = dir.join("weft");
    ensure!(weft.is_file(), "{} is missing: run ./dev setup first", weft.display());
    Ok(dir.to_owned())
}

/// A built Wasm plugin.
///
/// # Errors
/// If it is not built.
pub fn plugin(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("WEFT_WASM_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/wasm"),
    };
    let path = dir.join(format!("{name}.wasm"));
    ensure!(path.is_file(), "{} is missing: run ./dev plugins first", path.display());
    Ok(path)
}

/// What `scripts/go-tools` builds.
#[must_use]
pub fn built_tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin").join(name)
}

/// A lab of its own for one test; taken away when dropped, also by a panic.
#[derive(Debug)]
pub struct TestLab {
    lab: Lab,
    name: String,
}

/// What takes a lab away when a test ends, made before the lab.
struct TakeAway(String);

/// With the binary that was built, and native code of plugins that other labs have compiled.
fn prepared(mut options: Options) -> Result<Options> {
    options.binary = Some(binaries()?.join("weft"));
    let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/code");
    options.datapath_arguments.push(format!("--code-dir={}", code.display()));
    Ok(options)
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl TestLab {
    /// Makes a lab under a name that no other run has.
    ///
    /// # Errors
    /// If it does not come up; nothing is left behind then.
    pub async fn up(options: Options) -> Result<Self> {
        let guard = TakeAway::new();
        let lab = Lab::up(&guard.0, prepared(options)?).await?;
        Ok(Self { lab, name: guard.keep() })
    }

    /// The nodes and the underlay of a lab, where nothing runs: for a peer to compare with.
    ///
    /// # Errors
    /// If they cannot be made; nothing is left behind then.
    pub async fn machines(options: Options) -> Result<Self> {
        let guard = TakeAway::new();
        let lab = Lab::machines(&guard.0, prepared(options)?).await?;
        Ok(Self { lab, name: guard.keep() })
    }

    /// A lab with `pods` pods on each node, named `a1`, `a2`, ... on the first node, `b1`, ... on the
    /// second.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn with_pods(options: Options, pods: usize) -> Result<Self> {
        let mut lab = Self::up(options).await?;
        for (letter, node) in ('a'..='z').zip(lab.nodes()) {
            for number in 1..=pods {
                lab.pod_add(&node, &format!("{letter}{number}")).await?;
            }
        }
        Ok(lab)
    }

    /// Its name, for [`Lab::open`] and `weft lab --name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process ids of hub, agents and datapaths, as far as they run.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let nodes = self.nodes().into_iter();
        let names = nodes.flat_map(|node| ["agent", "datapath"].map(|p| format!("{node}-{p}")));
        names.chain(["hub".to_owned()]).filter_map(|name| self.pid(&name).ok()).collect()
    }

    /// Runs a command in a node or pod and returns its output, whatever its status.
    ///
    /// # Errors
    /// If there is no such node or pod, or the command cannot be started.
    pub fn exec(&self, target: &str, command: &[&str]) -> Result<Output> {
        Ok(self.command(target, command)?.output()?)
    }

    /// Runs a command in a node or pod and returns what it printed.
    ///
    /// # Errors
    /// If it fails; the error shows what it printed on stderr.
    pub fn run(&self, target: &str, command: &[&str]) -> Result<String> {
        succeeded(&command.join(" "), self.exec(target, command)?)
    }

    /// A command that will run in a node or pod.
    ///
    /// # Errors
    /// If there is no such node or pod.
    pub fn command(&self, target: &str, command: &[&str]) -> Result<Command> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut command = self.lab.command(target, program)?;
        command.args(arguments).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `weft` against this lab's hub and returns its output, whatever its status.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn weft_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binaries()?.join("weft"));
        command.args(arguments).env("WEFT_HUB_SOCKET", self.hub_socket()).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// Runs `weft` against this lab's hub and returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn weft(&self, arguments: &[&str]) -> Result<String> {
        succeeded(&arguments.join(" "), self.weft_output(arguments)?)
    }

    /// First IPv4 address of a pod.
    ///
    /// # Errors
    /// If there is no such pod, or it has none.
    pub fn pod_v4(&self, pod: &str) -> Result<std::net::IpAddr> {
        self.pod_address(pod, std::net::IpAddr::is_ipv4)
    }

    /// First IPv6 address of a pod.
    ///
    /// # Errors
    /// If there is no such pod, or it has none.
    pub fn pod_v6(&self, pod: &str) -> Result<std::net::IpAddr> {
        self.pod_address(pod, std::net::IpAddr::is_ipv6)
    }

    /// A pod as a sender or receiver: of IPv4 (0) or IPv6 (1).
    ///
    /// # Errors
    /// If there is no such pod, or it lacks the family.
    pub fn party(&self, pod: &str, family: usize) -> Result<talk::Party> {
        let address = if family == 0 { self.pod_v4(pod)? } else { self.pod_v6(pod)? };
        Ok(talk::Party { namespace: self.namespace_of(pod)?, address })
    }

    /// Waits until the hub has a node, also one that is not the lab's, and it is up to date.
    ///
    /// # Errors
    /// If it is not after 15 seconds.
    pub async fn wait_connected(&self, node: &str) -> Result<()> {
        eventually(Duration::from_secs(15), async || {
            let status = self.status().await?;
            let named = |n: &&NodeStatus| n.node.as_ref().is_some_and(|n| n.name == node);
            let known = status.nodes.iter().find(named).context("the hub does not know it")?;
            let current = known.applied_generation >= status.generation;
            ensure!(known.connected && current, "{node} is away or behind");
            Ok(())
        })
        .await
    }

    /// What the agent of a node says.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn agent_status(&self, node: &str) -> Result<AgentStatus> {
        let socket = self.node(node).run().join(weft_control::socket::AGENT);
        let channel = weft_control::connect_unix(socket).await?;
        Ok(AgentClient::new(channel).get_status(AgentStatusRequest {}).await?.into_inner())
    }

    fn pod_address(
        &self,
        pod: &str,
        is: fn(&std::net::IpAddr) -> bool,
    ) -> Result<std::net::IpAddr> {
        let pods = self.pods();
        let known = pods.iter().find(|p| p.name == pod).with_context(|| format!("no pod {pod}"))?;
        known.addresses.iter().copied().find(is).with_context(|| format!("{pod} lacks that family"))
    }
}

impl Deref for TestLab {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for TestLab {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        drop(TakeAway(std::mem::take(&mut self.name)));
    }
}

impl TakeAway {
    /// With a name that no other run has.
    fn new() -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self(format!("t{}-{number}", std::process::id()))
    }

    /// The name; the lab is somebody else's to take away.
    fn keep(mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

impl Drop for TakeAway {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.0);
        if name.is_empty() {
            return;
        }
        // A drop inside a runtime cannot block on it, so a thread with its own does.
        let down = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Lab::down(&name))
        });
        if let Ok(Err(error)) = down.join() {
            eprintln!("cannot take the lab away: {error:#}");
        }
    }
}

/// A command that will run in a network namespace.
///
/// # Errors
/// If the namespace is not there.
pub fn command_in(namespace: &str, program: impl AsRef<Path>) -> Result<Command> {
    let mut command = Command::new(program.as_ref());
    command.stdin(Stdio::null()).in_netns(&NetNs::open(namespace)?);
    Ok(command)
}

/// Arguments of a hub for what is measured without the plugin that answers names.
#[must_use]
pub fn without_names() -> Vec<String> {
    vec!["--no-dns".to_owned()]
}

fn succeeded(what: &str, output: Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{what}` failed ({}): {}", output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks again and again until the answer is yes.
///
/// # Errors
/// After `limit`, with the last reason why not.
pub async fn eventually<F, T>(limit: Duration, mut ask: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<T>,
{
    let until = Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(why) if Instant::now() >= until => {
                return Err(why.context(format!("not within {limit:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
