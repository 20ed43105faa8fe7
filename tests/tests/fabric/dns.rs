//! Names, asked for by the tools that users have.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_tests::{TestLab, can_run, command_in, eventually};

use crate::services::{apply, pod};

const SOON: Duration = Duration::from_secs(10);
/// Number 10 of the usual ranges of cluster IPs.
const SERVERS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const UPSTREAM_PORT: u16 = 5353;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIPs: [10.96.0.20, \"fd00:10:96::20\"]\n  ipFamilyPolicy: RequireDualStack\n  selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
const DB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: None\n  selector: {app: web}\n  ports: [{name: peer, port: 7000}]\n";
const ALIAS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: ext}\nspec: {type: ExternalName, externalName: there.example}\n";

/// A server that knows `there.example`, in the hub's namespace; ended when dropped.
struct Upstream(Child);

impl Upstream {
    fn start(lab: &TestLab) -> Result<Self> {
        let mut command = command_in(&lab.hub_namespace(), "dnsmasq")?;
        command
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
            .args(["--pid-file=", "--user=root", "--log-facility=-"])
            .arg(format!("--port={UPSTREAM_PORT}"))
            .arg("--address=/there.example/192.0.2.7")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn().context("dnsmasq")?))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Two nodes with a pod each beside those that serve, whose names are answered.
async fn lab() -> Result<(TestLab, Upstream)> {
    let upstream = format!("--dns-upstream=198.18.0.2:{UPSTREAM_PORT}");
    let hub_arguments = vec!["--dns".to_owned(), upstream];
    let options = Options { nodes: 2, hub_arguments, ..Options::default() };
    let lab = TestLab::with_pods(options, 2).await?;
    let upstream = Upstream::start(&lab)?;
    let serving = ["a2", "b2"].map(|name| pod(name, "app: web"));
    let clients = ["a1", "b1"].map(|name| pod(name, "role: client"));
    let manifests = [&serving[..], &clients, &[WEB, DB, ALIAS].map(String::from)].concat();
    apply(&lab, &manifests).await?;
    eventually(SOON, async || {
        for (target, server) in [("a1", SERVERS[0]), ("b1", SERVERS[1])] {
            ensure!(
                dig(&lab, target, server, &["web.default.svc.cluster.local"])? == ["10.96.0.20"]
            );
        }
        Ok(())
    })
    .await?;
    Ok((lab, upstream))
}

