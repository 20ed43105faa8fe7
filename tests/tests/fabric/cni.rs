//! The CNI binary as runtimes call it, and as they call it when things go wrong.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weft_lab::{NodeLayout, Options};
use weft_netio::netns;
use weft_tests::outsider::tool;
use weft_tests::talk::{Party, udp_both_ways};
use weft_tests::{TestLab, built_tool, can_run, command_in, eventually};

const STANDARD_PLUGINS: &str = "/opt/cni/bin:/usr/lib/cni";
const TRY_AGAIN: u64 = 11;

/// A container runtime on one node.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) node: NodeLayout,
    config: Value,
    search: String,
}

impl Runtime {
    pub(crate) fn new(lab: &TestLab, node: &str) -> Result<Self> {
        let node = lab.node(node);
        let path = node.cni_conf().join("10-weft.conflist");
        let list: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        let search = format!("{}:{STANDARD_PLUGINS}", node.cni_bin().display());
        Ok(Self { node, config, search })
    }

    fn call(&self, verb: &str, namespace: &str, previous: Option<&Value>) -> Result<Output> {
        self.call_for(verb, namespace, &netns::path_of(namespace)?, previous)
    }

    /// A call for a container in a namespace of another name.
    pub(crate) fn call_for(
        &self,
        verb: &str,
        container: &str,
        namespace: &Path,
        previous: Option<&Value>,
    ) -> Result<Output> {
        let mut config = self.config.clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let pod = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}");
        let mut plugin = command_in(&self.node.namespace, self.node.cni_bin().join("weft-cni"))?;
        plugin
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", namespace)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.search)
            .env("CNI_ARGS", pod);
        fed(plugin, &config)
    }

    /// The same, with configurations of another version.
    fn speaking(mut self, version: &str) -> Self {
        self.config["cniVersion"] = json!(version);
        self
    }

    /// GC of all but the interface `eth0` of these containers, or without a list.
    fn gc(&self, valid: Option<&[&str]>) -> Result<Output> {
        let mut config = self.config.clone();
        let attachment = |id: &&str| json!({ "containerID": id, "ifname": "eth0" });
        if let Some(valid) = valid {
            let valid: Vec<_> = valid.iter().map(attachment).collect();
            config["cni.dev/valid-attachments"] = json!(valid);
        }
        let mut plugin = command_in(&self.node.namespace, self.node.cni_bin().join("weft-cni"))?;
        plugin.env("CNI_COMMAND", "GC").env("CNI_PATH", &self.search);
        fed(plugin, &config)
    }

    pub(crate) fn add(&self, namespace: &str) -> Result<Value> {
        let output = self.call("ADD", namespace, None)?;
        ensure!(output.status.success(), "ADD: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).context("the result is no JSON")
    }

    pub(crate) fn succeeds(
        &self,
        verb: &str,
        namespace: &str,
        previous: Option<&Value>,
    ) -> Result<()> {
        let output = self.call(verb, namespace, previous)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{verb}: {stdout}");
        ensure!(stdout.is_empty(), "{verb} prints {stdout}");
        Ok(())
    }

    /// The error object that a refused call prints, alone, on stdout.
    fn refused(&self, verb: &str, namespace: &str, previous: Option<&Value>) -> Result<Value> {
        let output = self.call(verb, namespace, previous)?;
        ensure!(!output.status.success(), "{verb} is not refused");
        let error: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("stdout: {}", String::from_utf8_lossy(&output.stdout)))?;
        // A delegate's own error (999) is passed on as it is, and theirs names no version.
        let version = &error["cniVersion"];
        let own = error["code"] != 999;
        ensure!(!own || *version == self.config["cniVersion"], "{error}");
        ensure!(error["code"].as_u64().is_some_and(|c| c > 0), "{error}");
        ensure!(error["msg"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        Ok(error)
    }
}

/// Runs a plugin with its configuration on stdin.
fn fed(mut plugin: Command, config: &Value) -> Result<Output> {
    plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = plugin.spawn().context("cannot start weft-cni")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(config.to_string().as_bytes())?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// `cnitool` of the CNI project, which calls plugins by the library that runtimes use, as a node's runtime.
/// What that library keeps is in `cache`.
fn library(runtime: &Runtime, cache: &Path, verb: &str, namespace: &str) -> Result<Output> {
    let mut command = command_in(&runtime.node.namespace, "unshare")?;
    let script = "mkdir -p /var/lib/cni && mount --bind \"$0\" /var/lib/cni && exec \"$@\"";
    command
        .args(["--mount", "sh", "-c", script])
        .arg(cache)
        .arg(built_tool("cnitool"))
        .args([verb, "weft"])
        .arg(netns::path_of(namespace)?)
        .env("NETCONFPATH", runtime.node.cni_conf())
        .env("CNI_PATH", &runtime.search)
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={namespace}"),
        );
    Ok(command.output()?)
}

/// Network namespace of a container, made as a runtime makes it. The lab's end removes it.
pub(crate) fn container(lab: &TestLab, name: &str) -> Result<String> {
    let namespace = lab.extra_namespace(name);
    netns::create(&namespace)?;
    Ok(namespace)
}

pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("a result without addresses")?;
    let texts = ips.iter().map(|ip| ip["address"].as_str().context("no text"));
    texts.map(|text| Ok(text?.parse::<IpNet>()?.addr())).collect()
}

