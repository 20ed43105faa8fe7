//! Policies that name hosts, with real queries and sockets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::dns::{DnsServer, UPSTREAM_PORT, resolve};
use weft_tests::service::{Conversation, Over, Server, ask, is_silent};
use weft_tests::talk::Party;
use weft_tests::{TestLab, can_run, command_in, eventually};

use crate::failures::kill_and_await_return;
use crate::policies::{OTHER_PORT, PORT, policy};
use crate::services::{apply, pod};

const SOON: Duration = Duration::from_secs(10);
/// Longer than any answer here holds.
const LATER: Duration = Duration::from_secs(40);
/// The cluster's DNS Service.
const DNS: &str = "10.96.0.10";
/// Hosts in the world, each with an address that ends in its number.
const WORLD: [&str; 2] = ["198.51.100.", "fd00:51::"];
const API: u8 = 200;
const BRIEF: u8 = 201;
const CDN: u8 = 202;
const ORG: u8 = 203;
const OTHER: u8 = 204;
/// Hosts `nN.many.example`, from 1.
const MANY: u8 = 60;

const DB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: None\n  selector: {app: web}\n  ports: [{name: peer, port: 7000}]\n";
const PORTS: &str = "[{port: 8080}, {protocol: UDP, port: 8080}]";

/// An `FqdnPolicy` for clients, with rules for these names at [`PORT`].
fn names(names: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: FqdnPolicy\nmetadata: {{name: names}}\nspec:\n  podSelector: {{matchLabels: {{role: client}}}}\n  egress: [{{names: [{names}], ports: {PORTS}}}]\n"
    )
}

/// Clients may ask for names.
fn dns() -> String {
    let spec =
        "  policyTypes: [Egress]\n  egress: [{ports: [{protocol: UDP, port: 53}, {port: 53}]}]\n";
    policy("dns", "role: client", spec)
}

fn host(number: u8, family: usize) -> SocketAddr {
    let address = format!("{}{number}", WORLD[family]).parse().unwrap_or(IpAddr::from([0; 4]));
    SocketAddr::new(address, PORT)
}

/// A lab, a server that knows names of hosts in the world, and those hosts.
struct World {
    lab: TestLab,
    _dns: DnsServer,
    _hosts: Vec<Server>,
}

/// Clients `a1`, `a2` and `b1` on two nodes, `a3` is somebody else, `b2` serves.
async fn world() -> Result<World> {
    let upstream = format!("--dns-upstream=198.18.0.2:{UPSTREAM_PORT}");
    let hub_arguments = vec![upstream];
    let options = Options { nodes: 2, hub_arguments, ..Options::default() };
    let lab = TestLab::with_pods(options, 3).await?;
    let hub = lab.hub_namespace();
    let run = |namespace: &str, command: &str| -> Result<()> {
        let arguments: Vec<_> = command.split(' ').collect();
        let done = command_in(namespace, "ip")?.args(&arguments).status()?;
        ensure!(done.success(), "{namespace}: ip {command}");
        Ok(())
    };
    for node in ["node-1", "node-2"] {
        let namespace = lab.namespace_of(node)?;
        run(&namespace, "route add 198.51.100.0/24 via 198.18.0.2")?;
        run(&namespace, "-6 route add fd00:51::/64 via fd00:198:18::2")?;
    }
    let record = |name: &str, number: u8, ttl: u32| {
        let [v4, v6] = [0, 1].map(|family| host(number, family).ip());
        format!("--host-record={name},{v4},{v6},{ttl}")
    };
    let mut records = vec![
        record("api.example.com", API, 300),
        record("brief.example.com", BRIEF, 1),
        record("cdn.example.net", CDN, 300),
        "--cname=www.example.com,cdn.example.net,300".to_owned(),
        record("example.org", ORG, 300),
        record("a.example.org", API, 300),
        record("a.b.example.org", OTHER, 300),
        record("other.example", OTHER, 300),
    ];
    records.extend((1..=MANY).map(|n| record(&format!("n{n}.many.example"), n, 300)));
    let dns = DnsServer::start(&lab, UPSTREAM_PORT, &records)?;
    let mut hosts = Vec::new();
    for number in (1..=MANY).chain([API, BRIEF, CDN, ORG, OTHER]) {
        for family in [0, 1] {
            let address = host(number, family).ip();
            let length = if family == 0 { 32 } else { 128 };
            let nodad = if family == 0 { "" } else { " nodad" };
            run(&hub, &format!("addr add {address}/{length} dev lo{nodad}"))?;
            let at = Party { namespace: hub.clone(), address };
            for port in [PORT, OTHER_PORT] {
                if port == PORT || number == API {
                    hosts.push(Server::start(&at, port, "host")?);
                }
            }
        }
    }
    let world = World { lab, _dns: dns, _hosts: hosts };
    world.apply(&[]).await?;
    eventually(SOON, async || {
        for client in ["a1", "b1"] {
            world.resolve(client, "other.example")?;
        }
        Ok(())
    })
    .await?;
    Ok(world)
}

