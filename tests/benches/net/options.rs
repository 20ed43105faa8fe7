//! The command line.

use std::str::FromStr;

use clap::Parser;

use crate::names::{Case, Metric, Variant};

/// Throughput, rate, latency and cost between two pods: Weft and its peers in one run.
///
/// Results go to target/bench/net.json, those of a part to target/bench/net-part.json.
#[derive(Parser)]
#[command(name = "./dev bench net")]
pub(crate) struct Options {
    /// Cases, separated by commas; all unless given.
    #[arg(long = "case", value_delimiter = ',', value_parser = Case::from_str)]
    cases: Vec<Case>,
    /// Variants, separated by commas; all unless given.
    #[arg(long = "variant", value_delimiter = ',', value_parser = Variant::from_str)]
    variants: Vec<Variant>,
    /// Metrics, separated by commas; all unless given.
    #[arg(long = "metric", value_delimiter = ',', value_parser = Metric::from_str)]
    metrics: Vec<Metric>,
    /// How often each is measured.
    #[arg(long, env = "WEFT_BENCH_ROUNDS", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// How pods' TCP controls congestion. Linux's own choice unless given, whatever this machine's.
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub(crate) congestion: String,
    /// Print the tables as Markdown, with date and machine.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Do not measure: run a shell command for each case and variant while one TCP stream goes. It
    /// is told `BENCH_CASE`, `BENCH_VARIANT` and `BENCH_DATAPATHS`, process ids with commas.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) during: Option<String>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(crate) fn variants(&self) -> impl Iterator<Item = Variant> {
        chosen(&Variant::ALL, &self.variants)
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> {
        chosen(&Case::ALL, &self.cases)
    }

    /// True if everything is measured.
    pub(crate) fn is_whole(&self) -> bool {
        self.cases.is_empty() && self.variants.is_empty() && self.metrics.is_empty()
    }

    pub(crate) fn wants(&self, metric: Metric) -> bool {
        chosen(&Metric::ALL, &self.metrics).any(|chosen| chosen == metric)
    }
}

/// In the order of `all`.
fn chosen<T: Copy + PartialEq>(all: &[T], wanted: &[T]) -> impl Iterator<Item = T> {
    all.iter().copied().filter(|one| wanted.is_empty() || wanted.contains(one))
}
