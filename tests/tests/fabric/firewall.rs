//! Nodes whose firewall drops what is forwarded, as Docker's does.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::outsider::{Outsider, tool};
use weft_tests::service::{Over, Server, ask};
use weft_tests::talk::udp_both_ways;
use weft_tests::{TestLab, can_run, eventually};

use crate::services;

const SOON: Duration = Duration::from_secs(5);

/// Pods on two nodes, which reach each other through the host's routing unless delivery is `direct`.
async fn lab(direct: bool) -> Result<TestLab> {
    let agent_arguments = if direct { Vec::new() } else { vec!["--no-direct-delivery".into()] };
    TestLab::with_pods(Options { nodes: 2, agent_arguments, ..Options::default() }, 2).await
}

/// Pods of one node and of two, both families, both ways.
fn talk(lab: &TestLab) -> Result<()> {
    for family in [0, 1] {
        for (a, b) in [("a1", "a2"), ("a1", "b1")] {
            let (a, b) = (lab.party(a, family)?, lab.party(b, family)?);
            udp_both_ways(&a, &b, b"through it")?;
            udp_both_ways(&b, &a, b"through it")?;
        }
    }
    Ok(())
}

/// The policy of `iptables`, and whatever else happens to its chain; rules of others stay.
#[tokio::test]
async fn pods_talk_on_a_node_whose_iptables_policy_drops() -> Result<()> {
    if !can_run(&["nft", "iptables", "ip6tables"]) {
        return Ok(());
    }
    let lab = lab(false).await?;
    let node = lab.namespace_of("node-1")?;
    let of_others = "-A FORWARD -i docker0 -j DROP";
    let ours = |listed: &str| listed.matches("weft0").count();
    for iptables in ["iptables", "ip6tables"] {
        tool(&node, &format!("{iptables} {of_others}"))?;
        tool(&node, &format!("{iptables} -P FORWARD DROP"))?;
    }
    eventually(SOON, async || talk(&lab)).await?;
    for iptables in ["iptables", "ip6tables"] {
        let listed = tool(&node, &format!("{iptables} -S FORWARD"))?;
        ensure!(listed.contains(of_others), "{listed}");
        ensure!(ours(&listed) == 2, "{listed}");
        // Docker and others do that when they start.
        tool(&node, &format!("{iptables} -F FORWARD"))?;
    }
    eventually(SOON, async || talk(&lab)).await?;
    // As when a saved ruleset is restored: what was ours is then an operator's like any other.
    let sh = |line: &str| lab.run("node-1", &["sh", "-c", line]);
    sh("iptables-save > /dev/shm/$$ && iptables-restore < /dev/shm/$$; rm /dev/shm/$$")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let listed = tool(&node, "nft list chain ip filter FORWARD")?;
    ensure!(ours(&listed) == 2, "put there again: {listed}");
    talk(&lab)?;
    let problems = lab.agent_status("node-1").await?.problems;
    ensure!(problems.is_empty(), "{problems:?}");
    for iptables in ["iptables", "ip6tables"] {
        tool(&node, &format!("{iptables} -P FORWARD ACCEPT"))?;
    }
    eventually(SOON, async || {
        let listed = tool(&node, "ip6tables -S FORWARD")?;
        ensure!(ours(&listed) == 0, "not needed any more: {listed}");
        Ok(())
    })
    .await?;
    let listed = tool(&node, "iptables -S FORWARD")?;
    ensure!(ours(&listed) == 2, "an operator's are left alone: {listed}");
    talk(&lab)
}

/// Waits for one problem of `node-1` that has all these words in it, does what it says, and waits
/// until it is gone.
async fn heed_problem(lab: &TestLab, words: &[&str]) -> Result<()> {
    let node = lab.namespace_of("node-1")?;
    let problem = eventually(Duration::from_secs(15), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        let has = |p: &String| words.iter().all(|w| p.contains(w));
        let found = problems.iter().find(|p| has(p)).cloned();
        found.ok_or_else(|| anyhow::anyhow!("no problem with {words:?}: {problems:?}"))
    })
    .await?;
    ensure!(talk(lab).is_err(), "there is no problem: {problem}");
    let commands: Vec<_> = problem.split('`').skip(1).step_by(2).collect();
    ensure!(commands.len() == 2, "{problem}");
    for command in commands {
        tool(&node, command)?;
    }
    eventually(Duration::from_secs(15), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
    .await?;
    talk(lab)
}

/// Chains that are none of our business: the status says what to do, and that is enough.
#[tokio::test]
async fn firewall_that_cuts_pods_off_is_a_problem_that_says_what_to_do() -> Result<()> {
    if !can_run(&["nft", "iptables", "iptables-legacy"]) {
        return Ok(());
    }
    let lab = lab(false).await?;
    let node = lab.namespace_of("node-1")?;
    talk(&lab)?;
    let chain = "nft add chain inet own f { type filter hook forward priority 0 ; policy drop ; }";
    tool(&node, "nft add table inet own")?;
    tool(&node, chain)?;
    heed_problem(&lab, &["nftables", "chain f of table inet own", "insert rule"]).await?;
    tool(&node, "iptables -A FORWARD -j REJECT")?;
    heed_problem(&lab, &["nftables", "chain FORWARD of table ip filter"]).await?;
    tool(&node, "iptables-legacy -P FORWARD DROP")?;
    heed_problem(&lab, &["iptables-legacy", "policy of chain FORWARD"]).await
}

