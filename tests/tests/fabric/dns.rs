//! Names, asked for by the tools that users have.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_netio::netns::InNetNs as _;
use weft_tests::dns::{DnsServer, UPSTREAM_PORT};
use weft_tests::names::pairs;
use weft_tests::service::{self, Over, PATIENCE, Server};
use weft_tests::{TestLab, can_run, command_in, eventually};

use crate::services::{apply, apply_file, pod};

const SOON: Duration = Duration::from_secs(10);
/// Number 10 of the usual ranges of cluster IPs.
const SERVERS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// The hub's address.
const HUB: &str = "198.18.0.2";
const METRICS_PORT: u16 = 9101;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIPs: [10.96.0.20, \"fd00:10:96::20\"]\n  ipFamilyPolicy: RequireDualStack\n  selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
const DB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: None\n  selector: {app: web}\n  ports: [{name: peer, port: 7000}]\n";
const ALIAS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: ext}\nspec: {type: ExternalName, externalName: there.example}\n";

/// A server that knows an address of `there.example`.
fn start_upstream(lab: &TestLab, port: u16, address: &str) -> Result<DnsServer> {
    let address = format!("--address=/there.example/{address}");
    // Of other types it has nothing, and asks nobody.
    DnsServer::start(lab, port, &[address, "--local=/there.example/".to_owned()])
}

/// Two nodes with a pod each beside those that serve, whose names are answered.
async fn lab() -> Result<(TestLab, DnsServer)> {
    lab_with(&[]).await
}

/// As [`lab`], with more arguments of the hub.
async fn lab_with(arguments: &[&str]) -> Result<(TestLab, DnsServer)> {
    let server = format!("--dns-upstream={HUB}:{UPSTREAM_PORT}");
    let arguments = arguments.iter().map(|a| (*a).to_owned());
    let options = Options {
        nodes: 2,
        hub_arguments: arguments.chain([server]).collect(),
        agent_arguments: vec![format!("--metrics-listen=0.0.0.0:{METRICS_PORT}")],
        ..Options::default()
    };
    let lab = TestLab::with_pods(options, 2).await?;
    let upstream = start_upstream(&lab, UPSTREAM_PORT, "192.0.2.7")?;
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

/// DNS-002, DNS-003, DNS-004, DNS-005, DNS-006, DNS-011, DNS-040, DNS-070, DNS-091, DNS-100, DNS-120, DNS-124,
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

/// NP-040, NP-066, DNS-123: policies come first, for names of the cluster too, and let whoever may ask the Service's
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
    // NP-040: it is the pods' port that counts, and the node listens where they do.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\nspec:\n  clusterIP: 10.96.0.10\n  selector: {k8s-app: kube-dns}\n  ports: [{name: dns, port: 53, protocol: UDP, targetPort: 5353}, {name: dns-tcp, port: 53, targetPort: 5353}]\n";
    std::fs::write(lab.manifests().join("dns.yaml"), service)?;
    becomes(&format!("{{{dns}}}"), [false; 2]).await?;
    becomes(&format!("{{{}}}", dns.replace("port: 53", "port: 5353")), [true; 2]).await?;
    for target in ["a2", "node-1"] {
        assert_eq!(dig(&lab, target, SERVERS[0], &["there.example"])?, ["192.0.2.7"]);
    }
    Ok(())
}

/// DNS-044, DNS-125: names of the cluster need neither agent nor hub, and others are back when the agent is.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_cluster_are_answered_without_the_agent() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let (old, hub) = (lab.pid("node-1-agent")?, lab.pid("hub")?);
    kill(Pid::from_raw(hub), Signal::SIGSTOP)?;
    kill(Pid::from_raw(old), Signal::SIGSTOP)?;
    for server in SERVERS {
        let found = dig(&lab, "a1", server, &["web.default.svc.cluster.local"])?;
        assert_eq!(found, ["10.96.0.20"]);
    }
    kill(Pid::from_raw(hub), Signal::SIGCONT)?;
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

/// What a cluster's DNS servers of its own answer for other names.
const COREDNS_SAYS: &str = "192.0.2.9";

