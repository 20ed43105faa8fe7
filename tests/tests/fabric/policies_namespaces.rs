//! Policies between namespaces, and those of the whole cluster, with real sockets.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::raw::{self, Raw, SCTP};
use weft_tests::service::{Over, Server, ask};
use weft_tests::{TestLab, can_run, eventually};

use crate::crafted::init;
use crate::services::{SOON, apply};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
/// With the node of each; labels are those of [`objects`].
const PODS: [(&str, &str); 5] =
    [("x/a", "node-1"), ("x/b", "node-2"), ("y/a", "node-2"), ("y/b", "node-1"), ("z/a", "node-1")];

/// How a pod is asked.
#[derive(Clone, Copy, Debug)]
struct Way {
    over: Over,
    port: u16,
    family: usize,
}

impl Way {
    fn all(ports: &[u16], families: &[usize]) -> Vec<Self> {
        let over = |family, port| [Over::Tcp, Over::Udp].map(|over| Self { over, port, family });
        let of_family =
            |family: &usize| ports.iter().flat_map(|port| over(*family, *port)).collect();
        families.iter().flat_map(|f| -> Vec<Self> { of_family(f) }).collect()
    }
}

/// Pods that serve, in namespaces that are labelled `team` with their own name.
struct Cluster {
    lab: TestLab,
    _servers: Vec<Server>,
}

impl Cluster {
    async fn up() -> Result<Self> {
        let mut lab = TestLab::up(Options { nodes: 2, ..Options::default() }).await?;
        for (pod, node) in PODS {
            lab.pod_add(node, pod).await?;
        }
        // So that the next generation is that of what a test says.
        eventually(SOON, async || {
            let pods = lab.status().await?.pods;
            ensure!(usize::try_from(pods)? == PODS.len(), "the hub knows {pods} pods");
            Ok(())
        })
        .await?;
        lab.wait_ready().await?;
        let mut servers = Vec::new();
        for (pod, _) in PODS {
            for family in [0, 1] {
                for port in [PORT, OTHER_PORT] {
                    servers.push(Server::start(&lab.party(pod, family)?, port, pod)?);
                }
            }
        }
        Ok(Self { lab, _servers: servers })
    }

    async fn apply(&self, policies: &[String]) -> Result<()> {
        self.apply_with(&["x", "y", "z"], policies).await
    }

    /// `labelled`: namespaces that have their label.
    async fn apply_with(&self, labelled: &[&str], policies: &[String]) -> Result<()> {
        apply(&self.lab, &[objects(labelled), policies.to_vec()].concat()).await
    }

    /// Pods that get an answer from `to`, all but itself; each way by itself, and all asking at once.
    fn who_reaches(&self, to: &str, ways: &[Way]) -> Result<Vec<Vec<&'static str>>> {
        let mut asking = Vec::new();
        for Way { over, port, family } in ways.iter().copied() {
            let address = SocketAddr::new(self.lab.party(to, family)?.address, port);
            for (pod, _) in PODS.iter().filter(|(pod, _)| *pod != to) {
                let namespace = self.lab.namespace_of(pod)?;
                let ask = move || ask(&namespace, over, address).is_ok();
                asking.push((*pod, std::thread::spawn(ask)));
            }
        }
        let mut answers = Vec::new();
        for (pod, asked) in asking {
            let answered = asked.join().map_err(|_| anyhow::anyhow!("{pod} failed"))?;
            answers.push(answered.then_some(pod));
        }
        let of_way = |answers: &[Option<&'static str>]| answers.iter().flatten().copied().collect();
        Ok(answers.chunks(PODS.len() - 1).map(of_way).collect())
    }

    /// Over TCP and UDP, in both families.
    fn expect_from(&self, to: &str, expected: &[&str]) -> Result<()> {
        let ways = Way::all(&[PORT], &[0, 1]);
        for (way, found) in ways.iter().zip(self.who_reaches(to, &ways)?) {
            ensure!(found == expected, "{to}, {way:?}: {found:?}");
        }
        Ok(())
    }

    /// Whether an SCTP packet gets from one pod to another.
    fn sctp_passes(&self, from: &str, to: &str, port: u16, family: usize) -> Result<bool> {
        let (from, to) = (self.lab.party(from, family)?, self.lab.party(to, family)?);
        let (sends, hears) = (Raw::open(&from, SCTP)?, Raw::open(&to, SCTP)?);
        sends.send(to.address, &raw::sctp((40_000, port), 0, &init(1, 0)?))?;
        match hears.receive() {
            Ok((source, packet)) => {
                let (ports, _) = raw::parse_sctp(&packet)?;
                ensure!((source, ports) == (from.address, (40_000, port)), "{source} {ports:?}");
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("the receiver's socket"),
        }
    }
}

/// Namespaces and pods; a pod is labelled `pod` with its name.
fn objects(labelled: &[&str]) -> Vec<String> {
    let namespaces = ["x", "y", "z"].map(|name| {
        let labels = if labelled.contains(&name) { format!("team: {name}") } else { String::new() };
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        )
    });
    let pods = PODS.iter().filter_map(|(pod, _)| pod.split_once('/')).map(|(namespace, name)| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{pod: {name}}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        )
    });
    namespaces.into_iter().chain(pods).collect()
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

