//! TCP connections a second through a cluster IP and to the pod's own address, beside the kernel's
//! DNAT between the same pods on plain routers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_tests::connects::connects;
use weft_tests::report::{Report, Table, shown};
use weft_tests::talk::Party;
use weft_tests::{TestLab, eventually, routed, without_names};

use crate::manifests::manifest;

const ROUNDS: usize = 7;
const SETTLE_MAX: Duration = Duration::from_secs(15);
const METRIC: (&str, &str) = ("connect_per_s", "1/s");
const KERNEL: &str = "kernel nftables";
const NETWORKS: [&str; 3] = [KERNEL, "weft-vxlan", "weft-wireguard"];

/// Where the backend is, and its Service's cluster IP.
const PLACES: [(&str, Ipv4Addr); 2] =
    [("same node", Ipv4Addr::new(10, 96, 0, 20)), ("two nodes", Ipv4Addr::new(10, 96, 0, 21))];

/// A network that is up, with its Services. Its processes stand still unless it is measured: what they
/// do when idle would count for another.
struct Bed {
    name: &'static str,
    lab: TestLab,
    client: Party,
    /// In the order of [`PLACES`].
    backends: [Party; 2],
}

impl Bed {
    async fn make(name: &'static str) -> Result<Self> {
        let options = Options {
            nodes: 2,
            encapsulation: match name {
                "weft-vxlan" => Encapsulation::Vxlan,
                _ => Encapsulation::WireGuard,
            },
            hub_arguments: without_names(),
            ..Options::default()
        };
        let (lab, [client, near, far]) =
            if name == KERNEL { kernel(options).await? } else { fabric(options).await? };
        let bed = Self { name, lab, client, backends: [near, far] };
        for place in 0..PLACES.len() {
            bed.settle(place).await?;
        }
        bed.signal(Signal::SIGSTOP);
        Ok(bed)
    }

    /// Also warms up what stood still.
    async fn settle(&self, place: usize) -> Result<()> {
        let settled = eventually(SETTLE_MAX, async || self.measure(place, true)).await;
        settled.map(drop).with_context(|| format!("{}: no connections", self.name))
    }

    /// Of the backend in that place.
    fn measure(&self, place: usize, translated: bool) -> Result<f64> {
        let backend = &self.backends[place];
        // Not of one port: a client may not have the same one to both at a time.
        let listener = backend.listen(if translated { 8080 } else { 8081 })?;
        let service = SocketAddr::new(PLACES[place].1.into(), 80);
        let to = if translated { service } else { listener.local_addr()? };
        connects(&self.client, to, backend, &listener)
    }

    fn signal(&self, signal: Signal) {
        for process in self.lab.processes() {
            let _ = kill(Pid::from_raw(process), signal);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What stands still does not hear that it shall end.
        self.signal(Signal::SIGCONT);
    }
}

async fn fabric(options: Options) -> Result<(TestLab, [Party; 3])> {
    let mut lab = TestLab::up(options).await?;
    for (node, pod) in [("node-1", "a1"), ("node-1", "a2"), ("node-2", "b1")] {
        lab.pod_add(node, pod).await?;
    }
    let pods = [lab.party("a1", 0)?, lab.party("a2", 0)?, lab.party("b1", 0)?];
    let services = PLACES.iter().zip(&pods[1..]).zip(["near", "far"]);
    let services =
        services.map(|((place, backend), name)| manifest(name, place.1, "TCP", &[backend.address]));
    lab.put("services.yaml", &services.collect::<String>())?;
    Ok((lab, pods))
}

/// As `kube-proxy` does it in its nftables mode: a look-up in a map, then DNAT.
async fn kernel(options: Options) -> Result<(TestLab, [Party; 3])> {
    let mtu = options.underlay_mtu;
    let lab = TestLab::machines(options).await?;
    let nodes = routed::nodes(&lab)?;
    routed::connect(&nodes)?;
    let pods = routed::pods(&lab, &nodes, mtu)?;
    let elements = PLACES.iter().zip(&pods[1..]);
    let elements =
        elements.map(|(place, pod)| format!("{} . 80 : {} . 8080", place.1, pod.address));
    let elements = elements.collect::<Vec<_>>().join(", ");
    let table = format!(
        "table ip services {{ map backends {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; elements = {{ {elements} }}; }}; chain prerouting {{ type nat hook prerouting priority dstnat; dnat to ip daddr . tcp dport map @backends; }}; }}"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), table)?;
    nodes[0].tool(&format!("nft -f {}", file.path().display()))?;
    Ok((lab, pods))
}

pub(super) async fn measure(report: &mut Report) -> Result<()> {
    let mut beds = Vec::new();
    for name in NETWORKS {
        eprintln!("connect: setting up {name}");
        beds.push(Bed::make(name).await?);
    }
    for round in 1..=ROUNDS {
        eprintln!("connect: round {round}");
        for (place, (where_, _)) in PLACES.iter().enumerate() {
            for bed in &beds {
                bed.signal(Signal::SIGCONT);
                bed.settle(place).await?;
                // One after the other, and not always the same first.
                let first = round % 2 == 0;
                for translated in [first, !first] {
                    let rate = bed.measure(place, translated)?;
                    ensure!(rate > 0.0, "{}: no connection in time", bed.name);
                    report.record(bed.name, &variant(where_, translated), METRIC, rate);
                }
                bed.signal(Signal::SIGSTOP);
            }
        }
    }
    Ok(())
}

fn variant(place: &str, translated: bool) -> String {
    format!("{place}, {}", if translated { "cluster IP" } else { "direct" })
}

/// What translation costs each network, and how each compares with the kernel.
pub(super) fn ratios(report: &Report) -> Table {
    let mut table =
        Table::new(["network", "backend", "cluster IP / direct", "/ kernel", "direct / kernel"]);
    for (place, _) in PLACES {
        let median = |name, translated| {
            report.median(name, &variant(place, translated), METRIC.0).filter(|rate| *rate > 0.0)
        };
        for name in NETWORKS {
            let ratio = |(a, b): (Option<f64>, Option<f64>)| {
                a.zip(b).map_or("-".to_owned(), |(a, b)| shown(a / b))
            };
            let (direct, translated) = (median(name, false), median(name, true));
            if direct.is_some() {
                let ratios = [
                    (translated, direct),
                    (translated, median(KERNEL, true)),
                    (direct, median(KERNEL, false)),
                ];
                let cells = ratios.map(ratio);
                table.push([name, place].map(str::to_owned).into_iter().chain(cells));
            }
        }
    }
    table
}
