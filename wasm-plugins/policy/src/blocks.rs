//! Blocks of addresses, with what is excepted from them.
//!
//! All blocks of a rule become spans that do not touch, in rising order: a lookup is a binary
//! search, however many blocks and exceptions there are and whatever they overlap.

use crate::address::{Address, Span};

/// Addresses that a rule speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Blocks {
    #[inline]
    pub(crate) fn contains(&self, address: Address) -> bool {
        match address {
            Address::V4(v4) => is_in(&self.v4, v4),
            Address::V6(v6) => is_in(&self.v6, v6),
        }
    }
}

#[inline]
fn is_in<N: Copy + Ord>(spans: &[(N, N)], number: N) -> bool {
    let before = spans.partition_point(|(first, _)| *first <= number);
    before.checked_sub(1).and_then(|i| spans.get(i)).is_some_and(|(_, last)| number <= *last)
}

/// Collects blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlocksBuilder {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl BlocksBuilder {
    /// Adds what is in `block` and in none of `except`.
    pub(crate) fn add(&mut self, block: Span, except: &[Span]) {
        let Some(whole) = numbers(block) else { return };
        let is_v4 = matches!(block.first, Address::V4(_));
        let mut except: Vec<_> = except
            .iter()
            .filter(|e| matches!(e.first, Address::V4(_)) == is_v4)
            .filter_map(|e| numbers(*e))
            .collect();
        except.sort_unstable();
        carve(whole, &except, if is_v4 { &mut self.v4 } else { &mut self.v6 });
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        self.v4.extend(other.v4);
        self.v6.extend(other.v6);
    }

    /// `None` if there are no addresses.
    pub(crate) fn build(self) -> Option<Blocks> {
        // All numbers of `v4` are such.
        let narrow = |(first, last)| (first as u32, last as u32);
        let blocks = Blocks {
            v4: joined(self.v4).into_iter().map(narrow).collect(),
            v6: joined(self.v6).into(),
        };
        (blocks != Blocks::default()).then_some(blocks)
    }
}

fn numbers(span: Span) -> Option<(u128, u128)> {
    match (span.first, span.last) {
        (Address::V4(first), Address::V4(last)) => Some((first.into(), last.into())),
        (Address::V6(first), Address::V6(last)) => Some((first, last)),
        (Address::V4(_), Address::V6(_)) | (Address::V6(_), Address::V4(_)) => None,
    }
}

/// What is left of `first..=last` between the sorted `holes`.
fn carve((first, last): (u128, u128), holes: &[(u128, u128)], out: &mut Vec<(u128, u128)>) {
    let mut at = first;
    for (start, end) in holes.iter().filter(|(_, end)| *end >= first) {
        if *start > last {
            break;
        }
        if *start > at {
            out.push((at, start - 1));
        }
        match end.checked_add(1) {
            Some(next) => at = at.max(next),
            None => return,
        }
        if at > last {
            return;
        }
    }
    out.push((at, last));
}

/// Sorts spans and joins those that overlap or touch.
fn joined(mut spans: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    spans.sort_unstable();
    spans.dedup_by(|next, held| {
        let touches = held.1.checked_add(1).is_none_or(|after| next.0 <= after);
        if touches {
            held.1 = held.1.max(next.1);
        }
        touches
    });
    spans
}
