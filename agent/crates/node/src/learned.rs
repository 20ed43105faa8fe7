//! What pods of this node were told when they asked for names, for as long as it holds.
//!
//! Sans-IO. Bounded: of a name that many addresses at most, and of a pod; what was told longest ago goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_model::Timestamp;

use crate::tables::Known;

/// Addresses of one name, for one pod.
const OF_NAME_MAX: usize = 256;
/// Addresses of all names, for one pod.
const OF_POD_MAX: usize = 8192;

/// All pods, by the key of their attachment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned(BTreeMap<String, OfPod>);

#[derive(Clone, Debug, Default)]
struct OfPod {
    names: BTreeMap<Arc<str>, BTreeMap<IpAddr, Told>>,
    /// What of `names` tables are made of: the same one as long as that is the same.
    known: Arc<Known>,
    /// The first version of tables that has all of it.
    version: u64,
    /// It is not on disk as it is.
    unsaved: bool,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    last: Timestamp,
    until: Timestamp,
}

/// What a pod learned, as it is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Key of its attachment.
    pub attachment: String,
    /// Name, address, and until when, in nanoseconds since boot.
    pub told: Vec<(String, IpAddr, u64)>,
}

impl OfPod {
    /// Follows `names`. True if there is a difference.
    fn settle(&mut self) -> bool {
        let known: Known = self
            .names
            .iter()
            .map(|(name, told)| (Arc::clone(name), told.keys().copied().collect::<BTreeSet<_>>()))
            .collect();
        if *self.known == known {
            return false;
        }
        self.known = Arc::new(known);
        true
    }

    /// True if the address is new.
    fn told(&mut self, name: &str, address: IpAddr, now: Timestamp, until: Timestamp) -> bool {
        if !self.names.contains_key(name) {
            self.names.insert(name.into(), BTreeMap::new());
        }
        let Some(addresses) = self.names.get_mut(name) else { return false };
        let is_new = !addresses.contains_key(&address);
        let told = addresses.entry(address).or_insert(Told { last: now, until });
        told.last = now;
        // An older answer from a cache takes nothing back.
        told.until = told.until.max(until);
        while addresses.len() > OF_NAME_MAX {
            let oldest = addresses.iter().min_by_key(|(_, told)| told.last).map(|(a, _)| *a);
            let Some(oldest) = oldest else { break };
            addresses.remove(&oldest);
        }
        is_new
    }

