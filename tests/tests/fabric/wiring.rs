//! The wire between a pod and its node: whose interfaces are touched, who is heard on it, and what
//! settings of the node do to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::Options;
use weft_netio::{netns, sysctl};
use weft_tests::outsider::tool;
use weft_tests::talk::{Party, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

use crate::cni::{Runtime, addresses, container, find, party};

const EXISTS: u64 = 100;
const NO_NAMESPACE: u64 = 8;
/// The kernel heeds what it is told of a neighbour once in this time (`locktime`, 1 s).
const LOCKED: Duration = Duration::from_millis(1200);

fn set(namespace: &str, key: &str, value: &str) -> Result<()> {
    netns::enter(namespace, || sysctl::set(key, value))?.with_context(|| format!("{key}={value}"))
}

/// CNI-002, CNI-046: distributions have a strict reverse path filter as a default. The way back to a
/// pod leads through the fabric, so the pod's ARP must not be held to it.
#[tokio::test]
async fn pod_resolves_its_gateway_under_a_strict_reverse_path_filter() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    for delegate in ["ptp", "bridge"] {
        let options = Options { nodes: 2, delegate: delegate.into(), ..Options::default() };
        let mut lab = TestLab::up(options).await?;
        let node = lab.namespace_of("node-1")?;
        for device in ["all", "default"] {
            set(&node, &format!("net/ipv4/conf/{device}/rp_filter"), "1")?;
        }
        lab.pod_add("node-1", "a1").await?;
        lab.pod_add("node-2", "b1").await?;
        let (from, to) = (lab.party("a1", 0)?, lab.party("b1", 0)?);
        for _ in 0..2 {
            tool(&from.namespace, "ip neigh flush dev eth0")?;
            udp_both_ways(&from, &to, b"resolved").with_context(|| delegate.to_owned())?;
        }
    }
    Ok(())
}

fn refused(runtime: &Runtime, container: &str, namespace: &Path, code: u64) -> Result<()> {
    let output = runtime.call_for("ADD", container, namespace, None)?;
    let error: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(!output.status.success() && error["code"] == code, "{error}");
    let delegates = runtime.node.state().join("cni/delegates");
    let left = if delegates.exists() {
        find(&delegates, &format!("weft,{container},eth0.json"))?
    } else {
        None
    };
    ensure!(left.is_none(), "a record is left: {left:?}");
    let output = runtime.call_for("DEL", container, namespace, None)?;
    ensure!(output.status.success(), "DEL: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// CNI-041, CNI-042, CNI-043: an interface that was there is left alone by the ADD that it is in the way
/// of, and by the DEL after it.
#[tokio::test]
async fn interface_of_others_is_left_alone() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let taken = container(&lab, "taken")?;
    tool(&taken, "ip link add eth0 type veth peer name other")?;
    refused(&runtime, "late", &netns::path_of(&taken)?, EXISTS)?;
    tool(&taken, "ip link show dev eth0").context("somebody's interface is gone")?;

    let shared = container(&lab, "shared")?;
    let result = runtime.add(&shared)?;
    refused(&runtime, "second", &netns::path_of(&shared)?, EXISTS)?;
    udp_both_ways(&party(&shared, &result)?, &lab.party("a1", 0)?, b"intact")?;
    runtime.succeeds("CHECK", &shared, Some(&result))?;
    refused(&runtime, "nowhere", Path::new("/etc/passwd"), NO_NAMESPACE)
}

/// CNI-062: the namespace of an old sandbox is gone, and its path belongs to a new one.
#[tokio::test]
async fn late_del_leaves_the_new_sandbox_at_the_same_path_alone() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
    let runtime = Runtime::new(&lab, "node-1")?;
    let namespace = container(&lab, "reused")?;
    let old = runtime.add(&namespace)?;
    netns::delete(&namespace)?;
    netns::create(&namespace)?;
    let path = netns::path_of(&namespace)?;
    let output = runtime.call_for("ADD", "new", &path, None)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let new: Value = serde_json::from_slice(&output.stdout)?;
    runtime.succeeds("DEL", &namespace, Some(&old))?;
    let reservations = runtime.node.state().join("cni/addresses");
    for address in addresses(&old)? {
        let left = find(&reservations, &address.to_string())?;
        ensure!(left.is_none(), "{address} is still reserved");
    }
    udp_both_ways(&party(&namespace, &new)?, &lab.party("a1", 0)?, b"intact")
}

