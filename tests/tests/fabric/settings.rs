//! Settings of the fabric that change under running pods: the hub is started with others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_proto::v1::Cluster;
use weft_tests::talk::{tcp_both_ways, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

/// Restarts the hub with other settings and waits until every node has taken them up.
async fn restart_hub(
    lab: &mut TestLab,
    change: impl FnOnce(&mut Options),
    shows: impl Fn(&Cluster) -> bool,
) -> Result<()> {
    lab.change_options(change)?;
    kill(Pid::from_raw(lab.pid("hub")?), Signal::SIGTERM)?;
    eventually(Duration::from_secs(10), async || {
        let cluster = lab.status().await?.cluster.context("no cluster")?;
        ensure!(shows(&cluster), "the hub has the old settings: {cluster:?}");
        Ok(())
    })
    .await?;
    lab.wait_ready().await
}

fn talk(lab: &TestLab) -> Result<()> {
    for family in [0, 1] {
        let (a, b) = (lab.party("a1", family)?, lab.party("b1", family)?);
        udp_both_ways(&a, &b, b"still here")?;
        tcp_both_ways(&b, &a, &[7; 100_000])?;
    }
    Ok(())
}

fn arguments(options: &mut Options, arguments: &[&str]) {
    options.hub_arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
}

/// Port, MTU and encapsulation in turn; pods that were there before talk after each.
#[tokio::test]
async fn port_mtu_and_encapsulation_change_under_running_pods() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    let mut lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    talk(&lab)?;
    let port = |o: &mut Options| arguments(o, &["--mesh-port=7777"]);
    restart_hub(&mut lab, port, |c| c.port == 7777).await.context("port")?;
    talk(&lab).context("after another port")?;
    let sockets = lab.run("node-1", &["ss", "-lun"])?;
    ensure!(sockets.contains(":7777 ") && !sockets.contains(":51820 "), "{sockets}");
    let mtu = |o: &mut Options| arguments(o, &["--mtu=1300"]);
    restart_hub(&mut lab, mtu, |c| c.port == 51820).await.context("MTU")?;
    for node in ["node-1", "node-2"] {
        let link = lab.run(node, &["ip", "-o", "link", "show", "weft0"])?;
        ensure!(link.contains(" mtu 1300 "), "{node}: {link}");
    }
    talk(&lab).context("after another MTU")?;
    let vxlan = |o: &mut Options| {
        arguments(o, &[]);
        o.encapsulation = Encapsulation::Vxlan;
    };
    restart_hub(&mut lab, vxlan, |c| c.port == 4789).await.context("encapsulation")?;
    talk(&lab).context("after another encapsulation")?;
    lab.pod_add("node-1", "a2").await?;
    udp_both_ways(&lab.party("a2", 0)?, &lab.party("b1", 0)?, b"new here")
}

/// Nodes hold subnets of the CIDRs: a hub that is started with another says so and does not start.
#[tokio::test]
async fn a_pod_cidr_is_not_taken_away_under_nodes() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    let mut lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let v6 = lab.status().await?.cluster.context("no cluster")?.pod_cidrs.pop();
    let v6 = v6.context("no CIDR")?.parse()?;
    let pod_cidrs = vec!["10.99.0.0/16".parse()?, v6];
    let before = Options::default().pod_cidrs;
    lab.change_options(|o| o.pod_cidrs = pod_cidrs)?;
    kill(Pid::from_raw(lab.pid("hub")?), Signal::SIGTERM)?;
    eventually(Duration::from_secs(10), async || {
        let log = std::fs::read_to_string(lab.log_file("hub"))?;
        let refusal = log.lines().find(|l| l.starts_with("weft: error: "));
        let refusal = refusal.context("the hub does not complain")?;
        for word in ["10.244.", "node-", "--pod-cidr", "weft node remove"] {
            ensure!(refusal.contains(word), "{refusal}");
        }
        Ok(())
    })
    .await?;
    talk(&lab)?;
    lab.change_options(|o| o.pod_cidrs = before)?;
    eventually(Duration::from_secs(10), async || lab.status().await.map(drop)).await?;
    lab.wait_ready().await?;
    talk(&lab)
}