impl World {
    /// Has these beside the pods.
    async fn apply(&self, rest: &[String]) -> Result<()> {
        let labels = ["role: client", "role: client", "role: other"];
        let on_a = (1..).zip(labels).map(|(n, labels)| pod(&format!("a{n}"), labels));
        let labels = ["role: client", "app: web", "role: other"];
        let on_b = (1..).zip(labels).map(|(n, labels)| pod(&format!("b{n}"), labels));
        let all = on_a.chain(on_b).chain([DB.to_owned()]).chain(rest.iter().cloned());
        apply(&self.lab, &all.collect::<Vec<_>>()).await
    }

    fn resolve(&self, pod: &str, name: &str) -> Result<Vec<IpAddr>> {
        self.resolve_as(pod, name, Over::Udp, 0)
    }

    fn resolve_as(&self, pod: &str, name: &str, over: Over, family: usize) -> Result<Vec<IpAddr>> {
        let server = DNS.parse()?;
        let found = resolve(&self.lab.namespace_of(pod)?, server, over, name, family);
        let found = found.with_context(|| format!("{pod} asks for {name}"))?;
        ensure!(!found.is_empty(), "{name} has no address");
        Ok(found)
    }

    /// Whether the one packet that a pod sends to a host is answered.
    fn passes(&self, pod: &str, to: SocketAddr) -> Result<bool> {
        Ok(ask(&self.lab.namespace_of(pod)?, Over::Udp, to).is_ok())
    }

    /// Whether it is not.
    fn is_stopped(&self, pod: &str, to: SocketAddr) -> Result<bool> {
        Ok(is_silent(&self.lab.namespace_of(pod)?, to)?)
    }

    fn open(&self, pod: &str, to: SocketAddr) -> Result<Conversation> {
        Ok(Conversation::open(&self.lab.namespace_of(pod)?, to)?)
    }
}

/// NP-153, NP-160, NP-165, NP-166: each first packet passes that follows an answer at once, over UDP and TCP, of
/// both families, and from the cache; and nobody else's does.
#[tokio::test(flavor = "multi_thread")]
async fn first_packet_after_the_answer_passes() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    world.apply(&[names("'*.many.example'"), dns()]).await?;
    for number in 1..=MANY {
        let family = usize::from(number % 3 == 0);
        let over = if number % 2 == 0 { Over::Udp } else { Over::Tcp };
        let name = format!("n{number}.many.example");
        for client in ["a1", "b1"] {
            let found = world.resolve_as(client, &name, over, family)?;
            let to = host(number, family);
            ensure!(found == [to.ip()], "{name} is {found:?}");
            ensure!(world.passes(client, to)?, "{client}, first packet to {name}");
        }
        if number % 20 == 0 {
            ensure!(world.is_stopped("a2", host(number, family))?, "a2 has not asked for {name}");
            let found = world.resolve_as("a2", &name, over, family)?;
            ensure!(found.len() == 1 && world.passes("a2", host(number, family))?, "a2, {name}");
        }
    }
    // NP-154, NP-167: it may ask for anything, which opens nothing.
    world.resolve("a1", "other.example")?;
    ensure!(world.is_stopped("a1", host(OTHER, 0))?, "a name that no rule has");
    ensure!(world.passes("a3", host(OTHER, 0))?, "others are as free as before");
    Ok(())
}