/// A manifest of the DNS Service, with an endpoint on node-1 that has its DNS port and one for metrics.
fn kube_dns(endpoint: IpAddr) -> String {
    let ports = "[{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}]";
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\nspec:\n  clusterIP: {}\n  internalTrafficPolicy: Local\n  ports: {ports}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\naddressType: IPv4\nports: {ports}\nendpoints: [{{addresses: [{endpoint}], nodeName: node-1}}]\n",
        SERVERS[0]
    )
}

/// DNS-125: where the cluster has DNS servers of its own they are asked while the agent is away, which costs
/// a client no more than one retry, and nothing if the agent was told to end.
#[tokio::test(flavor = "multi_thread")]
async fn other_servers_are_asked_while_the_agent_is_away() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let addresses = [
        format!("--address=/there.example/{COREDNS_SAYS}"),
        "--address=/web.default.svc.cluster.local/10.96.0.20".to_owned(),
    ];
    let _coredns = DnsServer::start_in(&lab.namespace_of("a2")?, "root", 53, &addresses)?;
    apply_file(&lab, "kube-dns.yaml", &kube_dns(lab.pod_v4("a2")?)).await?;
    let says = async |expected: &str| {
        for name in [("there.example", expected), ("web.default.svc.cluster.local", "10.96.0.20")] {
            for transport in ["+notcp", "+tcp"] {
                eventually(SOON, async || {
                    let found = dig(&lab, "a1", SERVERS[0], &[name.0, transport])?;
                    ensure!(found == [name.1], "{transport} {found:?}");
                    Ok(())
                })
                .await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    says("192.0.2.7").await?;
    // One that hangs.
    let agent = lab.pid("node-1-agent")?;
    kill(Pid::from_raw(agent), Signal::SIGSTOP)?;
    says(COREDNS_SAYS).await?;
    kill(Pid::from_raw(agent), Signal::SIGCONT)?;
    says("192.0.2.7").await?;
    for (signal, tries) in [(Signal::SIGKILL, "+tries=2"), (Signal::SIGTERM, "+tries=1")] {
        let agent = lab.pid("node-1-agent")?;
        let mut asked = 0;
        let mut end = None;
        while end.is_none_or(|end| Instant::now() < end) {
            if asked == 20 {
                kill(Pid::from_raw(agent), signal)?;
            }
            let found = dig(&lab, "a1", SERVERS[0], &[tries, "there.example"])
                .with_context(|| format!("{signal}, query {asked}"))?;
            ensure!(
                found == ["192.0.2.7"] || found == [COREDNS_SAYS],
                "{signal}, query {asked}: {found:?}"
            );
            asked += 1;
            if end.is_none() && lab.pid("node-1-agent").is_ok_and(|pid| pid != agent) {
                end = Some(Instant::now() + Duration::from_secs(2));
            }
        }
        says("192.0.2.7").await?;
    }
    Ok(())
}

/// What a program in a pod prints, a line each.
fn lines(lab: &TestLab, pod: &str, command: &[&str]) -> Result<Vec<String>> {
    Ok(lab.run(pod, command)?.lines().map(ToOwned::to_owned).collect())
}

/// A program that prints the addresses of a name as musl's resolver finds them.
fn musl_resolver(dir: &Path) -> Result<String> {
    let (source, program) = (dir.join("getaddrinfo.c"), dir.join("getaddrinfo"));
    std::fs::write(&source, include_str!("getaddrinfo.c"))?;
    let mut compiler = Command::new("musl-gcc");
    let status = compiler.arg("-static").arg("-o").args([&program, &source]).status()?;
    ensure!(status.success(), "musl-gcc: {status}");
    Ok(program.to_string_lossy().into_owned())
}

/// DNS-090, DNS-120, DNS-127, DNS-147: short and whole names, by the resolvers of glibc and musl, and by tools.
#[tokio::test(flavor = "multi_thread")]
async fn resolvers_of_users_find_names() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq", "drill", "getent", "musl-gcc"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let dir = tempfile::tempdir()?;
    let musl = musl_resolver(dir.path())?;
    let web = ["10.96.0.20", "fd00:10:96::20"];
    for (name, expected) in [
        ("web", &web[..]),
        ("web.default", &web),
        ("web.default.svc", &web),
        ("web.default.svc.cluster.local", &web),
        ("web.default.svc.cluster.local.", &web),
        ("WEB.Default", &web),
        ("there.example", &["192.0.2.7"]),
        ("ext", &["192.0.2.7"]),
    ] {
        for pod in ["a1", "b1"] {
            let by_glibc = lines(&lab, pod, &["getent", "ahosts", name])?;
            let addresses = by_glibc.iter().filter_map(|l| l.split_whitespace().next());
            let addresses: BTreeSet<&str> = addresses.collect();
            assert_eq!(addresses, expected.iter().copied().collect(), "glibc, {name}");
            let by_musl: BTreeSet<String> = lines(&lab, pod, &[&musl, name])?.into_iter().collect();
            let expected: BTreeSet<String> = expected.iter().map(|a| (*a).to_owned()).collect();
            assert_eq!(by_musl, expected, "musl, {name}");
        }
    }
    for name in ["nobody", "nobody.example"] {
        assert!(!lab.exec("a1", &["getent", "hosts", name])?.status.success());
        assert!(!lab.exec("a1", &[&musl, name])?.status.success());
    }
    let by_drill = lab.run("a1", &["drill", "-Q", "web.default.svc.cluster.local"])?;
    assert_eq!(by_drill.trim(), "10.96.0.20");
    let searched = lab.run("a1", &["dig", "+search", "+short", "web"])?;
    assert_eq!(searched.trim(), "10.96.0.20");
    // DNS-050.
    let cased = lab.run("a1", &["dig", "+noall", "+answer", "wEb.DEFAULT.svc.cluster.LOCAL"])?;
    assert!(cased.starts_with("wEb.DEFAULT.svc.cluster.LOCAL."), "{cased}");
    Ok(())
}

/// DNS-092: a search list of 32 domains and 2048 characters.
#[tokio::test(flavor = "multi_thread")]
async fn long_search_list_finds_names() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq", "getent"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let last = "default.svc.cluster.local";
    // 31 of 64 characters and a space each, which leaves 33 for the last.
    let domains =
        (1..=31).map(|n| format!("{n:02}-{}.{}.cluster.local", "a".repeat(23), "b".repeat(23)));
    let mut search: Vec<String> = domains.collect();
    ensure!(search.iter().all(|domain| domain.len() == 64), "{search:?}");
    search.push(last.to_owned());
    let search = search.join(" ");
    ensure!(search.len() <= 2048 && search.len() > 2000, "{} characters", search.len());
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("resolv.conf");
    let server = SERVERS[0];
    std::fs::write(&file, format!("nameserver {server}\nsearch {search}\noptions ndots:5\n"))?;
    for name in ["web", "web.default.svc.cluster.local", "there.example"] {
        let mut command = command_in(&lab.namespace_of("a1")?, "getent")?;
        command.with_file(&file, Path::new("/etc/resolv.conf"))?;
        let output = command.args(["ahostsv4", name]).output()?;
        let expected = if name == "there.example" { "192.0.2.7" } else { "10.96.0.20" };
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(found.starts_with(expected), "{name}: {output:?}");
    }
    Ok(())
}

