//! Weft and its peers between two pods, in one interleaved run: `./dev bench net`.
//!
//! Every case has the same machines, pods and underlay, made by the code that labs are made with,
//! and the same loads. All set-ups of an underlay are up at once; in each round every load meets
//! every case before the next load begins, so that what changes on the machine changes for all. The
//! processes of the others stand still meanwhile.
//!
//! Needs root, the built binaries and plugins, and the peers in `target/tools`: `scripts/bench`.

#![allow(clippy::print_stdout, reason = "the tables are the output")]

mod bed;
mod datagrams;
mod fabric;
mod judge;
mod latency;
mod names;
mod options;
mod peers;
mod streams;

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use weft_tests::connects::connects;
use weft_tests::eventually;
use weft_tests::report::Report;

use crate::bed::Bed;
use crate::names::{Case, Load, Metric, Underlay, Variant};
use crate::options::Options;
use crate::streams::Ends;

/// Set by a signal: whoever is at work ends, so that everything is taken away.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if !weft_tests::can_run(&["ip", "bridge", "ethtool", "wg", "nft"]) {
        bail!("this machine cannot run the bench");
    }
    std::thread::Builder::new().name("signals".into()).spawn(watch_signals)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut run = Run { options, report: Report::default(), failures: Vec::new() };
    match runtime.block_on(run.all()) {
        // It said so already.
        Err(_) if INTERRUPTED.load(Ordering::Relaxed) => Ok(ExitCode::from(130)),
        Err(error) => Err(error),
        Ok(()) => run.finish(),
    }
}

fn watch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        eprintln!("interrupted: taking everything away");
        INTERRUPTED.store(true, Ordering::Relaxed);
        Ok(())
    })
}

fn go_on() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

