//! A network that is up: two nodes, a pod on each, and a second one on the first.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_netio::{netns, sysctl};
use weft_tests::talk::{Party, tcp_both_ways, udp_both_ways};
use weft_tests::{TestLab, eventually, without_names};

use crate::names::{Case, Plugins, Underlay, Variant};
use crate::streams::Ends;
use crate::{fabric, peers};

/// How long a network may take to carry the first byte: handshakes, neighbours.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// On each node; a bench of tunnels needs no second family.
const POD_CIDR: &str = "10.244.0.0/16";

/// One set-up. Taken away when dropped.
///
/// Its processes stand still unless it is [`Bed::running`]: what they do when idle would be counted
/// as the cost of the case that is measured.
pub(crate) struct Bed {
    /// Before the lab, so that processes end before their namespaces do.
    peers: Vec<peers::Process>,
    pub(crate) lab: TestLab,
    client: Party,
    neighbour: Party,
    server: Party,
}

impl Bed {
    /// Makes the set-up of a case and waits until pods can talk.
    pub(crate) async fn make(case: Case, underlay: Underlay) -> Result<Self> {
        let options = Options {
            nodes: 2,
            underlay_mtu: underlay.mtu,
            pod_cidrs: vec![POD_CIDR.parse()?],
            ..Options::default()
        };
        let bed = match case {
            Case::Weft(encapsulation, plugins) => {
                let hub_arguments = match plugins {
                    Plugins::BuiltIn => Vec::new(),
                    Plugins::None | Plugins::ThreeWasm => without_names(),
                };
                let options = Options { encapsulation, hub_arguments, ..options };
                fabric::make(options, plugins, underlay).await?
            }
            peer => peers::make(peer, options, underlay).await?,
        };
        bed.settle().await?;
        bed.signal(Signal::SIGSTOP);
        Ok(bed)
    }

    /// Lets it go on, until what is returned is dropped; returns when pods can talk.
    pub(crate) async fn running(&self) -> Result<Running<'_>> {
        self.signal(Signal::SIGCONT);
        let running = Running(self);
        self.settle().await?;
        Ok(running)
    }

    /// To all of its processes. One that has ended shows when pods cannot talk.
    fn signal(&self, signal: Signal) {
        let of_weft = self.lab.processes().into_iter();
        for process in of_weft.chain(self.peers.iter().map(peers::Process::id)) {
            let _ = kill(Pid::from_raw(process), signal);
        }
    }

    /// Of pods that are there: the client and its neighbour on one node, the server on the other.
    pub(crate) fn new(
        lab: TestLab,
        peers: Vec<peers::Process>,
        [client, neighbour, server]: [Party; 3],
    ) -> Self {
        Self { peers, lab, client, neighbour, server }
    }

    /// Who sends to whom.
    pub(crate) fn ends<'a>(&'a self, variant: Variant, congestion: &'a str) -> Ends<'a> {
        let to = if variant == Variant::SameNode { &self.neighbour } else { &self.server };
        Ends { from: &self.client, to, congestion }
    }

    /// Process ids of what carries the packets in user space.
    pub(crate) fn datapaths(&self) -> Vec<i32> {
        let nodes = self.lab.nodes().into_iter();
        let of_weft = nodes.filter_map(|node| self.lab.pid(&format!("{node}-datapath")).ok());
        of_weft.chain(self.peers.iter().map(peers::Process::id)).collect()
    }

    async fn settle(&self) -> Result<()> {
        eventually(SETTLE_MAX, async || {
            for to in [&self.neighbour, &self.server] {
                udp_both_ways(&self.client, to, b"there?")?;
                tcp_both_ways(&self.client, to, &[7; 100_000])?;
            }
            Ok(())
        })
        .await
        .context("pods cannot talk")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What stands still does not hear that it shall end.
        self.signal(Signal::SIGCONT);
    }
}

/// A set-up whose processes run.
pub(crate) struct Running<'a>(&'a Bed);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGSTOP);
    }
}

/// Makes an underlay of virtual links like one of cables: nobody filters there, and without offloads
/// no packet on it is longer than its MTU.
pub(crate) fn apply(underlay: Underlay, lab: &TestLab) -> Result<()> {
    let bridge = lab.underlay_namespace();
    for family in ["ip", "ip6", "arp"] {
        let key = format!("net/bridge/bridge-nf-call-{family}tables");
        match netns::enter(&bridge, || sysctl::ensure(&key, "0"))? {
            // No bridge of this machine is filtered.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            result => drop(result.with_context(|| key.clone())?),
        }
    }
    if underlay.offloads {
        return Ok(());
    }
    let ports = weft_tests::outsider::tool(&bridge, "ip -br link show type veth")?;
    let ports = ports.lines().filter_map(|line| line.split(['@', ' ']).next());
    let mut links: Vec<_> = ports.map(|port| (bridge.clone(), port.to_owned())).collect();
    for node in lab.nodes() {
        links.push((lab.namespace_of(&node)?, "eth0".to_owned()));
    }
    for (namespace, link) in links {
        let tool = |command: String| weft_tests::outsider::tool(&namespace, &command);
        tool(format!("ethtool -K {link} tso off gso off tx-udp-segmentation off"))?;
        let features = tool(format!("ethtool -k {link}"))?;
        for feature in ["tcp-segmentation-offload", "generic-segmentation-offload"] {
            let off = features.lines().any(|line| line.starts_with(&format!("{feature}: off")));
            ensure!(off, "{feature} of {link} cannot be turned off");
        }
    }
    Ok(())
}