/// DNS-129: what a sidecar does that takes the queries of its pod and asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn sidecar_asks_as_an_ordinary_client() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    const SIDECAR: &str = "daemon";
    const PORT: u16 = 15_053;
    let (lab, _upstream) = lab().await?;
    let namespace = lab.namespace_of("a1")?;
    let to_itself = format!("--server={}", SERVERS[0]);
    let mark = "--host-record=sidecar.test,192.0.2.99".to_owned();
    let _sidecar = DnsServer::start_in(&namespace, SIDECAR, PORT, &[to_itself, mark])?;
    let rules = format!(
        "add table ip sidecar; add chain ip sidecar output {{ type nat hook output priority -100; }}; add rule ip sidecar output meta skuid != {SIDECAR} udp dport 53 redirect to :{PORT}; add rule ip sidecar output meta skuid != {SIDECAR} tcp dport 53 redirect to :{PORT}"
    );
    lab.run("a1", &["nft", &rules])?;
    for transport in ["+notcp", "+tcp"] {
        let ask = |name: &str| dig(&lab, "a1", SERVERS[0], &[transport, name]);
        eventually(SOON, async || {
            ensure!(ask("sidecar.test")? == ["192.0.2.99"], "the sidecar is not asked");
            Ok(())
        })
        .await?;
        assert_eq!(ask("web.default.svc.cluster.local")?, ["10.96.0.20"]);
        assert_eq!(ask("there.example")?, ["192.0.2.7"]);
        assert_eq!(ask("ext.default.svc.cluster.local")?, ["192.0.2.7", "there.example."]);
    }
    Ok(())
}

