//! Services, with real sockets: every kind of client, every place of a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use weft_lab::Options;
use weft_netio::netns;
use weft_proto::v1::{FabricStatus, NodeStatus};
use weft_tests::outsider::Outsider;
use weft_tests::service::{Conversation, Over, PATIENCE, Server, ask, ask_over, udp_to};
use weft_tests::talk::Party;
use weft_tests::{TestLab, can_run, eventually};

use crate::failures::kill_and_await_return;

pub(crate) const SOON: Duration = Duration::from_secs(5);
/// The first policy has each node compile a plugin, which takes seconds while other labs do so too.
const IN_FORCE: Duration = Duration::from_secs(20);
pub(crate) const CLUSTER_IPS: [&str; 2] = ["10.96.0.110", "fd00:10:96::10"];
pub(crate) const NODE_PORT: u16 = 30_080;

pub(crate) async fn lab(pods: usize) -> Result<TestLab> {
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, pods).await?;
    // So that the next generation is that of what a test says.
    eventually(SOON, async || {
        let status = lab.status().await?;
        ensure!(usize::try_from(status.pods)? == 2 * pods, "the hub knows {} pods", status.pods);
        is_in_force(&status)
    })
    .await?;
    Ok(lab)
}

fn is_in_force(status: &FabricStatus) -> Result<()> {
    let behind = |n: &&NodeStatus| n.applied_generation < status.generation;
    match status.nodes.iter().find(behind) {
        Some(node) => bail!("a node is behind {}: {node:?}", status.generation),
        None => Ok(()),
    }
}

/// A Service on TCP and UDP port 80, of pods `app: web`, with more of its spec.
pub(crate) fn web(more: &str) -> String {
    let port = |protocol| {
        format!("  - {{name: {protocol}, protocol: {protocol}, port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}\n")
            .replace("name: TCP", "name: tcp")
            .replace("name: UDP", "name: udp")
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  type: NodePort\n  clusterIP: {0}\n  clusterIPs: [{0}, \"{1}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n{more}  ports:\n{2}{3}",
        CLUSTER_IPS[0],
        CLUSTER_IPS[1],
        port("TCP"),
        port("UDP")
    )
}

pub(crate) const SELECTOR: &str = "  selector: {app: web}\n";

pub(crate) fn pod(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{{labels}}}\nspec:\n  containers: [{{name: c, image: i}}]\n"
    )
}

/// The Service's endpoints as a slice of IPv4 addresses, each with its conditions.
fn slice(endpoints: &[(IpAddr, &str)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, rest)| format!("- {{addresses: [\"{address}\"]{rest}}}\n"))
        .collect();
    let endpoints = if endpoints.is_empty() { "  []\n".to_owned() } else { endpoints };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n- {{name: tcp, protocol: TCP, port: 8080}}\n- {{name: udp, protocol: UDP, port: 8080}}\nendpoints:\n{endpoints}"
    )
}

/// Writes manifests and waits until every node has taken them.
pub(crate) async fn apply(lab: &TestLab, documents: &[String]) -> Result<()> {
    apply_file(lab, "services.yaml", &documents.join("---\n")).await
}

/// As [`apply`], in a file of its own.
pub(crate) async fn apply_file(lab: &TestLab, name: &str, text: &str) -> Result<()> {
    let path = lab.manifests().join(name);
    let half = path.with_extension("half");
    let before = lab.status().await?.generation;
    std::fs::write(&half, text)?;
    std::fs::rename(&half, &path)?;
    eventually(IN_FORCE, async || {
        let status = lab.status().await?;
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        ensure!(status.generation > before, "the hub has not seen it");
        is_in_force(&status)
    })
    .await
}

pub(crate) fn cluster_ip(family: usize) -> SocketAddr {
    SocketAddr::new(CLUSTER_IPS[family].parse().unwrap_or([0; 4].into()), 80)
}

pub(crate) fn node_address(lab: &TestLab, node: &str, family: usize) -> Result<IpAddr> {
    let addresses = lab.node_addresses(node);
    addresses.into_iter().find(|a| a.is_ipv6() == (family == 1)).context("no such address")
}

/// The host of a node as a party.
pub(crate) fn host(lab: &TestLab, node: &str, family: usize) -> Result<Party> {
    Ok(Party { namespace: lab.namespace_of(node)?, address: node_address(lab, node, family)? })
}

