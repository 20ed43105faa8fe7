//! A fabric of one node in a cluster of many pods and policies, and one connection that is looked at.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Options};
use weft_tests::report::Report;
use weft_tests::service::{Server, ask_over, udp_to};
use weft_tests::{TestLab, eventually, without_names};

pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// Pods of the node itself, spread over the policies.
const LOCAL_MAX: usize = 100;
const PODS_OF_APPLICATION: usize = 10;
const APPLICATIONS_OF_NAMESPACE: usize = 10;
/// Who may be asked at; see [`measured`].
const PORTS: [u16; 2] = [8_080, 8_081];
/// An answer is there sooner.
const GLANCE: Duration = Duration::from_millis(1);
/// Silence of this long is no accident.
const QUIET: Duration = Duration::from_millis(20);
/// In files of a size that people have.
const PODS_IN_FILE: usize = 1_000;

/// See the module.
pub(super) struct Bed {
    pub(super) lab: TestLab,
    _servers: [Server; 2],
    /// The client's, to each of [`PORTS`].
    sockets: [UdpSocket; 2],
}

/// What a change changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// Which of the ports the policy allows.
    pub(super) port: usize,
    /// The client has the label that the policy allows.
    pub(super) labelled: bool,
    /// Its namespace has.
    pub(super) namespace_labelled: bool,
}

impl Measured {
    pub(super) const ALLOWED: Self = Self { port: 0, labelled: true, namespace_labelled: true };
}

impl Bed {
    /// `pods` in applications of ten, and as many policies as there are applications, or `policies`.
    pub(super) async fn make(report: &mut Report, pods: usize, policies: usize) -> Result<Self> {
        let mut lab =
            TestLab::up(Options { nodes: 1, hub_arguments: without_names(), ..Options::default() })
                .await?;
        let node = lab.nodes().remove(0);
        lab.record_memory(report, "none")?;
        let local = pods.min(LOCAL_MAX);
        let is_local =
            |pod: usize| pod.is_multiple_of(pods / local) && pod / (pods / local) < local;
        add_all(&mut lab, &node, (0..pods).filter(|p| is_local(*p)).map(name).collect()).await?;
        for pod in ["server", "client"] {
            lab.pod_add(&node, pod).await?;
        }
        for (number, part) in (0..pods).collect::<Vec<_>>().chunks(PODS_IN_FILE).enumerate() {
            let one = |pod: &usize| manifest(*pod, is_local(*pod));
            lab.put(&format!("pods-{number}.yaml"), &part.iter().map(one).collect::<String>())?;
        }
        lab.put("policies.yaml", &manifests(pods, policies)?)?;
        lab.put("measured.yaml", &measured(Measured::ALLOWED))?;
        let server = lab.party("server", 0)?;
        let client = lab.namespace_of("client")?;
        let [first, second] = PORTS;
        let bed = Self {
            _servers: [Server::start(&server, first, "a")?, Server::start(&server, second, "b")?],
            sockets: [
                udp_to(&client, SocketAddr::new(server.address, first))?,
                udp_to(&client, SocketAddr::new(server.address, second))?,
            ],
            lab,
        };
        for socket in &bed.sockets {
            socket.set_read_timeout(Some(GLANCE))?;
        }
        let begun = Instant::now();
        eventually(PATIENCE, async || {
            let status = bed.lab.status().await?;
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            ensure!(usize::try_from(status.pods)? >= pods, "{} pods", status.pods);
            bed.lab.wait_connected(&node).await?;
            ensure!(bed.passes(0)? && !bed.passes(1)?, "the policy is not in force");
            Ok(())
        })
        .await?;
        eprintln!("{pods} pods, {policies} policies in force after {:.1?}", begun.elapsed());
        // What is only needed to take them in is given back.
        tokio::time::sleep(Duration::from_secs(15)).await;
        bed.lab.record_memory(report, &format!("{pods} pods, {policies} policies"))?;
        Ok(bed)
    }

    /// Whether the client gets an answer at one of the ports.
    fn passes(&self, port: usize) -> Result<bool> {
        match ask_over(&self.sockets[port]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("the client's socket"),
        }
    }

