//! The last snapshots, and how a watcher gets from the one it has to the newest.
//!
//! A watcher that is slow skips generations: what it gets next is the difference between what it
//! has and what is newest then. So nobody waits for it and nothing queues up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use weft_control::{Update, UpdateBody};
use weft_model::{Delta, Generation, NodeName, Snapshot};

use crate::ca::Incarnation;

/// Snapshots kept for those who come back.
const HISTORY_LEN: usize = 64;

/// What a watcher has to know of its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) incarnation: Incarnation,
    pub(crate) key_epoch: u64,
}

/// The state that is published.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) snapshot: Arc<Snapshot>,
    /// From the snapshot before.
    step: Option<Arc<Delta>>,
    pub(crate) members: Arc<BTreeMap<NodeName, Member>>,
}

/// See the module.
pub(crate) struct History {
    /// Of this run of the hub: tokens of another are not known here.
    epoch: u64,
    past: Mutex<VecDeque<Arc<Snapshot>>>,
    newest: watch::Sender<Published>,
}

impl History {
    pub(crate) fn new(snapshot: Snapshot, epoch: u64) -> Self {
        let snapshot = Arc::new(snapshot);
        let past = Mutex::new(VecDeque::from([snapshot.clone()]));
        let newest =
            watch::Sender::new(Published { snapshot, step: None, members: Arc::default() });
        Self { epoch, past, newest }
    }

    /// What is newest.
    pub(crate) fn newest(&self) -> Published {
        self.newest.borrow().clone()
    }

    /// Wakes at each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Published> {
        self.newest.subscribe()
    }

    /// Publishes a snapshot of a later generation.
    pub(crate) fn publish(&self, snapshot: Snapshot, step: Delta) {
        let snapshot = Arc::new(snapshot);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.push_back(snapshot.clone());
        if past.len() > HISTORY_LEN {
            past.pop_front();
        }
        self.newest.send_modify(|newest| {
            newest.snapshot = snapshot;
            newest.step = Some(Arc::new(step));
        });
    }

    /// Publishes who is a member; wakes watchers only if that changed.
    pub(crate) fn set_members(&self, members: BTreeMap<NodeName, Member>) {
        self.newest.send_if_modified(|newest| {
            let changed = *newest.members != members;
            if changed {
                newest.members = Arc::new(members);
            }
            changed
        });
    }

    /// A watcher that holds what `resume` stands for, or nothing if that is not known here.
    pub(crate) fn cursor(&self, resume: &[u8]) -> Cursor {
        let have = self.generation_of(resume).and_then(|generation| {
            let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            past.iter().find(|s| s.generation == generation).cloned()
        });
        Cursor { epoch: self.epoch, have, key_epoch: None }
    }

    fn generation_of(&self, resume: &[u8]) -> Option<Generation> {
        let (epoch, generation) = resume.split_first_chunk::<8>()?;
        let generation = u64::from_be_bytes(generation.try_into().ok()?);
        (u64::from_be_bytes(*epoch) == self.epoch).then_some(Generation(generation))
    }
}

/// Where one watcher is.
pub(crate) struct Cursor {
    epoch: u64,
    have: Option<Arc<Snapshot>>,
    key_epoch: Option<u64>,
}

impl Cursor {
    /// What to send so that the watcher, a node with this key epoch, is where `published` is;
    /// `None` if it is there.
    pub(crate) fn advance(&mut self, published: &Published, key_epoch: u64) -> Option<Update> {
        let newest = &published.snapshot;
        let body = match &self.have {
            None => UpdateBody::Snapshot(newest.as_ref().clone()),
            Some(have) if have.generation == newest.generation => {
                if self.key_epoch == Some(key_epoch) {
                    return None;
                }
                UpdateBody::Delta(have.delta_to(newest))
            }
            Some(have) => UpdateBody::Delta(match &published.step {
                Some(step) if step.from == have.generation => step.as_ref().clone(),
                _ => have.delta_to(newest),
            }),
        };
        self.have = Some(newest.clone());
        self.key_epoch = Some(key_epoch);
        let generation = newest.generation.0.to_be_bytes();
        Some(Update { resume: [self.epoch.to_be_bytes(), generation].concat(), key_epoch, body })
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{Cluster, Encapsulation, Vni};

    use super::*;

    fn snapshot(generation: u64) -> Snapshot {
        let mut snapshot = Snapshot::empty(Cluster {
            pod_cidrs: vec![],
            encapsulation: Encapsulation::WireGuard,
            port: 1,
            vni: Vni::DEFAULT,
            mtu: Some(1000 + u16::try_from(generation).unwrap()),
            service_cidrs: vec![],
            node_port_cidrs: vec![],
            dns: None,
        });
        snapshot.generation = Generation(generation);
        snapshot
    }

    fn history(generations: u64) -> History {
        let history = History::new(snapshot(1), 77);
        for generation in 2..=generations {
            let step = snapshot(generation - 1).delta_to(&snapshot(generation));
            history.publish(snapshot(generation), step);
        }
        history
    }

    #[test]
    fn slow_watcher_gets_one_delta_over_all_it_missed() {
        let history = history(1);
        let mut cursor = history.cursor(b"");
        let first = cursor.advance(&history.newest(), 0).unwrap();
        let UpdateBody::Snapshot(mut have) = first.body else { panic!("no snapshot") };
        for generation in 2..=5 {
            let step = snapshot(generation - 1).delta_to(&snapshot(generation));
            history.publish(snapshot(generation), step);
        }
        let UpdateBody::Delta(delta) = cursor.advance(&history.newest(), 0).unwrap().body else {
            panic!("no delta")
        };
        have.apply(delta).unwrap();
        assert_eq!(have, snapshot(5));
        assert_eq!(cursor.advance(&history.newest(), 0), None);
    }

    #[test]
    fn resume_token_of_another_run_or_too_old_gives_a_snapshot() {
        let history = history(HISTORY_LEN as u64 + 3);
        let token = |epoch: u64, g: u64| [epoch.to_be_bytes(), g.to_be_bytes()].concat();
        let is_delta = |resume: Vec<u8>| {
            let update = history.cursor(&resume).advance(&history.newest(), 0).unwrap();
            matches!(update.body, UpdateBody::Delta(_))
        };
        assert!(is_delta(token(77, 10)));
        assert!(!is_delta(token(78, 10)));
        assert!(!is_delta(token(77, 1)));
        assert!(!is_delta(b"short".to_vec()));
    }

    #[test]
    fn new_key_epoch_alone_is_an_empty_delta() {
        let history = history(3);
        let mut cursor = history.cursor(b"");
        cursor.advance(&history.newest(), 0).unwrap();
        let update = cursor.advance(&history.newest(), 1).unwrap();
        assert_eq!(update.key_epoch, 1);
        assert!(matches!(update.body, UpdateBody::Delta(d) if d.is_empty() && d.from == d.to));
    }
}