/// Asks until each of `backends` answered, at most 60 times; each answer names whom it sees.
fn reaches(namespace: &str, over: Over, to: SocketAddr, backends: &[(&str, IpAddr)]) -> Result<()> {
    let mut missing: BTreeSet<&str> = backends.iter().map(|(name, _)| *name).collect();
    for _ in 0..60 {
        let answer = ask(namespace, over, to)
            .with_context(|| format!("{namespace} asks {to} over {over:?}"))?;
        let expected = backends.iter().find(|(name, _)| *name == answer.by);
        let (name, sees) = expected.with_context(|| format!("{} answers at {to}", answer.by))?;
        ensure!(answer.sees == *sees, "{name} at {to} ({over:?}) sees {}, not {sees}", answer.sees);
        missing.remove(name);
    }
    ensure!(missing.is_empty(), "{namespace} never hears of {missing:?} at {to} over {over:?}");
    Ok(())
}

/// SVC-020, SVC-022, SVC-023, SVC-060, SVC-061, SVC-062, SVC-066: pods, hosts and machines outside
/// reach pods of every node, at cluster IPs and node ports, in both families, over TCP and UDP.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_reaches_every_backend() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    apply(&lab, &[web(SELECTOR), pod("a2", "app: web"), pod("b2", "app: web")]).await?;
    let nodes = lab.nodes();
    for family in [0, 1] {
        let (a2, b2) = (lab.party("a2", family)?, lab.party("b2", family)?);
        let _servers = [Server::start(&a2, 8080, "a2")?, Server::start(&b2, 8080, "b2")?];
        let (a1, node) = (lab.party("a1", family)?, host(&lab, &nodes[0], family)?);
        let other = host(&lab, &nodes[1], family)?;
        let outside: IpAddr =
            if family == 0 { outsider.underlay().parse()? } else { "fd00:198:18::200".parse()? };
        for over in [Over::Tcp, Over::Udp] {
            let both = |who: IpAddr| [("a2", who), ("b2", who)];
            let at = |address| SocketAddr::new(address, NODE_PORT);
            reaches(&a1.namespace, over, cluster_ip(family), &both(a1.address))?;
            reaches(&node.namespace, over, cluster_ip(family), &both(node.address))?;
            reaches(&a1.namespace, over, at(node.address), &both(a1.address))?;
            reaches(&a1.namespace, over, at(other.address), &both(a1.address))?;
            reaches(&node.namespace, over, at(node.address), &both(node.address))?;
            // To another node a host is a machine outside: it is seen by pods there as it is.
            let seen = [("a2", other.address), ("b2", node.address)];
            reaches(&node.namespace, over, at(other.address), &seen)?;
            let seen = [("a2", outside), ("b2", node.address)];
            reaches(&outsider.namespace, over, at(node.address), &seen)?;
        }
    }
    Ok(())
}

/// SVC-024, SVC-160, SVC-161, SVC-162: backends on this host, another one and outside of the fabric.
#[tokio::test(flavor = "multi_thread")]
async fn backends_may_be_hosts() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    let nodes = lab.nodes();
    let near = host(&lab, &nodes[0], 0)?;
    let far = host(&lab, &nodes[1], 0)?;
    let outside = outsider.party_at(outsider.underlay())?;
    let _servers = [
        Server::start(&near, 8080, "near")?,
        Server::start(&far, 8080, "far")?,
        Server::start(&outside, 8080, "outside")?,
    ];
    let a1 = lab.party("a1", 0)?;
    for (backend, name) in [(&near, "near"), (&far, "far"), (&outside, "outside")] {
        apply(&lab, &[web(""), slice(&[(backend.address, "")])]).await?;
        for over in [Over::Tcp, Over::Udp] {
            for (client, to) in [
                (&a1.namespace, cluster_ip(0)),
                (&near.namespace, cluster_ip(0)),
                (&outside.namespace, SocketAddr::new(near.address, NODE_PORT)),
                (&near.namespace, SocketAddr::new(near.address, NODE_PORT)),
            ] {
                let answer = ask(client, over, to)
                    .with_context(|| format!("{client} to {to}, {name}, {over:?}"))?;
                ensure!(answer.by == name, "{} answers for {name}", answer.by);
            }
        }
    }
    Ok(())
}

