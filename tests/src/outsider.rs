//! A machine on a lab's underlay that does not run Weft, or not yet.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;
use weft_proto::v1::Node;

use crate::talk::Party;
use crate::{TestLab, command_in, eventually, succeeded};

/// Its addresses on the underlay.
const UNDERLAY_V4: &str = "198.18.0.200";
const UNDERLAY_V6: &str = "fd00:198:18::200";

/// A namespace with one port, `eth0`, on the underlay; taken away when dropped.
#[derive(Debug)]
pub struct Outsider {
    /// Its network namespace.
    pub namespace: String,
}

impl Outsider {
    /// Its subnets if it is a peer: within the pod CIDRs, far from what the hub leases first.
    pub const SUBNETS: [&str; 2] = ["10.244.200.0/24", "fd00:10:244:c8::/64"];
    /// Its address in each subnet.
    pub const ADDRESSES: [&str; 2] = ["10.244.200.1", "fd00:10:244:c8::1"];

    /// Puts a machine on the underlay of `lab`.
    ///
    /// # Errors
    /// The kernel's; the lab's end takes away what was made.
    pub fn join(lab: &TestLab) -> Result<Self> {
        let underlay = lab.underlay_namespace();
        let namespace = lab.extra_namespace("outsider");
        netns::create(&namespace)?;
        let outsider = Self { namespace };
        let at_underlay = |command: &str| tool(&underlay, command);
        let peer = &outsider.namespace;
        at_underlay(&format!("ip link add outsider type veth peer name eth0 netns {peer}"))?;
        at_underlay("ip link set outsider master underlay up")?;
        outsider.tool(&format!("ip address add {UNDERLAY_V4}/24 dev eth0"))?;
        outsider.tool(&format!("ip address add {UNDERLAY_V6}/64 dev eth0 nodad"))?;
        outsider.tool("ip link set eth0 up")?;
        outsider.tool("ip route add default via 198.18.0.1")?;
        Ok(outsider)
    }

    /// Waits for the addresses of the link itself, which come a moment after it.
    ///
    /// # Errors
    /// If they do not come.
    pub async fn settle(&self) -> Result<()> {
        eventually(Duration::from_secs(5), async || {
            let addresses = self.tool("ip -o -6 address show scope link dev eth0")?;
            ensure!(!addresses.is_empty() && !addresses.contains("tentative"), "{addresses}");
            Ok(())
        })
        .await
    }

    /// Its IPv4 address on the underlay.
    #[must_use]
    pub fn underlay(&self) -> &'static str {
        UNDERLAY_V4
    }

    /// It, as a sender or receiver inside the fabric: of IPv4 (0) or IPv6 (1).
    ///
    /// # Errors
    /// For another number.
    pub fn party(&self, family: usize) -> Result<Party> {
        let address = Self::ADDRESSES.get(family).context("families are 0 and 1")?;
        self.party_at(address)
    }

    /// It, under any address.
    ///
    /// # Errors
    /// If `address` is none.
    pub fn party_at(&self, address: &str) -> Result<Party> {
        let address: IpAddr = address.parse()?;
        Ok(Party { namespace: self.namespace.clone(), address })
    }

    /// Runs a command line, split at spaces, and returns what it printed.
    ///
    /// # Errors
    /// If it fails; the error shows what it printed on stderr.
    pub fn tool(&self, command_line: &str) -> Result<String> {
        tool(&self.namespace, command_line)
    }

    /// A command that will run there.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        command_in(&self.namespace, program)
    }

    /// Describes it to the hub as a static peer and waits until every node knows it; returns the
    /// nodes that run agents.
    ///
    /// # Errors
    /// If the hub or a node does not take it.
    pub async fn introduce(
        &self,
        lab: &TestLab,
        annotations: &[(&str, &str)],
    ) -> Result<Vec<Node>> {
        let mut manifest = "apiVersion: v1\nkind: Node\nmetadata:\n  name: outsider\n".to_owned();
        manifest.push_str("  annotations:\n    weft.dev/static-peer: \"true\"\n");
        for (name, value) in annotations {
            manifest.push_str(&format!("    weft.dev/{name}: \"{value}\"\n"));
        }
        manifest.push_str(&format!(
            "spec:\n  podCIDRs: [{}]\n",
            Self::SUBNETS.map(|s| format!("\"{s}\"")).join(", ")
        ));
        let path = lab.manifests().join("outsider.yaml");
        let half = path.with_extension("half");
        std::fs::write(&half, manifest)?;
        std::fs::rename(&half, &path)?;
        eventually(Duration::from_secs(10), async || {
            let status = lab.status().await?;
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            ensure!(status.nodes.iter().any(|n| n.static_peer), "the hub does not know it");
            Ok(())
        })
        .await?;
        lab.wait_ready().await?;
        let nodes = lab.status().await?.nodes.into_iter().filter(|n| !n.static_peer);
        Ok(nodes.filter_map(|n| n.node).collect())
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(&self.namespace) {
            eprintln!("cannot take {} away: {error}", self.namespace);
        }
    }
}

/// Runs a command line, split at spaces, in a namespace and returns what it printed.
///
/// # Errors
/// If it fails; the error shows what it printed on stderr.
pub fn tool(namespace: &str, command_line: &str) -> Result<String> {
    let mut words = command_line.split_whitespace();
    let mut command = command_in(namespace, words.next().context("no command")?)?;
    succeeded(command_line, command.args(words).output()?)
}
