//! Connections that were dropped here of late, or passed where a policy in audit mode would have dropped
//! them, with names for their ends: each is a line in the log when it is new, and a line of `weft drops`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_explain::words::protocol_name;
use weft_model::POLICY_PLUGIN;
use weft_proto::v1::{Dropped, DroppedConnection};

use crate::core::{Core, State};

/// Connections that are kept, and as many of those that passed; the oldest go first.
const KEPT_MAX: usize = 1024;
/// Lines of the log for what the datapath tells at once, which it does every second; and as many for what
/// passed.
const LINES_MAX: usize = 20;
/// A connection that was silent for so long is new again.
const SILENCE: Duration = Duration::from_secs(60);
/// What lines of the log can be filtered by.
const LOG: &str = "weft::dropped";

/// Everything of a [`Dropped`] that says which it is; whether it passed comes first.
type Key = (bool, String, u32, bool, u32, String, String, u32);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Drops(Mutex<BTreeMap<Key, Known>>);

#[derive(Clone, Debug)]
struct Known {
    told: DroppedConnection,
    last: Instant,
}

impl Drops {
    /// The latest first.
    pub(crate) fn list(&self) -> Vec<DroppedConnection> {
        let mut all: Vec<_> = self.0.lock().values().cloned().collect();
        all.sort_by_key(|known| std::cmp::Reverse(known.last));
        let ago = |last: Instant| u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
        all.into_iter()
            .map(|known| DroppedConnection { last_ms: ago(known.last), ..known.told })
            .collect()
    }

    /// Takes what the datapath told. Returns what is new and not an old story.
    fn take(
        &self,
        dropped: Vec<Dropped>,
        now: Instant,
        name: impl Fn(&Dropped) -> DroppedConnection,
    ) -> Vec<DroppedConnection> {
        let mut all = self.0.lock();
        let mut news = Vec::new();
        for dropped in dropped {
            let ago = Duration::from_millis(dropped.last_ms);
            let last = now.checked_sub(ago).unwrap_or(now);
            let key = key(&dropped);
            match all.get_mut(&key) {
                Some(known) => {
                    if last.saturating_duration_since(known.last) >= SILENCE {
                        // Names and rules may be others by now.
                        known.told = name(&dropped);
                        news.push(known.told.clone());
                    }
                    known.told.count = dropped.count;
                    known.last = last;
                }
                None => {
                    let told = name(&dropped);
                    if ago < SILENCE {
                        news.push(told.clone());
                    }
                    all.insert(key, Known { told, last });
                }
            }
        }
        for passed in [false, true] {
            let of_kind = |all: &BTreeMap<Key, Known>| all.keys().filter(|k| k.0 == passed).count();
            for _ in KEPT_MAX..of_kind(&all) {
                let kept = all.iter().filter(|(key, _)| key.0 == passed);
                let oldest = kept.min_by_key(|(_, known)| known.last);
                let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
                all.remove(&oldest);
            }
        }
        news
    }
}

fn key(d: &Dropped) -> Key {
    let ends = (d.source.clone(), d.destination.clone());
    (d.passed, d.plugin.clone(), d.number, d.ingress, d.protocol, ends.0, ends.1, d.port)
}

/// Takes what the datapath told, and says what is new in the log.
pub(crate) fn take(core: &Core, dropped: Vec<Dropped>) {
    if dropped.is_empty() {
        return;
    }
    let addresses = dropped.iter().flat_map(|d| [&d.source, &d.destination]);
    let addresses: BTreeSet<IpAddr> = addresses.filter_map(|a| a.parse().ok()).collect();
    let names = core.read(|state| names(state, &addresses));
    let target = core.target();
    let name = |d: &Dropped| {
        let name = |text: &str| {
            let address = text.parse::<IpAddr>().ok();
            address.and_then(|a| names.get(&a).cloned()).unwrap_or_default()
        };
        let why = match &target {
            Some(target) if d.plugin == POLICY_PLUGIN => target.tables.describe_drop(d.number),
            _ => format!("plugin {}, number {}", d.plugin, d.number),
        };
        DroppedConnection {
            plugin: d.plugin.clone(),
            why,
            ingress: d.ingress,
            from: d.source.clone(),
            from_name: name(&d.source),
            to: d.destination.clone(),
            to_name: name(&d.destination),
            sent_to: d.sent_to.clone(),
            protocol: d.protocol,
            port: d.port,
            count: d.count,
            last_ms: 0,
            passed: d.passed,
        }
    };
    let news = core.drops().take(dropped, Instant::now(), name);
    let (passed, dropped): (Vec<_>, Vec<_>) = news.into_iter().partition(|news| news.passed);
    for (news, what) in [(dropped, "dropped"), (passed, "passed in audit mode")] {
        news.iter().take(LINES_MAX).for_each(log);
        if let Some(more) = news.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
            tracing::info!(target: LOG, more, "other connections {what}: see `weft drops`");
        }
    }
}

