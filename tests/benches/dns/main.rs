//! What names cost: queries per second and their time, beside CoreDNS; many pairs from one socket; memory.
//!
//!     ./dev bench dns [--case load|pairs|memory] [--services N] [--seconds N] [--rounds N] [--pairs N]

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod bed;
mod load;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use weft_lab::Options as LabOptions;
use weft_tests::names::pairs;
use weft_tests::report::Report;
use weft_tests::{TestLab, without_names};

use crate::bed::{Bed, NAME_SERVER};

/// Measures what names cost.
#[derive(Parser)]
struct Options {
    /// Only this part.
    #[arg(long, value_enum)]
    case: Option<Part>,
    /// Services that have names.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Length of a load.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Rounds of loads, in turn for each server.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Pairs of an A and an AAAA query in the part `pairs`.
    #[arg(long, default_value_t = 1_000_000)]
    pairs: usize,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Queries per second, what they cost, and their time, from a pod.
    Load,
    /// A and AAAA at once from one socket, again and again: none may be lost.
    Pairs,
    /// What a node keeps of names.
    Memory,
}

/// A query that gets no answer for so long is lost.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let options = Options::parse();
    if !weft_tests::can_run(&["nft", "ip", "dnsperf"]) {
        bail!("this machine cannot run the bench");
    }
    let wants = |part| options.case.is_none_or(|case| case == part);
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if wants(Part::Load) {
            load::measure(&mut report, options.services, options.seconds, options.rounds).await?;
        }
        if wants(Part::Pairs) {
            many_pairs(&mut report, options.pairs).await?;
        }
        if wants(Part::Memory) {
            memory(&mut report, options.services).await?;
        }
        anyhow::Ok(())
    })?;
    report.write(if options.case.is_none() { "dns" } else { "dns-part" })?;
    println!("{}", report.table().plain());
    let ratios = load::ratios(&report);
    if !ratios.is_empty() {
        println!("{}", ratios.plain());
    }
    Ok(())
}

async fn many_pairs(report: &mut Report, count: usize) -> Result<()> {
    let bed = Bed::weft(1).await?;
    let (name, addresses) = bed.first().context("no Service")?;
    let server = SocketAddr::new(NAME_SERVER.into(), 53);
    let done = pairs(&bed.client, server, &name, addresses, count, PATIENCE)?;
    let variant = format!("{count} pairs");
    report.record("weft", &variant, ("lost", "queries"), done.lost as f64);
    report.record("weft", &variant, ("slowest", "ms"), done.slowest.as_secs_f64() * 1e3);
    Ok(())
}

/// Makes a Service's manifest of its number.
type Manifest = fn(usize) -> String;

/// Beside a fabric with the same Services that answers no names: Services that have cluster IPs, and such as
/// have nothing but names of their endpoints.
async fn memory(report: &mut Report, services: usize) -> Result<()> {
    let headless = format!("{services} headless Services of {} endpoints", bed::ENDPOINTS);
    let kinds = [
        (format!("{services} Services"), bed::with_cluster_ips as Manifest),
        (headless, bed::headless),
    ];
    for (kind, manifest) in kinds {
        let beds = [("without names", without_names()), ("with names", Vec::new())];
        for (variant, hub_arguments) in beds {
            let options = LabOptions { nodes: 1, hub_arguments, ..LabOptions::default() };
            let lab = TestLab::with_pods(options, 1).await?;
            bed::put(&lab, services, manifest)?;
            bed::wait_taken(&lab).await?;
            // What is only needed to take them in is given back.
            tokio::time::sleep(Duration::from_secs(15)).await;
            lab.record_memory(report, &format!("{kind}, {variant}"))?;
        }
    }
    Ok(())
}
