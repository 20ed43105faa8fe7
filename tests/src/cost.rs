//! What benches of a whole fabric share: manifests, times, and the memory of processes.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::TestLab;
use crate::report::Report;

impl TestLab {
    /// Writes a file of manifests at once.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        let path = self.manifests().join(name);
        let half = path.with_extension("half");
        std::fs::write(&half, text)?;
        Ok(std::fs::rename(half, path)?)
    }

    /// Records the resident memory of agent and datapath, and of the hub, which is one for all nodes.
    ///
    /// # Errors
    /// If one of them does not run.
    pub fn record_memory(&self, report: &mut Report, variant: &str) -> Result<()> {
        let node = self.nodes().into_iter().next().context("a lab without nodes")?;
        let mut sum = 0.0;
        for process in ["agent", "datapath"] {
            let resident = resident(self.pid(&format!("{node}-{process}"))?)?;
            report.record("memory", variant, (process, "MiB"), resident);
            sum += resident;
        }
        report.record("memory", variant, ("together", "MiB"), sum);
        report.record("memory", variant, ("hub", "MiB"), resident(self.pid("hub")?)?);
        Ok(())
    }
}

fn resident(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Records the median and the 99th percentile of times, under these names.
pub fn record_times(
    report: &mut Report,
    case: &str,
    variant: &str,
    metrics: [&'static str; 2],
    times: &[Duration],
) {
    for (metric, part) in metrics.into_iter().zip([0.5, 0.99]) {
        report.record(case, variant, (metric, "ms"), quantile(times, part));
    }
}

/// In milliseconds.
fn quantile(times: &[Duration], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(rank).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}