/// SVC-026: a pod that was just wired reaches Services at once.
#[tokio::test(flavor = "multi_thread")]
async fn new_pod_reaches_services_at_once() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let mut lab = lab(2).await?;
    let b2 = [lab.party("b2", 0)?, lab.party("b2", 1)?];
    let _servers = [Server::start(&b2[0], 8080, "b2")?, Server::start(&b2[1], 8080, "b2")?];
    apply(&lab, &[web(SELECTOR), pod("b2", "app: web")]).await?;
    for n in 0..6 {
        let name = format!("n{n}");
        lab.pod_add("node-1", &name).await?;
        let namespace = lab.namespace_of(&name)?;
        for over in [Over::Tcp, Over::Udp] {
            let answer = ask(&namespace, over, cluster_ip(n % 2));
            ensure!(answer.as_ref().is_ok_and(|a| a.by == "b2"), "{name}, {over:?}: {answer:?}");
        }
    }
    Ok(())
}

/// SVC-032: without the hub everything goes on, and what changed meanwhile is taken once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn services_go_on_without_the_hub() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let (a2, b2) = (lab.party("a2", 0)?, lab.party("b2", 0)?);
    let _servers = [Server::start(&a2, 8080, "a2")?, Server::start(&b2, 8080, "b2")?];
    apply(&lab, &[web(""), slice(&[(a2.address, "")])]).await?;
    let hub = lab.pid("hub")?;
    kill(Pid::from_raw(hub), Signal::SIGSTOP)?;
    let changed = [web(""), slice(&[(b2.address, "")])].join("---\n");
    std::fs::write(lab.manifests().join("services.yaml"), changed)?;
    let clients = [lab.namespace_of("a1")?, lab.namespace_of("b1")?];
    // Longer than a hub may be silent before agents look for it anew.
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        for (client, over) in clients.iter().flat_map(|c| [(c, Over::Tcp), (c, Over::Udp)]) {
            let answer = ask(client, over, cluster_ip(0));
            ensure!(answer.as_ref().is_ok_and(|a| a.by == "a2"), "{client}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    kill(Pid::from_raw(hub), Signal::SIGKILL)?;
    for (client, over) in clients.iter().flat_map(|c| [(c, Over::Tcp), (c, Over::Udp)]) {
        eventually(IN_FORCE, async || {
            let answer = ask(client, over, cluster_ip(0));
            ensure!(answer.as_ref().is_ok_and(|a| a.by == "b2"), "{client}: {answer:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// SVC-012, NP-115: what is written down of Services and policies is only read.
#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_only_read() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let files = || -> Result<BTreeMap<_, _>> {
        let all = std::fs::read_dir(lab.manifests())?;
        all.map(|e| Ok((e.as_ref().map(|e| e.path()).ok(), std::fs::read(e?.path())?))).collect()
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: bare}\nspec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}\n";
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: some}\nspec: {podSelector: {}}\n";
    std::fs::write(lab.manifests().join("policy.yaml"), policy)?;
    apply(&lab, &[service.to_owned(), pod("a2", "app: web")]).await?;
    let before = files()?;
    apply(&lab, &[service.to_owned(), pod("a2", "app: web"), pod("b2", "app: web")]).await?;
    let after = files()?;
    ensure!(before.keys().eq(after.keys()) && after.len() == 2, "{:?}", after.keys());
    let written = [service.to_owned(), pod("a2", "app: web"), pod("b2", "app: web")].join("---\n");
    let texts: Vec<_> = after.into_values().collect();
    ensure!(texts.contains(&written.into_bytes()) && texts.contains(&policy.into()), "changed");
    Ok(())
}

/// SVC-166, SVC-167, SVC-168, SVC-169: a pod that is its own backend, whatever policies are for it.
#[tokio::test(flavor = "multi_thread")]
async fn pod_reaches_itself_a_hundred_times() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n";
    for policies in [vec![], vec![closed.to_owned()]] {
        let closed = !policies.is_empty();
        let objects = [web(SELECTOR), pod("a1", "app: web")];
        apply(&lab, &[&objects[..], &policies].concat()).await?;
        for family in [0, 1] {
            let a1 = lab.party("a1", family)?;
            let _server = Server::start(&a1, 8080, "a1")?;
            let node = node_address(&lab, &lab.nodes()[0], family)?;
            for over in [Over::Tcp, Over::Udp] {
                for _ in 0..100 {
                    let answer = ask(&a1.namespace, over, cluster_ip(family))?;
                    ensure!(answer.sees != a1.address, "it sees itself");
                }
                let by_node_port = ask(&a1.namespace, over, SocketAddr::new(node, NODE_PORT));
                by_node_port.with_context(|| format!("by the node port, closed: {closed}"))?;
            }
        }
    }
    Ok(())
}

/// SVC-170, SVC-171, SVC-172, SVC-174, SVC-027: nobody is there, which the client hears at once, until
/// somebody is.
#[tokio::test(flavor = "multi_thread")]
async fn client_hears_that_nobody_is_there() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let outsider = Outsider::join(&lab)?;
    let a2 = lab.party("a2", 0)?;
    apply(&lab, &[web(""), slice(&[(a2.address, ", conditions: {ready: false}")])]).await?;
    let node = host(&lab, &lab.nodes()[0], 0)?;
    let a1 = lab.namespace_of("a1")?;
    let node_port = SocketAddr::new(node.address, NODE_PORT);
    let unknown_port = SocketAddr::new(cluster_ip(0).ip(), 81);
    for (client, to) in [
        (&a1, cluster_ip(0)),
        (&a1, unknown_port),
        (&a1, node_port),
        (&node.namespace, cluster_ip(0)),
        (&node.namespace, node_port),
        (&outsider.namespace, node_port),
    ] {
        for over in [Over::Tcp, Over::Udp] {
            let asked = Instant::now();
            let error = ask(client, over, to).err();
            let kind = error.as_ref().map(std::io::Error::kind);
            ensure!(
                kind == Some(ErrorKind::ConnectionRefused),
                "{client} to {to} over {over:?}: {error:?} after {:?}",
                asked.elapsed()
            );
        }
    }
    let _server = Server::start(&a2, 8080, "a2")?;
    apply(&lab, &[web(""), slice(&[(a2.address, "")])]).await?;
    for over in [Over::Tcp, Over::Udp] {
        ensure!(ask(&a1, over, cluster_ip(0))?.by == "a2");
    }
    Ok(())
}