/// Of x/a, with these entries of `from`.
fn for_x_a(peers: &str) -> String {
    policy(
        "x",
        "a",
        &format!("  podSelector: {{matchLabels: {{pod: a}}}}\n  ingress: [{{from: [{peers}]}}]\n"),
    )
}

const TEAM_Y: &str = "namespaceSelector: {matchLabels: {team: y}}";
const POD_B: &str = "podSelector: {matchLabels: {pod: b}}";
const ALL: &[&str] = &["x/b", "y/a", "y/b", "z/a"];

/// NP-020, NP-021, NP-025 and cases 3, 5, 6, 9, 10, 21 and 41 of NP-120.
#[tokio::test(flavor = "multi_thread")]
async fn peers_are_chosen_by_namespace_and_pod() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let cluster = Cluster::up().await?;
    for (peers, expected) in [
        (format!("{{{TEAM_Y}}}"), &["y/a", "y/b"][..]),
        (format!("{{{TEAM_Y}, {POD_B}}}"), &["y/b"]),
        (format!("{{{TEAM_Y}}}, {{{POD_B}}}"), &["x/b", "y/a", "y/b"]),
        (format!("{{{POD_B}}}"), &["x/b"]),
        ("{namespaceSelector: {}}".to_owned(), ALL),
        (format!("{{namespaceSelector: {{}}, {POD_B}}}"), &["x/b", "y/b"]),
        (
            "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}".to_owned(),
            &["z/a"],
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}".to_owned(),
            &["x/b", "z/a"],
        ),
    ] {
        cluster.apply(&[for_x_a(&peers)]).await?;
        cluster.expect_from("x/a", expected).with_context(|| peers.clone())?;
        cluster.expect_from("x/b", &["x/a", "y/a", "y/b", "z/a"]).context("not selected")?;
    }
    // NP-090: a namespace loses its label, and gets it back.
    let by_team = [for_x_a(&format!("{{{TEAM_Y}}}"))];
    cluster.apply_with(&["x", "z"], &by_team).await?;
    cluster.expect_from("x/a", &[])?;
    cluster.apply(&by_team).await?;
    cluster.expect_from("x/a", &["y/a", "y/b"])
}

/// NP-002 to NP-005 and cases 1, 2, 23, 26, 28 and 29 of NP-120.
#[tokio::test(flavor = "multi_thread")]
async fn default_deny_is_of_its_namespace() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let cluster = Cluster::up().await?;
    let deny = |types: &str| {
        policy("x", "deny", &format!("  podSelector: {{}}\n  policyTypes: [{types}]\n"))
    };
    cluster.apply(&[deny("Ingress")]).await?;
    for pod in ["x/a", "x/b"] {
        cluster.expect_from(pod, &[])?;
    }
    cluster.expect_from("y/a", &["x/a", "x/b", "y/b", "z/a"])?;
    cluster.apply(&[deny("Ingress, Egress")]).await?;
    cluster.expect_from("x/a", &[])?;
    cluster.expect_from("y/a", &["y/b", "z/a"])?;
    // Its own pods, with a second policy; others still not.
    let own = policy("x", "own", "  podSelector: {}\n  ingress: [{from: [{podSelector: {}}]}]\n");
    cluster.apply(&[deny("Ingress"), own]).await?;
    cluster.expect_from("x/a", &["x/b"])?;
    // Out to a namespace, whose pods let nobody else in.
    let out = policy(
        "x",
        "out",
        &format!(
            "  podSelector: {{}}\n  policyTypes: [Egress]\n  egress: [{{to: [{{{TEAM_Y}}}]}}]\n"
        ),
    );
    let from_x_a =
        "{namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {pod: a}}}";
    let server =
        policy("y", "in", &format!("  podSelector: {{}}\n  ingress: [{{from: [{from_x_a}]}}]\n"));
    cluster.apply(&[out, server]).await?;
    cluster.expect_from("y/b", &["x/a"])?;
    cluster.expect_from("z/a", &["y/a", "y/b"])
}

/// A `ClusterNetworkPolicy` for namespace x.
fn of_cluster(tier: &str, priority: u16, rules: &str) -> String {
    let name = format!("{}-{priority}", tier.to_lowercase());
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  tier: {tier}\n  priority: {priority}\n  subject: {{namespaces: {{matchLabels: {{team: x}}}}}}\n{rules}"
    )
}

fn rule(action: &str, namespaces: &str, protocols: &str) -> String {
    format!("{{action: {action}, from: [{{namespaces: {{{namespaces}}}}}]{protocols}}}")
}

const FROM_Y: &str = "matchLabels: {team: y}";