/// Name of the veth end on the node: the interface that is in no sandbox.
fn host_side(result: &Value) -> Result<String> {
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    let outside = interfaces.iter().filter(|i| i["sandbox"].as_str().unwrap_or("").is_empty());
    let name = outside.filter_map(|i| i["name"].as_str()).find(|n| n.starts_with("veth"));
    Ok(name.context("no host side")?.to_owned())
}

pub(crate) fn party(namespace: &str, result: &Value) -> Result<Party> {
    let address = *addresses(result)?.first().context("no address")?;
    Ok(Party { namespace: namespace.to_owned(), address })
}

async fn attached(lab: &TestLab) -> Result<usize> {
    Ok(lab.agent_status("node-1").await?.pods.len())
}

/// CNI-021, CNI-072, CNI-081, CNI-102, CNI-103, CNI-104: of the versions in the list it chooses the last, asks
/// for the status, and finds what it needs in the result; DEL does without what it keeps.
#[tokio::test(flavor = "multi_thread")]
async fn library_of_runtimes_speaks_the_latest_version() -> Result<()> {
    if !can_run(&["unshare"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let cache = tempfile::tempdir()?;
    let namespace = container(&lab, "c1")?;
    let call = |verb: &str| library(&runtime, cache.path(), verb, &namespace);
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let works = |verb: &str| {
        let output = call(verb)?;
        ensure!(output.status.success(), "{verb}: {}", said(&output));
        Ok(output)
    };
    works("status")?;
    let result: Value = serde_json::from_slice(&works("add")?.stdout)?;
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    let index = result["ips"][0]["interface"].as_u64().context("an address of no interface")?;
    let interface = &result["interfaces"][usize::try_from(index)?];
    ensure!(interface["name"] == "eth0", "{result}");
    ensure!(interface["sandbox"] == json!(netns::path_of(&namespace)?), "{result}");
    host_side(&result)?;
    works("check")?;
    ensure!(!call("add")?.status.success(), "a second ADD is not refused");
    works("check")?;

    let agent = Pid::from_raw(lab.pid("node-1-agent")?);
    kill(agent, Signal::SIGSTOP)?;
    let status = call("status");
    kill(agent, Signal::SIGCONT)?;
    let status = status?;
    ensure!(!status.status.success(), "nobody is there to answer");
    ensure!(said(&status).contains("agent"), "{}", said(&status));
    eventually(Duration::from_secs(5), async || works("status")).await?;

    for entry in std::fs::read_dir(cache.path())? {
        std::fs::remove_dir_all(entry?.path())?;
    }
    for _ in 0..2 {
        works("del")?;
    }
    ensure!(attached(&lab).await? == 0, "it is attached still");
    Ok(())
}

/// CNI-074, CNI-063, CNI-064: what the runtime does not know any more is taken away, also what only the disk
/// remembers, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn gc_takes_away_what_the_runtime_does_not_know() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?.speaking("1.1.0");
    let names = ["kept", "stale", "gone"].map(|name| container(&lab, name));
    let [kept, stale, gone] = names;
    let (kept, stale, gone) = (kept?, stale?, gone?);
    let results = [&kept, &stale, &gone].map(|namespace| runtime.add(namespace));
    let [kept_result, stale_result, gone_result] = results;
    let (kept_result, stale_result) = (kept_result?, stale_result?);
    netns::delete(&gone)?;
    let nobody = runtime.node.state().join("cni/addresses/weft/10.244.0.200");
    std::fs::write(&nobody, "nobody\r\neth0")?;
    let refused = runtime.gc(None)?;
    ensure!(!refused.status.success(), "without a list everything would go");
    ensure!(attached(&lab).await? == 3, "something is gone");

    let collected = runtime.gc(Some(&[&kept]))?;
    ensure!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stdout));
    ensure!(attached(&lab).await? == 1, "{} are attached", attached(&lab).await?);
    runtime.succeeds("CHECK", &kept, Some(&kept_result))?;
    let links = tool(&runtime.node.namespace, "ip -o link")?;
    ensure!(links.contains(&host_side(&kept_result)?), "{links}");
    ensure!(!links.contains(&host_side(&stale_result)?), "{links}");
    ensure!(!nobody.exists(), "an address of nobody");
    for address in addresses(&stale_result)?.into_iter().chain(addresses(&gone_result?)?) {
        let given = runtime.node.state().join("cni/addresses/weft").join(address.to_string());
        ensure!(!given.exists(), "{address} is still given");
    }
    let again = runtime.gc(Some(&[&kept]))?;
    ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
    // Freed addresses rest while there are others.
    let fresh = addresses(&runtime.add(&stale)?)?;
    let before = addresses(&stale_result)?;
    ensure!(fresh.iter().all(|address| !before.contains(address)), "{fresh:?}");
    Ok(())
}