/// What `dig +short` prints, in order of the text; an error if there is no answer.
fn dig(lab: &TestLab, target: &str, server: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let server = format!("@{server}");
    let command = [&["dig", "+short", "+tries=1", "+time=2", &server], arguments].concat();
    let output = lab.run(target, &command)?;
    let mut lines: Vec<String> = output.lines().map(ToOwned::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// The status of an answer, such as `NXDOMAIN`.
fn status(lab: &TestLab, target: &str, arguments: &[&str]) -> Result<String> {
    let server = format!("@{}", SERVERS[0]);
    let command = [&["dig", "+tries=1", "+time=2", &server], arguments].concat();
    let output = lab.run(target, &command)?;
    let (_, rest) = output.split_once("status: ").with_context(|| output.clone())?;
    Ok(rest.split(',').next().unwrap_or_default().to_owned())
}

/// DNS-002, DNS-003, DNS-004, DNS-005, DNS-006, DNS-011, DNS-040, DNS-070, DNS-100, DNS-120, DNS-124,
/// DNS-130: from pods and the host, on every node, at both addresses, over UDP and TCP.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_on_every_node() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let mut pods: Vec<_> =
        ["a2", "b2"].map(|p| lab.pod_v4(p)).into_iter().collect::<Result<Vec<_>>>()?;
    pods.sort();
    let pods: Vec<_> = pods.iter().map(ToString::to_string).collect();
    for target in ["a1", "b1", "node-1", "node-2"] {
        for server in SERVERS {
            for transport in ["+notcp", "+tcp"] {
                let ask = |arguments: &[&str]| {
                    dig(&lab, target, server, &[&[transport], arguments].concat())
                        .with_context(|| format!("{target} {server} {transport} {arguments:?}"))
                };
                assert_eq!(ask(&["web.default.svc.cluster.local"])?, ["10.96.0.20"]);
                assert_eq!(ask(&["web.default.svc.cluster.local", "AAAA"])?, ["fd00:10:96::20"]);
                let srv = ask(&["_http._tcp.web.default.svc.cluster.local", "SRV"])?;
                assert_eq!(srv, ["0 1 80 web.default.svc.cluster.local."]);
                assert_eq!(ask(&["-x", "10.96.0.20"])?, ["web.default.svc.cluster.local."]);
                let mut db = ask(&["db.default.svc.cluster.local"])?;
                db.sort_by_key(|a| a.parse::<std::net::IpAddr>().ok());
                assert_eq!(db, pods);
                assert_eq!(ask(&["there.example"])?, ["192.0.2.7"]);
                let alias = ask(&["ext.default.svc.cluster.local"])?;
                assert_eq!(alias, ["192.0.2.7", "there.example."]);
            }
        }
    }
    let code = |name: &str| status(&lab, "a1", &[name]);
    assert_eq!(code("nobody.default.svc.cluster.local")?, "NXDOMAIN");
    assert_eq!(code("there.example.default.svc.cluster.local")?, "NXDOMAIN");
    assert_eq!(code("default.svc.cluster.local")?, "NOERROR");
    assert_eq!(status(&lab, "a1", &["CH", "TXT", "version.bind"])?, "REFUSED");
    Ok(())
}

/// NP-066, DNS-123: policies come first, for names of the cluster too, and let whoever may ask the Service's
/// pods ask the node.
#[tokio::test(flavor = "multi_thread")]
async fn policies_hold_for_queries() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let policy = |egress: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n  podSelector: {{matchLabels: {{role: client}}}}\n  policyTypes: [Egress]\n  egress: [{egress}]\n"
        )
    };
    let manifest = lab.manifests().join("policy.yaml");
    let names = ["web.default.svc.cluster.local", "there.example"];
    let answered =
        |transport: &str| names.map(|name| dig(&lab, "a1", SERVERS[0], &[transport, name]).is_ok());
    let becomes = async |egress: &str, expected: [bool; 2]| {
        std::fs::write(&manifest, policy(egress))?;
        eventually(SOON, async || {
            for transport in ["+notcp", "+tcp"] {
                let found = answered(transport);
                ensure!(found == expected, "{egress} {transport}: {found:?}");
            }
            Ok(())
        })
        .await
    };
    becomes("", [false; 2]).await?;
    let dns = "to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]";
    becomes(&format!("{{{dns}}}"), [true; 2]).await?;
    // NP-035: addresses of Services are none that a packet goes to.
    becomes("{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}", [false; 2]).await?;
    becomes("{ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}", [true; 2]).await?;
    // Others are not touched.
    assert_eq!(dig(&lab, "a2", SERVERS[0], &["there.example"])?, ["192.0.2.7"]);
    Ok(())
}

/// DNS-125: names of the cluster do not need the agent, and others are back when it is.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_cluster_are_answered_without_the_agent() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let old = lab.pid("node-1-agent")?;
    kill(Pid::from_raw(old), Signal::SIGSTOP)?;
    for server in SERVERS {
        let found = dig(&lab, "a1", server, &["web.default.svc.cluster.local"])?;
        assert_eq!(found, ["10.96.0.20"]);
    }
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    eventually(SOON, async || {
        ensure!(lab.pid("node-1-agent")? != old, "the agent is not back");
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        let found = dig(&lab, "a1", SERVERS[0], &["there.example"])?;
        ensure!(found == ["192.0.2.7"], "{found:?}");
        Ok(())
    })
    .await
}
