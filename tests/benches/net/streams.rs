//! TCP streams as fast as they go, and what the machine spends on them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockRef, Socket, Type};
use weft_netio::netns;
use weft_tests::talk::Party;

/// The congestion window opens, the tunnel shakes hands.
const WARM_UP: Duration = Duration::from_millis(250);
const MEASURED: Duration = Duration::from_millis(1000);
/// What iperf3 writes at once.
const CHUNK: usize = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(3);

/// The pods at the ends of a load, and how their TCP controls congestion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) from: &'a Party,
    pub(crate) to: &'a Party,
    pub(crate) congestion: &'a str,
}

/// What streams did together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    pub(crate) gbps: f64,
    /// CPU seconds of the whole machine for each 10^9 bytes, sender and receiver included.
    pub(crate) cpu_s_per_gb: f64,
}

/// Measures `count` streams from one pod to another.
pub(crate) fn measure(ends: Ends<'_>, count: usize) -> Result<Throughput> {
    let pairs = (0..count).map(|_| connect(ends)).collect::<Result<Vec<_>>>()?;
    with_load(pairs, |received| {
        std::thread::sleep(WARM_UP);
        let (begun, cpu, bytes) = (Instant::now(), cpu_seconds()?, received());
        std::thread::sleep(MEASURED);
        let (took, cpu, bytes) = (begun.elapsed(), cpu_seconds()? - cpu, received() - bytes);
        ensure!(bytes > 0, "no byte came through in {took:?}");
        let bytes = bytes as f64;
        let gbps = bytes * 8.0 / 1e9 / took.as_secs_f64();
        Ok(Throughput { gbps, cpu_s_per_gb: cpu / (bytes / 1e9) })
    })
}

/// Keeps one stream going while `work` runs.
pub(crate) fn during<T>(ends: Ends<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    with_load(vec![connect(ends)?], |_| {
        std::thread::sleep(WARM_UP);
        work()
    })
}

/// The client's end first. Also closes what a dead peer would hold open for ever.
pub(crate) fn connect(ends: Ends<'_>) -> Result<(TcpStream, TcpStream)> {
    let Ends { from, to, congestion } = ends;
    let listener = to.listen(0)?;
    let address = listener.local_addr()?;
    let client = netns::enter(&from.namespace, || {
        Socket::new(Domain::for_address(address), Type::STREAM, None)
    })??;
    // Before they are connected: what the machine's own choice set up then would stay.
    for end in [SockRef::from(&listener), SockRef::from(&client)] {
        let set = end.set_tcp_congestion(congestion.as_bytes());
        set.with_context(|| format!("this machine has no congestion control {congestion}"))?;
    }
    let connected = client.connect_timeout(&address.into(), PATIENCE);
    connected.with_context(|| format!("no connection to {address}"))?;
    let client = TcpStream::from(client);
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

/// Runs `work` while every pair carries bytes; it is told how many have arrived.
fn with_load<T>(
    pairs: Vec<(TcpStream, TcpStream)>,
    work: impl FnOnce(&dyn Fn() -> u64) -> Result<T>,
) -> Result<T> {
    let received: Vec<AtomicU64> = pairs.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for ((client, server), received) in pairs.iter().zip(&received) {
            scope.spawn(move || send(client));
            scope.spawn(move || receive(server, received));
        }
        let sum = || received.iter().map(|r| r.load(Ordering::Relaxed)).sum();
        let result = work(&sum);
        for (client, server) in &pairs {
            // Both may be gone: then there is nothing to end.
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
        result
    })
}

fn send(mut to: &TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while to.write_all(&chunk).is_ok() {}
}

fn receive(mut from: &TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// All CPU time of the machine that was not idle, interrupts included. Time that a hypervisor took
/// away was not spent.
fn cpu_seconds() -> Result<f64> {
    /// `USER_HZ`, the unit of `/proc/stat` on every architecture that runs Weft.
    const TICKS_PER_SECOND: f64 = 100.0;
    /// Of user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice: guests' time is
    /// in the first two already.
    const BUSY: [usize; 5] = [0, 1, 2, 5, 6];
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let ticks: Vec<f64> = all
        .context("/proc/stat has no line for all CPUs")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let busy: f64 = BUSY.iter().filter_map(|&column| ticks.get(column)).sum();
    Ok(busy / TICKS_PER_SECOND)
}