/// DNS-126: both families at once from one socket, again and again, at both addresses of the Service.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_queries_of_one_socket_are_all_answered() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let addresses = ["10.96.0.20".parse()?, "fd00:10:96::20".parse()?];
    for (family, server) in SERVERS.iter().enumerate() {
        let (client, server) = (lab.party("a1", family)?, SocketAddr::new(server.parse()?, 53));
        let name = "web.default.svc.cluster.local";
        // One that takes longer counts as lost.
        let done = pairs(&client, server, name, addresses, 10_000, PATIENCE)?;
        assert_eq!(done.lost, 0, "{server}");
    }
    Ok(())
}

/// DNS-032, DNS-054, DNS-059, DNS-073: as many addresses as there are; what is too long for a datagram comes
/// over TCP.
#[tokio::test(flavor = "multi_thread")]
async fn all_addresses_of_a_headless_service_are_told() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let mut manifests = Vec::new();
    for count in [1_u16, 30, 1000] {
        manifests.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: many-{count}}}\nspec: {{clusterIP: None}}\n"
        ));
        let [high, low] = count.to_be_bytes();
        let endpoints: Vec<String> = (0..count)
            .map(|n| {
                format!("{{addresses: [198.19.{}.{}]}}", n.to_be_bytes()[0] + high + low, n & 0xff)
            })
            .collect();
        // As controllers do it, of at most 100.
        for (part, endpoints) in endpoints.chunks(100).enumerate() {
            manifests.push(format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: many-{count}-{part}, labels: {{kubernetes.io/service-name: many-{count}}}}}\naddressType: IPv4\nendpoints: [{}]\n",
                endpoints.join(", ")
            ));
        }
    }
    std::fs::write(lab.manifests().join("many.yaml"), manifests.join("---\n"))?;
    for count in [1, 30, 1000] {
        let name = format!("many-{count}.default.svc.cluster.local");
        eventually(SOON, async || {
            let found = dig(&lab, "a1", SERVERS[0], &[&name])?.len();
            ensure!(found == count, "{found} of {count}");
            Ok(())
        })
        .await?;
        assert_eq!(dig(&lab, "a1", SERVERS[1], &["+tcp", &name])?.len(), count);
        let cut = lab.run("a1", &["dig", "+notcp", "+ignore", "+noedns", &name])?;
        let (_, flags) = cut.split_once("flags: ").context("no flags")?;
        let flags = flags.split(';').next().unwrap_or_default();
        // 512 bytes have room for 27 addresses beside the name.
        assert_eq!(flags.split(' ').any(|flag| flag == "tc"), count > 27, "{count}: {flags}");
    }
    Ok(())
}

/// DNS-103, DNS-104: a server that is gone costs a client no answer.
#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_killed_costs_no_answer() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let other = format!("--dns-upstream={HUB}:{}", UPSTREAM_PORT + 1);
    let (lab, upstream) = lab_with(&[&other]).await?;
    let _other = start_upstream(&lab, UPSTREAM_PORT + 1, "192.0.2.7")?;
    let ask = |name: &str| dig(&lab, "a1", SERVERS[0], &["+time=4", name]);
    assert_eq!(ask("a.there.example")?, ["192.0.2.7"]);
    drop(upstream);
    // Of names that nothing is kept of.
    for name in ["b.there.example", "c.there.example", "d.there.example"] {
        assert_eq!(ask(name)?, ["192.0.2.7"]);
    }
    Ok(())
}

