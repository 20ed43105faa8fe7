//! Later fragments follow their first, which alone has the ports.

use std::collections::VecDeque;

use hashbrown::HashMap;
use weft_model::Timestamp;

use super::key::FlowKey;
use super::state::FRAGMENT_TIMEOUT;

/// Datagrams in flight at most; the oldest gives way.
pub(crate) const FRAGMENTED_MAX: usize = 8192;

/// Which datagram a fragment is of. Source: RFC 791 section 3.2, RFC 8200 section 4.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FragmentId {
    pub(crate) source: std::net::IpAddr,
    pub(crate) destination: std::net::IpAddr,
    pub(crate) id: u32,
    pub(crate) protocol: u8,
}

/// First fragments that passed.
#[derive(Default)]
pub(crate) struct Fragments {
    keys: HashMap<FragmentId, (FlowKey, Timestamp)>,
    order: VecDeque<(FragmentId, Timestamp)>,
}

impl Fragments {
    /// Lets later fragments of `id` follow a first one with `key`.
    pub(crate) fn remember(&mut self, id: FragmentId, key: FlowKey, now: Timestamp) {
        self.expire(now);
        if self.order.len() >= FRAGMENTED_MAX {
            self.forget_oldest();
        }
        self.keys.insert(id, (key, now));
        self.order.push_back((id, now));
    }

    /// The key of the first fragment.
    pub(crate) fn resolve(&self, id: &FragmentId, now: Timestamp) -> Option<FlowKey> {
        let (key, seen) = self.keys.get(id)?;
        (now.since(*seen) < FRAGMENT_TIMEOUT).then_some(*key)
    }

    pub(crate) fn expire(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(_, seen)| now.since(*seen) >= FRAGMENT_TIMEOUT) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((id, seen)) = self.order.pop_front() else { return };
        // The same identification may have been used again since.
        if self.keys.get(&id).is_some_and(|(_, at)| *at == seen) {
            self.keys.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    fn id(id: u32) -> FragmentId {
        let address = IpAddr::from([10, 0, 0, 1]);
        FragmentId { source: address, destination: address, id, protocol: 17 }
    }

    fn key(port: u16) -> FlowKey {
        FlowKey::new(17, ([10, 0, 0, 1].into(), port), ([10, 0, 0, 1].into(), 1))
    }

    #[test]
    fn identification_used_again_outlives_its_first_use() {
        let mut fragments = Fragments::default();
        let later = Timestamp::ZERO + FRAGMENT_TIMEOUT / 2;
        fragments.remember(id(1), key(1), Timestamp::ZERO);
        fragments.remember(id(1), key(2), later);
        fragments.expire(Timestamp::ZERO + FRAGMENT_TIMEOUT);
        let now = later + FRAGMENT_TIMEOUT - Duration::from_nanos(1);
        assert_eq!(fragments.resolve(&id(1), now), Some(key(2)));
        assert_eq!(fragments.resolve(&id(1), later + FRAGMENT_TIMEOUT), None);
    }

    #[test]
    fn bound_drops_the_oldest() {
        let mut fragments = Fragments::default();
        for i in 0..=u32::try_from(FRAGMENTED_MAX).unwrap() {
            fragments.remember(id(i), key(0), Timestamp(u64::from(i)));
        }
        assert_eq!(fragments.resolve(&id(0), Timestamp(0)), None);
        assert!(fragments.resolve(&id(1), Timestamp(0)).is_some());
        assert_eq!(fragments.keys.len(), FRAGMENTED_MAX);
    }
}
