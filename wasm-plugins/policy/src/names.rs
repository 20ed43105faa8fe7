//! Rules that let a pod send to hosts by their names: to addresses that it was told when it asked for them.
//!
//! An address passes new flows while the pod is known to have learned it. A flow remembers the name that it
//! passed by, and passes by that name for as long as it lives and a rule has the name, whether the address is
//! still known or not.

use weft_policy_sdk::Flow;

use crate::address::Address;
use crate::hash::Map;
use crate::memory::{name_of, passes_by};
use crate::program::{Judgement, Program};
use crate::rules::Asked;

/// Addresses that pods of this node have learned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned(Map<Pair, Box<[u64]>>);

/// A pod's address, and the one that it learned.
pub(crate) type Pair = (Address, Address);

impl Learned {
    /// Numbers of the names that the pod has learned the address by, in rising order.
    #[inline]
    pub(crate) fn of(&self, pod: Address, address: Address) -> &[u64] {
        if self.0.is_empty() {
            return &[];
        }
        self.0.get(&(pod, address)).map_or(&[], |names| names)
    }

    /// Without names the address is known no more.
    pub(crate) fn set(&mut self, pair: Pair, names: Box<[u64]>) {
        if names.is_empty() {
            self.0.remove(&pair);
        } else {
            self.0.insert(pair, names);
        }
    }

    /// True if nobody has learned anything.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Judges a flow that names may let pass. `asked` has those that the pod knows now.
pub(crate) fn judge(program: &Program, asked: &Asked<'_>, flow: &mut Flow) -> Judgement {
    let with = |names: &[u64]| program.judge(&Asked { names, ..*asked });
    let held = name_of(flow);
    let mut names = asked.names.to_vec();
    if let Some(held) = held
        && let Err(place) = names.binary_search(&held)
    {
        names.insert(place, held);
    }
    let judgement = with(&names);
    // Answers go by what their flow's packets found.
    if flow.is_reply() || matches!(judgement, Judgement::Drop(_)) || with(&[]) == judgement {
        return judgement;
    }
    // What is known now goes before what is only remembered: it may be remembered for longer.
    let candidates = || asked.names.iter().copied().chain(held);
    let same = candidates().find(|name| with(&[*name]) == judgement);
    let passing = |name: &u64| !matches!(with(&[*name]), Judgement::Drop(_));
    if let Some(name) = same.or_else(|| candidates().find(passing))
        && held != Some(name)
    {
        passes_by(flow, name);
    }
    judgement
}
