//! A cluster: Kubernetes' own API server and controllers say what is to be, `kubectl` drives them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::Options;
use weft_tests::cluster::{Cluster, TOOLS};
use weft_tests::service::{Over, Server, ask};
use weft_tests::{can_run, eventually};

const HUB_USER: &str = "system:serviceaccount:weft-system:weft-hub";
const SOON: Duration = Duration::from_secs(20);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {containers: [{name: client, image: client}]}
";

const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

async fn cluster() -> Result<Cluster> {
    Cluster::up(Options { nodes: 2, ..Options::default() }).await
}

/// Servers on port 8080 of every pod of [`WEB`].
fn serve(cluster: &Cluster) -> Result<Vec<Server>> {
    let pods = cluster.pods();
    let web = pods.iter().filter(|pod| pod.name.starts_with("web-"));
    web.map(|pod| Server::start(&cluster.party(&pod.name, 0)?, 8080, &pod.name)).collect()
}

fn cluster_ip(cluster: &Cluster, service: &str) -> Result<SocketAddr> {
    let service = cluster.get(&["service", service])?;
    let ip = service["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    Ok(SocketAddr::new(ip.parse()?, 80))
}

/// Who answers the client of [`WEB`] at this address.
fn answer(cluster: &Cluster, to: SocketAddr) -> Result<String> {
    let client = cluster.namespace_of("client")?;
    Ok(ask(&client, Over::Tcp, to).with_context(|| format!("client to {to}"))?.by)
}

/// What the API server says of its pods' addresses and its nodes' subnets is what the fabric has, CNI-004; a
/// Service with the address and the endpoints that Kubernetes chose works, and so do its name and a policy.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_driven_by_kubectl() -> Result<()> {
    if !can_run(&[&["nft", "dig"], &TOOLS[..]].concat()) {
        return Ok(());
    }
    let mut cluster = cluster().await?;
    cluster.apply(WEB)?;
    eventually(SOON, async || {
        let pods = cluster.get(&["pods"])?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(count == 3, "{count} of 3 pods");
        Ok(())
    })
    .await?;
    cluster.settle().await?;
    cluster.wait_endpoints("web", 2).await?;
    let status = cluster.status().await?;
    for node in &status.nodes {
        let node = node.node.as_ref().context("a node")?;
        let object = cluster.get(&["node", &node.name])?;
        let assigned = object["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
        let assigned: BTreeSet<_> = assigned.iter().filter_map(Value::as_str).collect();
        let held: BTreeSet<_> = node.subnets.iter().map(String::as_str).collect();
        ensure!(held == assigned && !held.is_empty(), "{held:?}, assigned {assigned:?}");
        ensure!(object["metadata"]["uid"] == node.uid.as_str(), "{node:?}");
    }
    let _servers = serve(&cluster)?;
    let web = cluster_ip(&cluster, "web")?;
    let mut seen = BTreeSet::new();
    eventually(SOON, async || {
        seen.insert(answer(&cluster, web)?);
        ensure!(seen.len() == 2, "only {seen:?} answered");
        Ok(())
    })
    .await?;
    let name = ["dig", "+short", "+search", "web"];
    let found = cluster.run("client", &name)?;
    ensure!(found.trim() == web.ip().to_string(), "web is {found}");
    // The API server itself is a Service of every cluster.
    let found =
        cluster.run("client", &["dig", "+short", "kubernetes.default.svc.cluster.local"])?;
    ensure!(!found.trim().is_empty(), "kubernetes has no address");

    cluster.apply(CLOSED)?;
    eventually(SOON, async || {
        ensure!(answer(&cluster, web).is_err(), "the policy is not in force");
        Ok(())
    })
    .await?;
    cluster.kubectl(&["delete", "networkpolicy", "closed"])?;
    eventually(SOON, async || answer(&cluster, web)).await?;

    // Those that are left serve, and nothing of the other stays.
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=1"])?;
    eventually(SOON, async || {
        let pods = cluster.get(&["pods", "-l", "app=web"])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let leaving = pods.iter().filter(|p| !p["metadata"]["deletionTimestamp"].is_null());
        ensure!(leaving.count() == 1 || pods.len() == 1, "{} pods", pods.len());
        Ok(())
    })
    .await?;
    cluster.settle().await?;
    cluster.wait_endpoints("web", 1).await?;
    ensure!(cluster.pods().len() == 2, "{:?}", cluster.pods());
    eventually(SOON, async || {
        let status = cluster.status().await?;
        ensure!(status.pods == 2 + 2, "{} pods, agents' own too", status.pods);
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        answer(&cluster, web)
    })
    .await?;
    Ok(())
}

/// While the API server is away everything that is there goes on, also after the hub was started again; it is
/// told that the server does not answer, and what changed meanwhile is taken up afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn api_server_may_be_away() -> Result<()> {
    if !can_run(&[&["nft"], &TOOLS[..]].concat()) {
        return Ok(());
    }
    let mut cluster = cluster().await?;
    cluster.apply(WEB)?;
    eventually(SOON, async || {
        cluster.settle().await?;
        ensure!(cluster.pods().len() == 3, "{} of 3 pods", cluster.pods().len());
        Ok(())
    })
    .await?;
    let _servers = serve(&cluster)?;
    cluster.wait_endpoints("web", 2).await?;
    let web = cluster_ip(&cluster, "web")?;
    eventually(SOON, async || answer(&cluster, web)).await?;

    cluster.plane().stop_api_server()?;
    eventually(SOON, async || {
        let status = cluster.status().await?;
        let told = status.problems.iter().any(|p| p.file == "Pod" && p.reason.contains("pods"));
        ensure!(told, "nobody is told: {:?}", status.problems);
        Ok(())
    })
    .await?;
    answer(&cluster, web)?;
    // A hub that knows nothing yet says nothing: its nodes keep what they have.
    let hub = cluster.pid("hub")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(hub), nix::sys::signal::Signal::SIGKILL)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    answer(&cluster, web)?;

    cluster.plane().start_api_server().await?;
    cluster.wait_ready().await?;
    answer(&cluster, web)?;
    cluster.apply(CLOSED)?;
    eventually(SOON, async || {
        ensure!(answer(&cluster, web).is_err(), "the policy is not in force");
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        let status = cluster.status().await?;
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })
    .await
}

