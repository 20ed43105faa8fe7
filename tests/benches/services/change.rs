//! A fabric of one node with many Services of ten backends, or with many flows: how long a change of one
//! Service takes, and how much memory Services take.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_tests::cost::record_times;
use weft_tests::raw::{Raw, UDP};
use weft_tests::report::Report;
use weft_tests::service::{Server, ask_over, udp_to};
use weft_tests::talk::Party;
use weft_tests::{TestLab, command_in, eventually, without_names};

use crate::manifests::manifest;

const BACKENDS: u32 = 10;
const CHANGES: usize = 30;
/// Service that is changed.
const CHANGED: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn measure(report: &mut Report, services: usize) -> Result<()> {
    let options = Options { nodes: 1, hub_arguments: without_names(), ..Options::default() };
    let lab = TestLab::with_pods(options, 3).await?;
    let pods = ["a2", "a3"].map(|p| lab.party(p, 0));
    let [first, second] = pods.map(|p| p.context("no such pod"));
    let (first, second) = (first?, second?);
    let variant = format!("{services} Services");
    lab.record_memory(report, "none")?;
    // In files of a size that people have.
    for (number, part) in (0..services).collect::<Vec<_>>().chunks(1_000).enumerate() {
        lab.put(&format!("many-{number}.yaml"), &many(part)?)?;
    }
    lab.put("changed.yaml", &changed(first.address))?;
    let node = lab.nodes().remove(0);
    let begun = Instant::now();
    let _servers = [Server::start(&first, 8080, "a2")?, Server::start(&second, 8080, "a3")?];
    let socket = udp_to(&lab.namespace_of("a1")?, SocketAddr::new(CHANGED.into(), 80))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually(PATIENCE, async || {
        let listed = lab.weft(&["services"])?.lines().count();
        ensure!(listed > services, "{listed} lines");
        lab.wait_connected(&node).await?;
        ensure!(ask_over(&socket)?.by == "a2");
        Ok(())
    })
    .await?;
    eprintln!("{services} Services in force after {:.1?}", begun.elapsed());
    // What is only needed to take them in is given back.
    tokio::time::sleep(Duration::from_secs(15)).await;
    lab.record_memory(report, &variant)?;
    changes(&lab, report, &variant, &socket, [&first, &second]).await?;
    let node = lab.namespace_of(&node)?;
    report.record("nft map", &variant, ("update", "ms"), nft(&node, services)?);
    Ok(())
}

/// The same change beside none and beside `flows` flows of the very Service that is changed.
pub(super) async fn beside_flows(report: &mut Report, flows: usize) -> Result<()> {
    // Twice as many, so that none has to make room for another of its part of the table.
    let datapath_arguments = vec![format!("--flows-max={}", (2 * flows).max(1 << 17))];
    let hub_arguments = without_names();
    let options = Options { nodes: 1, hub_arguments, datapath_arguments, ..Options::default() };
    let lab = TestLab::with_pods(options, 3 + CLIENTS).await?;
    let [first, second] = [lab.party("a2", 0)?, lab.party("a3", 0)?];
    lab.put("changed.yaml", &changed(first.address))?;
    let _servers = [Server::start(&first, 8080, "a2")?, Server::start(&second, 8080, "a3")?];
    let socket = udp_to(&lab.namespace_of("a1")?, SocketAddr::new(CHANGED.into(), 80))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    eventually(PATIENCE, async || {
        ensure!(ask_over(&socket)?.by == "a2");
        Ok(())
    })
    .await?;
    for variant in [0, flows] {
        let there = fill(&lab, variant).await?;
        let variant = format!("{variant} flows");
        changes(&lab, report, &variant, &socket, [&first, &second]).await?;
        let left = present(&lab).await?;
        eprintln!("{there} flows before the changes, {left} after them");
    }
    Ok(())
}

/// Pods that begin flows, and ports that each of them has.
const CLIENTS: usize = 5;
const PORTS: std::ops::Range<u16> = 1_024..61_000;

