//! Network policies, with real sockets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;
use weft_tests::outsider::Outsider;
use weft_tests::service::{Conversation, Over, Server, ask};
use weft_tests::talk::Party;
use weft_tests::{TestLab, can_run, eventually};

use crate::failures::kill_and_await_return;
use crate::services::{NODE_PORT, SELECTOR, apply, cluster_ip, lab, node_address, pod, web};
use crate::sources::outside;

const SOON: Duration = Duration::from_secs(5);
pub(crate) const PORT: u16 = 8080;
pub(crate) const OTHER_PORT: u16 = 8081;
/// Between two tries of a pod to get something out: far less than it takes to wire it.
const PAUSE: Duration = Duration::from_micros(200);

/// A policy for pods with these labels, and the rest of its spec.
pub(crate) fn policy(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\nspec:\n  podSelector: {{matchLabels: {{{labels}}}}}\n{spec}"
    )
}

/// Pods on two nodes: `a1`, `b1` are clients, `a2`, `b2` serve, `a3` and `b3` are anybody.
pub(crate) fn pods() -> Vec<String> {
    let labels = [("1", "role: client"), ("2", "app: web"), ("3", "role: other")];
    let all =
        ["a", "b"].into_iter().flat_map(|node| labels.map(|(n, l)| (format!("{node}{n}"), l)));
    all.map(|(name, labels)| pod(&name, labels)).collect()
}

/// On both ports and protocols, at both addresses.
pub(crate) fn servers(lab: &TestLab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for name in ["a2", "b2"] {
        for family in [0, 1] {
            for port in [PORT, OTHER_PORT] {
                servers.push(Server::start(&lab.party(name, family)?, port, name)?);
            }
        }
    }
    Ok(servers)
}

fn address(lab: &TestLab, pod: &str, family: usize) -> Result<IpAddr> {
    Ok(lab.party(pod, family)?.address)
}

/// Whether a pod gets an answer from `to`; a refusal is none.
fn passes(lab: &TestLab, from: &str, over: Over, to: SocketAddr) -> Result<bool> {
    Ok(ask(&lab.namespace_of(from)?, over, to).is_ok())
}

/// What each of the clients gets from each server: `a1>b2 TCP 8080` for what passes.
fn matrix(lab: &TestLab, clients: &[&str], family: usize) -> Result<Vec<String>> {
    let mut passing = Vec::new();
    for client in clients {
        for server in ["a2", "b2"] {
            for (over, name) in [(Over::Tcp, "TCP"), (Over::Udp, "UDP")] {
                for port in [PORT, OTHER_PORT] {
                    let to = SocketAddr::new(address(lab, server, family)?, port);
                    if passes(lab, client, over, to)? {
                        passing.push(format!("{client}>{server} {name} {port}"));
                    }
                }
            }
        }
    }
    Ok(passing)
}

/// NP-002, NP-003, NP-007, NP-008, NP-020, NP-023, NP-040, NP-050, NP-060, NP-072: by label, port and
/// protocol, on one node and between nodes, in both families, directly and through a Service.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_rule_allows_gets_to_an_isolated_pod() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let ingress = "  ingress:\n  - from: [{podSelector: {matchLabels: {role: client}}}]\n    ports: [{port: 8080}]\n";
    let objects = [pods(), vec![web(SELECTOR), policy("web", "app: web", ingress)]].concat();
    apply(&lab, &objects).await?;
    for family in [0, 1] {
        let passing = matrix(&lab, &["a1", "b3"], family)?;
        ensure!(passing == ["a1>a2 TCP 8080", "a1>b2 TCP 8080"], "family {family}: {passing:?}");
        let through = cluster_ip(family);
        ensure!(passes(&lab, "b1", Over::Tcp, through)?, "b1 through the Service");
        ensure!(!passes(&lab, "a3", Over::Tcp, through)?, "a3 through the Service");
        ensure!(!passes(&lab, "b1", Over::Udp, through)?, "b1 through the Service over UDP");
        // Clients are not isolated, and a pod reaches itself.
        let own = SocketAddr::new(address(&lab, "a2", family)?, OTHER_PORT);
        ensure!(passes(&lab, "a2", Over::Udp, own)?, "a2 to itself");
    }
    // NP-113: the node says what dropped.
    eventually(SOON, async || {
        let drops = lab.agent_status("node-1").await?.policy_drops;
        let why = "NetworkPolicy default/web, ingress: no rule allows it";
        ensure!(drops.iter().any(|d| d.why == why && d.packets > 0), "{drops:?}");
        Ok(())
    })
    .await?;
    // NP-061: its node reaches it, NP-064: another node does not.
    let (a2, tcp) = (SocketAddr::new(address(&lab, "a2", 0)?, OTHER_PORT), Over::Tcp);
    ensure!(passes(&lab, "node-1", tcp, a2)?, "the pod's own node");
    ensure!(!passes(&lab, "node-2", tcp, a2)?, "another node");
    Ok(())
}