/// NP-151, NP-152, NP-154, NP-158, NP-161, NP-163: which names are meant, and at which ports.
#[tokio::test(flavor = "multi_thread")]
async fn rule_means_its_names_and_their_aliases() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    let policy =
        names("API.example.com., '*.example.org', www.example.com, db.default.svc.cluster.local");
    world.apply(std::slice::from_ref(&policy)).await?;
    ensure!(world.resolve("a1", "api.example.com").is_err(), "names give no right to ask");
    world.apply(&[policy, dns()]).await?;
    world.resolve("a1", "Api.Example.COM")?;
    ensure!(world.passes("a1", host(API, 0))?, "in other letters");
    let other_port = SocketAddr::new(host(API, 0).ip(), OTHER_PORT);
    ensure!(world.is_stopped("a1", other_port)?, "another port");
    world.resolve("a1", "example.org")?;
    ensure!(world.is_stopped("a1", host(ORG, 0))?, "not below the name");
    world.resolve("a1", "a.b.example.org")?;
    ensure!(world.passes("a1", host(OTHER, 0))?, "two labels below the name");
    // The name counts, not what it stands for.
    world.resolve("b1", "cdn.example.net")?;
    ensure!(world.is_stopped("b1", host(CDN, 0))?, "a name that no rule has");
    world.resolve("b1", "www.example.com")?;
    ensure!(world.passes("b1", host(CDN, 0))?, "an alias");
    // NP-163: of the cluster, which the node's resolver answers as well.
    let b2 = world.lab.party("b2", 0)?;
    let _server = Server::start(&b2, PORT, "b2")?;
    let to = SocketAddr::new(b2.address, PORT);
    ensure!(world.is_stopped("a1", to)?, "not asked for yet");
    ensure!(world.resolve("a1", "db.default.svc.cluster.local")? == [b2.address], "the pod");
    ensure!(world.passes("a1", to)?, "an endpoint of a headless Service");
    Ok(())
}

/// NP-156, NP-157: what an answer allowed ends with it, but not for what is open.
#[tokio::test(flavor = "multi_thread")]
async fn open_connection_outlives_the_answer_and_no_new_one_begins() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    world.apply(&[names("brief.example.com"), dns()]).await?;
    world.resolve("a1", "brief.example.com")?;
    let to = host(BRIEF, 0);
    let mut open = world.open("a1", to)?;
    eventually(LATER, async || {
        open.ask().context("an open connection")?;
        ensure!(world.is_stopped("a1", to)?, "the answer still holds");
        Ok(())
    })
    .await?;
    ensure!(world.open("a1", to).is_err(), "a new connection");
    open.ask().context("after the answer's end")?;
    world.resolve("a1", "brief.example.com")?;
    ensure!(world.passes("a1", to)?, "asked for again");
    open.ask()?;
    Ok(())
}

/// NP-093: what a policy let pass ends with the policy or the name in it, and not with others; also when the
/// answer is long over.
#[tokio::test(flavor = "multi_thread")]
async fn policy_that_is_gone_cuts_what_it_let_pass() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    let both = names("api.example.com, brief.example.com");
    world.apply(&[both.clone(), dns()]).await?;
    world.resolve("a1", "api.example.com")?;
    world.resolve("a1", "brief.example.com")?;
    let (mut api, mut brief) = (world.open("a1", host(API, 0))?, world.open("a1", host(BRIEF, 0))?);
    eventually(LATER, async || {
        ensure!(world.is_stopped("a1", host(BRIEF, 0))?, "the answer still holds");
        Ok(())
    })
    .await?;
    world.apply(&[names("other.example, brief.example.com, api.example.com"), dns()]).await?;
    api.ask()?;
    brief.ask()?;
    world.apply(&[names("api.example.com"), dns()]).await?;
    api.ask().context("still in the policy")?;
    ensure!(brief.ask().is_err(), "the name is gone, its answer was over");
    world.apply(&[dns()]).await?;
    ensure!(api.ask().is_err(), "the policy is gone");
    ensure!(world.is_stopped("a1", host(API, 0))?, "isolated by the other one");
    world.apply(&[]).await?;
    ensure!(world.passes("a1", host(API, 0))?, "without policies");
    Ok(())
}

