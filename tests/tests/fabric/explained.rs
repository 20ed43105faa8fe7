//! What is said of policies, against what really connects.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::service::{Conversation, Over, ask};
use weft_tests::{TestLab, can_run, eventually};

use crate::policies::{OTHER_PORT, PORT, pods, policy, servers};
use crate::services::{CLUSTER_IPS, SELECTOR, apply, host, lab, web};

const SOON: Duration = Duration::from_secs(5);
/// Status of `weft explain` where something is denied.
const DENIED: i32 = 3;

/// What `weft explain` prints, and its status.
fn explain(lab: &TestLab, arguments: &[&str]) -> Result<(String, i32)> {
    let output = lab.weft_output(&[&["explain"], arguments].concat())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let status = output.status.code().context("ended by a signal")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(errors.is_empty(), "explain {arguments:?}: {errors}");
    Ok((text, status))
}

/// Egress of `a3` to `a2` only; ingress of servers from clients to 8080 and, in audit mode, from nobody.
async fn apply_policies(lab: &TestLab) -> Result<IpAddr> {
    let a2 = lab.party("a2", 0)?.address;
    let ingress = "  ingress:\n  - from: [{podSelector: {matchLabels: {role: nobody}}}]\n  - from: [{podSelector: {matchLabels: {role: client}}}, {podSelector: {matchLabels: {role: other}}}]\n    ports: [{port: 8080}]\n";
    let egress =
        format!("  policyTypes: [Egress]\n  egress:\n  - to: [{{ipBlock: {{cidr: {a2}/32}}}}]\n");
    let admin = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: no-b1}\nspec:\n  tier: Admin\n  priority: 10\n  subject: {namespaces: {}}\n  ingress:\n  - name: not-b1\n    action: Deny\n    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {banned: \"yes\"}}}}]\n";
    let audit = policy("audit", "role: client", "  policyTypes: [Ingress]\n").replace(
        "  name: audit\n",
        "  name: audit\n  annotations: {weft.dev/policy-mode: audit}\n",
    );
    let pods = pods().into_iter().map(|pod| match pod.contains("name: b1\n") {
        true => pod.replace("role: client", "role: client, banned: \"yes\""),
        false => pod,
    });
    let rest = [
        web(SELECTOR),
        policy("web", "app: web", ingress),
        policy("out", "role: other", &egress),
        admin.to_owned(),
        audit,
    ];
    apply(lab, &pods.chain(rest).collect::<Vec<_>>()).await?;
    Ok(a2)
}

