//! Calls the CNI plugins of a node as a container runtime does.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};
use weft_netio::{InNetNs, NetNs, netns};

use crate::fabric::{Pod, split_pod_name};
use crate::layout::NodeLayout;

/// Where distributions put the standard plugins.
const STANDARD_PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const IFNAME: &str = "eth0";
const CONFIGURATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Puts the standard plugins where the node's runtime looks, as its operator would have done.
pub(crate) fn provide_standard_plugins(node: &NodeLayout) -> Result<()> {
    for dir in STANDARD_PLUGINS {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let link = node.cni_bin().join(entry.file_name());
            if !link.exists() {
                symlink(entry.path(), &link)
                    .with_context(|| format!("cannot make {}", link.display()))?;
            }
        }
    }
    Ok(())
}

/// ADD of every plugin of the node's network.
pub(crate) async fn add(node: &NodeLayout, pod: &str, namespace: &str) -> Result<Pod> {
    let list = Network::awaited(node).await?;
    let mut result = None;
    for plugin in &list.plugins {
        let stdout =
            call(node, "ADD", pod, namespace, &list.config(plugin, result.as_ref())).await?;
        result = Some(serde_json::from_str(&stdout).context("the CNI result is no JSON")?);
    }
    let result = result.context("the network configuration lists no plugin")?;
    let addresses = addresses(&result);
    Ok(Pod {
        name: pod.into(),
        node: String::new(),
        namespace: namespace.into(),
        addresses,
        result,
    })
}

/// DEL of every plugin, last first.
pub(crate) async fn delete(
    node: &NodeLayout,
    pod: &str,
    namespace: &str,
    result: Option<&Value>,
) -> Result<()> {
    let list = Network::read(node)?;
    for plugin in list.plugins.iter().rev() {
        call(node, "DEL", pod, namespace, &list.config(plugin, result)).await?;
    }
    Ok(())
}

/// True if the agent has written what a kubelet waits for.
pub(crate) fn is_configured(node: &NodeLayout) -> bool {
    Network::read(node).is_ok()
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let parse = |ip: &Value| ip.get("address")?.as_str()?.parse::<IpNet>().ok();
    ips.into_iter().flatten().filter_map(parse).map(|net| net.addr()).collect()
}

/// A `.conflist`.
struct Network {
    name: Value,
    version: Value,
    plugins: Vec<Value>,
}

impl Network {
    /// Waits for it, as a kubelet does: an agent can be ready a moment before it has written it.
    async fn awaited(node: &NodeLayout) -> Result<Self> {
        let until = Instant::now() + CONFIGURATION_TIMEOUT;
        loop {
            match Self::read(node) {
                Err(_) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                read => return read,
            }
        }
    }

    /// The first by name, as runtimes choose.
    fn read(node: &NodeLayout) -> Result<Self> {
        let dir = node.cni_conf();
        let mut files: Vec<_> = std::fs::read_dir(&dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "conflist"))
            .collect();
        files.sort();
        let path = files.first().context("the node has no CNI configuration yet")?;
        let list: Value = serde_json::from_slice(&std::fs::read(path)?)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        let plugins = list.get("plugins").and_then(Value::as_array).cloned().unwrap_or_default();
        let part = |key: &str| list.get(key).cloned().unwrap_or_default();
        Ok(Self { name: part("name"), version: part("cniVersion"), plugins })
    }

    fn config(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.name.clone();
        config["cniVersion"] = self.version.clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }
}

async fn call(
    node: &NodeLayout,
    verb: &str,
    pod: &str,
    namespace: &str,
    config: &Value,
) -> Result<String> {
    let kind = config.get("type").and_then(Value::as_str).context("a plugin without a type")?;
    let search = node.cni_bin();
    let binary = search.join(kind);
    ensure!(binary.is_file(), "CNI plugin `{kind}` not found in {}", search.display());
    let (kubernetes_namespace, name) = split_pod_name(pod);
    let pod = format!("K8S_POD_NAMESPACE={kubernetes_namespace};K8S_POD_NAME={name}");
    let mut command = Command::new(binary);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", namespace)
        .env("CNI_NETNS", netns::path_of(namespace)?)
        .env("CNI_IFNAME", IFNAME)
        .env("CNI_PATH", search)
        .env("CNI_ARGS", format!("IgnoreUnknown=1;{pod}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.in_netns(&NetNs::open(&node.namespace)?);
    let input = config.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })
    .await?
    .with_context(|| format!("cannot run CNI plugin `{kind}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let error: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| json!({ "msg": stdout }));
    let text = |key: &str| error.get(key).map(|v| v.to_string()).unwrap_or_default();
    bail!("CNI {verb} failed: {} (code {}) {}", text("msg"), text("code"), text("details"))
}
