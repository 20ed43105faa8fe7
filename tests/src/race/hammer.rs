//! Sends to pods' addresses from before they are pods'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::{POD_PORT, Who, Witness};
use crate::TestLab;
use crate::raw::{Raw, Segment, TCP};
use crate::talk::Party;

/// Between two rounds over all that are sent to.
const PAUSE: Duration = Duration::from_millis(3);
/// Addresses around the newest pod's that are sent to.
const BEHIND: u32 = 8;
const AHEAD: u32 = 8;
/// Flows that are known and flows that are new.
const PORTS: std::ops::Range<u16> = 30_000..30_016;
/// Who sends.
const SENDERS: [Who; 3] = [Who::Foe, Who::Friend, Who::Outsider];

/// The newest pod's place in each subnet: addresses are given in rising order.
#[derive(Debug, Default)]
pub(super) struct Newest([AtomicU32; 2]);

/// See the module.
pub(super) struct Hammer {
    newest: Arc<Newest>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Newest {
    pub(super) fn note(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let [family, place] = match address {
                IpAddr::V4(v4) => [0, u32::from(*v4)],
                IpAddr::V6(v6) => [1, u128::from(*v6) as u32],
            };
            self.0[family as usize].store(place, Ordering::Relaxed);
        }
    }
}

/// Addresses of pods in a subnet, with a host for each.
#[derive(Clone, Copy, Debug)]
struct Subnet(IpNet);

impl Subnet {
    /// Around a place; beyond the end it goes on at the beginning.
    fn around(self, newest: u32) -> impl Iterator<Item = IpAddr> {
        (0..BEHIND + AHEAD).map(move |n| match self.0 {
            IpNet::V4(net) => {
                let (first, hosts) = (u32::from(net.network()), u32::from(net.hostmask()));
                let place = newest.wrapping_sub(first).wrapping_sub(BEHIND).wrapping_add(n);
                // Neither the network, its gateway nor its broadcast address.
                let pods = hosts - 2;
                let host = 2 + place.wrapping_add(pods).wrapping_sub(2) % pods;
                IpAddr::V4(Ipv4Addr::from(first + host))
            }
            IpNet::V6(net) => {
                let place = newest.saturating_sub(BEHIND) + n;
                IpAddr::V6(Ipv6Addr::from(u128::from(net.network()) + u128::from(place.max(2))))
            }
        })
    }
}

impl Hammer {
    pub(super) fn start(
        lab: &TestLab,
        witnesses: &[Witness],
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let newest = Arc::new(Newest::default());
        let subnets = subnets(lab)?;
        let mut threads = Vec::new();
        for witness in witnesses.iter().filter(|w| SENDERS.contains(&w.who)) {
            let mut ways = Vec::new();
            for address in &witness.addresses {
                let subnet = subnets.iter().find(|s| s.0.addr().is_ipv4() == address.is_ipv4());
                let subnet = *subnet.context("the node has no such subnet")?;
                ways.push(Way::new(&witness.namespace, *address, subnet)?);
            }
            let (newest, stop) = (Arc::clone(&newest), Arc::clone(stop));
            threads.push(std::thread::spawn(move || {
                let mut ports = PORTS.cycle();
                while !stop.load(Ordering::Relaxed) {
                    let port = ports.next().unwrap_or_default();
                    ways.iter().for_each(|way| way.send(&newest, port));
                    std::thread::sleep(PAUSE);
                }
                Ok(())
            }));
        }
        Ok(Self { newest, threads })
    }

    /// Where pods' addresses are noted.
    pub(super) fn newest(&self) -> Arc<Newest> {
        Arc::clone(&self.newest)
    }

    pub(super) fn end(self) -> Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a sender failed"))??;
        }
        Ok(())
    }
}

/// From one address to pods.
struct Way {
    from: IpAddr,
    subnet: Subnet,
    tcp: Raw,
    udp: UdpSocket,
}

impl Way {
    fn new(namespace: &str, from: IpAddr, subnet: Subnet) -> Result<Self> {
        let party = Party { namespace: namespace.to_owned(), address: from };
        Ok(Self { from, subnet, tcp: Raw::open(&party, TCP)?, udp: party.udp()? })
    }

    /// A datagram and a SYN to each; who is not there is no error.
    fn send(&self, newest: &Newest, port: u16) {
        const SYN: u8 = 2;
        let family = usize::from(self.from.is_ipv6());
        for to in self.subnet.around(newest.0[family].load(Ordering::Relaxed)) {
            let segment = Segment {
                ports: (port, POD_PORT),
                sequence: 1,
                acknowledgement: 0,
                flags: SYN,
                window: 1_000,
                payload: Vec::new(),
            };
            let _ = self.tcp.send(to, &segment.bytes(self.from, to));
            let _ = self.udp.send_to(b"!", SocketAddr::new(to, POD_PORT));
        }
    }
}

/// Of the node that pods come and go on.
fn subnets(lab: &TestLab) -> Result<Vec<Subnet>> {
    let runtime = tokio::runtime::Handle::current();
    let status = tokio::task::block_in_place(|| runtime.block_on(lab.status()))?;
    let nodes = status.nodes.into_iter().filter_map(|n| n.node);
    let node = nodes.into_iter().find(|n| n.name == "node-1").context("no node-1")?;
    node.subnets.iter().map(|s| Ok(Subnet(s.parse()?))).collect()
}
