//! Times what is done again and again.

use std::time::{Duration, Instant};

use weft_tests::report::Report;

const WARM_UP: Duration = Duration::from_millis(100);
/// Odd, so that the median is one of them.
const RUNS: usize = 15;
/// The same where one thing alone is looked at.
const RUNS_ALONE: usize = 151;
/// Long against a tick of the scheduler and a reading of the clock.
const RUN_MIN: Duration = Duration::from_millis(20);
/// Between two readings of the clock.
const BATCH: u32 = 256;

/// What was timed.
pub(crate) struct Timings {
    report: Report,
    /// Cases whose name and variant have this text are measured, others left out.
    only: Option<String>,
}

impl Timings {
    /// Measures everything, or what the first argument of the program names.
    pub(crate) fn new() -> Self {
        // Cargo passes flags of its own.
        let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        Self { report: Report::default(), only }
    }

    /// Times `once`, which handles one packet.
    pub(crate) fn measure(
        &mut self,
        case: &str,
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
        for _ in 0..count {
            let took = run(RUN_MIN, &mut once);
            self.report.record(case, &variant, ("time per packet", "ns"), took);
        }
    }

    /// Prints the table and writes `target/bench/NAME.json`.
    pub(crate) fn finish(&self, name: &str) -> anyhow::Result<()> {
        print!("{}", self.report.table().plain());
        // A part must not take the place of the whole.
        if self.only.is_some() {
            return Ok(());
        }
        self.report.write(name)
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