/// CNI-045, CNI-061: many at once, each with addresses of its own; all of it goes again.
#[tokio::test]
async fn fifty_concurrent_adds_give_each_address_once() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let links = || tool(&runtime.node.namespace, "ip -o link").map(|l| l.lines().count());
    let before = links()?;
    let namespaces: Vec<String> =
        (0..50).map(|n| container(&lab, &format!("c{n}"))).collect::<Result<_>>()?;
    let (mut times, mut results) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    let calls: Vec<_> = namespaces
        .iter()
        .map(|namespace| {
            let (runtime, namespace) = (runtime.clone(), namespace.clone());
            std::thread::spawn(move || {
                let begun = Instant::now();
                Ok((runtime.add(&namespace)?, begun.elapsed()))
            })
        })
        .collect();
    for call in calls {
        let done: Result<_> = call.join().map_err(|_| anyhow::anyhow!("a call panicked"))?;
        let (result, time) = done?;
        results.push(result);
        times.push(time);
    }
    times.sort();
    println!("50 ADDs in {:?}: median {:?}, slowest {:?}", begun.elapsed(), times[25], times[49]);
    let mut all = Vec::new();
    for result in &results {
        all.extend(addresses(result)?);
    }
    ensure!(all.len() == 100, "{} addresses", all.len());
    ensure!(all.iter().collect::<BTreeSet<_>>().len() == 100, "given twice: {all:?}");
    ensure!(attached(&lab).await? == 50, "the agent knows {} pods", attached(&lab).await?);
    let (first, last) =
        (party(&namespaces[0], &results[0])?, party(&namespaces[49], &results[49])?);
    udp_both_ways(&first, &last, b"hello")?;
    let calls: Vec<_> = namespaces
        .into_iter()
        .zip(results)
        .map(|(namespace, result)| {
            let runtime = runtime.clone();
            std::thread::spawn(move || runtime.succeeds("DEL", &namespace, Some(&result)))
        })
        .collect();
    for call in calls {
        call.join().map_err(|_| anyhow::anyhow!("a call panicked"))??;
    }
    ensure!(attached(&lab).await? == 0, "the agent still knows {} pods", attached(&lab).await?);
    ensure!(links()? == before, "{} interfaces instead of {before}", links()?);
    Ok(())
}