/// A Node object that is deleted takes its node out; made again under the same name it is another one, which
/// joins by itself. Others are not disturbed.
#[tokio::test(flavor = "multi_thread")]
async fn node_may_be_deleted_and_made_again() -> Result<()> {
    if !can_run(&[&["nft"], &TOOLS[..]].concat()) {
        return Ok(());
    }
    let cluster = cluster().await?;
    let uid = async || {
        let status = cluster.status().await?;
        let mut nodes = status.nodes.into_iter().filter(|n| n.connected).filter_map(|n| n.node);
        let node = nodes.find(|n| n.name == "node-2");
        Ok::<_, anyhow::Error>(node.context("node-2 is not there")?.uid)
    };
    let before = uid().await?;
    cluster.kubectl(&["delete", "node", "node-2"])?;
    eventually(SOON, async || {
        ensure!(uid().await.is_err(), "node-2 is still there");
        Ok(())
    })
    .await?;
    // Its token was bound to a pod that is gone with the node.
    cluster.kubectl(&["delete", "pod", "-n", "weft-system", "weft-agent-node-2", "--force"])?;
    cluster.register_node("node-2")?;
    cluster.mount_token("node-2")?;
    let after = eventually(SOON, async || uid().await).await?;
    ensure!(after != before, "it has the old node's uid");
    let object = cluster.get(&["node", "node-2"])?;
    ensure!(object["metadata"]["uid"] == after.as_str(), "{after}");
    Ok(())
}

/// A verb, a group and a resource.
type Right = (String, String, String);

/// Rights of the hub, of the cluster and of its namespace.
fn granted(cluster: &Cluster) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for role in [&["clusterrole", "weft-hub"][..], &["role", "weft-hub", "-n", "weft-system"]] {
        let role = cluster.get(role)?;
        let texts = |rule: &Value, key: &str| -> Vec<String> {
            let all = rule[key].as_array().into_iter().flatten();
            all.filter_map(|text| Some(text.as_str()?.to_owned())).collect()
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            for verb in texts(rule, "verbs") {
                for group in texts(rule, "apiGroups") {
                    let resources = texts(rule, "resources").into_iter();
                    rights.extend(resources.map(|r| (verb.clone(), group.clone(), r)));
                }
            }
        }
    }
    Ok(rights)
}