/// NP-114: the verdict is what happens, between pods of one node and of two, hosts and pods, in both
/// families; it names policy and rule; a Service is each of its backends.
#[tokio::test(flavor = "multi_thread")]
async fn explanation_is_what_happens() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    apply_policies(&lab).await?;
    let nodes = lab.nodes();
    for family in [0, 1] {
        let hosts = [host(&lab, &nodes[0], family)?, host(&lab, &nodes[1], family)?];
        let mut clients = Vec::new();
        for pod in ["a1", "a3", "b1"] {
            clients.push((pod.to_owned(), lab.party(pod, family)?));
        }
        clients.extend(nodes.iter().cloned().zip(hosts));
        for (name, client) in clients {
            for server in ["a2", "b2"] {
                let to = lab.party(server, family)?.address;
                for (over, port) in [(Over::Tcp, PORT), (Over::Tcp, OTHER_PORT), (Over::Udp, PORT)]
                {
                    let protocol = if over == Over::Tcp { "TCP" } else { "UDP" };
                    let asked = format!("{port}/{protocol}");
                    let from = client.address.to_string();
                    let (text, status) = explain(&lab, &[&from, server, "--port", &asked])?;
                    let passes = ask(&client.namespace, over, SocketAddr::new(to, port)).is_ok();
                    ensure!(
                        (status == 0) == passes,
                        "{name} to {server} {asked}: {passes}\n{text}"
                    );
                    ensure!(passes || status == DENIED, "{name} to {server} {asked}: {status}");
                }
            }
        }
    }
    let says = |arguments: &[&str], expected: &[&str]| -> Result<()> {
        let (text, _) = explain(&lab, arguments)?;
        let missing: Vec<_> = expected.iter().filter(|e| !text.contains(**e)).collect();
        ensure!(missing.is_empty(), "{arguments:?}: no {missing:?} in\n{text}");
        Ok(())
    };
    let rule = "allowed by rule 2 (ingress[1]) of NetworkPolicy default/web";
    says(
        &["a1", "b2", "-p", "8080"],
        &[
            "TCP 8080: allowed\n",
            "at node node-1: allowed: no policy speaks of the pod's egress",
            "at node node-2",
            rule,
        ],
    )?;
    let isolated = "denied: the pod is isolated by NetworkPolicy default/web, and no rule matches";
    says(&["a1", "b2", "-p", "8081"], &["TCP 8081: denied\n", isolated])?;
    let admin = "denied in tier Admin by rule 1 (not-b1) of ClusterNetworkPolicy no-b1";
    says(&["b1", "b2", "-p", "8080"], &["TCP 8080: denied\n", admin])?;
    says(
        &["a2", "a1", "-p", "80"],
        &["TCP 80: allowed in audit mode, it would be denied\n", "NetworkPolicy default/audit"],
    )?;
    says(
        &["node-1", "a2", "-p", "22"],
        &["TCP 22: allowed\n", "a pod's own node always reaches it"],
    )?;
    says(&["a2", "a2", "-p", "22"], &["a pod always reaches itself"])?;
    says(&["a1", "b2"], &["TCP 8080: allowed\n", "TCP 1-8079, 8081-65535; UDP every port"])?;
    says(&["203.0.113.9", "b2", "-p", "icmp"], &["ICMP and others without ports: denied\n"])?;
    // Of its two backends it may reach one.
    let ends = ["default/a2", "TCP 8080: allowed\n", "default/b2", "TCP 8080: denied\n"];
    for service in ["svc/web", "svc/default/web", CLUSTER_IPS[0]] {
        says(&["a3", service, "-p", "80"], &ends)?;
    }
    says(
        &["a3", "svc/web", "-p", "80"],
        &["(through Service default/web, port 80/TCP)", "isolated by NetworkPolicy default/out"],
    )?;
    // By the agent alone.
    let run = lab.node(&nodes[0]).run();
    let run = run.to_str().context("a path of text")?;
    says(&["a1", "a2", "-p", "8080", "--node", "--run-dir", run], &["TCP 8080: allowed\n", rule])?;
    says(
        &["a1", "b2", "-p", "8080", "--node", "--run-dir", run],
        &["not known: other nodes are asked by the hub"],
    )?;
    let wrong = lab.weft_output(&["explain", "a1", "nobody"])?;
    let error = String::from_utf8_lossy(&wrong.stderr);
    ensure!(wrong.status.code() == Some(1), "{:?}", wrong.status);
    ensure!(error.contains("there is neither a pod default/nobody nor a node nobody"), "{error}");
    Ok(())
}