/// Pods do not depend on what the host forwards to hear each other; the world still does.
#[tokio::test]
async fn pods_that_are_delivered_to_talk_whatever_the_host_forwards() -> Result<()> {
    if !can_run(&["nft", "tc"]) {
        return Ok(());
    }
    let lab = lab(true).await?;
    let node = lab.namespace_of("node-1")?;
    talk(&lab)?;
    tool(&node, "nft add table inet own")?;
    let chain = "nft add chain inet own f { type filter hook forward priority 0 ; policy drop ; }";
    tool(&node, chain)?;
    talk(&lab)?;
    eventually(Duration::from_secs(15), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        let told = |p: &String| p.contains("chain f of table inet own") && p.contains("the world");
        ensure!(problems.iter().any(told), "{problems:?}");
        Ok(())
    })
    .await?;
    // Delivery that somebody takes away comes back.
    tool(&node, "tc filter del dev weft0 ingress")?;
    eventually(Duration::from_secs(15), async || talk(&lab)).await
}

/// SVC-105: a host's firewall that lets in only what the operator named, and forwards nothing: node
/// ports and the health check's answer though nobody has named them.
#[tokio::test(flavor = "multi_thread")]
async fn node_ports_and_health_checks_answer_whatever_iptables_lets_in() -> Result<()> {
    if !can_run(&["nft", "iptables", "ip6tables"]) {
        return Ok(());
    }
    let lab = services::lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    let node = lab.namespace_of("node-1")?;
    for (iptables, icmp) in [("iptables", "icmp"), ("ip6tables", "icmpv6")] {
        for named in [
            "-i lo",
            "-m conntrack --ctstate ESTABLISHED,RELATED",
            "-p udp --dport 51820",
            &format!("-p {icmp}"),
        ] {
            tool(&node, &format!("{iptables} -A INPUT {named} -j ACCEPT"))?;
        }
        for chain in ["INPUT", "FORWARD"] {
            tool(&node, &format!("{iptables} -P {chain} DROP"))?;
        }
    }
    let local =
        "  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000\n  selector: {app: web}\n";
    let web = services::web(local).replace("type: NodePort", "type: LoadBalancer");
    let [pool, _] = services::balancer("");
    let pool = pool.replace("[\"", "[\"fd00:198:18::f0-fd00:198:18::f1\", \"");
    services::apply(&lab, &[pool, web, services::pod("a1", "app: web")]).await?;
    for family in [0, 1] {
        let _server = Server::start(&lab.party("a1", family)?, 8080, "a1")?;
        let address = services::node_address(&lab, "node-1", family)?;
        let node_port = SocketAddr::new(address, services::NODE_PORT);
        for over in [Over::Tcp, Over::Udp] {
            eventually(SOON, async || Ok(ask(&outsider.namespace, over, node_port)?))
                .await
                .with_context(|| format!("{node_port} over {over:?}"))?;
        }
        let health = SocketAddr::new(address, 32_000);
        eventually(SOON, async || Ok(services::health(&outsider.namespace, health)?))
            .await
            .with_context(|| format!("health check at {health}"))?;
        let other = SocketAddr::new(address, 32_001);
        let closed = ask(&outsider.namespace, Over::Tcp, other).err().map(|e| e.kind());
        ensure!(closed == Some(ErrorKind::TimedOut), "a port that nobody has named: {closed:?}");
    }
    let problems = lab.agent_status("node-1").await?.problems;
    ensure!(problems.is_empty(), "{problems:?}");
    // Nothing of ours stays where it is not needed.
    services::apply(&lab, &[]).await?;
    for iptables in ["iptables", "ip6tables"] {
        eventually(Duration::from_secs(15), async || {
            let listed = tool(&node, &format!("{iptables} -S INPUT"))?;
            ensure!(!listed.contains("32000"), "{listed}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// SVC-225: rules of kube-proxy beside the fabric are a problem, until they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn rules_of_kube_proxy_are_a_problem() -> Result<()> {
    if !can_run(&["nft", "iptables"]) {
        return Ok(());
    }
    let lab = lab(true).await?;
    let node = lab.namespace_of("node-1")?;
    let problems = async |words: &str| {
        eventually(Duration::from_secs(15), async || {
            let problems = lab.agent_status("node-1").await?.problems;
            let told = problems.iter().any(|p| p.contains("kube-proxy") && p.contains(words));
            ensure!(told != words.is_empty() && problems.len() <= 1, "{words}: {problems:?}");
            Ok(())
        })
        .await
    };
    // What the kubelet leaves is none.
    tool(&node, "iptables -t mangle -N KUBE-KUBELET-CANARY")?;
    services::apply(&lab, &[services::web("")]).await?;
    problems("").await?;
    for (make, remove, words) in [
        (
            &["iptables -t nat -N KUBE-SERVICES", "iptables -t nat -A PREROUTING -j KUBE-SERVICES"]
                [..],
            &["iptables -t nat -F PREROUTING", "iptables -t nat -X KUBE-SERVICES"][..],
            "KUBE-SERVICES of table ip nat",
        ),
        (
            &[
                "nft add table ip kube-proxy",
                "nft add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat ; }",
            ],
            &["nft delete table ip kube-proxy"],
            "table ip kube-proxy",
        ),
    ] {
        make.iter().try_for_each(|command| tool(&node, command).map(drop))?;
        problems(words).await?;
        remove.iter().try_for_each(|command| tool(&node, command).map(drop))?;
        problems("").await?;
    }
    Ok(())
}
