//! From a change at the hub to the packets that it concerns.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_tests::cost::record_times;
use weft_tests::report::Report;

use crate::bed::{Bed, Measured, PATIENCE, measured};

/// Of each kind.
const CHANGES: usize = 100;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn measure(report: &mut Report, pods: usize, policies: usize) -> Result<()> {
    let bed = Bed::make(report, pods, policies).await?;
    let variant = format!("{pods} pods, {policies} policies");
    let allowed = Measured::ALLOWED;
    let kinds = [
        ("change of a policy", Measured { port: 1, ..allowed }),
        ("change of a pod's label", Measured { labelled: false, ..allowed }),
        ("change of a namespace's label", Measured { namespace_labelled: false, ..allowed }),
    ];
    for (case, other) in kinds {
        let (mut times, mut from_file) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let to = if number % 2 == 0 { other } else { allowed };
            let (time, whole) = change(&bed, to).await?;
            times.push(time);
            from_file.push(whole);
            tokio::time::sleep(PAUSE).await;
        }
        record_times(report, case, &variant, ["p50", "p99"], &times);
        record_times(report, case, &variant, ["file_p50", "file_p99"], &from_file);
    }
    Ok(())
}

/// Since the hub had it, and since it was written.
async fn change(bed: &Bed, to: Measured) -> Result<(Duration, Duration)> {
    let before = bed.lab.status().await?.generation;
    let written = Instant::now();
    bed.lab.put("measured.yaml", &measured(to))?;
    // The hub reads files when they have settled; what counts begins when it has the change.
    let published = loop {
        if bed.lab.status().await?.generation > before {
            break Instant::now();
        }
        ensure!(written.elapsed() < PATIENCE, "the hub does not read the change");
    };
    let passes = to.labelled && to.namespace_labelled;
    let mut time = bed.until(to.port, passes, published)?;
    if to.port != 0 {
        // One port opens as the other closes.
        time = time.max(bed.until(0, false, published)?);
    }
    Ok((time, time + (published - written)))
}
