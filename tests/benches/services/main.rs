//! What Services cost: a packet, a change, memory, a connection.
//!
//!     ./dev bench services [--case translate|change|flows|connect] [--services N] [--flows N]

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod change;
mod connect;
mod manifests;
mod translate;

use anyhow::{Result, bail};
use clap::Parser;
use weft_tests::report::Report;

/// Measures what Services cost.
#[derive(Parser)]
struct Options {
    /// Only this part.
    #[arg(long, value_enum)]
    case: Option<Part>,
    /// Services in the part `change`.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Flows in the part `flows`.
    #[arg(long, default_value_t = 250_000)]
    flows: usize,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A packet of a new and of a known flow, by the number of Services.
    Translate,
    /// From a change at the hub to the new backend, and the memory of agent and datapath.
    Change,
    /// The same change beside no flow and beside many of the Service that is changed.
    Flows,
    /// TCP connections through a cluster IP, directly, and through the kernel's DNAT.
    Connect,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let wants = |part| options.case.is_none_or(|case| case == part);
    let mut report = Report::default();
    if wants(Part::Translate) {
        translate::measure(&mut report)?;
    }
    let needs_fabric = [Part::Change, Part::Flows, Part::Connect].into_iter().any(wants);
    if needs_fabric && !weft_tests::can_run(&["nft", "ip"]) {
        bail!("this machine cannot run the bench");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if wants(Part::Change) {
        runtime.block_on(change::measure(&mut report, options.services))?;
    }
    if wants(Part::Flows) {
        runtime.block_on(change::beside_flows(&mut report, options.flows))?;
    }
    if wants(Part::Connect) {
        runtime.block_on(connect::measure(&mut report))?;
    }
    report.write(if options.case.is_none() { "services" } else { "services-part" })?;
    println!("{}", report.table().plain());
    let ratios = connect::ratios(&report);
    if !ratios.is_empty() {
        println!("{}", ratios.plain());
    }
    Ok(())
}
