//! An ordered map for many entries of which few change from one version to the next.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Entries in one piece at most.
const PIECE_MAX: usize = 64;
/// A piece with fewer is joined with its neighbour, if both fit.
const PIECE_MIN: usize = PIECE_MAX / 4;

type Piece<K, V> = Arc<Vec<(K, V)>>;

/// As a `BTreeMap`, but copies share all pieces that neither has changed: a copy costs little, takes
/// little room, and what two of them differ in is found without looking at what they share.
///
/// INVARIANT: keys rise within a piece and from piece to piece, and no piece is empty.
pub struct SharedMap<K, V> {
    pieces: Vec<Piece<K, V>>,
    len: usize,
}

/// A key at which two maps differ.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// What the older map has there.
    pub old: Option<&'a V>,
    /// What the newer one has.
    pub new: Option<&'a V>,
}

impl<K, V> SharedMap<K, V> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in the order of their keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { pieces: &self.pieces, entries: &[] }
    }

    /// Keys in their order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let piece = self.pieces.get(self.piece_of(key))?;
        let place = piece.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        piece.get(place).map(|(_, value)| value)
    }

    /// True if there is an entry for the key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Entries from this key on.
    pub fn range_from<Q: Ord + ?Sized>(&self, first: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let rest = self.pieces.get(self.piece_of(first)..).unwrap_or_default();
        let Some((piece, pieces)) = rest.split_first() else { return self.end() };
        let place = piece.partition_point(|(key, _)| key.borrow() < first);
        Iter { pieces, entries: piece.get(place..).unwrap_or_default() }
    }

    fn end(&self) -> Iter<'_, K, V> {
        Iter { pieces: &[], entries: &[] }
    }

    /// Place of the only piece that can have the key; that of none if all keys are lower.
    fn piece_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let ends_before = |piece: &Piece<K, V>| piece.last().is_some_and(|(k, _)| k.borrow() < key);
        self.pieces.partition_point(ends_before)
    }

    /// Where `self` differs from `old`, in the order of keys.
    pub fn differences<'a>(&'a self, old: &'a Self) -> Vec<Difference<'a, K, V>>
    where
        V: PartialEq,
    {
        let mut found = Vec::new();
        let (mut before, mut after) = (old.iter(), self.iter());
        loop {
            while before.skip_shared(&mut after) {}
            let (was, is) = (before.peek(), after.peek());
            let order = match (was, is) {
                (None, None) => return found,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let was = if order.is_le() { before.next() } else { None };
            let is = if order.is_ge() { after.next() } else { None };
            let (old, new) = (was.map(|(_, value)| value), is.map(|(_, value)| value));
            if let Some((key, _)) = is.or(was)
                && old != new
            {
                found.push(Difference { key, old, new });
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Gives a key a value and returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.piece_of(&key).min(self.pieces.len().saturating_sub(1));
        let Some(piece) = self.pieces.get_mut(at) else {
            self.pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let piece = Arc::make_mut(piece);
        match piece.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(place) => {
                let (_, known) = piece.get_mut(place)?;
                return Some(std::mem::replace(known, value));
            }
            Err(place) => piece.insert(place, (key, value)),
        }
        self.len += 1;
        if piece.len() > PIECE_MAX {
            // What is filled in rising order leaves full pieces behind.
            let half = if at + 1 == self.pieces.len() { PIECE_MAX } else { PIECE_MAX / 2 };
            if let Some(piece) = self.pieces.get_mut(at) {
                let rest = Arc::make_mut(piece).split_off(half);
                self.pieces.insert(at + 1, Arc::new(rest));
            }
        }
        None
    }

    /// Takes a key out and returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.piece_of(key);
        let piece = self.pieces.get_mut(at)?;
        let place = piece.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        let piece = Arc::make_mut(piece);
        let (_, value) = piece.remove(place);
        self.len -= 1;
        if piece.is_empty() {
            self.pieces.remove(at);
        } else if piece.len() < PIECE_MIN {
            self.join(at);
        }
        Some(value)
    }

    /// Joins a small piece with the next one or the one before.
    fn join(&mut self, at: usize) {
        for first in [Some(at), at.checked_sub(1)].into_iter().flatten() {
            let [Some(one), Some(other)] = [first, first + 1].map(|n| self.pieces.get(n)) else {
                continue;
            };
            if one.len() + other.len() <= PIECE_MAX {
                let other = self.pieces.remove(first + 1);
                if let Some(one) = self.pieces.get_mut(first) {
                    Arc::make_mut(one).extend(other.iter().cloned());
                }
                return;
            }
        }
    }

    /// Becomes equal to another map, but goes on sharing what stays as it is.
    pub fn become_like(&mut self, wanted: &Self)
    where
        V: PartialEq,
    {
        let held = self.clone();
        for Difference { key, new, .. } in wanted.differences(&held) {
            match new {
                Some(value) => drop(self.insert(key.clone(), value.clone())),
                None => drop(self.remove(key)),
            }
        }
    }

    /// What leads here from `old`: values that are new or differ, in order of their keys, and keys that
    /// are gone.
    #[must_use]
    pub fn changed_from(&self, old: &Self) -> (Vec<V>, Vec<K>)
    where
        V: PartialEq,
    {
        let (mut upserts, mut removed) = (Vec::new(), Vec::new());
        for Difference { key, new, .. } in self.differences(old) {
            match new {
                Some(value) => upserts.push(value.clone()),
                None => removed.push(key.clone()),
            }
        }
        (upserts, removed)
    }

    /// Keeps only entries that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let gone = self.iter().filter(|(key, value)| !keep(key, value));
        let gone: Vec<K> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }
}