/// NP-004, NP-011, NP-030, NP-031, NP-035, NP-046: what a pod may send, by address and range of ports.
#[tokio::test(flavor = "multi_thread")]
async fn isolated_pod_sends_only_what_a_rule_allows() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let b2 = address(&lab, "b2", 0)?;
    let egress = format!(
        "  policyTypes: [Egress]\n  egress:\n  - to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{b2}/32]}}}}]\n    ports: [{{port: 8081, endPort: 8090}}, {{protocol: UDP, port: 8080}}]\n"
    );
    let web = web(SELECTOR);
    let objects = [pods(), vec![web.clone(), policy("out", "role: client", &egress)]].concat();
    apply(&lab, &objects).await?;
    let passing = matrix(&lab, &["a1"], 0)?;
    ensure!(passing == ["a1>a2 TCP 8081", "a1>a2 UDP 8080"], "{passing:?}");
    ensure!(matrix(&lab, &["a1"], 1)?.is_empty(), "a range of IPv4 says nothing of IPv6");
    ensure!(matrix(&lab, &["a3"], 0)?.len() == 8, "others are as free as before");
    // Nothing at all, though everybody may send to the servers.
    let none = policy("out", "role: client", "  policyTypes: [Egress]\n");
    let all = policy("in", "app: web", "  ingress: [{}]\n");
    apply(&lab, &[pods(), vec![web, none, all]].concat()).await?;
    ensure!(matrix(&lab, &["b1"], 0)?.is_empty(), "egress of the client is denied");
    ensure!(matrix(&lab, &["b3"], 0)?.len() == 8, "the servers let everybody in");
    Ok(())
}

/// NP-090, NP-092, NP-093, NP-103: policies come, change and go while connections are open, and outlive
/// agent and datapath.
#[tokio::test(flavor = "multi_thread")]
async fn policy_cuts_what_it_no_longer_allows_and_nothing_else() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let to = SocketAddr::new(address(&lab, "b2", 0)?, PORT);
    let (a1, a3) = (lab.namespace_of("a1")?, lab.namespace_of("a3")?);
    apply(&lab, &pods()).await?;
    let (mut client, mut other) = (Conversation::open(&a1, to)?, Conversation::open(&a3, to)?);
    client.ask()?;
    other.ask()?;
    let allow = "  ingress:\n  - from: [{podSelector: {matchLabels: {role: client}}}]\n";
    let web = policy("web", "app: web", allow);
    apply(&lab, &[pods(), vec![web.clone()]].concat()).await?;
    client.ask().context("allowed before and now")?;
    ensure!(other.ask().is_err(), "an open connection that is allowed no longer");
    for process in ["agent", "datapath"] {
        kill_and_await_return(&lab, &format!("{}-{process}", lab.nodes()[1])).await?;
        ensure!(!passes(&lab, "a3", Over::Tcp, to)?, "after a restart of the {process}");
        client.ask().with_context(|| format!("after a restart of the {process}"))?;
    }
    // A label lets it in, and the policy's end everybody.
    let relabelled: Vec<_> =
        pods().into_iter().map(|p| p.replace("role: other", "role: client")).collect();
    apply(&lab, &[relabelled, vec![web]].concat()).await?;
    ensure!(passes(&lab, "a3", Over::Tcp, to)?, "labelled as a client");
    apply(&lab, &pods()).await?;
    ensure!(passes(&lab, "a3", Over::Udp, to)?, "without a policy");
    client.ask().context("allowed all the time")?;
    Ok(())
}