/// SVC-180, SVC-181, SVC-183, SVC-184: a client that keeps its port follows the backends.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_one_socket_follow_the_backends() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let (a2, b2) = (lab.party("a2", 0)?, lab.party("b2", 0)?);
    let _servers = [Server::start(&a2, 8080, "a2")?, Server::start(&b2, 8080, "b2")?];
    let node = host(&lab, &lab.nodes()[0], 0)?;
    let a1 = lab.namespace_of("a1")?;
    apply(&lab, &[web(""), slice(&[])]).await?;
    let sockets = [
        udp_to(&a1, cluster_ip(0))?,
        udp_to(&node.namespace, cluster_ip(0))?,
        udp_to(&a1, SocketAddr::new(node.address, NODE_PORT))?,
    ];
    let hears = async |name: &'static str| -> Result<()> {
        for socket in &sockets {
            eventually(SOON, async || {
                let answer = ask_over(socket)?;
                ensure!(answer.by == name, "{} answers", answer.by);
                Ok(())
            })
            .await
            .with_context(|| format!("{:?} does not reach {name}", socket.peer_addr()))?;
        }
        Ok(())
    };
    for socket in &sockets {
        ensure!(ask_over(socket).is_err(), "nobody is there");
    }
    apply(&lab, &[web(""), slice(&[(a2.address, "")])]).await?;
    hears("a2").await?;
    apply(&lab, &[web(""), slice(&[(b2.address, "")])]).await?;
    hears("b2").await?;
    let leaving = ", conditions: {ready: false, serving: true, terminating: true}";
    apply(&lab, &[web(""), slice(&[(b2.address, leaving), (a2.address, "")])]).await?;
    for socket in &sockets {
        ensure!(ask_over(socket)?.by == "b2", "it still serves");
    }
    ensure!(ask(&a1, Over::Udp, cluster_ip(0))?.by == "a2", "a new one goes to who is ready");
    apply(&lab, &[web(""), slice(&[])]).await?;
    for socket in &sockets {
        ensure!(ask_over(socket)?.by == "b2", "nobody else is there: it stays");
    }
    Ok(())
}

