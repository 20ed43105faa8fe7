//! A Kubernetes cluster whose nodes are a lab's: its own API server and controller manager beside etcd, all
//! in the hub's namespace, and kubelets played by whoever runs a scenario.

mod control_plane;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_lab::{HUB_PORT, Options};

pub use self::control_plane::ControlPlane;
use crate::{TestLab, eventually};

/// Programs and files without which there is no cluster; for [`crate::can_run`].
pub const TOOLS: [&str; 1] = ["etcd"];
/// Where Weft is.
const NAMESPACE: &str = "weft-system";
const AGENT: &str = "weft-agent";
/// As `weft hub` has it by default.
const TOKEN_AUDIENCE: &str = "weft-hub";
/// How long the controllers may take.
const CONTROLLERS: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    lab: TestLab,
    plane: ControlPlane,
}

impl Cluster {
    /// A cluster of so many nodes with Weft on them.
    ///
    /// # Errors
    /// If something does not come up; nothing is left behind then.
    pub async fn up(options: Options) -> Result<Self> {
        let plane = ControlPlane::new()?;
        let cluster = weft_lab::Cluster {
            kubeconfig: plane.file("hub.kubeconfig"),
            mounted: plane.file("mounted"),
        };
        std::fs::create_dir(&cluster.mounted)?;
        let options = Options { cluster: Some(cluster), ..options };
        let mut lab = TestLab::machines(options).await?;
        let address = SocketAddr::new(lab.hub_address(), HUB_PORT);
        lab.change_options(|o| o.hub_arguments.push(format!("--advertise={address}")))?;
        let mut cluster = Self { lab, plane };
        cluster.plane.start(&cluster.lab.hub_namespace(), cluster.lab.hub_address()).await?;
        cluster.register_nodes()?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        cluster.kubectl(&["apply", "-f", &deploy.display().to_string()])?;
        let token = cluster.kubectl(&["create", "token", "-n", NAMESPACE, "weft-hub"])?;
        cluster.plane.write_kubeconfig("hub.kubeconfig", &json!({ "token": token.trim() }))?;
        for node in cluster.lab.nodes() {
            cluster.mount_token(&node)?;
        }
        let (started, mounted) = tokio::join!(cluster.lab.start(), cluster.mount());
        mounted.and(started)?;
        Ok(cluster)
    }

