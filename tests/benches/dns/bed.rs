//! A client that asks, and who answers: Weft's nodes, or CoreDNS in a pod beside it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_tests::names::round_trips;
use weft_tests::talk::Party;
use weft_tests::{TestLab, command_in, eventually, routed};

/// Whom pods of a fabric ask.
pub(crate) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 53;
/// In a file of a size that people have.
const PER_FILE: usize = 1_000;
/// Longer than the hub takes from one file to the next.
const QUIET: Duration = Duration::from_secs(5);
const SETTLE_MAX: Duration = Duration::from_secs(120);
const ZONE: &str = "cluster.local";

/// A client, and a server that knows the names of so many Services.
pub(crate) struct Bed {
    pub(crate) name: &'static str,
    pub(crate) client: Party,
    pub(crate) server: SocketAddr,
    services: usize,
    /// What runs beside the lab; ended with the bed.
    coredns: Option<CoreDns>,
    lab: TestLab,
}

/// With the directory of its files.
struct CoreDns(
    Child,
    #[expect(dead_code, reason = "is there as long as it runs")] tempfile::TempDir,
);

impl Drop for CoreDns {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Bed {
    /// A fabric of one node.
    pub(crate) async fn weft(services: usize) -> Result<Self> {
        let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
        put(&lab, services, with_cluster_ips)?;
        let client = lab.party("a1", 0)?;
        let server = SocketAddr::new(NAME_SERVER.into(), PORT);
        Self { name: "weft", client, server, services, coredns: None, lab }.settled().await
    }

    /// CoreDNS in a pod that the client's node routes to, at its best: with nothing in between, and a zone
    /// in a file. `None` if it was not built.
    pub(crate) async fn coredns(services: usize) -> Result<Option<Self>> {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/coredns");
        if !binary.exists() {
            return Ok(None);
        }
        let lab = TestLab::machines(Options { nodes: 2, ..Options::default() }).await?;
        let nodes = routed::nodes(&lab)?;
        let [client, pod, _] = routed::pods(&lab, &nodes, 1500)?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("zone"), zone(services))?;
        let corefile = format!("{ZONE}:{PORT} {{\n  file zone\n  loadbalance\n}}\n");
        std::fs::write(dir.path().join("Corefile"), corefile)?;
        let mut command = command_in(&pod.namespace, binary.canonicalize()?)?;
        command.args(["-conf", "Corefile", "-quiet"]).current_dir(dir.path());
        let child = command.stdout(Stdio::null()).spawn().context("CoreDNS does not start")?;
        let server = SocketAddr::new(pod.address, PORT);
        let coredns = Some(CoreDns(child, dir));
        let bed = Self { name: "coredns", client, server, services, coredns, lab };
        bed.settled().await.map(Some)
    }

    async fn settled(self) -> Result<Self> {
        let last = [service_name(self.services - 1)];
        eventually(SETTLE_MAX, async || round_trips(&self.client, self.server, &last)).await?;
        Ok(self)
    }

    /// Whole names of all Services, without a dot at their end.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        (0..self.services).map(service_name)
    }

    /// A name and its addresses.
    pub(crate) fn first(&self) -> Option<(String, [IpAddr; 2])> {
        self.names().next().map(|name| (name, addresses(0)))
    }

    /// Processes that answer.
    pub(crate) fn servers(&self) -> Vec<i32> {
        match &self.coredns {
            Some(CoreDns(child, _)) => i32::try_from(child.id()).into_iter().collect(),
            None => self.lab.processes(),
        }
    }

    /// Has what is not measured stand still, and go on.
    pub(crate) fn signal(&self, signal: Signal) {
        for process in self.servers() {
            let _ = kill(Pid::from_raw(process), signal);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What stands still does not hear that it shall end.
        self.signal(Signal::SIGCONT);
    }
}

fn service_name(number: usize) -> String {
    format!("service-{number}.default.svc.{ZONE}")
}

fn addresses(number: usize) -> [IpAddr; 2] {
    let number = u32::try_from(number).unwrap_or(u32::MAX) + 0x100;
    let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16);
    [v4.into(), v6.into()]
}

/// The same as [`put_services`], for a server that reads a zone.
fn zone(services: usize) -> String {
    let mut zone = format!(
        "$ORIGIN {ZONE}.\n@ 5 IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ 5 IN NS ns.dns\nns.dns 5 IN A {NAME_SERVER}\n"
    );
    for number in 0..services {
        let [v4, v6] = addresses(number);
        let name = service_name(number);
        let _ = writeln!(zone, "{name}. 5 IN A {v4}\n{name}. 5 IN AAAA {v6}");
    }
    zone
}

/// Makes a manifest for each number.
pub(crate) fn put(
    lab: &TestLab,
    services: usize,
    manifest: impl Fn(usize) -> String,
) -> Result<()> {
    for (file, part) in (0..services).collect::<Vec<_>>().chunks(PER_FILE).enumerate() {
        let text: String = part.iter().map(|number| manifest(*number)).collect();
        lab.put(&format!("services-{file}.yaml"), &text)?;
    }
    Ok(())
}

/// A dual-stack Service without endpoints.
pub(crate) fn with_cluster_ips(number: usize) -> String {
    let [v4, v6] = addresses(number);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}}}\nspec:\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilyPolicy: RequireDualStack\n  ports: [{{name: http, port: 80}}]\n---\n"
    )
}

/// Endpoints of a [`headless`] Service.
pub(crate) const ENDPOINTS: usize = 10;

/// A Service whose endpoints have names, as those of a StatefulSet.
pub(crate) fn headless(number: usize) -> String {
    let endpoint = |n: usize| {
        let address =
            Ipv4Addr::from(0x0b00_0000 + u32::try_from(number * ENDPOINTS + n).unwrap_or(0));
        format!("- {{addresses: [{address}], hostname: service-{number}-{n}}}\n")
    };
    let endpoints: String = (0..ENDPOINTS).map(endpoint).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}}}\nspec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: service-{number}, labels: {{kubernetes.io/service-name: service-{number}}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints:\n{endpoints}---\n"
    )
}

/// Until the node has everything, and nothing comes any more.
pub(crate) async fn wait_taken(lab: &TestLab) -> Result<()> {
    let node = lab.nodes().into_iter().next().context("a lab without nodes")?;
    let mut last = 0;
    loop {
        tokio::time::sleep(QUIET).await;
        let status = lab.status().await?;
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        eventually(SETTLE_MAX, async || lab.wait_connected(&node).await).await?;
        if std::mem::replace(&mut last, status.generation) == status.generation {
            return Ok(());
        }
    }
}