/// SVC-031, SVC-043, SVC-190, SVC-191: an open connection outlives its endpoint, its Service, the agent
/// and the datapath.
#[tokio::test(flavor = "multi_thread")]
async fn open_connections_stay_open() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let (a2, b2) = (lab.party("a2", 0)?, lab.party("b2", 0)?);
    let _servers = [Server::start(&a2, 8080, "a2")?, Server::start(&b2, 8080, "b2")?];
    let outsider = Outsider::join(&lab)?;
    let node = host(&lab, &lab.nodes()[0], 0)?;
    let node_port = SocketAddr::new(node.address, NODE_PORT);
    apply(&lab, &[web(""), slice(&[(b2.address, "")])]).await?;
    let mut open = Vec::new();
    let a1 = lab.namespace_of("a1")?;
    for (client, to) in [
        (&a1, cluster_ip(0)),
        (&node.namespace, cluster_ip(0)),
        (&outsider.namespace, node_port),
        (&node.namespace, node_port),
    ] {
        open.push(Conversation::open(client, to)?);
    }
    let mut all_answer = |when: &str| -> Result<()> {
        for conversation in &mut open {
            let answer = conversation.ask().with_context(|| when.to_owned())?;
            ensure!(answer.by == "b2", "{} answers {when}", answer.by);
        }
        Ok(())
    };
    all_answer("at first")?;
    // Whoever began them, and through whichever address.
    eventually(2 * SOON, async || {
        let listed = lab.weft(&["services", "--endpoints"])?;
        let line = listed.lines().find(|l| l.contains(&b2.address.to_string()));
        let flows = line.and_then(|l| l.split_whitespace().last()).unwrap_or_default();
        ensure!(flows.parse().is_ok_and(|n: usize| n >= 4), "{listed}");
        Ok(())
    })
    .await?;
    apply(&lab, &[web(""), slice(&[(a2.address, "")])]).await?;
    all_answer("without their endpoint")?;
    ensure!(ask(&a1, Over::Tcp, cluster_ip(0))?.by == "a2", "new ones go elsewhere");
    for process in ["agent", "datapath"] {
        kill_and_await_return(&lab, &format!("{}-{process}", lab.nodes()[0])).await?;
        all_answer(&format!("after a restart of the {process}"))?;
        ensure!(ask(&a1, Over::Tcp, cluster_ip(0))?.by == "a2", "new ones, after the {process}");
    }
    apply(&lab, &[]).await?;
    all_answer("without the Service")?;
    ensure!(ask(&a1, Over::Tcp, cluster_ip(0)).is_err(), "it is gone for new ones");
    Ok(())
}

/// SVC-192: an open connection to a pod that is gone without a word is refused by the next pod with its address,
/// and nothing of it is taken for new.
#[tokio::test(flavor = "multi_thread")]
async fn connection_to_a_pod_that_is_gone_is_not_the_next_ones() -> Result<()> {
    if !can_run(&["nft", "find"]) {
        return Ok(());
    }
    let mut lab = lab(1).await?;
    let (a1, b1) = (lab.namespace_of("a1")?, lab.party("b1", 0)?);
    let to = SocketAddr::new(b1.address, 8080);
    let _former = Server::start(&b1, 8080, "b1")?;
    apply(&lab, &[web(""), slice(&[(b1.address, "")])]).await?;
    let mut open = [Conversation::open(&a1, cluster_ip(0))?, Conversation::open(&a1, to)?];
    for conversation in &mut open {
        ensure!(conversation.ask()?.by == "b1", "at first");
    }
    lab.pod_delete("b1").await?;
    // Its address is the first that is free, once nobody knows which was given last.
    let addresses = lab.node("node-2").state();
    let forget = ["-name", "last_reserved_ip.*", "-delete"];
    ensure!(std::process::Command::new("find").arg(addresses).args(forget).status()?.success());
    lab.pod_add("node-2", "b2").await?;
    let b2 = lab.party("b2", 0)?;
    ensure!(b2.address == b1.address, "{} instead of {}", b2.address, b1.address);
    let _next = Server::start(&b2, 8080, "b2")?;
    for conversation in &mut open {
        let answer = conversation.ask();
        let reset = answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
        ensure!(reset, "{answer:?}");
    }
    for to in [cluster_ip(0), to] {
        ensure!(ask(&a1, Over::Tcp, to)?.by == "b2", "a new connection to {to}");
    }
    Ok(())
}

