//! Queries of a pod, as many as are answered, and one after the other.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use weft_tests::command_in;
use weft_tests::names::round_trips;
use weft_tests::report::{Report, Table, shown};

use crate::bed::Bed;

/// Queries that are asked one after the other, for their times.
const ROUND_TRIPS: usize = 20_000;
/// Sockets of the load and queries that wait on them at once.
const CLIENTS: &str = "8";
const WAITING: &str = "100";
const RATE: (&str, &str) = ("queries_per_s", "1/s");
const PER_CPU: (&str, &str) = ("queries_per_cpu_s", "1/s");
const PER_SERVER_CPU: (&str, &str) = ("queries_per_server_cpu_s", "1/s");
const P50: (&str, &str) = ("p50", "us");
const P99: (&str, &str) = ("p99", "us");
const PEER: &str = "coredns";

pub(crate) async fn measure(
    report: &mut Report,
    services: usize,
    seconds: u32,
    rounds: usize,
) -> Result<()> {
    let variant = format!("{services} Services");
    let mut beds = vec![Bed::weft(services).await?];
    match Bed::coredns(services).await? {
        Some(bed) => beds.push(bed),
        None => eprintln!("CoreDNS is left out: it was not built"),
    }
    beds.iter().for_each(|bed| bed.signal(Signal::SIGSTOP));
    for round in 1..=rounds {
        eprintln!("load: round {round}");
        for bed in &beds {
            bed.signal(Signal::SIGCONT);
            one(report, bed, &variant, seconds)?;
            bed.signal(Signal::SIGSTOP);
        }
    }
    Ok(())
}

fn one(report: &mut Report, bed: &Bed, variant: &str, seconds: u32) -> Result<()> {
    let names: Vec<String> = bed.names().collect();
    let some: Vec<String> = names.iter().cycle().step_by(7).take(ROUND_TRIPS).cloned().collect();
    let mut times = round_trips(&bed.client, bed.server, &some)?;
    times.sort_unstable();
    for (metric, part) in [(P50, 0.5), (P99, 0.99)] {
        let rank = (times.len().saturating_sub(1) as f64 * part).round() as usize;
        let time = times.get(rank).map_or(0.0, Duration::as_secs_f64);
        report.record(bed.name, variant, metric, time * 1e6);
    }
    let queries = tempfile::NamedTempFile::new()?;
    let lines: String = names.iter().map(|name| format!("{name} A\n{name} AAAA\n")).collect();
    std::fs::write(queries.path(), lines)?;
    let (busy, of_servers) = (machine_cpu()?, cpu_of(&bed.servers())?);
    let output = command_in(&bed.client.namespace, "dnsperf")?
        .args(["-s", &bed.server.ip().to_string(), "-p", &bed.server.port().to_string()])
        .args(["-l", &seconds.to_string(), "-c", CLIENTS, "-q", WAITING, "-d"])
        .arg(queries.path())
        .output()
        .context("dnsperf")?;
    let (busy, of_servers) = (machine_cpu()? - busy, cpu_of(&bed.servers())? - of_servers);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let [completed, lost, rate] = ["Queries completed:", "Queries lost:", "Queries per second:"]
        .map(|key| figure(&text, key));
    let (completed, lost, rate) = (completed?, lost?, rate?);
    report.record(bed.name, variant, RATE, rate);
    report.record(bed.name, variant, ("lost", "queries"), lost);
    report.record(bed.name, variant, PER_CPU, completed / busy);
    report.record(bed.name, variant, PER_SERVER_CPU, completed / of_servers);
    Ok(())
}

/// The first number after the key.
fn figure(text: &str, key: &str) -> Result<f64> {
    let (_, rest) = text.split_once(key).with_context(|| format!("no `{key}` in {text}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Seconds that all CPUs were busy, since the start of the machine.
fn machine_cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty")?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|at| fields.get(at)).sum::<f64>();
    Ok(busy / ticks()?)
}

/// Seconds of these processes.
fn cpu_of(processes: &[i32]) -> Result<f64> {
    let mut sum = 0.0;
    for process in processes {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let fields = rest.split_whitespace().skip(11).take(2);
        sum += fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(sum / ticks()?)
}

fn ticks() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("no clock")? as f64)
}

/// Weft's figures against those of its peer.
pub(crate) fn ratios(report: &Report) -> Table {
    let mut table = Table::new(["weft / coredns", "ratio", "aim"]);
    let variant = report.rows().iter().find(|row| row.case == PEER).map(|row| row.variant.clone());
    let aims = [(RATE, "-"), (PER_CPU, "-"), (PER_SERVER_CPU, "3"), (P50, "0.33"), (P99, "-")];
    for ((metric, _), aim) in aims {
        let of = |case| report.median(case, variant.as_deref()?, metric);
        if let (Some(weft), Some(peer)) = (of("weft"), of(PEER)) {
            table.push([metric.to_owned(), shown(weft / peer), aim.to_owned()]);
        }
    }
    table
}
