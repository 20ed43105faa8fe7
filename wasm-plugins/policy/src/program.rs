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

/// What of a program decides about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// A rule of tier Admin, by its place.
    Admin(u32, Action),
    /// The pod is isolated, but not from its own node.
    OwnNode,
    /// A rule that allows what the pod is isolated from.
    Allowed,
    /// The pod is isolated, and no rule allows it.
    Isolated,
    /// A rule of tier Baseline, by its place.
    Baseline(u32, Action),
    /// Nothing speaks of it.
    Nothing,
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

    /// True if a rule has names.
    #[inline]
    pub(crate) fn has_names(&self) -> bool {
        [&self.admin, &self.allowed, &self.baseline].iter().any(|rules| rules.has_names())
    }

    /// Every set that a rule names, for each rule that does.
    pub(crate) fn sets(&self) -> impl Iterator<Item = u32> {
        self.admin.sets().chain(self.allowed.sets()).chain(self.baseline.sets())
    }

    /// What decides; what is only watched counts if `watched`.
    #[inline]
    pub(crate) fn decide(&self, asked: &Asked<'_>, watched: bool) -> Decision {
        if let Some((place, rule)) = self.admin.first(asked, watched)
            && rule.action != Action::Pass
        {
            return Decision::Admin(place, rule.action);
        }
        if self.isolated || (watched && self.watched) {
            return if asked.to_own_node {
                Decision::OwnNode
            } else if self.allowed.any(asked, watched) {
                Decision::Allowed
            } else {
                Decision::Isolated
            };
        }
        match self.baseline.first(asked, watched) {
            Some((place, rule)) => Decision::Baseline(place, rule.action),
            None => Decision::Nothing,
        }
    }

    /// The number that a packet is dropped with.
    #[inline]
    fn dropped(&self, asked: &Asked<'_>, watched: bool) -> Option<u32> {
        match self.decide(asked, watched) {
            Decision::Admin(_, Action::Deny(number))
            | Decision::Baseline(_, Action::Deny(number)) => Some(number),
            Decision::Isolated => Some(self.isolation),
            Decision::Admin(_, Action::Accept | Action::Pass)
            | Decision::Baseline(_, Action::Accept | Action::Pass)
            | Decision::OwnNode
            | Decision::Allowed
            | Decision::Nothing => None,
        }
    }

    fn watches(&self) -> bool {
        self.watched || [&self.admin, &self.allowed, &self.baseline].iter().any(|r| r.has_watched())
    }
}
