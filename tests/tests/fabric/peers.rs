//! Nodes that others wrote: the kernel's VXLAN device and `wireguard-go` talk to our pods.

use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_proto::v1::Node;
use weft_tests::outsider::Outsider;
use weft_tests::talk::{noise, tcp_both_ways, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

const VXLAN_MAC: &str = "02:00:5e:00:02:c8";
const WIREGUARD_PORT: u16 = 51820;
const MEGABYTE: usize = 1_000_000;

/// The kernel's VXLAN device, with everything it must know of our nodes entered by hand.
pub(crate) async fn kernel_vxlan(lab: &TestLab) -> Result<Outsider> {
    let outsider = Outsider::join(lab)?;
    let cluster = lab.status().await?.cluster.context("the hub tells no cluster")?;
    let (local, vni, port) = (outsider.underlay(), cluster.vni, cluster.port);
    outsider.tool(&format!(
        "ip link add vxlan0 type vxlan id {vni} dstport {port} local {local} nolearning"
    ))?;
    outsider.tool(&format!("ip link set vxlan0 address {VXLAN_MAC} mtu 1450 up"))?;
    // A virtual wire carries unfinished checksums, which a real card would have put in.
    outsider.tool("ethtool -K vxlan0 tx off")?;
    own_addresses(&outsider)?;
    let endpoint = format!("{local}:{port}");
    let nodes =
        outsider.introduce(lab, &[("endpoint", &endpoint), ("vtep-mac", VXLAN_MAC)]).await?;
    for node in &nodes {
        let (mac, vtep) = (&node.vtep_mac, endpoint_of(node)?);
        outsider.tool(&format!("bridge fdb append {mac} dev vxlan0 dst {vtep}"))?;
        for subnet in &node.subnets {
            let gateway = gateway_of(subnet)?;
            outsider.tool(&format!("ip neighbour add {gateway} lladdr {mac} dev vxlan0"))?;
            outsider.tool(&format!("ip route add {subnet} via {gateway} dev vxlan0 onlink"))?;
        }
    }
    Ok(outsider)
}

fn own_addresses(outsider: &Outsider) -> Result<()> {
    for address in Outsider::ADDRESSES {
        outsider.tool(&format!("ip address add {address} dev lo"))?;
    }
    Ok(())
}

fn endpoint_of(node: &Node) -> Result<IpAddr> {
    Ok(node.endpoint.parse::<std::net::SocketAddr>().context("no endpoint")?.ip())
}

fn gateway_of(subnet: &str) -> Result<IpAddr> {
    subnet.parse::<IpNet>()?.hosts().next().context("an empty subnet")
}

/// A `wireguard-go` process and its machine.
pub(crate) struct WireGuardGo {
    pub(crate) outsider: Outsider,
    process: Child,
}

impl WireGuardGo {
    pub(crate) async fn start(lab: &TestLab) -> Result<Self> {
        let outsider = Outsider::join(lab)?;
        // The control socket is named after the interface, on the whole machine, and tests of one
        // process run side by side.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let interface = format!("wg{}-{number}", std::process::id());
        let mut command = outsider.command("wireguard-go")?;
        command.args(["-f", &interface]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("cannot start wireguard-go")?;
        let peer = Self { outsider, process };
        let directory = tempfile::tempdir()?;
        let key_file = directory.path().join("key");
        std::fs::write(&key_file, peer.outsider.tool("wg genkey")?)?;
        let key_file = key_file.display();
        eventually(Duration::from_secs(30), async || {
            peer.outsider.tool(&format!(
                "wg set {interface} private-key {key_file} listen-port {WIREGUARD_PORT}"
            ))
        })
        .await?;
        peer.outsider.tool(&format!("ip link set {interface} mtu 1420 up"))?;
        own_addresses(&peer.outsider)?;
        let public_key = peer.outsider.tool(&format!("wg show {interface} public-key"))?;
        let endpoint = format!("{}:{WIREGUARD_PORT}", peer.outsider.underlay());
        let annotations = [("endpoint", endpoint.as_str()), ("public-key", public_key.trim())];
        for node in peer.outsider.introduce(lab, &annotations).await? {
            peer.know(&interface, &node)?;
        }
        Ok(peer)
    }

    fn know(&self, interface: &str, node: &Node) -> Result<()> {
        let key: [u8; 32] = node.keys.first().context("no key")?.as_slice().try_into()?;
        let key = weft_model::PublicKey(key);
        let (endpoint, subnets) = (&node.endpoint, node.subnets.join(","));
        self.outsider.tool(&format!(
            "wg set {interface} peer {key} endpoint {endpoint} allowed-ips {subnets}"
        ))?;
        for subnet in &node.subnets {
            self.outsider.tool(&format!("ip route add {subnet} dev {interface}"))?;
        }
        Ok(())
    }
}

impl Drop for WireGuardGo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// TCP and UDP, small and large, opened by either side, in both families.
fn talks_to_pods(lab: &TestLab, outsider: &Outsider, megabytes: usize) -> Result<()> {
    let bulk = noise(megabytes * MEGABYTE);
    for family in [0, 1] {
        let stranger = outsider.party(family)?;
        for pod in ["a1", "b1"] {
            let pod = lab.party(pod, family)?;
            for (from, to) in [(&pod, &stranger), (&stranger, &pod)] {
                tcp_both_ways(from, to, b"hello")?;
                udp_both_ways(from, to, b"hello")?;
                // The largest datagram that IPv4 can carry, in fragments.
                udp_both_ways(from, to, &noise(65507))?;
            }
        }
        let pod = lab.party("a1", family)?;
        let begun = std::time::Instant::now();
        tcp_both_ways(&pod, &stranger, &bulk)?;
        tcp_both_ways(&stranger, &pod, &bulk)?;
        println!("IPv{}: 4 x {megabytes} MB in {:?}", 4 + 2 * family, begun.elapsed());
    }
    Ok(())
}

/// A node that is a Linux kernel VXLAN device exchanges TCP and UDP with pods.
#[tokio::test]
async fn kernel_vxlan_device_is_a_node() -> Result<()> {
    if !can_run(&["ip", "bridge", "ethtool"]) {
        return Ok(());
    }
    let encapsulation = Encapsulation::Vxlan;
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let outsider = kernel_vxlan(&lab).await?;
    talks_to_pods(&lab, &outsider, 20)
}

/// A node that is `wireguard-go` exchanges TCP and UDP with pods.
#[tokio::test]
async fn wireguard_go_is_a_node() -> Result<()> {
    if !can_run(&["ip", "wireguard-go", "wg"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let peer = WireGuardGo::start(&lab).await?;
    talks_to_pods(&lab, &peer.outsider, 20)?;
    let status = lab.agent_status("node-1").await?.datapath.context("no datapath")?;
    let known = status.peers.iter().find(|p| p.name == "outsider").context("no such peer")?;
    ensure!(known.last_handshake_ms.is_some(), "no handshake: {known:?}");
    Ok(())
}