/// NP-096, NP-103: a hub that starts anew does not take pods for others because their documents are gone or
/// cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn policy_holds_for_pods_whose_documents_a_new_hub_does_not_find() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let _more = Server::start(&lab.party("a1", 0)?, PORT, "a1")?;
    let documents = ["a2.yaml", "b2.yaml"];
    for name in documents {
        lab.put(name, &pod(name.trim_end_matches(".yaml"), "app: web"))?;
    }
    let others = pods().into_iter().filter(|pod| !pod.contains("app: web"));
    apply(&lab, &others.chain([policy("web", "app: web", "")]).collect::<Vec<_>>()).await?;
    let passing = |to: &[&str]| -> Result<Vec<String>> {
        let mut passing = Vec::new();
        for pod in to {
            let to = SocketAddr::new(address(&lab, pod, 0)?, PORT);
            if passes(&lab, "a3", Over::Tcp, to)? {
                passing.push((*pod).to_owned());
            }
        }
        Ok(passing)
    };
    ensure!(passing(&["a1", "a2", "b2"])? == ["a1"], "before");
    std::fs::remove_file(lab.manifests().join(documents[0]))?;
    lab.put(documents[1], "apiVersion: v1\nkind: Pod\nmetadata: {{\n")?;
    eventually(SOON, async || {
        let problems = lab.status().await?.problems;
        ensure!(problems.len() == 1, "the hub has not seen it: {problems:?}");
        Ok(())
    })
    .await?;
    kill_and_await_return(&lab, "hub").await?;
    // What the new hub says has come to the nodes when this holds.
    lab.put("more.yaml", &policy("more", "role: client", ""))?;
    eventually(SOON, async || {
        ensure!(passing(&["a1"])?.is_empty(), "a policy that came after the restart");
        Ok(())
    })
    .await?;
    let passing = passing(&["a2", "b2"])?;
    ensure!(passing.is_empty(), "{passing:?}");
    Ok(())
}

/// NP-100, NP-102: a pod that sends in its first instant, while it is wired, gets nothing out that its
/// policy forbids.
#[tokio::test(flavor = "multi_thread")]
async fn new_pod_is_closed_before_its_first_packet() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let mut lab = lab(1).await?;
    let b1 = lab.party("b1", 0)?;
    let witness = netns::enter(&b1.namespace, || UdpSocket::bind((b1.address, PORT)))??;
    witness.set_read_timeout(Some(Duration::from_millis(300)))?;
    let nobody = policy("nobody", "app: new", "  policyTypes: [Ingress, Egress]\n");
    let new = |n: usize| format!("n{n}");
    let manifests = (0..10).map(|n| pod(&new(n), "app: new")).chain([nobody]);
    apply(&lab, &manifests.collect::<Vec<_>>()).await?;
    let to = SocketAddr::new(b1.address, PORT);
    let mut senders = Vec::new();
    let stop = Arc::new(AtomicBool::new(false));
    for n in 0..10 {
        let (namespace, stop) = (format!("{}.pod.{}", lab.name(), new(n)), Arc::clone(&stop));
        senders.push(std::thread::spawn(move || {
            let mut sent = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let socket = netns::enter(&namespace, || UdpSocket::bind("0.0.0.0:0"));
                let Ok(Ok(socket)) = socket else {
                    std::thread::sleep(PAUSE);
                    continue;
                };
                // Until it has a way out, and from then on.
                while !stop.load(Ordering::Relaxed) {
                    sent += u32::from(socket.send_to(b"?", to).is_ok());
                    std::thread::sleep(PAUSE);
                }
            }
            sent
        }));
        lab.pod_add("node-1", &new(n)).await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        let sent = sender.join().map_err(|_| anyhow::anyhow!("a sender failed"))?;
        ensure!(sent > 0, "a pod sent nothing");
    }
    let heard = witness.recv_from(&mut [0; 16]);
    ensure!(heard.is_err(), "{heard:?} got out");
    // It is the policy that holds it.
    apply(&lab, &(0..10).map(|n| pod(&new(n), "app: new")).collect::<Vec<_>>()).await?;
    let socket = netns::enter(&lab.namespace_of("n0")?, || UdpSocket::bind("0.0.0.0:0"))??;
    eventually(SOON, async || {
        socket.send_to(b"?", to)?;
        witness.recv_from(&mut [0; 16]).context("nothing arrives")?;
        Ok(())
    })
    .await
}

