use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::store::Store;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn allocator(store: Arc<Store>, ranges: &[(&str, u8)]) -> Allocator<Arc<Store>> {
    let ranges = ranges.iter().map(|(c, p)| (net(c), *p)).collect();
    Allocator::new(store, ranges, Duration::from_secs(600))
}

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    (dir, store)
}

#[test]
fn node_keeps_its_subnets_and_gets_one_for_each_family() {
    let (_dir, store) = store();
    let a = allocator(store, &[("10.1.0.0/16", 24), ("fd00::/48", 64)]);
    let first = a.acquire("a", &[], &[], 0).unwrap();
    assert_eq!(first, [net("10.1.0.0/24"), net("fd00::/64")]);
    assert_eq!(a.acquire("b", &[], &[], 0).unwrap(), [net("10.1.1.0/24"), net("fd00:0:0:1::/64")]);
    assert_eq!(a.acquire("a", &[], &[], 0).unwrap(), first);
}

#[test]
fn subnet_that_was_assigned_is_taken_as_it_is() {
    let (_dir, store) = store();
    let a = allocator(store, &[("10.1.0.0/16", 24), ("fd00::/48", 64)]);
    // Of a length of its own; the other family is ours to choose.
    let assigned = [net("10.1.8.0/22")];
    let own = a.acquire("a", &assigned, &[], 0).unwrap();
    assert_eq!(own, [net("10.1.8.0/22"), net("fd00::/64")]);
    assert_eq!(a.acquire("a", &assigned, &[], 0).unwrap(), own);
    // What a node has it keeps: its pods have addresses of it.
    assert_eq!(a.acquire("a", &[net("10.1.16.0/22")], &[], 0).unwrap(), own);
    let taken = a.acquire("b", &[net("10.1.9.0/24")], &[], 0).unwrap_err();
    assert!(matches!(taken, LeaseError::Taken { .. }), "{taken}");
    let outside = a.acquire("b", &[net("10.2.0.0/24")], &[], 0).unwrap_err();
    assert!(matches!(outside, LeaseError::Outside(_)), "{outside}");
    // Whoever assigns subnets knows what rests.
    a.release("a", 0).unwrap();
    assert_eq!(a.acquire("c", &assigned, &[], 0).unwrap()[0], assigned[0]);
}

#[test]
fn reserved_ranges_of_any_size_are_stepped_over() {
    let free = |taken: &[&str]| {
        let taken: Vec<_> = taken.iter().map(|t| net(t)).collect();
        first_free(net("10.1.0.0/22"), 24, &taken)
    };
    assert_eq!(free(&["10.1.0.0/23"]), Some(net("10.1.2.0/24")));
    assert_eq!(free(&["10.1.0.128/30", "10.1.1.0/24"]), Some(net("10.1.2.0/24")));
    assert_eq!(free(&["10.0.0.0/8"]), None);
    assert_eq!(free(&["10.2.0.0/24", "fd00::/64"]), Some(net("10.1.0.0/24")));
}

#[test]
fn exhaustion_is_an_error_that_says_so() {
    let (_dir, store) = store();
    let a = allocator(store, &[("10.1.0.0/23", 24)]);
    a.acquire("a", &[], &[], 0).unwrap();
    a.acquire("b", &[], &[], 0).unwrap();
    let error = a.acquire("c", &[], &[], 0).unwrap_err();
    assert!(error.to_string().contains("no subnet of /24 is left in 10.1.0.0/23"), "{error}");
}

#[test]
fn freed_subnet_rests_before_it_is_given_again() {
    let (_dir, store) = store();
    let a = allocator(store, &[("10.1.0.0/24", 24)]);
    a.acquire("a", &[], &[], 1000).unwrap();
    a.release("a", 1000).unwrap();
    let resting = a.acquire("b", &[], &[], 1599).unwrap_err();
    assert!(resting.to_string().contains("free again in 1 s"), "{resting}");
    assert_eq!(a.acquire("b", &[], &[], 1600).unwrap(), [net("10.1.0.0/24")]);
}

#[test]
fn concurrent_joins_get_different_subnets() {
    let (_dir, store) = store();
    let subnets: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|i| {
                let a = allocator(store.clone(), &[("10.1.0.0/16", 24)]);
                scope.spawn(move || a.acquire(&format!("node-{i}"), &[], &[], 0).unwrap())
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(subnets.iter().collect::<BTreeSet<_>>().len(), 8);
}

#[test]
fn leases_survive_a_hub_that_was_killed() {
    let (dir, store) = store();
    let ranges = [("10.1.0.0/16", 24)];
    let before = allocator(store.clone(), &ranges).acquire("a", &[], &[], 0).unwrap();
    // What a killed process leaves behind: the file as it is, without a closing write.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("hub.redb"), crashed.path().join("hub.redb")).unwrap();
    let reopened = allocator(Arc::new(Store::open(crashed.path()).unwrap()), &ranges);
    assert_eq!(reopened.acquire("a", &[], &[], 0).unwrap(), before);
    assert_ne!(reopened.acquire("b", &[], &[], 0).unwrap(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Joins, removals, the passing of time and restarts in any order.
    #[test]
    fn no_two_nodes_ever_share_an_address(
        steps in prop::collection::vec((0u8..6, 0u8..4, 0i64..400), 1..24)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let ranges = [("10.1.0.0/21", 24), ("fd00::/61", 64)];
        let reserved = [net("10.1.1.0/25"), net("fd00:0:0:2::/64")];
        let mut a = allocator(Arc::new(Store::open(dir.path()).unwrap()), &ranges);
        let mut held: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        let mut resting: Vec<(IpNet, i64)> = Vec::new();
        let mut now = 0;
        for (node, what, pass) in steps {
            now += pass;
            let uid = format!("node-{node}");
            match what {
                0 => {
                    a.release(&uid, now).unwrap();
                    let freed = held.remove(&uid).unwrap_or_default();
                    resting.extend(freed.into_iter().map(|s| (s, now + 600)));
                }
                1 => {
                    drop(a);
                    a = allocator(Arc::new(Store::open(dir.path()).unwrap()), &ranges);
                    prop_assert_eq!(a.of(&uid).unwrap(), held.get(&uid).cloned().unwrap_or_default());
                }
                _ => {
                    let Ok(subnets) = a.acquire(&uid, &[], &reserved, now) else {
                        held.insert(uid.clone(), a.of(&uid).unwrap());
                        continue;
                    };
                    if let Some(before) = held.get(&uid).filter(|h| h.len() == 2) {
                        prop_assert_eq!(before, &subnets);
                    } else {
                        prop_assert!(resting.iter().all(|(s, until)| *until <= now || !subnets.contains(s)));
                    }
                    held.insert(uid, subnets);
                }
            }
            let mut all: Vec<_> = held.values().flatten().copied().collect();
            all.extend(reserved);
            for (i, x) in all.iter().enumerate() {
                prop_assert!(all.iter().skip(i + 1).all(|y| !x.contains(y) && !y.contains(x)));
            }
        }
    }
}