/// See [`SharedMap::iter`].
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    pieces: &'a [Piece<K, V>],
    /// Of the piece before those.
    entries: &'a [(K, V)],
}

impl<'a, K, V> Iter<'a, K, V> {
    fn peek(&mut self) -> Option<(&'a K, &'a V)> {
        if self.entries.is_empty() {
            let (piece, pieces) = self.pieces.split_first()?;
            (self.pieces, self.entries) = (pieces, piece);
        }
        self.entries.first().map(|(key, value)| (key, value))
    }

    /// Skips a piece if both are about to enter the same one.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        if !self.entries.is_empty() || !other.entries.is_empty() {
            return false;
        }
        match (self.pieces.split_first(), other.pieces.split_first()) {
            (Some((a, ours)), Some((b, theirs))) if Arc::ptr_eq(a, b) => {
                (self.pieces, other.pieces) = (ours, theirs);
                true
            }
            _ => false,
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.peek();
        self.entries = self.entries.get(1..).unwrap_or_default();
        next
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), len: self.len }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

/// Of two entries with one key the last counts.
impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// # Panics
/// If there is no entry for the key.
impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    #[expect(clippy::expect_used, reason = "as for every map")]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry found for key")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        /// Keep a copy to compare with.
        Copy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u16..600, any::<u8>()).prop_map(|(k, v)| Step::Insert(k, v)),
            4 => (0_u16..600).prop_map(Step::Remove),
            1 => Just(Step::Copy),
        ];
        prop::collection::vec(step, 0..1500)
    }

    fn pairs<'a, K: Clone + 'a, V: Clone + 'a>(
        all: impl Iterator<Item = (&'a K, &'a V)>,
    ) -> Vec<(K, V)> {
        all.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    proptest! {
        #[test]
        fn it_is_as_an_ordinary_map_and_differences_are_what_differs(steps in steps()) {
            let (mut map, mut plain) = (SharedMap::default(), BTreeMap::new());
            let (mut copy, mut plain_copy) = (map.clone(), plain.clone());
            for step in steps {
                match step {
                    Step::Insert(k, v) => prop_assert_eq!(map.insert(k, v), plain.insert(k, v)),
                    Step::Remove(k) => prop_assert_eq!(map.remove(&k), plain.remove(&k)),
                    Step::Copy => (copy, plain_copy) = (map.clone(), plain.clone()),
                }
            }
            prop_assert_eq!(map.len(), plain.len());
            prop_assert_eq!(pairs(map.iter()), pairs(plain.iter()));
            for k in (0..600).step_by(7) {
                prop_assert_eq!(map.get(&k), plain.get(&k));
                prop_assert_eq!(pairs(map.range_from(&k)), pairs(plain.range(k..)));
            }
            prop_assert!(map.pieces.iter().all(|p| (1..=PIECE_MAX).contains(&p.len())));
            // The copy has not changed with it.
            prop_assert_eq!(pairs(copy.iter()), pairs(plain_copy.iter()));
            let differing: Vec<_> = map.differences(&copy).into_iter().map(|d| *d.key).collect();
            let expected = (0..600_u16).filter(|k| plain.get(k) != plain_copy.get(k));
            prop_assert_eq!(&differing, &expected.collect::<Vec<_>>());
            prop_assert_eq!(map == copy, differing.is_empty());
            let (upserts, removed) = map.changed_from(&copy);
            prop_assert_eq!((upserts, removed), crate::changed(&plain_copy, &plain));
            let mut next = copy.clone();
            next.become_like(&plain.clone().into_iter().collect());
            prop_assert_eq!(&next, &map);
            next.retain(|k, _| k % 2 == 0);
            plain.retain(|k, _| k % 2 == 0);
            prop_assert_eq!(pairs(next.iter()), pairs(plain.iter()));
        }
    }

    #[test]
    fn what_did_not_change_is_shared() {
        let old: SharedMap<_, _> = (0..6400).map(|n| (n, n)).collect();
        let mut new = old.clone();
        new.insert(70, 0);
        let shared = old.pieces.iter().filter(|p| new.pieces.iter().any(|o| Arc::ptr_eq(p, o)));
        assert_eq!(shared.count(), 99);
        let mut again = old.clone();
        again.become_like(&new.iter().map(|(k, v)| (*k, *v)).collect());
        let shared = old.pieces.iter().filter(|p| again.pieces.iter().any(|o| Arc::ptr_eq(p, o)));
        assert_eq!(shared.count(), 99);
    }
}