/// SVC-121, SVC-122, SVC-130, SVC-132, SVC-134, SVC-135, SVC-136: policies `Local` and who they hold for.
#[tokio::test(flavor = "multi_thread")]
async fn local_policies_keep_traffic_on_the_node() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let outsider = Outsider::join(&lab)?;
    let b2 = lab.party("b2", 0)?;
    let _server = Server::start(&b2, 8080, "b2")?;
    let nodes = lab.nodes();
    let (near, far) = (host(&lab, &nodes[0], 0)?, host(&lab, &nodes[1], 0)?);
    let at = |party: &Party| SocketAddr::new(party.address, NODE_PORT);
    let (a1, b1) = (lab.namespace_of("a1")?, lab.namespace_of("b1")?);
    let silent = |client: &str, to| {
        let error = ask(client, Over::Tcp, to).err().map(|e| e.kind());
        ensure!(error == Some(ErrorKind::TimedOut), "{client} to {to}: {error:?}");
        Ok(())
    };
    let local = "  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n";
    apply(&lab, &[web(&format!("{local}{SELECTOR}")), pod("b2", "app: web")]).await?;
    silent(&a1, cluster_ip(0))?;
    silent(&near.namespace, cluster_ip(0))?;
    ensure!(ask(&b1, Over::Tcp, cluster_ip(0))?.by == "b2");
    ensure!(ask(&far.namespace, Over::Tcp, cluster_ip(0))?.by == "b2");
    silent(&outsider.namespace, at(&near))?;
    let seen = ask(&outsider.namespace, Over::Tcp, at(&far))?.sees;
    ensure!(seen.to_string() == outsider.underlay(), "it sees {seen}");
    ensure!(ask(&a1, Over::Tcp, at(&near))?.by == "b2", "at its own node the policy is none");
    silent(&b1, at(&near)).context("at another node it is that node's")?;
    ensure!(ask(&a1, Over::Tcp, at(&far))?.by == "b2");
    let external = "  externalTrafficPolicy: Local\n";
    apply(&lab, &[web(&format!("{external}{SELECTOR}")), pod("b2", "app: web")]).await?;
    ensure!(ask(&a1, Over::Tcp, cluster_ip(0))?.by == "b2", "inside it is not Local any more");
    silent(&outsider.namespace, at(&near))
}

const BALANCER: &str = "198.18.0.240";

/// A Service with that address from a pool, on TCP and UDP port 80.
pub(crate) fn balancer(more: &str) -> [String; 2] {
    let pool = "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: segment}\nspec: {addresses: [\"198.18.0.240-198.18.0.241\"]}\n";
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  loadBalancerIP: {BALANCER}\n  ipFamilies: [IPv4]\n{SELECTOR}{more}  ports:\n  - {{name: tcp, protocol: TCP, port: 80, targetPort: 8080}}\n  - {{name: udp, protocol: UDP, port: 80, targetPort: 8080}}\n"
    );
    [pool.to_owned(), service]
}

/// The node at whose Ethernet address a machine has the balancer.
fn found_at(lab: &TestLab, outsider: &Outsider) -> Result<String> {
    let known = outsider.tool(&format!("ip neigh show {BALANCER} dev eth0"))?;
    for node in lab.nodes() {
        let link = lab.run(&node, &["ip", "-o", "link", "show", "eth0"])?;
        let mac = link.split("link/ether ").nth(1).and_then(|l| l.split(' ').next());
        if known.contains(mac.context("eth0 has no Ethernet address")?) {
            return Ok(node);
        }
    }
    anyhow::bail!("at no node: {known}")
}