/// DNS-058, DNS-093, DNS-101, DNS-140: what the operator sets.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_operator_hold() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let stub = format!("--dns-stub-domain=there.example={HUB}:{}", UPSTREAM_PORT + 1);
    let arguments = [
        "--cluster-domain=cluster.local,k8s.example.com",
        "--dns-ttl=77",
        "--dns-host=git.example=192.0.2.9",
        "--dns-autopath",
        &stub,
    ];
    let (lab, _upstream) = lab_with(&arguments).await?;
    let _stub = start_upstream(&lab, UPSTREAM_PORT + 1, "192.0.2.8")?;
    let ask = |arguments: &[&str]| dig(&lab, "a1", SERVERS[0], arguments);
    assert_eq!(ask(&["web.default.svc.k8s.example.com"])?, ["10.96.0.20"]);
    assert_eq!(ask(&["git.example"])?, ["192.0.2.9"]);
    assert_eq!(ask(&["-x", "192.0.2.9"])?, ["git.example."]);
    assert_eq!(ask(&["there.example"])?, ["192.0.2.8"]);
    let whole = lab.run("a1", &["dig", "+noall", "+answer", "web.default.svc.cluster.local"])?;
    assert_eq!(whole.split_whitespace().nth(1), Some("77"), "{whole}");
    // The first name of the search list is answered with what the last would find.
    let first = ask(&["there.example.default.svc.cluster.local"])?;
    assert_eq!(first, ["192.0.2.8", "there.example."]);
    let first = ask(&["web.default.default.svc.cluster.local"])?;
    assert_eq!(first, ["10.96.0.20", "web.default.svc.cluster.local."]);
    Ok(())
}

/// DNS-121, DNS-122, DNS-134: who is asked directly answers, and other ports of the Service are its
/// endpoints', whatever is said of those.
#[tokio::test(flavor = "multi_thread")]
async fn others_are_asked_as_they_are_called() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let direct = ["dig", "+short", &format!("@{HUB}"), "-p", "5353", "there.example"];
    assert_eq!(lab.run("a1", &direct)?.trim(), "192.0.2.7");
    std::fs::write(lab.manifests().join("kube-dns.yaml"), kube_dns(lab.pod_v4("a2")?))?;
    let _metrics = Server::start(&lab.party("a2", 0)?, 9153, "metrics")?;
    let client = lab.party("a1", 0)?;
    eventually(SOON, async || {
        let answer =
            service::ask(&client.namespace, Over::Tcp, SocketAddr::new(SERVERS[0].parse()?, 9153))?;
        ensure!(answer.by == "metrics", "{answer:?}");
        Ok(())
    })
    .await?;
    assert_eq!(dig(&lab, "a1", SERVERS[0], &["web.default.svc.cluster.local"])?, ["10.96.0.20"]);
    Ok(())
}

/// DNS-131: a client that asks too often is refused, over UDP and over TCP, and nobody else is.
#[tokio::test(flavor = "multi_thread")]
async fn client_that_asks_too_often_is_refused() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab_with(&["--dns-client-rate=5"]).await?;
    let questions = tempfile::NamedTempFile::new()?;
    let path = questions.path().to_str().context("no text")?;
    let names = ["web.default.svc.cluster.local\n", "there.example\n"].concat();
    std::fs::write(path, names.repeat(150))?;
    for (server, transport) in [(SERVERS[0], "+notcp"), (SERVERS[0], "+tcp"), (SERVERS[1], "+tcp")]
    {
        let server = format!("@{server}");
        let usual = [&server, transport, "+noall", "+comments", "+tries=1", "+time=2"];
        let text = lab.run("a1", &[&["dig"], &usual[..], &["-f", path]].concat())?;
        let count = |status: &str| text.matches(&format!("status: {status},")).count();
        let (answered, refused) = (count("NOERROR"), count("REFUSED"));
        ensure!(answered + refused == 300 && refused > 0, "{transport}: {text}");
        let text =
            lab.run("a2", &[&["dig"], &usual[..], &["web.default.svc.cluster.local"]].concat())?;
        ensure!(text.contains("status: NOERROR,"), "{transport}: another client: {text}");
    }
    eventually(SOON, async || {
        let found = dig(&lab, "a1", SERVERS[0], &["web.default.svc.cluster.local"])?;
        ensure!(found == ["10.96.0.20"], "it is never answered again: {found:?}");
        Ok(())
    })
    .await
}