/// NP-164: what pods know outlives the agent and the datapath.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_pod_knows_outlive_a_restart() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    world.apply(&[names("'*.example.com'"), dns()]).await?;
    let to = host(API, 0);
    world.resolve("a1", "api.example.com")?;
    let mut open = world.open("a1", to)?;
    for process in ["agent", "datapath", "agent"] {
        kill_and_await_return(&world.lab, &format!("node-1-{process}")).await?;
        // Packets may be lost while a datapath starts.
        eventually(SOON, async || {
            ensure!(world.passes("a1", to)?, "new, after a restart of the {process}");
            Ok(())
        })
        .await?;
        open.ask().with_context(|| format!("open, after a restart of the {process}"))?;
        ensure!(world.is_stopped("a2", to)?, "a2 has not asked");
    }
    // Names are learned as before.
    eventually(SOON, async || world.resolve("a1", "www.example.com").map(drop)).await?;
    ensure!(world.passes("a1", host(CDN, 0))?, "learned after the restart");
    Ok(())
}

/// NP-134, NP-138, NP-168: `domainNames` of a `ClusterNetworkPolicy` of tier Admin accept what is denied after
/// them; NP-114: what is explained is what passes.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_policy_accepts_domain_names() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    let admin = format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: world}}\nspec:\n  tier: Admin\n  priority: 1\n  subject: {{pods: {{podSelector: {{matchLabels: {{role: other}}}}}}}}\n  egress:\n  - {{name: named, action: Accept, to: [{{domainNames: ['*.example.com']}}], protocols: [{{udp: {{destinationPort: {{number: {PORT}}}}}}}]}}\n  - {{name: rest, action: Deny, to: [{{networks: [198.51.100.0/24]}}]}}\n"
    );
    world.apply(&[admin]).await?;
    let to = host(API, 0);
    let port = format!("{PORT}/UDP");
    let explain = |address: &IpAddr| -> Result<String> {
        let address = address.to_string();
        let output = world.lab.weft_output(&["explain", "a3", &address, "--port", &port])?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(world.is_stopped("a3", to)?, "not asked for yet");
    let text = explain(&to.ip())?;
    ensure!(text.contains("denied in tier Admin by rule 2 (rest)"), "{text}");
    ensure!(text.contains("asks for *.example.com passes"), "{text}");
    world.resolve("a3", "api.example.com")?;
    ensure!(world.passes("a3", to)?, "asked for");
    ensure!(world.open("a3", to).is_err(), "another protocol");
    let text = explain(&to.ip())?;
    ensure!(text.contains("allowed in tier Admin by rule 1 (named)"), "{text}");
    ensure!(text.contains("told this address as api.example.com"), "{text}");
    Ok(())
}

/// NP-155: what a server says that the pod has found for itself opens nothing, whatever it may be asked.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_other_servers_teach_nothing() -> Result<()> {
    if !can_run(&["nft", "dnsmasq"]) {
        return Ok(());
    }
    let world = world().await?;
    world.apply(&[names("api.example.com"), dns()]).await?;
    let lies = [format!("--address=/api.example.com/{}", host(OTHER, 0).ip())];
    for liar in ["a3", "b3"] {
        let server = world.lab.party(liar, 0)?;
        let _liar = DnsServer::start_in(&server.namespace, "root", 53, &lies)?;
        let client = world.lab.namespace_of("a1")?;
        for over in [Over::Udp, Over::Tcp] {
            eventually(SOON, async || {
                let found = resolve(&client, server.address, over, "api.example.com", 0)?;
                ensure!(found == [host(OTHER, 0).ip()], "{found:?}");
                Ok(())
            })
            .await?;
            ensure!(world.is_stopped("a1", host(OTHER, 0))?, "{liar} over {over:?} was believed");
        }
    }
    let found = world.resolve("a1", "api.example.com")?;
    ensure!(found == [host(API, 0).ip()] && world.passes("a1", host(API, 0))?, "{found:?}");
    Ok(())
}