/// Pods and nodes that have these addresses, in one pass over all.
fn names(state: &State, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, String> {
    let mut names = BTreeMap::new();
    let mut note = |all: &[IpAddr], name: &dyn Fn() -> String| {
        for address in all.iter().filter(|a| addresses.contains(a)) {
            names.insert(*address, name());
        }
    };
    if let Some(snapshot) = &state.snapshot {
        snapshot.nodes.values().for_each(|n| note(&n.addresses, &|| format!("node {}", n.name)));
        snapshot.pods.values().for_each(|pod| note(&pod.addresses, &|| pod.name.to_string()));
    }
    // What is attached here now is right about its addresses.
    for record in state.attachments.values() {
        if let Some(name) = record.pod_name() {
            note(&record.addresses(), &|| name.to_string());
        }
    }
    names
}

fn log(drop: &DroppedConnection) {
    let end = |name: &str, address: &str| match name {
        "" => address.to_owned(),
        name => format!("{name} ({address})"),
    };
    let port = match drop.port {
        0 => protocol_name(drop.protocol),
        port => format!("{port}/{}", protocol_name(drop.protocol)),
    };
    tracing::info!(
        target: LOG,
        from = end(&drop.from_name, &drop.from),
        to = end(&drop.to_name, &drop.to),
        port,
        way = if drop.ingress { "ingress" } else { "egress" },
        by = drop.why,
        "{}",
        if drop.passed { "connection passed, audit mode would drop it" } else { "connection dropped" }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(port: u32, count: u64, last_ms: u64) -> Dropped {
        let (source, destination) = ("10.0.0.1".into(), "10.0.0.2".into());
        Dropped { source, destination, port, count, last_ms, ..Dropped::default() }
    }

    fn named(d: &Dropped) -> DroppedConnection {
        DroppedConnection { port: d.port, count: d.count, ..DroppedConnection::default() }
    }

    /// NP-113: a line for what is new, not for each packet, and again after a while without any.
    #[test]
    fn connection_is_news_once_and_again_after_silence() {
        let drops = Drops::default();
        let start = Instant::now() + Duration::from_secs(1000);
        let news = |at: u64, d| drops.take(vec![d], start + Duration::from_secs(at), named).len();
        assert_eq!(news(0, dropped(80, 1, 0)), 1);
        assert_eq!(news(1, dropped(80, 5, 0)), 0);
        assert_eq!(news(1, dropped(81, 1, 0)), 1);
        assert_eq!(news(70, dropped(80, 6, 0)), 1);
        // From before a restart of the agent.
        assert_eq!(news(70, dropped(82, 1, 90_000)), 0);
        let listed: Vec<_> = drops.list().iter().map(|d| (d.port, d.count)).collect();
        assert_eq!(listed, [(80, 6), (81, 1), (82, 1)]);
    }

    /// NP-113: what passed in audit mode is not what was dropped, under the same policy and number.
    #[test]
    fn connection_that_passed_is_told_beside_one_that_was_dropped() {
        let drops = Drops::default();
        let now = Instant::now() + Duration::from_secs(1000);
        let passed = Dropped { passed: true, ..dropped(80, 2, 0) };
        assert_eq!(drops.take(vec![dropped(80, 1, 0), passed], now, named).len(), 2);
        assert_eq!(drops.list().len(), 2);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let drops = Drops::default();
        let now = Instant::now() + Duration::from_secs(1000);
        drops.take(vec![Dropped { passed: true, ..dropped(9, 1, 0) }], now, named);
        for port in 0..2000_u32 {
            let at = now + Duration::from_millis(port.into());
            drops.take(vec![dropped(port, 1, 0)], at, named);
        }
        let listed = drops.list();
        assert_eq!((listed.len(), listed[0].port), (KEPT_MAX + 1, 1999));
        assert_eq!(listed.last().map(|d| d.port), Some(9), "what passed has room of its own");
    }
}
