//! What network policies cost: a packet, a change, memory. And whether they hold from a pod's first
//! instant, for many pods.
//!
//!     ./dev bench policy [--case packet|change|memory|race] [--pods N] [--policies N]

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod bed;
mod change;
mod packet;

use anyhow::{Result, bail};
use clap::Parser;
use weft_tests::race;
use weft_tests::report::Report;

/// Measures what network policies cost.
#[derive(Parser)]
struct Options {
    /// Only this part; `race` runs only if it is named.
    #[arg(long, value_enum)]
    case: Option<Part>,
    /// Pods in the parts `change` (10000), `memory` (50000) and `race` (1000).
    #[arg(long)]
    pods: Option<usize>,
    /// Policies in the parts `change` and `memory`.
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A packet of a new and of a known flow, by the number of policies.
    Packet,
    /// From a change at the hub to packets that pass or pass no longer.
    Change,
    /// Agent, datapath and hub, without pods and with many.
    Memory,
    /// Measures nothing: pods that send and are sent to from their first instant.
    Race,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let wants = |part| match options.case {
        Some(case) => case == part,
        None => part != Part::Race,
    };
    let mut report = Report::default();
    if wants(Part::Packet) {
        packet::measure(&mut report)?;
    }
    let needs_fabric = [Part::Change, Part::Memory, Part::Race].into_iter().any(wants);
    if needs_fabric && !weft_tests::can_run(&["nft", "ip"]) {
        bail!("this machine cannot run the bench");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (pods, policies) = (options.pods, options.policies);
    if wants(Part::Race) {
        let seen = runtime.block_on(race::run(pods.unwrap_or(1_000)))?;
        println!("{seen}");
        return Ok(());
    }
    if wants(Part::Change) {
        runtime.block_on(change::measure(&mut report, pods.unwrap_or(10_000), policies))?;
    }
    if wants(Part::Memory) {
        let bed = bed::Bed::make(&mut report, pods.unwrap_or(50_000), policies);
        drop(runtime.block_on(bed)?);
    }
    report.write(if options.case.is_none() { "policy" } else { "policy-part" })?;
    println!("{}", report.table().plain());
    let ratios = packet::ratios(&report);
    if !ratios.is_empty() {
        println!("{}", ratios.plain());
    }
    Ok(())
}