async fn interrupted() {
    while go_on().is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Run {
    options: Options,
    report: Report,
    failures: Vec<Failure>,
}

struct Failure {
    case: Case,
    what: String,
    why: String,
}

impl Run {
    async fn all(&mut self) -> Result<()> {
        let variants: Vec<_> = self.options.variants().collect();
        let mut underlays: Vec<Underlay> = Vec::new();
        for variant in &variants {
            if !underlays.contains(&variant.underlay()) {
                underlays.push(variant.underlay());
            }
        }
        for underlay in underlays {
            let on_it = variants.iter().copied().filter(|v| v.underlay() == underlay);
            self.on_underlay(underlay, &on_it.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    async fn on_underlay(&mut self, underlay: Underlay, variants: &[Variant]) -> Result<()> {
        let names = variants.iter().map(|v| v.name()).collect::<Vec<_>>().join(", ");
        let mut beds = Vec::new();
        for case in self.options.cases().collect::<Vec<_>>() {
            if !variants.iter().any(|variant| case.has(*variant)) {
                continue;
            }
            eprintln!("{names}: setting up {case}");
            let made = tokio::select! {
                made = Bed::make(case, underlay) => made,
                () = interrupted() => bail!("interrupted"),
            };
            match made {
                Ok(bed) => beds.push((case, bed)),
                Err(error) => self.failed(case, &names, &error),
            }
        }
        match self.options.during.clone() {
            Some(command) => {
                run_during(&beds, variants, (&command, &self.options.congestion)).await?;
            }
            None => self.rounds(&beds, variants).await?,
        }
        for (case, bed) in beds.iter().filter(|(case, _)| case.is_weft()) {
            // What nodes report comes to the hub in intervals.
            let checked = async {
                let _running = bed.running().await?;
                eventually(Duration::from_secs(5), async || fabric::check_plugins(&bed.lab).await)
                    .await
            };
            if let Err(error) = checked.await {
                self.failed(*case, &names, &error);
            }
        }
        Ok(())
    }

    async fn rounds(&mut self, beds: &[(Case, Bed)], variants: &[Variant]) -> Result<()> {
        let mut loads: Vec<Load> = Vec::new();
        for metric in Metric::ALL.into_iter().filter(|m| self.options.wants(*m)) {
            if !loads.contains(&metric.load()) {
                loads.push(metric.load());
            }
        }
        // Of networks at rest first: who was just flooded may still be busy with it.
        loads.sort_by_key(|load| !matches!(load, Load::PingPong { .. } | Load::Connects));
        for round in 1..=self.options.rounds {
            for load in &loads {
                for variant in variants {
                    eprintln!("{variant}: round {round}: {load:?}");
                    for (case, bed) in beds.iter().filter(|(case, _)| case.has(*variant)) {
                        go_on()?;
                        match bed.running().await {
                            Ok(_running) => {
                                self.measure(*case, *variant, *load, bed);
                            }
                            Err(error) => {
                                self.failed(*case, &format!("{variant}: {load:?}"), &error);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn measure(&mut self, case: Case, variant: Variant, load: Load, bed: &Bed) {
        let earlier = match load {
            Load::Datagrams(64) => Some(Metric::Udp64),
            Load::Datagrams(_) => Some(Metric::Udp1350),
            _ => None,
        };
        let earlier = earlier.and_then(|metric| {
            self.report.median(case.name(), variant.name(), metric.name()).map(|kpps| kpps * 1e3)
        });
        let ends = bed.ends(variant, &self.options.congestion);
        let measured = match apply(load, ends, earlier) {
            // Once more: a machine that others use may be away for seconds.
            Err(_) => apply(load, ends, None),
            measured => measured,
        };
        match measured {
            Ok(values) => {
                for (metric, value) in values {
                    if self.options.wants(metric) {
                        let unit = metric.name_and_unit();
                        self.report.record(case.name(), variant.name(), unit, value);
                    }
                }
            }
            Err(error) => self.failed(case, &format!("{variant}: {load:?}"), &error),
        }
    }

    fn failed(&mut self, case: Case, what: &str, why: &anyhow::Error) {
        eprintln!("{what}: {case}: FAILED: {why:#}");
        self.failures.push(Failure { case, what: what.to_owned(), why: format!("{why:#}") });
    }

    fn finish(&self) -> Result<ExitCode> {
        if self.options.during.is_none() {
            // A part must not take the place of the whole.
            self.report.write(if self.options.is_whole() { "net" } else { "net-part" })?;
            judge::print(&self.report, &self.options)?;
        }
        for Failure { case, what, why } in &self.failures {
            println!("FAILED: {case}: {what}: {why}");
        }
        Ok(if self.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn apply(load: Load, ends: Ends<'_>, earlier: Option<f64>) -> Result<Vec<(Metric, f64)>> {
    let Ends { from, to, .. } = ends;
    Ok(match load {
        Load::Streams(count) => {
            let streams = streams::measure(ends, count)?;
            match count {
                1 => vec![
                    (Metric::Tcp1, streams.gbps),
                    (Metric::CpuPerGigabyte, streams.cpu_s_per_gb),
                ],
                _ => vec![(Metric::Tcp4, streams.gbps)],
            }
        }
        Load::Datagrams(payload) => {
            let metric = if payload == 64 { Metric::Udp64 } else { Metric::Udp1350 };
            let rate = datagrams::highest_rate(from, to, payload, earlier)?;
            vec![(metric, rate / 1e3)]
        }
        Load::PingPong { cpus } => {
            let trips = latency::ping_pong(ends, cpus)?;
            let [p50, p99] = match cpus {
                1 => [Metric::Rr50, Metric::Rr99],
                _ => [Metric::Rr2At50, Metric::Rr2At99],
            };
            vec![(p50, trips.p50), (p99, trips.p99)]
        }
        Load::Connects => {
            let listener = to.listen(0)?;
            let rate = connects(from, listener.local_addr()?, to, &listener)?;
            vec![(Metric::Connects, rate)]
        }
    })
}

async fn run_during(
    beds: &[(Case, Bed)],
    variants: &[Variant],
    (command, congestion): (&str, &str),
) -> Result<()> {
    for variant in variants {
        for (case, bed) in beds.iter().filter(|(case, _)| case.has(*variant)) {
            go_on()?;
            let _running = bed.running().await?;
            let ends = bed.ends(*variant, congestion);
            let datapaths: Vec<_> = bed.datapaths().iter().map(i32::to_string).collect();
            let status = streams::during(ends, || {
                let mut shell = Command::new("sh");
                shell.args(["-c", command]).env("BENCH_CASE", case.name());
                shell.env("BENCH_VARIANT", variant.name());
                shell.env("BENCH_DATAPATHS", datapaths.join(","));
                shell.status().context("sh")
            })?;
            ensure!(status.success(), "`{command}` for {case}: {status}");
        }
    }
    Ok(())
}