/// CNI-060, CNI-061
#[tokio::test]
async fn del_succeeds_without_the_namespace_and_again() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let namespace = container(&lab, "gone")?;
    let result = runtime.add(&namespace)?;
    netns::delete(&namespace)?;
    runtime.succeeds("DEL", &namespace, Some(&result))?;
    ensure!(attached(&lab).await? == 0, "the attachment is still known");
    let reservations = runtime.node.state().join("cni/addresses");
    for address in addresses(&result)? {
        let left = find(&reservations, &address.to_string())?;
        ensure!(left.is_none(), "{address} is still reserved: {left:?}");
    }
    runtime.succeeds("DEL", &namespace, Some(&result))?;
    runtime.succeeds("DEL", &namespace, None)?;
    // Never added at all.
    runtime.succeeds("DEL", &format!("{namespace}-never"), None)
}

/// A file of that name anywhere below `directory`.
pub(crate) fn find(directory: &std::path::Path, name: &str) -> Result<Option<std::path::PathBuf>> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n == name) {
            return Ok(Some(path));
        }
        if path.is_dir()
            && let Some(found) = find(&path, name)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// CNI-043, CNI-020
#[tokio::test]
async fn second_add_is_refused_and_the_first_stays_intact() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let namespace = container(&lab, "twice")?;
    let result = runtime.add(&namespace)?;
    let (pod, other) = (party(&namespace, &result)?, lab.party("a1", 0)?);
    udp_both_ways(&pod, &other, b"before")?;
    let shown = tool(&namespace, "ip -o address show dev eth0")?;
    runtime.refused("ADD", &namespace, None)?;
    ensure!(tool(&namespace, "ip -o address show dev eth0")? == shown, "addresses have changed");
    ensure!(attached(&lab).await? == 2, "the agent knows {} pods", attached(&lab).await?);
    runtime.succeeds("CHECK", &namespace, Some(&result))?;
    udp_both_ways(&pod, &other, b"after")
}

/// CNI-070
#[tokio::test]
async fn check_passes_after_add_and_fails_without_the_host_side() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let namespace = container(&lab, "checked")?;
    let result = runtime.add(&namespace)?;
    runtime.succeeds("CHECK", &namespace, Some(&result))?;
    tool(&runtime.node.namespace, &format!("ip link delete {}", host_side(&result)?))?;
    runtime.refused("CHECK", &namespace, Some(&result))?;
    runtime.succeeds("DEL", &namespace, Some(&result))?;
    runtime.refused("CHECK", &namespace, Some(&result))?;
    Ok(())
}

/// CNI-031, CNI-048: the kubelet is told to try again, and when it does it works.
#[tokio::test]
async fn add_says_try_again_while_the_agent_does_not_answer() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let namespace = container(&lab, "patient")?;
    // Nobody at the socket.
    let mut nowhere = runtime.clone();
    nowhere.config["socket"] = json!("/run/weft-lab/nowhere/cni.sock");
    let error = nowhere.refused("ADD", &namespace, None)?;
    ensure!(error["code"] == TRY_AGAIN, "{error}");
    // Somebody who is silent.
    let agent = Pid::from_raw(lab.pid("node-1-agent")?);
    kill(agent, Signal::SIGSTOP)?;
    let begun = Instant::now();
    let error = runtime.refused("ADD", &namespace, None);
    let waited = begun.elapsed();
    kill(agent, Signal::SIGCONT)?;
    let error = error?;
    ensure!(error["code"] == TRY_AGAIN, "{error}");
    ensure!(waited < Duration::from_secs(10), "told after {waited:?}");
    println!("silent agent: code 11 after {waited:?}");
    // What the runtime does next.
    runtime.succeeds("DEL", &namespace, None)?;
    eventually(Duration::from_secs(5), async || runtime.add(&namespace).map(drop)).await
}

