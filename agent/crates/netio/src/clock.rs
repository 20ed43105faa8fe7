//! The one place that reads the machine's clock for the sans-IO core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use weft_model::Timestamp;

/// Nanoseconds of `CLOCK_BOOTTIME`.
///
/// Answered by the vDSO without a system call, about 20 ns. Goes on while the machine sleeps and is
/// the same for every process, so a flow's expiry survives a restart of the datapath.
#[must_use]
pub fn now() -> Timestamp {
    // The clock exists since Linux 2.6.39, so the call cannot fail on a supported kernel.
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return Timestamp::ZERO };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Unix time at [`Timestamp::ZERO`], as the wall clock is set at the moment.
#[must_use]
pub fn epoch() -> Duration {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wall.saturating_sub(now().since(Timestamp::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward() {
        let first = now();
        assert!(first > Timestamp::ZERO);
        assert!(now() >= first);
    }

    #[test]
    fn epoch_and_now_are_the_wall_clock() {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ours = epoch() + now().since(Timestamp::ZERO);
        assert!(ours.abs_diff(wall) < Duration::from_secs(10));
    }
}