/// The hub asks for all that it may, and for nothing that it may not; agents ask for nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_the_least_that_works() -> Result<()> {
    if !can_run(&[&["nft"], &TOOLS[..]].concat()) {
        return Ok(());
    }
    let cluster = cluster().await?;
    let mut granted = granted(&cluster)?;
    for (verb, group, resource) in [
        // The server has no such kind: nothing can be watched, but a right to is needed once it has.
        ("watch", "policy.networking.k8s.io", "clusternetworkpolicies"),
        // The patch that makes what is not there counts as a patch.
        ("create", "", "configmaps"),
    ] {
        let right: Right = (verb.to_owned(), group.to_owned(), resource.to_owned());
        ensure!(granted.remove(&right), "{granted:?}");
    }
    eventually(SOON, async || {
        let asked = cluster.asked()?;
        let hub = asked.iter().filter(|e| e["user"]["username"] == HUB_USER);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let right = |event: &Value| {
            let object = &event["objectRef"];
            (text(&event["verb"]), text(&object["apiGroup"]), text(&object["resource"]))
        };
        let used: BTreeSet<Right> = hub.map(right).collect();
        let unused: Vec<_> = granted.difference(&used).collect();
        let refused: Vec<_> = used.difference(&granted).collect();
        ensure!(unused.is_empty() && refused.is_empty(), "unused {unused:?}, refused {refused:?}");
        let others = asked.iter().filter(|e| e["user"]["username"] != HUB_USER);
        ensure!(others.clone().count() == 0, "{:?}", others.collect::<Vec<_>>());
        Ok(())
    })
    .await?;

    // Less fails, and it is told what is missing.
    let less = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    cluster.kubectl(&["patch", "clusterrole", "weft-hub", "--type=json", "-p", less])?;
    let hub = nix::unistd::Pid::from_raw(cluster.pid("hub")?);
    nix::sys::signal::kill(hub, nix::sys::signal::Signal::SIGKILL)?;
    let says = "does not let the hub list and watch endpointslices";
    eventually(Duration::from_secs(60), async || {
        let log = std::fs::read_to_string(cluster.log_file("hub"))?;
        ensure!(log.contains(says), "the hub does not say so");
        Ok(())
    })
    .await?;
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/weft.yaml");
    cluster.kubectl(&["apply", "-f", deploy])?;
    eventually(Duration::from_secs(60), async || cluster.status().await).await?;
    cluster.wait_ready().await
}

/// The server takes what the hub can use, with its defaults, and refuses what it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn own_kinds_are_checked_where_they_are_written() -> Result<()> {
    if !can_run(&[&["nft"], &TOOLS[..]].concat()) {
        return Ok(());
    }
    let cluster = cluster().await?;
    let object = |kind: &str, spec: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: one}}\nspec: {spec}\n"
        )
    };
    for (kind, spec, says) in [
        ("AddressPool", "{}", "addresses"),
        ("AddressPool", "{addresses: []}", "addresses"),
        ("AddressPool", "{addresses: [pool]}", "addresses"),
        ("PacketFilter", "{module: a.wasm, onFault: Panic}", "onFault"),
        ("PacketFilter", "{module: a.wasm, deadline: soon}", "deadline"),
        ("PacketFilter", "{module: \"\"}", "module"),
        ("FqdnPolicy", "{egress: []}", "podSelector"),
        ("FqdnPolicy", "{podSelector: {}, egress: [{}]}", "names"),
        ("FqdnPolicy", "{podSelector: {}, egress: [{names: [a.b], ports: [{port: 0}]}]}", "port"),
    ] {
        let refused = cluster.apply(&object(kind, spec));
        let why = refused.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(why.contains(says), "{kind} {spec}: {why}");
    }
    cluster.apply(&object(
        "AddressPool",
        "{addresses: [203.0.113.0/29, 203.0.113.16-203.0.113.20]}",
    ))?;
    cluster.apply(&object(
        "FqdnPolicy",
        "{podSelector: {matchLabels: {app: none}}, egress: [{names: [\"*.example.org\"], ports: [{port: 443}]}]}",
    ))?;
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: lan}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n",
    )?;
    eventually(SOON, async || {
        let services = cluster.weft(&["services"])?;
        ensure!(services.contains("203.0.113.0"), "{services}");
        let status = cluster.status().await?;
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })
    .await
}