/// Has pods begin so many flows, all with answers, and returns how many there are.
async fn fill(lab: &TestLab, flows: usize) -> Result<u64> {
    ensure!(flows <= CLIENTS * PORTS.len(), "at most {} flows", CLIENTS * PORTS.len());
    let clients = (0..CLIENTS).map(|n| Raw::open(&lab.party(&format!("a{}", 4 + n), 0)?, UDP));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    eventually(PATIENCE, async || {
        // What was lost on the way is sent again, with all others.
        for (number, client) in clients.iter().enumerate() {
            for port in PORTS.take(flows.div_ceil(CLIENTS)) {
                let [high, low] = port.to_be_bytes();
                // To port 80, 9 bytes, without a checksum.
                client.send(CHANGED.into(), &[high, low, 0, 80, 0, 9, 0, 0, b'?'])?;
                if usize::from(port) % BURST == number {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        let present = present(lab).await?;
        ensure!(usize::try_from(present)? >= flows, "{present} flows of {flows}");
        Ok(present)
    })
    .await
}

/// Datagrams that a pod's queue takes at once.
const BURST: usize = 64;

async fn present(lab: &TestLab) -> Result<u64> {
    let status = lab.agent_status(&lab.nodes().remove(0)).await?;
    Ok(status.datapath.context("the datapath is away")?.flows)
}

/// From the hub's knowledge of a change until the Service's packets reach the other endpoint.
async fn changes(
    lab: &TestLab,
    report: &mut Report,
    variant: &str,
    socket: &UdpSocket,
    [first, second]: [&Party; 2],
) -> Result<()> {
    let (mut times, mut from_file) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let (to, name) = if number % 2 == 0 { (second, "a3") } else { (first, "a2") };
        let before = lab.status().await?.generation;
        let written = Instant::now();
        lab.put("changed.yaml", &changed(to.address))?;
        // The hub reads files when they have settled; what counts begins when it has the change.
        let published = loop {
            if lab.status().await?.generation > before {
                break Instant::now();
            }
        };
        while ask_over(socket).map_or(true, |answer| answer.by != name) {
            ensure!(published.elapsed() < PATIENCE, "the change does not arrive");
        }
        times.push(published.elapsed());
        from_file.push(written.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    record_times(report, "change", variant, ["p50", "p99"], &times);
    record_times(report, "change", variant, ["file_p50", "file_p99"], &from_file);
    Ok(())
}

fn changed(to: IpAddr) -> String {
    manifest("changed", CHANGED, "UDP", &[to])
}

fn many(part: &[usize]) -> Result<String> {
    let mut text = String::new();
    for n in part {
        let number = u32::try_from(*n)?;
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number);
        let backend =
            |b| Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number * BACKENDS + b);
        let endpoints: Vec<_> = (0..BACKENDS).map(|b| backend(b).into()).collect();
        write!(text, "{}", manifest(&format!("many-{n}"), ip, "TCP", &endpoints))?;
    }
    Ok(text)
}

/// What it takes to change an element of an nftables map of that size, as kube-proxy does.
fn nft(namespace: &str, services: usize) -> Result<f64> {
    let elements: Vec<_> = (0..services)
        .map(|n| {
            let ip = Ipv4Addr::from(
                u32::from(Ipv4Addr::new(10, 96, 1, 0)) + u32::try_from(n).unwrap_or(0),
            );
            format!("{ip} . tcp . 80 : goto backends")
        })
        .collect();
    let elements = elements.join(",\n");
    run_nft(
        namespace,
        &format!(
            "table ip yardstick {{\n chain backends {{ drop; }}\n map services {{\n type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {elements} }}\n }}\n}}\n"
        ),
    )?;
    let mut times = Vec::new();
    for _ in 0..CHANGES {
        let begun = Instant::now();
        run_nft(
            namespace,
            "delete element ip yardstick services { 10.96.1.0 . tcp . 80 : goto backends }\nadd element ip yardstick services { 10.96.1.0 . tcp . 80 : goto backends }\n",
        )?;
        times.push(begun.elapsed());
    }
    run_nft(namespace, "delete table ip yardstick\n")?;
    times.sort_unstable();
    Ok(times.get(CHANGES / 2).map_or(0.0, |t| t.as_secs_f64() * 1e3))
}

fn run_nft(namespace: &str, text: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let output = command_in(namespace, Path::new("nft"))?.arg("-f").arg(file.path()).output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
