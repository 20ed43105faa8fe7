//! Things of which each is one Service's only.
//!
//! Who has something keeps it; then whoever asks for something in particular gets it if it is free,
//! and never something else instead; then the rest is given out. Within each step Services come in
//! order of namespace and name. A Service that is built in gives way: what somebody else
//! has or asks for it does not ask for. What is kept for a Service that may come back is not given out by
//! chance, and yet to whoever asks for it.

use std::collections::BTreeMap;
use std::fmt::Display;

use weft_model::ServiceName;

use super::draft::Draft;

/// Something that a Service needs one of.
pub(super) struct Slot<'d, K, V> {
    pub(super) draft: &'d Draft<'d>,
    /// Which of the Service's slots it is.
    pub(super) kind: K,
    /// What it has.
    pub(super) held: Option<V>,
    /// What it asks for; any will do if nothing.
    pub(super) asked: Option<V>,
    /// What it gets.
    pub(super) given: Option<V>,
}

/// Who has what.
pub(super) type Taken<'d, V> = BTreeMap<V, &'d ServiceName>;

/// Services that did not get something, and why.
pub(super) type Refused<'d> = Vec<(&'d Draft<'d>, String)>;

/// Fills the slots. `kept` is what is kept for others. `legal` says what is wrong with a value, `fresh`
/// finds one that is not taken; it is not asked for one that it found before.
pub(super) fn settle<'d, K, V: Copy + Ord + Display>(
    mut slots: Vec<Slot<'d, K, V>>,
    kept: &Taken<'d, V>,
    legal: impl Fn(&Slot<'d, K, V>, V) -> Result<(), String>,
    mut fresh: impl FnMut(&Slot<'d, K, V>, &Taken<'d, V>) -> Result<V, String>,
    refused: &mut Refused<'d>,
) -> Vec<Slot<'d, K, V>> {
    give_way(&mut slots, kept, refused);
    let mut taken = kept.clone();
    for slot in &mut slots {
        let still = slot.held.filter(|held| slot.asked.is_none_or(|asked| asked == *held));
        let still = still.filter(|held| !taken.contains_key(held) && legal(slot, *held).is_ok());
        slot.given = still;
        taken.extend(still.map(|held| (held, &slot.draft.name)));
    }
    for slot in slots.iter_mut().filter(|s| s.given.is_none()) {
        let Some(asked) = slot.asked else { continue };
        match (legal(slot, asked), taken.get(&asked)) {
            (Err(reason), _) => refused.push((slot.draft, reason)),
            (Ok(()), Some(owner)) if kept.get(&asked) != Some(owner) => {
                refused.push((slot.draft, format!("{asked} is Service {owner}'s already")));
            }
            (Ok(()), _) => {
                taken.insert(asked, &slot.draft.name);
                slot.given = Some(asked);
            }
        }
    }
    for slot in slots.iter_mut().filter(|s| s.given.is_none() && s.asked.is_none()) {
        match fresh(slot, &taken) {
            Ok(value) => {
                taken.insert(value, &slot.draft.name);
                slot.given = Some(value);
            }
            Err(reason) => refused.push((slot.draft, reason)),
        }
    }
    slots
}

/// Nobody wrote the Service that is built in, so nobody relies on what it has.
fn give_way<'d, K, V: Copy + Ord + Display>(
    slots: &mut [Slot<'d, K, V>],
    kept: &Taken<'d, V>,
    refused: &mut Refused<'d>,
) {
    if !slots.iter().any(|s| s.draft.defined.is_built_in()) {
        return;
    }
    let (held, asked) = (|s: &Slot<'d, K, V>| s.held, |s: &Slot<'d, K, V>| s.asked);
    let of_others = |what: &dyn Fn(&Slot<'d, K, V>) -> Option<V>| -> Taken<'d, V> {
        let others = slots.iter().filter(|s| !s.draft.defined.is_built_in());
        others.filter_map(|s| Some((what(s)?, &s.draft.name))).collect()
    };
    let (held, asked) = (of_others(&held), of_others(&asked));
    for slot in slots.iter_mut().filter(|s| s.draft.defined.is_built_in()) {
        slot.held = slot.held.filter(|has| !asked.contains_key(has));
        let Some(wanted) = slot.asked else { continue };
        if let Some(owner) = [&asked, &held, kept].iter().find_map(|all| all.get(&wanted)) {
            slot.asked = None;
            refused.push((slot.draft, format!("{wanted} is Service {owner}'s, so it has another")));
        }
    }
}