    /// Runs `kubectl` as the administrator and returns what it printed.
    ///
    /// # Errors
    /// If it fails; the error shows what it printed on stderr.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments, None)
    }

    /// `kubectl apply` of these manifests.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.plane.kubectl(&["apply", "-f", "-"], Some(manifests)).map(drop)
    }

    /// What `kubectl get` says, as JSON.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<_> = ["get", "-o", "json"].iter().chain(arguments).copied().collect();
        Ok(serde_json::from_str(&self.kubectl(&arguments)?)?)
    }

    /// What ServiceAccounts of Weft have asked the API server for.
    ///
    /// # Errors
    /// If its log cannot be read.
    pub fn asked(&self) -> Result<Vec<Value>> {
        self.plane.asked()
    }

    /// The API server and its companions.
    pub fn plane(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// Does what scheduler and kubelets would until every pod runs or is gone: binds, calls the CNI binary,
    /// says how it went.
    ///
    /// # Errors
    /// If a pod cannot be had, or the API server does not answer.
    pub async fn settle(&mut self) -> Result<()> {
        loop {
            let pods = self.get(&["pods", "-A"])?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let mut changed = false;
            for pod in &pods {
                changed |= self.turn(pod, &pods).await.with_context(|| name_of(pod))?;
            }
            if !changed {
                return Ok(());
            }
        }
    }

    /// One step for one pod; false if there is none to do.
    async fn turn(&mut self, pod: &Value, all: &[Value]) -> Result<bool> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) =
            (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        // What agents are in a cluster: they run, but not as pods of the lab.
        if namespace == NAMESPACE {
            return Ok(false);
        }
        let own = lab_name(&namespace, &name);
        let runs = self.lab.pods().iter().any(|p| p.name == own);
        let place = ["-n", &namespace, name.as_str()];
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if runs {
                self.lab.pod_delete(&own).await?;
            }
            self.kubectl(
                &[&["delete", "pod", "--force", "--grace-period=0"], &place[..]].concat(),
            )?;
            return Ok(true);
        }
        let node = text(&pod["spec"]["nodeName"]);
        if node.is_empty() {
            let bound =
                |node: &String| all.iter().filter(|p| p["spec"]["nodeName"] == **node).count();
            let node = self.lab.nodes().into_iter().min_by_key(bound).context("no node")?;
            self.bind(&namespace, &name, &node)?;
            return Ok(true);
        }
        if runs || pod["status"]["phase"] == "Running" {
            return Ok(false);
        }
        let host = self.lab.node_addresses(&node);
        let addresses = if pod["spec"]["hostNetwork"] == true {
            host.clone()
        } else {
            self.lab.pod_add(&node, &own).await?.addresses
        };
        let status = running(&addresses, &host);
        let patch = ["patch", "pod", "--subresource=status", "--type=merge", "-p", &status];
        self.kubectl(&[&patch, &place[..]].concat())?;
        Ok(true)
    }

    fn bind(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": name, "namespace": namespace },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
        let arguments = ["create", "--raw", &path, "-f", "-"];
        self.plane.kubectl(&arguments, Some(&binding.to_string())).map(drop)
    }

    /// Makes Node objects, as kubelets do, and waits until they have subnets.
    fn register_nodes(&self) -> Result<()> {
        for node in self.lab.nodes() {
            self.register_node(&node)?;
        }
        Ok(())
    }

    /// Makes the Node object of a node.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub fn register_node(&self, node: &str) -> Result<()> {
        let labels = BTreeMap::from([("kubernetes.io/hostname", node)]);
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node, "labels": labels },
        });
        self.apply(&object.to_string())?;
        let addresses = self.lab.node_addresses(node).into_iter();
        let internal = addresses.map(|ip| json!({ "type": "InternalIP", "address": ip }));
        let ready = json!({ "type": "Ready", "status": "True" });
        let status = json!({ "status": {
            "addresses": internal.collect::<Vec<_>>(), "conditions": [ready],
        } });
        let patch = ["patch", "node", node, "--subresource=status", "--type=merge", "-p"];
        self.kubectl(&[&patch[..], &[status.to_string().as_str()]].concat()).map(drop)
    }

    /// A token as the kubelet mounts it into the agent's pod of a node.
    ///
    /// # Errors
    /// If the API server refuses the pod or the token.
    pub fn mount_token(&self, node: &str) -> Result<()> {
        let pod = format!("{AGENT}-{node}");
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod, "namespace": NAMESPACE },
            "spec": {
                "nodeName": node, "hostNetwork": true, "serviceAccountName": AGENT,
                "containers": [{ "name": "agent", "image": "weft" }],
            },
        });
        self.apply(&object.to_string())?;
        let token = self.kubectl(&[
            "create",
            "token",
            "-n",
            NAMESPACE,
            AGENT,
            "--audience",
            TOKEN_AUDIENCE,
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &pod,
        ])?;
        Ok(std::fs::write(self.plane.file("mounted").join(node), token)?)
    }

    /// Mounts what the hub tells agents of itself.
    async fn mount(&self) -> Result<()> {
        let told =
            eventually(CONTROLLERS, async || self.get(&["configmap", "-n", NAMESPACE, "weft-hub"]))
                .await?;
        for file in ["ca.crt", "address"] {
            let text = told["data"][file].as_str().context("the hub does not tell it")?;
            std::fs::write(self.plane.file("mounted").join(file), text)?;
        }
        Ok(())
    }

    /// Waits until as many endpoints of a Service are ready.
    ///
    /// # Errors
    /// If there are others after a minute.
    pub async fn wait_endpoints(&self, service: &str, count: usize) -> Result<()> {
        let selector = format!("kubernetes.io/service-name={service}");
        eventually(CONTROLLERS, async || {
            let slices = self.get(&["endpointslices", "-l", &selector])?;
            let slices = slices["items"].as_array().cloned().unwrap_or_default();
            let endpoints = slices
                .iter()
                .filter(|slice| slice["addressType"] == "IPv4")
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            let ready = endpoints.filter(|e| e["conditions"]["ready"] == true).count();
            ensure!(ready == count, "{ready} of {count} endpoints are ready");
            Ok(())
        })
        .await
    }
}

impl Deref for Cluster {
    type Target = TestLab;
    fn deref(&self) -> &TestLab {
        &self.lab
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut TestLab {
        &mut self.lab
    }
}

/// What the lab calls a pod.
#[must_use]
pub fn lab_name(namespace: &str, name: &str) -> String {
    if namespace == "default" { name.to_owned() } else { format!("{namespace}/{name}") }
}

fn name_of(pod: &Value) -> String {
    format!("pod {}/{}", pod["metadata"]["namespace"], pod["metadata"]["name"])
}

/// Status of a pod that runs and is ready.
fn running(addresses: &[IpAddr], host: &[IpAddr]) -> String {
    let ips = |all: &[IpAddr]| all.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    let condition = |kind: &str| json!({ "type": kind, "status": "True" });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
    json!({ "status": {
        "phase": "Running",
        "podIP": addresses.first(), "podIPs": ips(addresses),
        "hostIP": host.first(), "hostIPs": ips(host),
        "conditions": conditions.map(condition),
    } })
    .to_string()
}