/// DNS-144, DNS-145: what is asked is told by `weft dns query`, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn operators_are_told_what_a_pod_gets() -> Result<()> {
    if !can_run(&["nft", "dig", "dnsmasq", "curl"]) {
        return Ok(());
    }
    let (lab, _upstream) = lab().await?;
    let query = |arguments: &[&str]| {
        let output = lab.weft_output(&[&["dns", "query"], arguments].concat())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok::<_, anyhow::Error>((output.status.code(), text))
    };
    let (code, text) = query(&["web", "--from", "a1"])?;
    assert_eq!(code, Some(0), "{text}");
    let expected = "web.default.svc.cluster.local. A: NOERROR, from the node\n  web.default.svc.cluster.local. 5 A 10.96.0.20\n";
    assert!(
        text.contains("asked by pod default/a1 on node-1\n") && text.ends_with(expected),
        "{text}"
    );
    let (code, text) = query(&["there.example", "--from", "b1"])?;
    assert_eq!(code, Some(0), "{text}");
    let expected =
        format!("there.example. A: NOERROR, from {HUB}:{UPSTREAM_PORT} or what is kept of it\n");
    assert!(text.contains("there.example.cluster.local. A: NXDOMAIN, from the node\n"), "{text}");
    assert!(text.contains(&expected), "{text}");
    let (code, text) =
        query(&["web.default.svc.cluster.local", "--type", "aaaa", "--from", "node-2"])?;
    assert!(code == Some(0) && text.contains("AAAA fd00:10:96::20"), "{text}");
    assert_eq!(query(&["nobody.default.svc.cluster.local."])?.0, Some(4));
    for bad in [&["web", "--from", "nobody"][..], &["web", "--type", "NONE"], &["a..b"]] {
        assert_eq!(query(bad)?.0, Some(1), "{bad:?}");
    }
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed}\nspec: {podSelector: {matchLabels: {role: client}}, policyTypes: [Egress]}\n";
    std::fs::write(lab.manifests().join("policy.yaml"), policy)?;
    eventually(SOON, async || {
        let (code, text) = query(&["web", "--from", "a1"])?;
        ensure!(code == Some(3) && text.contains("default/closed"), "{text}");
        Ok(())
    })
    .await?;
    let get = |path| {
        let url = format!("http://127.0.0.1:{METRICS_PORT}/{path}");
        lab.run("node-1", &["curl", "-sf", &url])
    };
    assert_eq!(get("readyz")?, "ready\n");
    assert_eq!(dig(&lab, "a2", SERVERS[0], &["there.example"])?, ["192.0.2.7"]);
    eventually(SOON, async || {
        let text = get("metrics")?;
        let told = |start: &str| text.lines().any(|l| l.starts_with(start) && !l.ends_with(" 0"));
        ensure!(told("weft_dns_answers_total{type=\"A\",code=\"NOERROR\"} "), "{text}");
        ensure!(told("weft_dns_resolver_queries_total{result=\"cluster\"} "), "{text}");
        ensure!(told("weft_dns_resolver_queries_total{result=\"outside\"} "), "{text}");
        ensure!(told("weft_dns_outside_duration_seconds_count "), "{text}");
        ensure!(told("weft_hub_update_timestamp_seconds "), "{text}");
        Ok(())
    })
    .await
}
