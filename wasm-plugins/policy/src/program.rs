//! What holds for one direction of a pod.

use crate::rules::{Action, Asked, Rules};

/// See the configuration's `PolicyProgram`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) admin: Rules,
    pub(crate) isolated: bool,
    /// As `isolated`, of policies that are only watched.
    pub(crate) watched: bool,
    pub(crate) allowed: Rules,
    pub(crate) baseline: Rules,
    /// Number of a drop that no rule tells of.
    pub(crate) isolation: u32,
}

/// What a program says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Pass,
    /// It passes; with what is only watched it would be dropped, with this number.
    PassWatched(u32),
    Drop(u32),
}

impl Program {
    pub(crate) fn judge(&self, asked: &Asked<'_>) -> Judgement {
        if let Some(number) = self.dropped(asked, false) {
            return Judgement::Drop(number);
        }
        if !self.watches() {
            return Judgement::Pass;
        }
        self.dropped(asked, true).map_or(Judgement::Pass, Judgement::PassWatched)
    }

    /// Every set that a rule names, for each rule that does.
    pub(crate) fn sets(&self) -> impl Iterator<Item = u32> {
        self.admin.sets().chain(self.allowed.sets()).chain(self.baseline.sets())
    }

    /// The number that a packet is dropped with; what is only watched counts if `watched`.
    fn dropped(&self, asked: &Asked<'_>, watched: bool) -> Option<u32> {
        match self.admin.first(asked, watched).map(|rule| rule.action) {
            Some(Action::Accept) => return None,
            Some(Action::Deny(number)) => return Some(number),
            Some(Action::Pass) | None => {}
        }
        if self.isolated || (watched && self.watched) {
            return (!self.allowed.any(asked, watched)).then_some(self.isolation);
        }
        match self.baseline.first(asked, watched).map(|rule| rule.action) {
            Some(Action::Deny(number)) => Some(number),
            Some(Action::Accept | Action::Pass) | None => None,
        }
    }

    fn watches(&self) -> bool {
        self.watched || [&self.admin, &self.allowed, &self.baseline].iter().any(|r| r.has_watched())
    }
}