/// Takes on another's address, perhaps with its Ethernet address, and tells everybody.
fn claim(thief: &Party, other: &Party, mac: Option<&str>) -> Result<()> {
    let run = |command: &str| tool(&thief.namespace, command).map(drop);
    set(&thief.namespace, "net/ipv4/conf/eth0/arp_notify", "1")?;
    set(&thief.namespace, "net/ipv6/conf/eth0/ndisc_notify", "1")?;
    run("ip link set eth0 down")?;
    if let Some(mac) = mac {
        run(&format!("ip link set eth0 address {mac}"))?;
    }
    let no_wait = if other.address.is_ipv6() { " nodad" } else { "" };
    let length = if other.address.is_ipv6() { 64 } else { 24 };
    run(&format!("ip address add {}/{length} dev eth0{no_wait}", other.address))?;
    run("ip link set eth0 up")
}

fn mac(namespace: &str) -> Result<String> {
    let shown = tool(namespace, "ip -o link show dev eth0")?;
    let mac = shown.split_whitespace().skip_while(|w| *w != "link/ether").nth(1);
    Ok(mac.context("no Ethernet address")?.to_owned())
}

/// CNI-009: on one bridge, where everybody hears ARP and neighbour discovery of everybody.
#[tokio::test]
async fn pod_on_a_bridge_cannot_take_the_address_of_another() -> Result<()> {
    if !can_run(&["ip", "bridge"]) {
        return Ok(());
    }
    let options = Options { nodes: 2, delegate: "bridge".into(), ..Options::default() };
    let mut lab = TestLab::with_pods(options, 1).await?;
    for pod in ["a2", "a3"] {
        lab.pod_add("node-1", pod).await?;
    }
    let node = lab.namespace_of("node-1")?;
    for family in [0, 1] {
        let (victim, far) = (lab.party("a1", family)?, lab.party("b1", family)?);
        udp_both_ways(&far, &victim, b"known")?;
        std::thread::sleep(LOCKED);
        let own = mac(&victim.namespace)?;
        for (thief, mac) in [("a2", None), ("a3", Some(own.as_str()))] {
            claim(&lab.party(thief, family)?, &victim, mac)?;
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(200));
                let shown = tool(&node, &format!("ip neigh show to {}", victim.address))?;
                ensure!(shown.contains(&own), "{thief} took {}: {shown}", victim.address);
                udp_both_ways(&far, &victim, b"still mine").context(thief)?;
            }
        }
    }
    let learned = tool(&node, "bridge fdb show br weft-br0")?;
    let own = mac(&lab.party("a1", 0)?.namespace)?;
    ensure!(learned.matches(&own).count() <= 2, "learned at several ports: {learned}");
    ensure!(lab.agent_status("node-1").await?.spoofed_at_ports > 0, "nothing was counted");
    Ok(())
}

/// CNI-082: `tuning` gives a pod another Ethernet address after the fabric has attached it.
#[tokio::test]
async fn pod_with_a_new_ethernet_address_is_heard() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    for delegate in ["ptp", "bridge"] {
        let options = Options { nodes: 2, delegate: delegate.into(), ..Options::default() };
        let lab = TestLab::with_pods(options, 1).await?;
        let (pod, far) = (lab.party("a1", 0)?, lab.party("b1", 0)?);
        tool(&pod.namespace, "ip link set eth0 address 02:00:5e:10:00:01")?;
        eventually(Duration::from_secs(3), async || udp_both_ways(&pod, &far, b"tuned")).await?;
    }
    Ok(())
}

/// The bridge is the delegate's: the agent cannot make it again, and says what to do.
#[tokio::test]
async fn deleted_bridge_is_reported_with_its_pods() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    let options = Options { nodes: 1, delegate: "bridge".into(), ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    tool(&lab.namespace_of("node-1")?, "ip link del weft-br0")?;
    eventually(Duration::from_secs(5), async || {
        let problems = lab.agent_status("node-1").await?.problems;
        let named = problems.iter().any(|p| p.contains("weft-br0") && p.contains("delete the pod"));
        ensure!(named, "{problems:?}");
        Ok(())
    })
    .await
}