/// NP-130 to NP-136: who comes first decides.
#[tokio::test(flavor = "multi_thread")]
async fn tiers_decide_in_their_order() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let cluster = Cluster::up().await?;
    let admin = |priority, rules: &[String]| {
        of_cluster("Admin", priority, &format!("  ingress: [{}]\n", rules.join(", ")))
    };
    let baseline = |rules: &[String]| {
        of_cluster("Baseline", 1, &format!("  ingress: [{}]\n", rules.join(", ")))
    };
    let closed = || policy("x", "closed", "  podSelector: {}\n");
    let open = || policy("x", "open", "  podSelector: {}\n  ingress: [{}]\n");
    let accept_y = || rule("Accept", FROM_Y, "");
    let deny_all = || rule("Deny", "", "");
    let pass_y = || rule("Pass", FROM_Y, "");
    let y = &["y/a", "y/b"][..];
    for (what, policies, expected) in [
        ("Admin accepts before a policy isolates", vec![admin(5, &[accept_y()]), closed()], y),
        ("Admin denies before a policy allows", vec![admin(5, &[deny_all()]), open()], &[]),
        ("the first rule that matches", vec![admin(5, &[accept_y(), deny_all()])], y),
        ("the lower priority", vec![admin(5, &[deny_all()]), admin(6, &[accept_y()])], &[]),
        ("passed to a policy", vec![admin(5, &[pass_y(), deny_all()]), open()], y),
        ("passed to one that isolates", vec![admin(5, &[pass_y(), deny_all()]), closed()], &[]),
        ("passed to Baseline", vec![admin(5, &[pass_y()]), baseline(&[deny_all()])], &[]),
        ("Baseline without a policy", vec![baseline(&[accept_y(), deny_all()])], y),
        ("Baseline beside a policy", vec![baseline(&[deny_all()]), open()], ALL),
        ("what no rule matches", vec![admin(5, &[rule("Deny", FROM_Y, "")])], &["x/b", "z/a"]),
    ] {
        cluster.apply(&policies).await?;
        cluster.expect_from("x/a", expected).context(what)?;
        cluster.expect_from("y/a", &["x/a", "x/b", "y/b", "z/a"]).context("no subject")?;
    }
    Ok(())
}

/// NP-007, NP-048 to NP-050, NP-140: each protocol for itself, SCTP too, which nobody has to serve.
#[tokio::test(flavor = "multi_thread")]
async fn protocols_and_ports_of_cluster_policies() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let cluster = Cluster::up().await?;
    let passing = |family: usize| -> Result<Vec<String>> {
        let ways = Way::all(&[PORT, OTHER_PORT], &[family]);
        let reached = ways.iter().zip(cluster.who_reaches("x/a", &ways)?);
        let reached = reached.filter(|(_, who)| who.contains(&"y/a"));
        let mut passing: Vec<_> =
            reached.map(|(way, _)| format!("{:?} {}", way.over, way.port)).collect();
        for port in [PORT, OTHER_PORT] {
            if cluster.sctp_passes("y/a", "x/a", port, family)? {
                passing.push(format!("Sctp {port}"));
            }
        }
        Ok(passing)
    };
    let all = ["Tcp 8080", "Udp 8080", "Tcp 8081", "Udp 8081", "Sctp 8080", "Sctp 8081"];
    let number = "{destinationPort: {number: 8080}}";
    for (tier, protocols, denied) in [
        ("Admin", "{tcp: {}}".to_owned(), &["Tcp 8080", "Tcp 8081"][..]),
        ("Admin", format!("{{sctp: {number}}}"), &["Sctp 8080"]),
        (
            "Baseline",
            format!("{{udp: {number}}}, {{sctp: {{}}}}"),
            &["Udp 8080", "Sctp 8080", "Sctp 8081"],
        ),
        (
            "Admin",
            "{sctp: {destinationPort: {range: {start: 8081, end: 9000}}}}".to_owned(),
            &["Sctp 8081"],
        ),
    ] {
        let rule = rule("Deny", FROM_Y, &format!(", protocols: [{protocols}]"));
        cluster.apply(&[of_cluster(tier, 7, &format!("  ingress: [{rule}]\n"))]).await?;
        let expected: Vec<_> = all.into_iter().filter(|a| !denied.contains(a)).collect();
        for family in [0, 1] {
            let passing = passing(family)?;
            ensure!(passing == expected, "{tier} denies {protocols}, {family}: {passing:?}");
        }
    }
    // A policy that allows SCTP isolates from all else.
    let ports = "ports: [{protocol: SCTP, port: 8081}]";
    let sctp = policy("x", "sctp", &format!("  podSelector: {{}}\n  ingress: [{{{ports}}}]\n"));
    cluster.apply(&[sctp]).await?;
    for family in [0, 1] {
        ensure!(passing(family)? == ["Sctp 8081"], "{:?}", passing(family)?);
    }
    // Egress of the client, of either end.
    let out = of_cluster(
        "Admin",
        7,
        "  egress: [{action: Deny, to: [{namespaces: {matchLabels: {team: y}}}], protocols: [{sctp: {}}]}]\n",
    );
    cluster.apply(&[out]).await?;
    for family in [0, 1] {
        ensure!(!cluster.sctp_passes("x/b", "y/b", PORT, family)?, "SCTP, family {family}");
        ensure!(cluster.sctp_passes("y/b", "x/b", PORT, family)?, "SCTP back, family {family}");
    }
    cluster.expect_from("y/b", &["x/a", "x/b", "y/a", "z/a"])
}
