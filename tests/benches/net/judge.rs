//! The tables: figures, ratios of Weft to its peers, and those that it is judged by.

use std::process::Command;

use anyhow::Result;
use weft_tests::report::{Report, Table, shown};

use crate::names::{Case, Metric, Variant};
use crate::options::Options;

/// What Weft is compared with; in this order the columns.
const PEERS: [&str; 3] = ["wireguard-go", "kernel-vxlan", "routed"];

/// A ratio to a peer within one run, with three Wasm plugins on.
struct Judged {
    what: &'static str,
    metric: Metric,
    variant: Variant,
    weft: &'static str,
    peer: &'static str,
    floor: f64,
    aim: f64,
}

impl Judged {
    /// Less is better where the aim is below the floor.
    fn mark(&self, ratio: f64) -> &'static str {
        let reaches = |goal: f64| if self.aim < self.floor { ratio <= goal } else { ratio >= goal };
        match (reaches(self.aim), reaches(self.floor)) {
            (true, _) => "aim",
            (_, true) => "floor",
            _ => "below",
        }
    }
}

#[rustfmt::skip]
fn judged() -> Vec<Judged> {
    use Metric::{CpuPerGigabyte, Rr50, Tcp1, Udp64};
    use Variant::{SameNode, Veth1500, Wire1500};
    const WIREGUARD: &str = "weft-wireguard+3wasm";
    const VXLAN: &str = "weft-vxlan+3wasm";
    let mut all = Vec::new();
    let mut add = |what, metric, variant, weft, peer, floor, aim| {
        all.push(Judged { what, metric, variant, weft, peer, floor, aim });
    };
    for underlay in [Veth1500, Wire1500] {
        add("WireGuard, 1 stream", Tcp1, underlay, WIREGUARD, "wireguard-go", 1.8, 2.5);
    }
    add("VXLAN, 1 stream", Tcp1, Veth1500, VXLAN, "kernel-vxlan", 0.45, 0.6);
    add("VXLAN, 1 stream", Tcp1, Wire1500, VXLAN, "kernel-vxlan", 0.65, 0.9);
    for weft in [WIREGUARD, VXLAN] {
        add("same node, 1 stream", Tcp1, SameNode, weft, "routed", 0.5, 0.8);
    }
    for underlay in [Veth1500, Wire1500] {
        add("ping-pong p50", Rr50, underlay, WIREGUARD, "wireguard-go", 0.5, 0.3);
        add("UDP 64 B rate", Udp64, underlay, WIREGUARD, "wireguard-go", 2.5, 4.0);
        add("CPU s/GB encrypted", CpuPerGigabyte, underlay, WIREGUARD, "wireguard-go", 0.5, 0.33);
    }
    for underlay in [Veth1500, Wire1500] {
        add("three Wasm plugins, 1 stream", Tcp1, underlay, WIREGUARD, "weft-wireguard", 0.95, 0.98);
        add("three Wasm plugins, 1 stream", Tcp1, underlay, VXLAN, "weft-vxlan", 0.95, 0.98);
    }
    all
}

/// Prints every table that has something in it.
pub(crate) fn print(report: &Report, options: &Options) -> Result<()> {
    let judgement = judgement(report);
    let setting = format!("{}, TCP with {}", machine()?, options.congestion);
    if options.markdown {
        println!("Measured {setting}\n");
        for variant in Variant::ALL {
            let table = medians(report, variant);
            if !table.is_empty() {
                println!("`{variant}`\n\n{}", table.markdown());
            }
        }
        if !judgement.is_empty() {
            println!("Ratios, with three Wasm plugins on every packet\n\n{}", judgement.markdown());
        }
        return Ok(());
    }
    println!("{setting}\n\n{}", report.table().plain());
    for (head, table) in [("ratios", ratios(report)), ("judged by", judgement)] {
        if !table.is_empty() {
            println!("{head}\n\n{}", table.plain());
        }
    }
    Ok(())
}

/// A line for each case, a column for each metric.
fn medians(report: &Report, variant: Variant) -> Table {
    let of_variant = |metric: &Metric| {
        report.rows().iter().any(|r| r.variant == variant.name() && r.metric == metric.name())
    };
    let metrics: Vec<_> = Metric::ALL.into_iter().filter(of_variant).collect();
    let heads = metrics.iter().map(|metric| metric.name().to_owned());
    let mut table = Table::new(["case".to_owned()].into_iter().chain(heads));
    for case in Case::ALL {
        let median = |metric: &Metric| report.median(case.name(), variant.name(), metric.name());
        if metrics.iter().any(|metric| median(metric).is_some()) {
            let cells = metrics.iter().map(|metric| median(metric).map_or("-".into(), shown));
            table.push([case.name().to_owned()].into_iter().chain(cells));
        }
    }
    table
}

/// Of every Weft row to its peers.
fn ratios(report: &Report) -> Table {
    let heads = PEERS.map(|peer| format!("/ {peer}"));
    let head = ["case", "variant", "metric"].map(str::to_owned);
    let mut table = Table::new(head.into_iter().chain(heads));
    for row in report.rows().iter().filter(|row| row.case.starts_with("weft-")) {
        let of = |peer: &str| report.median(peer, &row.variant, row.metric).filter(|p| *p > 0.0);
        if PEERS.iter().any(|peer| of(peer).is_some()) {
            let ratio = |peer| of(peer).map_or("-".to_owned(), |peer| shown(row.median() / peer));
            let names = [&row.case, &row.variant, row.metric].map(str::to_owned);
            table.push(names.into_iter().chain(PEERS.map(ratio)));
        }
    }
    table
}

fn judgement(report: &Report) -> Table {
    let mut table = Table::new(["", "variant", "Weft", "peer", "ratio", "floor", "aim", "reaches"]);
    for judged in judged() {
        let median = |case| report.median(case, judged.variant.name(), judged.metric.name());
        if let (Some(weft), Some(peer)) = (median(judged.weft), median(judged.peer)) {
            let ratio = weft / peer;
            let numbers = [ratio, judged.floor, judged.aim].map(shown);
            let names = [judged.what, judged.variant.name(), judged.weft, judged.peer];
            let mark = judged.mark(ratio).to_owned();
            table.push(names.map(str::to_owned).into_iter().chain(numbers).chain([mark]));
        }
    }
    table
}

/// Date, CPUs and kernel.
fn machine() -> Result<String> {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?.stdout;
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let count = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = String::from_utf8_lossy(&date);
    Ok(format!("{}, {count} CPUs ({model}), Linux {}", date.trim(), kernel.trim()))
}
