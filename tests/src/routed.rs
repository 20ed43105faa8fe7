//! Machines of a lab as plain routers between their pods, without a fabric: what one is compared with.

use std::net::IpAddr;

use anyhow::{Result, bail};
use weft_netio::{netns, sysctl};

use crate::TestLab;
use crate::outsider::tool;
use crate::talk::Party;

const NODES: [&str; 2] = ["node-1", "node-2"];

/// One of the two nodes.
#[derive(Clone, Debug)]
pub struct Node {
    /// Network namespace.
    pub namespace: String,
    /// 1 or 2.
    pub number: usize,
    /// On the underlay.
    pub address: IpAddr,
    /// The other node's.
    pub other: IpAddr,
}

impl Node {
    /// Runs a command line there, split at spaces, and returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn tool(&self, command: &str) -> Result<String> {
        tool(&self.namespace, command)
    }

    /// Of the other node's pods.
    #[must_use]
    pub fn other_subnet(&self) -> String {
        format!("10.244.{}.0/24", 3 - self.number)
    }
}

/// The two nodes of [`TestLab::machines`], which forward.
///
/// # Errors
/// If there are not two.
pub fn nodes(lab: &TestLab) -> Result<[Node; 2]> {
    let addresses = NODES.map(|node| lab.node_addresses(node).first().copied());
    let [Some(first), Some(second)] = addresses else { bail!("a node has no address") };
    let node = |index: usize, address, other| {
        let namespace = lab.namespace_of(NODES[index])?;
        netns::enter(&namespace, || sysctl::set("net/ipv4/ip_forward", "1"))??;
        anyhow::Ok(Node { namespace, number: index + 1, address, other })
    };
    Ok([node(0, first, second)?, node(1, second, first)?])
}

/// Has each send to the other's pods over the underlay.
///
/// # Errors
/// `ip`'s.
pub fn connect(nodes: &[Node; 2]) -> Result<()> {
    for node in nodes {
        node.tool(&format!("ip route add {} via {}", node.other_subnet(), node.other))?;
    }
    Ok(())
}

/// Two pods on the first node and one on the second.
///
/// # Errors
/// If one cannot be made.
pub fn pods(lab: &TestLab, nodes: &[Node; 2], mtu: u32) -> Result<[Party; 3]> {
    let pod = |name: &str, node: &Node, host| pod(lab, name, node, host, mtu);
    Ok([pod("a1", &nodes[0], 2)?, pod("a2", &nodes[0], 3)?, pod("b1", &nodes[1], 2)?])
}

/// Wired as the `ptp` plugin does it.
fn pod(lab: &TestLab, name: &str, node: &Node, host: u8, mtu: u32) -> Result<Party> {
    let namespace = lab.extra_namespace(name);
    netns::create(&namespace)?;
    let gateway = format!("10.244.{}.1", node.number);
    let address = format!("10.244.{}.{host}", node.number);
    node.tool(&format!(
        "ip link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"
    ))?;
    node.tool(&format!("ip address add {gateway}/32 dev {name}"))?;
    node.tool(&format!("ip link set {name} up"))?;
    node.tool(&format!("ip route add {address}/32 dev {name}"))?;
    tool(&namespace, &format!("ip address add {address}/32 dev eth0"))?;
    tool(&namespace, "ip link set eth0 up")?;
    tool(&namespace, &format!("ip route add {gateway} dev eth0"))?;
    tool(&namespace, &format!("ip route add default via {gateway}"))?;
    Ok(Party { namespace, address: address.parse()? })
}