    fn bound(&mut self) {
        while self.names.values().map(BTreeMap::len).sum::<usize>() > OF_POD_MAX {
            let all = self.names.iter().flat_map(|(name, told)| {
                told.iter().map(move |(address, told)| (told.last, name, *address))
            });
            let Some((_, name, address)) = all.min() else { return };
            let name = Arc::clone(name);
            if let Some(addresses) = self.names.get_mut(&name) {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
    }
}

impl Learned {
    /// Takes what a pod is told. True if it did not know some of that.
    pub(crate) fn learn(
        &mut self,
        attachment: &str,
        names: &[String],
        addresses: &[IpAddr],
        now: Timestamp,
        until: Timestamp,
    ) -> bool {
        let pod = self.0.entry(attachment.to_owned()).or_default();
        let mut any_new = false;
        for name in names {
            for address in addresses {
                any_new |= pod.told(name, *address, now, until);
            }
        }
        pod.unsaved = true;
        if !any_new {
            return false;
        }
        pod.bound();
        pod.settle()
    }

    /// Forgets what does not hold any more. True if there was something.
    pub(crate) fn forget(&mut self, now: Timestamp) -> bool {
        let mut any = false;
        for pod in self.0.values_mut() {
            let over = |told: &Told| told.until <= now;
            if !pod.names.values().any(|told| told.values().any(over)) {
                continue;
            }
            pod.names.retain(|_, told| {
                told.retain(|_, told| !over(told));
                !told.is_empty()
            });
            pod.unsaved = true;
            any |= pod.settle();
        }
        any
    }

    /// Forgets pods that are gone.
    pub(crate) fn keep_only(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|attachment, _| is_there(attachment));
    }

    /// What a pod knows.
    pub(crate) fn known(&self, attachment: &str) -> Option<&Arc<Known>> {
        self.0.get(attachment).map(|pod| &pod.known)
    }

    /// The version of tables that has all that a pod knows.
    pub(crate) fn version(&self, attachment: &str) -> u64 {
        self.0.get(attachment).map_or(0, |pod| pod.version)
    }

    /// Notes that version.
    pub(crate) fn set_version(&mut self, attachment: &str, version: u64) {
        if let Some(pod) = self.0.get_mut(attachment) {
            pod.version = version;
        }
    }

    /// Pods that are not on disk as they are.
    pub(crate) fn unsaved(&self) -> Vec<String> {
        let unsaved = self.0.iter().filter(|(_, pod)| pod.unsaved);
        unsaved.map(|(attachment, _)| attachment.clone()).collect()
    }

    /// Pods that know anything, or did.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// A pod as it has to be on disk, which it counts as then; `None` if it is gone.
    pub(crate) fn save(&mut self, attachment: &str) -> Option<Saved> {
        let pod = self.0.get_mut(attachment)?;
        pod.unsaved = false;
        let told = pod.names.iter().flat_map(|(name, addresses)| {
            addresses.iter().map(|(address, told)| (name.to_string(), *address, told.until.0))
        });
        Some(Saved { attachment: attachment.to_owned(), told: told.collect() })
    }

    /// Takes back what was on disk.
    pub(crate) fn restore(&mut self, saved: Saved, now: Timestamp) {
        let pod = self.0.entry(saved.attachment).or_default();
        for (name, address, until) in saved.told {
            pod.told(&name, address, now, Timestamp(until));
        }
        pod.settle();
        self.forget(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const POD: &str = "weft/a/eth0";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn address(last: u32) -> IpAddr {
        IpAddr::from((0xc000_0200 + last).to_be_bytes())
    }

    fn learn(learned: &mut Learned, name: &str, last: u32, now: u64, until: u64) -> bool {
        learned.learn(POD, &[name.to_owned()], &[address(last)], at(now), at(until))
    }

    fn known(learned: &Learned, name: &str) -> Vec<IpAddr> {
        let known = learned.known(POD).and_then(|known| known.get(name).cloned());
        known.unwrap_or_default().into_iter().collect()
    }

    /// NP-156: a newer answer renews, and an older one takes nothing back.
    #[test]
    fn address_is_known_until_the_last_answer_is_over() {
        let mut learned = Learned::default();
        assert!(learn(&mut learned, "a", 1, 0, 10));
        assert!(!learn(&mut learned, "a", 1, 1, 20));
        assert!(!learn(&mut learned, "a", 1, 2, 15));
        assert!(learn(&mut learned, "a", 2, 2, 5));
        assert!(!learned.forget(at(4)) && learned.forget(at(5)));
        assert_eq!(known(&learned, "a"), [address(1)]);
        assert!(!learned.forget(at(19)) && learned.forget(at(20)));
        assert!(learned.known(POD).unwrap().is_empty());
    }

    /// NP-159: what was told longest ago goes, and only as much as has to.
    #[test]
    fn oldest_goes_first_when_there_are_too_many() {
        let mut learned = Learned::default();
        for n in 0..300 {
            learn(&mut learned, "a", n, n.into(), 1000);
            // The first one is told again and again.
            learn(&mut learned, "a", 0, n.into(), 1000);
        }
        let kept = known(&learned, "a");
        assert_eq!(kept.len(), OF_NAME_MAX);
        assert!(kept.contains(&address(0)) && !kept.contains(&address(1)));
        assert!(kept.contains(&address(299)) && kept.contains(&address(45)));
        for n in 0..40 {
            let addresses: Vec<_> = (0..250).map(address).collect();
            learned.learn(POD, &[format!("n{n}")], &addresses, at(400 + n), at(1000));
        }
        let all: usize = learned.known(POD).unwrap().values().map(BTreeSet::len).sum();
        assert_eq!((all, known(&learned, "n39").len()), (OF_POD_MAX, 250));
    }

    /// NP-164.
    #[test]
    fn what_is_on_disk_comes_back() {
        let mut learned = Learned::default();
        learn(&mut learned, "a", 1, 0, 10);
        learn(&mut learned, "b", 2, 0, 20);
        assert_eq!(learned.unsaved(), [POD]);
        let saved = learned.save(POD).unwrap();
        assert_eq!(learned.unsaved(), [""; 0]);
        let mut again = Learned::default();
        again.restore(saved, at(10));
        assert_eq!((known(&again, "a"), known(&again, "b")), (vec![], vec![address(2)]));
        again.keep_only(|_| false);
        assert_eq!(again.known(POD), None);
        assert_eq!(again.save(POD), None);
    }
}
