//! What Services cost: a packet, a change, memory.
//!
//!     ./dev bench services [--case translate|change] [--services N]

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod change;
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
}

fn main() -> Result<()> {
    let options = Options::parse();
    let wants = |part| options.case.is_none_or(|case| case == part);
    let mut report = Report::default();
    if wants(Part::Translate) {
        translate::measure(&mut report)?;
    }
    if wants(Part::Change) {
        if !weft_tests::can_run(&["nft", "ip"]) {
            bail!("this machine cannot run the bench");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(change::measure(&mut report, options.services))?;
    }
    report.write(if options.case.is_none() { "services" } else { "services-part" })?;
    println!("{}", report.table().plain());
    Ok(())
}