/// SVC-080, SVC-083, SVC-087, SVC-093, SVC-094, SVC-095, SVC-096, SVC-107: an address of a pool is at one node,
/// is another's soon after that one's agent is silent, and is gone with its Service.
#[tokio::test(flavor = "multi_thread")]
async fn balancer_is_at_one_node_and_moves() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let outsider = Outsider::join(&lab)?;
    let (a2, b2) = (lab.party("a2", 0)?, lab.party("b2", 0)?);
    let _servers = [Server::start(&a2, 8080, "a2")?, Server::start(&b2, 8080, "b2")?];
    let to = SocketAddr::new(BALANCER.parse()?, 80);
    let reached = async |client: &str, over| {
        eventually(Duration::from_secs(15), async || Ok(ask(client, over, to)?))
            .await
            .with_context(|| format!("{client} over {over:?}"))
    };
    let [pool, service] = balancer("");
    let pods = [pod("a2", "app: web"), pod("b2", "app: web")];
    apply(&lab, &[[pool, service].as_slice(), &pods].concat()).await?;
    let (a1, near) = (lab.namespace_of("a1")?, host(&lab, &lab.nodes()[0], 0)?.namespace);
    for over in [Over::Tcp, Over::Udp] {
        for client in [&outsider.namespace, &a1, &near] {
            reached(client, over).await?;
        }
    }
    let first = found_at(&lab, &outsider)?;
    let silenced = Pid::from_raw(lab.pid(&format!("{first}-agent"))?);
    kill(silenced, Signal::SIGSTOP)?;
    let since = Instant::now();
    let moved = eventually(Duration::from_secs(15), async || {
        let now = found_at(&lab, &outsider)?;
        ensure!(now != first, "it is at {now} still");
        ask(&outsider.namespace, Over::Tcp, to)?;
        Ok(())
    });
    let moved = moved.await;
    println!("the balancer answers at another node after {:.1?}", since.elapsed());
    kill(silenced, Signal::SIGCONT)?;
    moved?;
    lab.wait_ready().await?;
    // Only a node with an endpoint attracts what shall stay there, from whom it is for.
    let [pool, service] = balancer(
        "  externalTrafficPolicy: Local\n  loadBalancerSourceRanges: [\" 198.18.0.200/32 \"]\n",
    );
    let pods = [pod("a2", "app: other"), pod("b2", "app: web")];
    apply(&lab, &[[pool, service].as_slice(), &pods].concat()).await?;
    eventually(Duration::from_secs(15), async || {
        let node = found_at(&lab, &outsider)?;
        ensure!(node == lab.nodes()[1], "it is at {node}");
        let answer = ask(&outsider.namespace, Over::Tcp, to)?;
        ensure!(answer.by == "b2" && answer.sees.to_string() == outsider.underlay(), "{answer:?}");
        Ok(())
    })
    .await?;
    let outside_ranges = ask(&a1, Over::Tcp, to).err().map(|e| e.kind());
    ensure!(outside_ranges == Some(ErrorKind::TimedOut), "{outside_ranges:?}");
    apply(&lab, &[]).await?;
    eventually(SOON, async || {
        let proxies = lab.run(&lab.nodes()[1], &["ip", "neigh", "show", "proxy"])?;
        ensure!(!proxies.contains(BALANCER), "{proxies}");
        Ok(())
    })
    .await
}

/// What a health check answers, from the status line on.
pub(crate) fn health(namespace: &str, address: SocketAddr) -> std::io::Result<String> {
    let connected = netns::enter(namespace, || TcpStream::connect_timeout(&address, PATIENCE));
    let mut stream = connected??;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// SVC-101, SVC-102, SVC-103, SVC-104: nodes say whether they have a ready endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_say_whether_they_have_an_endpoint() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    let health = |node: &str| -> Result<String> {
        let address = SocketAddr::new(node_address(&lab, node, 0)?, 32_000);
        Ok(health(&outsider.namespace, address)?)
    };
    let local = "  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000\n";
    let manifests = |more: &str| {
        let [pool, service] = balancer(more);
        [pool, service, pod("b1", "app: web")]
    };
    apply(&lab, &manifests(local)).await?;
    let nodes = lab.nodes();
    eventually(SOON, async || {
        let (without, with) = (health(&nodes[0])?, health(&nodes[1])?);
        ensure!(without.starts_with("HTTP/1.1 503 "), "{without}");
        ensure!(with.starts_with("HTTP/1.1 200 "), "{with}");
        let body: serde_json::Value =
            serde_json::from_str(with.split("\r\n\r\n").nth(1).unwrap_or_default())?;
        let expected = serde_json::json!({
            "service": {"namespace": "default", "name": "web"},
            "localEndpoints": 1,
            "serviceProxyHealthy": true,
        });
        ensure!(body == expected, "{body}");
        let headers = with.to_ascii_lowercase();
        ensure!(headers.contains("content-type: application/json\r\n"), "{with}");
        ensure!(headers.contains("x-content-type-options: nosniff\r\n"), "{with}");
        Ok(())
    })
    .await?;
    apply(&lab, &manifests("")).await?;
    eventually(SOON, async || {
        ensure!(health(&nodes[1]).is_err(), "the port is open still");
        Ok(())
    })
    .await
}