/// CNI-031: the delegate is the operator's to install. Until then ADD says which is missing and leaves
/// nothing that a DEL could fail about; so does the agent.
#[tokio::test]
async fn add_without_the_delegate_names_it_and_leaves_nothing() -> Result<()> {
    if !can_run(&["ip", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let mut runtime = Runtime::new(&lab, "node-1")?;
    runtime.search = runtime.node.cni_bin().display().to_string();
    let delegate = runtime.node.cni_bin().join("ptp");
    let installed = std::fs::read_link(&delegate)?;
    std::fs::remove_file(&delegate)?;
    let namespace = container(&lab, "undelegated")?;
    let links = tool(&runtime.node.namespace, "ip -o link")?.lines().count();
    let error = runtime.refused("ADD", &namespace, None)?;
    let said = error["msg"].as_str().unwrap_or_default();
    ensure!(said.contains("`ptp` not found") && said.contains("install"), "{error}");
    ensure!(
        tool(&runtime.node.namespace, "ip -o link")?.lines().count() == links,
        "a link is left"
    );
    let delegates = runtime.node.state().join("cni/delegates");
    ensure!(!delegates.exists() || delegates.read_dir()?.count() == 0, "a record is left");
    runtime.succeeds("DEL", &namespace, None)?;
    eventually(Duration::from_secs(5), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        let named = problems.iter().any(|p| p.contains("`ptp`") && p.contains("install"));
        ensure!(named, "the agent says {problems:?}");
        Ok(())
    })
    .await?;
    std::os::unix::fs::symlink(installed, delegate)?;
    runtime.add(&namespace)?;
    eventually(Duration::from_secs(5), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        ensure!(problems.is_empty(), "the agent still says {problems:?}");
        Ok(())
    })
    .await
}

/// `weft uninstall` under pods: the node is as it was but for them, and the runtime can still take
/// them away; then nothing is left.
#[tokio::test]
async fn pods_can_be_deleted_after_uninstall() -> Result<()> {
    if !can_run(&["ip", "nft", "tc"]) {
        return Ok(());
    }
    let lab = TestLab::up(Options { nodes: 1, ..Options::default() }).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let node = runtime.node.clone();
    let mut pods = Vec::new();
    for name in ["left", "also"] {
        let namespace = container(&lab, name)?;
        let result = runtime.add(&namespace)?;
        pods.push((namespace, result));
    }
    // Also ends hub, agent and datapath.
    kill(Pid::from_raw(lab.pid("supervisor")?), Signal::SIGTERM)?;
    eventually(Duration::from_secs(10), async || {
        let sockets = ["agent.sock", "datapath.sock"].map(|s| node.run().join(s));
        ensure!(sockets.iter().all(|s| !s.exists()), "agent or datapath is still there");
        Ok(())
    })
    .await?;
    let uninstalled = || uninstall(&node);
    let said = uninstalled()?;
    ensure!(said.contains("2 pods are still attached"), "{said}");
    for (shown_by, sign) in [
        ("ip -o link", "weft0"),
        ("ip rule", "5100"),
        ("ip -6 rule", "5100"),
        ("nft list ruleset", "weft"),
        ("tc qdisc", "clsact"),
    ] {
        let text = tool(&node.namespace, shown_by)?;
        ensure!(!text.contains(sign), "`{shown_by}` still shows {sign}: {text}");
    }
    ensure!(!node.cni_conf().join("10-weft.conflist").exists(), "the configuration is left");
    ensure!(!node.run().exists(), "the run directory is left");
    // Once more is no mistake, and takes nothing away that DEL needs.
    uninstalled()?;
    for (namespace, result) in &pods {
        runtime.succeeds("DEL", namespace, Some(result))?;
        let links = tool(namespace, "ip -o link")?;
        ensure!(!links.contains("eth0"), "the pod's end is left: {links}");
    }
    let links = tool(&node.namespace, "ip -o link")?;
    ensure!(!links.contains("veth"), "the node's end is left: {links}");
    let said = uninstalled()?;
    ensure!(said.is_empty(), "{said}");
    ensure!(!node.state().exists(), "the state directory is left");
    ensure!(!node.cni_bin().join("weft-cni").exists(), "the plugin is left");
    Ok(())
}

fn uninstall(node: &NodeLayout) -> Result<String> {
    let mut command = command_in(&node.namespace, weft_tests::binaries()?.join("weft"))?;
    command.arg("uninstall");
    for (flag, path) in [
        ("run-dir", node.run()),
        ("state-dir", node.state()),
        ("cni-conf-dir", node.cni_conf()),
        ("cni-bin-dir", node.cni_bin()),
    ] {
        command.arg(format!("--{flag}={}", path.display()));
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
