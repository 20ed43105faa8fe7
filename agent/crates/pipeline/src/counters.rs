//! What one worker counts.

use weft_model::DropReason;

const REASONS: usize = DropReason::ALL.len();

/// Counted by one worker since it started; the datapath adds the workers' up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets handled; each segment of a super-packet counts.
    pub packets: u64,
    /// Packets that a plugin replied to.
    pub replies: u64,
    drops: [u64; REASONS],
}

impl Default for Counters {
    fn default() -> Self {
        Self { packets: 0, replies: 0, drops: [0; REASONS] }
    }
}

impl Counters {
    /// Packets dropped for `reason`; a super-packet counts once.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every reason that has occurred, with its number.
    pub fn all_drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|r| (*r, self.drops(*r))).filter(|(_, n)| *n != 0)
    }

    pub(crate) fn drop_one(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += 1;
        }
    }
}

/// What one worker counted for one plugin since it was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginCounters {
    /// Packets it was asked about.
    pub asked: u64,
    /// Packets it dropped.
    pub dropped: u64,
    /// Packets it rejected.
    pub rejected: u64,
    /// Packets it translated.
    pub rewritten: u64,
    /// Packets it replied to.
    pub replied: u64,
    /// Calls that failed, and verdicts that could not be carried out.
    pub faults: u64,
}