/// SVC-044: two hundred new connections a second while every backend is replaced: none is refused.
#[tokio::test(flavor = "multi_thread")]
async fn rolling_replacement_refuses_nobody() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let (a2, b1, b2) = (lab.party("a2", 0)?, lab.party("b1", 0)?, lab.party("b2", 0)?);
    let all = [(&a2, "a2"), (&b1, "b1"), (&b2, "b2")];
    let _servers = all
        .iter()
        .map(|(party, name)| Server::start(party, 8080, name))
        .collect::<Result<Vec<_>>>()?;
    apply(&lab, &[web(""), slice(&[(a2.address, "")])]).await?;
    let (client, stop) = (lab.namespace_of("a1")?, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let asking = std::thread::spawn(move || {
        let mut answers = BTreeMap::<String, u32>::new();
        while !stopped.load(Ordering::Relaxed) {
            let next = Instant::now() + Duration::from_millis(5);
            let by = match ask(&client, Over::Tcp, cluster_ip(0)) {
                Ok(answer) => answer.by,
                Err(error) => format!("error: {error}"),
            };
            *answers.entry(by).or_default() += 1;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        answers
    });
    for (new, old) in [(&b1, &a2), (&b2, &b1), (&a2, &b2), (&b1, &a2)] {
        apply(&lab, &[web(""), slice(&[(old.address, ""), (new.address, "")])]).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        apply(&lab, &[web(""), slice(&[(new.address, "")])]).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let answers = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
    println!("{answers:?}");
    let names: Vec<_> = answers.keys().map(String::as_str).collect();
    ensure!(names == ["a2", "b1", "b2"], "{answers:?}");
    Ok(())
}

/// SVC-195: a datagram larger than any MTU on the way, there and back. SVC-197: one port of a client to
/// everything that leads to one backend, the backend itself included.
#[tokio::test(flavor = "multi_thread")]
async fn fragments_and_shared_ports_pass() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let b1 = lab.party("b1", 0)?;
    let _server = Server::start(&b1, 8080, "b1")?;
    let other = SocketAddr::new("10.96.0.11".parse()?, 80);
    let second = web("")
        .replace("name: web", "name: web2")
        .replace(CLUSTER_IPS[0], "10.96.0.11")
        .replace(CLUSTER_IPS[1], "fd00:10:96::11")
        .replace("30080", "30081");
    let slices = slice(&[(b1.address, "")]);
    let more = slices
        .replace("name: web-1", "name: web2-1")
        .replace("service-name: web", "service-name: web2");
    apply(&lab, &[web(""), second, slices, more]).await?;
    let a1 = lab.namespace_of("a1")?;
    let socket = udp_to(&a1, cluster_ip(0))?;
    socket.send(&[7; 2_000])?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).context("no answer to a datagram in fragments")?;
    ensure!(answer.get(..2) == Some(b"b1"), "{length} bytes");
    let node_port = |node| Ok::<_, anyhow::Error>((node_address(&lab, node, 0)?, NODE_PORT).into());
    let direct = SocketAddr::new(b1.address, 8080);
    let ways = [cluster_ip(0), other, direct, node_port("node-1")?, node_port("node-2")?];
    for client in [a1, lab.namespace_of("node-1")?] {
        // In either order: which of them comes first has the port.
        for (port, ways) in
            [(45_000, ways), (45_001, [ways[2], ways[4], ways[3], ways[1], ways[0]])]
        {
            tcp_from_one_port(&client, port, &ways).with_context(|| client.clone())?;
            udp_from_one_port(&client, port, &ways).with_context(|| client.clone())?;
        }
    }
    Ok(())
}

fn tcp_from_one_port(namespace: &str, port: u16, ways: &[SocketAddr]) -> Result<()> {
    let mut open = Vec::new();
    for to in ways {
        let stream = netns::enter(namespace, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0; 4], port)).into())?;
            socket.connect_timeout(&(*to).into(), PATIENCE)?;
            Ok::<_, std::io::Error>(TcpStream::from(socket))
        })?;
        open.push((to, stream.with_context(|| format!("TCP from {port} to {to}"))?));
    }
    for (to, mut stream) in open {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"?")?;
        ensure!(stream.read(&mut [0; 64])? > 0, "no answer over TCP from {port} to {to}");
    }
    Ok(())
}

fn udp_from_one_port(namespace: &str, port: u16, ways: &[SocketAddr]) -> Result<()> {
    let socket = netns::enter(namespace, || UdpSocket::bind(("0.0.0.0", port)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    for to in ways.iter().chain(ways) {
        socket.send_to(b"?", to)?;
        let answer = socket.recv_from(&mut [0; 64]);
        let (_, from) = answer.with_context(|| format!("UDP from {port} to {to}"))?;
        ensure!(from == *to, "{from} answers for {to}");
    }
    Ok(())
}
