//! What somebody deletes under the fabric comes back; what the fabric made goes with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_control::{connect_unix, socket};
use weft_lab::Options;
use weft_proto::v1::DatapathStatusRequest;
use weft_proto::v1::datapath_client::DatapathClient;
use weft_tests::machine::{Node, differences, picture};
use weft_tests::outsider::{Outsider, tool};
use weft_tests::talk::{Party, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

/// The aim is under a second; this is a bound for a machine that is busy with other things.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Deletes something on `node-1`, and waits until it is back and pods talk.
async fn comes_back(lab: &TestLab, delete: &str, shown_by: &str, sign: &str) -> Result<()> {
    let namespace = lab.namespace_of("node-1")?;
    let there = || tool(&namespace, shown_by).map(|text| text.contains(sign));
    ensure!(there()?, "`{shown_by}` does not show {sign}");
    tool(&namespace, delete)?;
    let begun = Instant::now();
    eventually(BACK_WITHIN, async || {
        ensure!(there().unwrap_or(false), "`{delete}`: {sign} is not back");
        Ok(())
    })
    .await?;
    let back = begun.elapsed();
    let pairs: [(Party, Party); 2] =
        [(lab.party("a1", 0)?, lab.party("b1", 0)?), (lab.party("a1", 1)?, lab.party("b1", 1)?)];
    for (from, to) in &pairs {
        udp_both_ways(from, to, b"still here").with_context(|| format!("after `{delete}`"))?;
        udp_both_ways(to, from, b"still here").with_context(|| format!("after `{delete}`"))?;
    }
    println!("`{delete}`: back after {back:?}, pods talk after {:?}", begun.elapsed());
    Ok(())
}

/// Rules, routes, redirects and tables are put back by themselves.
#[tokio::test]
async fn what_somebody_deletes_is_put_back() -> Result<()> {
    if !can_run(&["ip", "tc", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let node = lab.namespace_of("node-1")?;
    let links = tool(&node, "ip -o link")?;
    let port = links.split([' ', ':', '@']).find(|word| word.starts_with("veth"));
    let port = port.context("no port of a pod")?.to_owned();
    let cluster = lab.status().await?.cluster.context("no cluster")?;
    let shown = "nft list tables";
    comes_back(&lab, "nft delete table inet weft", shown, "table inet weft").await?;
    for (ip, v6) in [("ip", false), ("ip -6", true)] {
        let cidr = cluster.pod_cidrs.iter().find(|c| c.contains(':') == v6).context("no CIDR")?;
        let rules = format!("{ip} rule show");
        comes_back(&lab, &format!("{ip} rule del priority 101"), &rules, "101:").await?;
        comes_back(&lab, &format!("{ip} rule del priority 100"), &rules, "100:").await?;
        let delete = format!("{ip} route del {cidr} dev weft0 table 5100");
        comes_back(&lab, &delete, &format!("{ip} route show table 5100"), cidr).await?;
    }
    let filters = format!("tc filter show dev {port} ingress");
    comes_back(&lab, &format!("tc qdisc del dev {port} clsact"), &filters, "mirred").await?;
    let down = "ip link set weft0 down";
    comes_back(&lab, down, "ip route show table 5100", "weft0").await?;
    comes_back(&lab, "ip link del weft0", "ip route show table 5100", "weft0").await
}

/// Deletes a socket, and waits until whoever opens it again is answered.
async fn socket_comes_back<T>(socket: &Path, ask: impl AsyncFn() -> Result<T>) -> Result<()> {
    ask().await.with_context(|| format!("before {} is deleted", socket.display()))?;
    std::fs::remove_file(socket)?;
    ensure!(ask().await.is_err(), "{} is not what is asked", socket.display());
    let begun = Instant::now();
    eventually(BACK_WITHIN, async || ask().await.map(drop)).await?;
    println!("{}: answered after {:?}", socket.display(), begun.elapsed());
    let mode = std::fs::metadata(socket)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{} has mode {mode:o}", socket.display());
    Ok(())
}

/// A socket without a file answers nobody new: an agent that starts again, a command.
#[tokio::test]
async fn deleted_sockets_of_hub_and_datapath_are_put_back() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    socket_comes_back(&lab.hub_socket(), async || lab.status().await).await?;
    let socket = lab.node("node-1").run().join(socket::DATAPATH);
    let ask = async || {
        let mut datapath = DatapathClient::new(connect_unix(socket.clone()).await?);
        Ok(datapath.get_status(DatapathStatusRequest {}).await?)
    };
    socket_comes_back(&socket, ask).await?;
    // The agent has to find it, and the pod's tables have to come through it.
    kill(Pid::from_raw(lab.pid("node-1-agent")?), Signal::SIGKILL)?;
    eventually(BACK_WITHIN, async || {
        let agent = lab.agent_status("node-1").await?;
        ensure!(agent.datapath_connected, "the agent does not reach its datapath");
        Ok(())
    })
    .await?;
    udp_both_ways(&lab.party("a1", 0)?, &lab.party("b1", 0)?, b"still here")
}

/// SVC-226: `weft uninstall` leaves a node as it was: links, addresses, rules, routes, tables, settings.
#[tokio::test]
async fn uninstall_leaves_a_node_as_it_was() -> Result<()> {
    if !can_run(&["ip", "tc", "nft", "iptables"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
    let machine = Outsider::join(&lab)?;
    machine.settle().await?;
    // A firewall into which the agent puts rules.
    for command in ["iptables -A FORWARD -i docker0 -j DROP", "iptables -P FORWARD DROP"] {
        machine.tool(command)?;
    }
    let before = picture(&machine.namespace)?;
    let mut node = Node::at(&machine.namespace)?;
    node.start(&lab)?;
    let pod = lab.party("a1", 0)?;
    eventually(Duration::from_secs(15), async || {
        machine.tool(&format!("ping -c 1 -W 1 {}", pod.address)).map(drop)
    })
    .await?;
    let firewall = machine.tool("iptables -S FORWARD")?;
    ensure!(firewall.contains("weft0"), "no rules for pods: {firewall}");
    let during = differences(&before, &picture(&machine.namespace)?);
    for changed in ["ip -o link", "ip rule", "ip -6 rule", "nft list ruleset", "ip_forward"] {
        ensure!(
            during.iter().any(|d| d.lines().next().is_some_and(|l| l.contains(changed))),
            "the picture does not show {changed}: {during:#?}"
        );
    }
    ensure!(during.iter().any(|d| d.contains("fwmark 0x1000")), "no way for answers: {during:#?}");
    node.stop()?;
    let output = node.weft("uninstall")?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left = differences(&before, &picture(&machine.namespace)?);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    for directory in ["run-dir", "state-dir"] {
        ensure!(!node.path(directory).exists(), "{directory} is still there");
    }
    for directory in ["cni-conf-dir", "cni-bin-dir"] {
        let left = std::fs::read_dir(node.path(directory))?.count();
        ensure!(left == 0, "{left} files are left in {directory}");
    }
    // Nothing to do is no error.
    let output = node.weft("uninstall")?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