/// NP-034, NP-074, SVC-133: ranges at ingress are compared with who the pod sees: with the client itself where it
/// came straight to the pod's node, with the node that it came to elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_at_ingress_mean_whom_the_pod_sees() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    let nodes = lab.nodes();
    for family in [0, 1] {
        let a2 = lab.party("a2", family)?;
        let _server = Server::start(&a2, PORT, "a2")?;
        let client =
            Party { namespace: outsider.namespace.clone(), address: outside(&outsider, family)? };
        let length = if family == 0 { 32 } else { 128 };
        let of_node = |node: usize| node_address(&lab, &nodes[node], family);
        let port_of = |node| Ok::<_, anyhow::Error>(SocketAddr::new(of_node(node)?, NODE_PORT));
        let near = ask(&client.namespace, Over::Tcp, port_of(0)?);
        ensure!(near.is_err(), "there is no Service yet");
        let world = [client.address, of_node(1)?, IpAddr::from([192, 0, 2, 1])];
        for (external, entry, seen) in [
            ("Local", 0, client.address),
            ("Cluster", 0, client.address),
            ("Cluster", 1, of_node(1)?),
        ] {
            let service = web(&format!("  externalTrafficPolicy: {external}\n{SELECTOR}"));
            for allowed in world {
                let ingress = format!(
                    "  ingress:\n  - from: [{{ipBlock: {{cidr: \"{allowed}/{}\"}}}}]\n",
                    if allowed.is_ipv4() { 32 } else { length }
                );
                let objects = [pod("a1", "role: client"), pod("a2", "app: web"), service.clone()];
                let objects = [&objects[..], &[policy("web", "app: web", &ingress)]].concat();
                apply(&lab, &objects).await?;
                for over in [Over::Tcp, Over::Udp] {
                    let answer = ask(&client.namespace, over, port_of(entry)?);
                    let passes = answer.as_ref().is_ok_and(|a| a.sees == seen);
                    ensure!(
                        passes == (allowed == seen),
                        "{external} by node {entry}, {allowed} may: {answer:?}"
                    );
                }
            }
        }
        apply(&lab, &[pod("a1", "role: client"), pod("a2", "app: web")]).await?;
    }
    Ok(())
}

/// NP-042: a port by its name is each destination pod's own.
#[tokio::test(flavor = "multi_thread")]
async fn named_port_is_looked_up_at_each_destination() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let serving = |name: &str, port: u16| {
        let ports = format!("i, ports: [{{name: serve, containerPort: {port}}}]}}");
        pod(name, "app: web").replace("i}", &ports)
    };
    let egress = "  policyTypes: [Egress]\n  egress: [{ports: [{port: serve}]}]\n";
    let others = pods().into_iter().filter(|p| !p.contains("app: web"));
    let named = [serving("a2", PORT), serving("b2", OTHER_PORT)];
    let all = others.chain(named).chain([policy("out", "role: client", egress)]);
    apply(&lab, &all.collect::<Vec<_>>()).await?;
    for family in [0, 1] {
        let passing = matrix(&lab, &["a1"], family)?;
        ensure!(passing == ["a1>a2 TCP 8080", "a1>b2 TCP 8081"], "{passing:?}");
    }
    Ok(())
}

/// NP-075: an API server's machine is reached by its own address and port, which are compared after translation.
#[tokio::test(flavor = "multi_thread")]
async fn api_server_is_allowed_by_its_own_address() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    let machine = outsider.party_at(outsider.underlay())?;
    let _server = Server::start(&machine, 6443, "api")?;
    let address = machine.address;
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kubernetes}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{name: https, port: 443, targetPort: 6443}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kubernetes, labels: {{kubernetes.io/service-name: kubernetes}}}}\naddressType: IPv4\nports: [{{name: https, port: 6443}}]\nendpoints: [{{addresses: [{address}]}}]\n"
    );
    let to = SocketAddr::new([10, 96, 0, 1].into(), 443);
    for (port, allowed) in [(6443, true), (443, false)] {
        let egress = format!(
            "  policyTypes: [Egress]\n  egress:\n  - to: [{{ipBlock: {{cidr: {address}/32}}}}]\n    ports: [{{port: {port}}}]\n"
        );
        let objects =
            [pod("a1", "role: client"), service.clone(), policy("out", "role: client", &egress)];
        apply(&lab, &objects).await?;
        ensure!(passes(&lab, "a1", Over::Tcp, to)? == allowed, "port {port}");
    }
    Ok(())
}

/// NP-054, NP-061: a pod that may send and get nothing still finds its neighbours, so its node reaches it.
#[tokio::test(flavor = "multi_thread")]
async fn pod_that_is_closed_finds_its_neighbours() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let closed = policy("closed", "role: client", "  policyTypes: [Ingress, Egress]\n");
    apply(&lab, &[pod("a1", "role: client"), pod("a2", "role: other"), closed]).await?;
    for family in [0, 1] {
        let a1 = lab.party("a1", family)?;
        let _server = Server::start(&a1, PORT, "a1")?;
        let to = SocketAddr::new(a1.address, PORT);
        for _ in 0..3 {
            for target in ["a1", "node-1"] {
                lab.run(target, &["ip", "neigh", "flush", "all"])?;
            }
            for over in [Over::Tcp, Over::Udp] {
                ensure!(passes(&lab, "node-1", over, to)?, "family {family}, {over:?}");
                ensure!(!passes(&lab, "a2", over, to)?, "family {family}: it is closed");
            }
        }
    }
    Ok(())
}