/// NP-113: what is dropped is told with both ends, port, direction and policy, once for a connection and
/// not for each of its packets, at the node that drops it.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_are_told_with_their_ends() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let a2 = apply_policies(&lab).await?;
    let b2 = lab.party("b2", 0)?.address;
    for _ in 0..3 {
        let a1 = lab.namespace_of("a1")?;
        ensure!(ask(&a1, Over::Tcp, SocketAddr::new(b2, OTHER_PORT)).is_err(), "ingress is denied");
        let a3 = lab.namespace_of("a3")?;
        ensure!(ask(&a3, Over::Udp, SocketAddr::new(b2, PORT)).is_err(), "egress is denied");
        ensure!(ask(&a3, Over::Tcp, SocketAddr::new(a2, PORT)).is_ok(), "this one is allowed");
    }
    let nodes = lab.nodes();
    let drops = |node: usize| -> Result<String> {
        let run = lab.node(&nodes[node]).run();
        lab.weft(&["drops", "--run-dir", run.to_str().context("a path of text")?])
    };
    let (a1, a3) = (lab.party("a1", 0)?.address, lab.party("a3", 0)?.address);
    let at_b = [
        format!("default/a1 ({a1})"),
        format!("default/b2 ({b2})"),
        "8081/TCP  ingress".to_owned(),
        "NetworkPolicy default/web, ingress: no rule allows it".to_owned(),
    ];
    let at_a = [
        format!("default/a3 ({a3})"),
        format!("default/b2 ({b2})"),
        "8080/UDP  egress".to_owned(),
        "NetworkPolicy default/out, egress: no rule allows it".to_owned(),
    ];
    for (node, expected) in [(0, at_a), (1, at_b)] {
        eventually(SOON, async || {
            let listed = drops(node)?;
            let found = listed.lines().filter(|line| expected.iter().all(|e| line.contains(e)));
            ensure!(found.count() == 1, "{expected:?} in {listed}");
            ensure!(listed.lines().count() == 2, "and nothing else: {listed}");
            Ok(())
        })
        .await?;
        let log = std::fs::read_to_string(lab.log_file(&format!("{}-agent", nodes[node])))?;
        let lines = log.lines().filter(|line| line.contains("connection dropped"));
        let lines: Vec<_> = lines.collect();
        ensure!(lines.len() == 1, "one line for one connection: {lines:?}");
        let ends = expected.iter().take(2).all(|e| lines[0].contains(e));
        ensure!(ends && lines[0].contains(&expected[3]), "{lines:?}");
    }
    Ok(())
}

/// NP-113: what a policy in audit mode would drop passes, and is told as a drop is, with the word that says
/// so; counts are of flows, however many packets they have.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_audit_mode_would_drop_pass_and_are_told() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(3).await?;
    let _servers = servers(&lab)?;
    let allow = "  ingress:\n  - from: [{podSelector: {matchLabels: {role: client}}}]\n";
    let audit = policy("web", "app: web", allow)
        .replace("  name: web\n", "  name: web\n  annotations: {weft.dev/policy-mode: audit}\n");
    apply(&lab, &[pods(), vec![audit]].concat()).await?;
    let (a3, b2) = (lab.party("a3", 0)?, lab.party("b2", 0)?.address);
    let to = SocketAddr::new(b2, PORT);
    ensure!(ask(&lab.namespace_of("a1")?, Over::Tcp, to).is_ok(), "it would be allowed");
    for _ in 0..3 {
        let mut conversation = Conversation::open(&a3.namespace, to)?;
        for _ in 0..5 {
            conversation.ask().context("it would be dropped, and passes")?;
        }
    }
    let node = &lab.nodes()[1];
    let run = lab.node(node).run();
    let run = run.to_str().context("a path of text")?;
    let why = "NetworkPolicy default/web, ingress: no rule allows it";
    let expected = [
        format!("default/a3 ({})", a3.address),
        format!("default/b2 ({b2})"),
        "8080/TCP  ingress  audit".to_owned(),
        "3 flows".to_owned(),
        why.to_owned(),
    ];
    eventually(SOON, async || {
        let listed = lab.weft(&["drops", "--run-dir", run])?;
        let found = listed.lines().filter(|line| expected.iter().all(|e| line.contains(e)));
        ensure!(found.count() == 1, "{expected:?} in {listed}");
        ensure!(listed.lines().count() == 2, "and nothing else: {listed}");
        let status = lab.weft(&["status", "--node", "--run-dir", run])?;
        let counted = format!("audit, would be dropped by {why}: 3 flows\n");
        ensure!(status.contains(&counted), "{counted} in {status}");
        ensure!(!status.contains("\ndropped by"), "{status}");
        Ok(())
    })
    .await?;
    let log = std::fs::read_to_string(lab.log_file(&format!("{node}-agent")))?;
    let lines: Vec<_> = log.lines().filter(|l| l.contains("audit mode would drop it")).collect();
    ensure!(lines.len() == 1, "one line for one connection: {lines:?}");
    ensure!(lines[0].contains(&expected[0]) && lines[0].contains(why), "{lines:?}");
    ensure!(!log.contains("connection dropped"), "{log}");
    Ok(())
}