    /// How long after `since` packets to a port began to pass, or ended to.
    pub(super) fn until(&self, port: usize, expected: bool, since: Instant) -> Result<Duration> {
        let mut last = since;
        while since.elapsed() < PATIENCE {
            match (self.passes(port)?, expected) {
                (true, true) => return Ok(since.elapsed()),
                (true, false) => last = Instant::now(),
                (false, true) => {}
                (false, false) if last.elapsed() > QUIET => return Ok(last - since),
                (false, false) => {}
            }
        }
        anyhow::bail!("the change does not arrive")
    }
}

/// As a kubelet would, some at once.
async fn add_all(lab: &mut TestLab, node: &str, pods: Vec<String>) -> Result<()> {
    const AT_ONCE: usize = 4;
    for some in pods.chunks(AT_ONCE) {
        let add = |pod: &String| {
            let (lab, node, pod) = (lab.name().to_owned(), node.to_owned(), pod.clone());
            tokio::spawn(async move { Lab::open(&lab)?.pod_add(&node, &pod).await })
        };
        for call in some.iter().map(add).collect::<Vec<_>>() {
            call.await??;
        }
    }
    Ok(())
}

fn application(pod: usize) -> usize {
    pod / PODS_OF_APPLICATION
}

fn namespace(application: usize) -> String {
    format!("ns-{}", application / APPLICATIONS_OF_NAMESPACE)
}

/// What the lab calls a pod.
fn name(pod: usize) -> String {
    format!("{}/pod-{pod}", namespace(application(pod)))
}

/// Of a pod that is wired the address is known from that.
fn manifest(pod: usize, local: bool) -> String {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + pod as u32);
    let status = if local {
        String::new()
    } else {
        format!("status: {{phase: Running, podIP: {address}}}\n")
    };
    let application = application(pod);
    let namespace = namespace(application);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{pod}, namespace: {namespace}, labels: {{app: app-{application}, tier: t{}}}}}\nspec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 80}}]}}]}}\n{status}---\n",
        application % 3
    )
}

/// Namespaces, and one policy for each of the first applications: who may use it, and whom it uses.
fn manifests(pods: usize, policies: usize) -> Result<String> {
    let mut text = String::new();
    let applications = pods.div_ceil(PODS_OF_APPLICATION);
    for number in 0..applications.div_ceil(APPLICATIONS_OF_NAMESPACE) {
        write!(
            text,
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{number}, labels: {{team: t{}}}}}\n---\n",
            number % 7
        )?;
    }
    for policy in 0..policies {
        // More policies than applications: some have several.
        let application = policy % applications;
        let (namespace, next) = (namespace(application), application ^ 1);
        write!(
            text,
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: policy-{policy}, namespace: {namespace}}}\nspec:\n  podSelector: {{matchLabels: {{app: app-{application}}}}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from: [{{podSelector: {{matchLabels: {{app: app-{next}}}}}}}]\n    ports: [{{port: http}}]\n  - from: [{{namespaceSelector: {{matchLabels: {{team: t{0}}}}}, podSelector: {{matchLabels: {{tier: t{1}}}}}}}]\n    ports: [{{port: 9090}}]\n  egress:\n  - to: [{{podSelector: {{matchLabels: {{app: app-{next}}}}}}}]\n  - to: [{{namespaceSelector: {{}}}}]\n    ports: [{{port: 53, protocol: UDP}}]\n---\n",
            policy % 7,
            policy % 3,
        )?;
    }
    Ok(text)
}

/// The two pods that are looked at, their namespace, and the policy between them.
pub(super) fn measured(what: Measured) -> String {
    let label = |is: bool| if is { "in" } else { "out" };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{measured: {0}}}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: server, labels: {{measured: server}}}}\nspec: {{}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: client, labels: {{measured: {1}}}}}\nspec: {{}}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: measured}}\nspec:\n  podSelector: {{matchLabels: {{measured: server}}}}\n  ingress:\n  - from: [{{namespaceSelector: {{matchLabels: {{measured: in}}}}, podSelector: {{matchLabels: {{measured: in}}}}}}]\n    ports: [{{port: {2}, protocol: UDP}}]\n",
        label(what.namespace_labelled),
        label(what.labelled),
        PORTS[what.port]
    )
}
