//! Times what is done again and again, and reports it in the one form all benches have.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

const WARM_UP: Duration = Duration::from_millis(100);
/// Odd, so that the median is one of them.
const RUNS: usize = 15;
/// The same where one thing alone is looked at.
const RUNS_ALONE: usize = 151;
/// Long against a tick of the scheduler and a reading of the clock.
const RUN_MIN: Duration = Duration::from_millis(20);
/// Between two readings of the clock.
const BATCH: u32 = 256;

/// What was measured, in the order in which it was.
pub(crate) struct Report {
    rows: Vec<Row>,
    /// Cases whose name and variant have this text are measured, others left out.
    only: Option<String>,
}

struct Row {
    case: &'static str,
    variant: String,
    /// Nanoseconds, sorted.
    runs: Vec<f64>,
}

impl Report {
    /// Measures everything, or what the first argument of the program names.
    pub(crate) fn new() -> Self {
        // Cargo passes flags of its own.
        let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        Self { rows: Vec::new(), only }
    }

    /// Times `once`, which handles one packet.
    pub(crate) fn measure(
        &mut self,
        case: &'static str,
        variant: impl Into<String>,
        mut once: impl FnMut(),
    ) {
        let variant = variant.into();
        let name = format!("{case}: {variant}");
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return once();
        }
        let count = if self.only.is_some() { RUNS_ALONE } else { RUNS };
        eprintln!("measuring {name}");
        run(WARM_UP, &mut once);
        let mut runs: Vec<f64> = (0..count).map(|_| run(RUN_MIN, &mut once)).collect();
        runs.sort_by(f64::total_cmp);
        self.rows.push(Row { case, variant, runs });
    }

    /// Prints the table and writes `target/bench/NAME.json`.
    pub(crate) fn finish(&self, name: &str) -> anyhow::Result<()> {
        self.print();
        // A part must not take the place of the whole.
        if self.only.is_some() {
            return Ok(());
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        let file = dir.join(format!("{name}.json"));
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&file, self.json()))
            .with_context(|| file.display().to_string())
    }

    fn print(&self) {
        let width = |text: fn(&Row) -> &str, head: &str| {
            self.rows.iter().map(|row| text(row).chars().count()).fold(head.len(), usize::max)
        };
        let (case, variant) = (width(|r| r.case, "case"), width(|r| &r.variant, "variant"));
        println!(
            "{:case$}  {:variant$}  {:>9}  {:>9}  {:>9}",
            "case", "variant", "ns/packet", "min", "max"
        );
        for row in &self.rows {
            println!(
                "{:case$}  {:variant$}  {:>9.1}  {:>9.1}  {:>9.1}",
                row.case,
                row.variant,
                row.median(),
                row.min(),
                row.max()
            );
        }
    }

    fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            json!({
                "case": row.case,
                "variant": row.variant,
                "metric": "time per packet",
                "unit": "ns",
                "median": rounded(row.median()),
                "min": rounded(row.min()),
                "max": rounded(row.max()),
                "runs": row.runs.len(),
            })
        });
        format!("{:#}\n", serde_json::Value::from_iter(rows))
    }
}

impl Row {
    fn median(&self) -> f64 {
        self.runs[self.runs.len() / 2]
    }

    fn min(&self) -> f64 {
        self.runs[0]
    }

    fn max(&self) -> f64 {
        self.runs[self.runs.len() - 1]
    }
}

/// Nanoseconds for one, over at least `long`.
fn run(long: Duration, once: &mut impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut batches = 0_u32;
    loop {
        (0..BATCH).for_each(|_| once());
        batches += 1;
        let took = started.elapsed();
        if took >= long {
            return took.as_secs_f64() * 1e9 / (f64::from(batches) * f64::from(BATCH));
        }
    }
}

fn rounded(nanoseconds: f64) -> f64 {
    (nanoseconds * 100.0).round() / 100.0
}
