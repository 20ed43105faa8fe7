//! How a plugin has behaved, and what it is still asked about.
//!
//! A fault costs its packet. A conversation that makes a plugin fault again and again costs the
//! worker more than that, so the plugin is not asked about it for a while; everybody else's packets
//! still are, whatever becomes of a packet that is not asked about. Only a plugin that faults on many
//! conversations is taken out as a whole.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_abi::Descriptor;
use weft_model::Timestamp;

use crate::shared::lock;

/// Faults on one conversation within [`FAULT_WINDOW`] that cut it off.
pub const FAULTS_MAX: usize = 16;
/// Faults on all conversations together within [`FAULT_WINDOW`] that take a plugin out.
pub const FAULTS_TOTAL_MAX: usize = 64;
/// See [`FAULTS_MAX`].
pub const FAULT_WINDOW: Duration = Duration::from_secs(10);
/// How long a plugin is not asked about a conversation.
pub const CUT_OFF: Duration = Duration::from_secs(60);

/// What two hosts say to each other at one service port, in both directions and on however many
/// client ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    hosts: [[u8; 16]; 2],
    /// The lower one, which is the service's as a rule.
    port: u16,
    protocol: u8,
}

impl Conversation {
    pub(crate) fn of(told: &Descriptor) -> Self {
        Self {
            hosts: [told.source.min(told.destination), told.source.max(told.destination)],
            port: told.source_port.min(told.destination_port),
            protocol: told.protocol,
        }
    }
}

/// What a fault leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consequence {
    None,
    /// The plugin is not asked about this conversation for [`CUT_OFF`].
    CutOff,
    /// The plugin is asked nothing any more.
    TakenOut,
}

/// How one module with one configuration has behaved, on all workers together.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    revision: u64,
    taken_out: AtomicBool,
    /// Whether there may be something in [`Faults::cut_off`].
    any_cut_off: AtomicBool,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    recent: VecDeque<(Timestamp, Conversation)>,
    /// With the times when they were. Few: each took [`FAULTS_MAX`] of [`FAULTS_TOTAL_MAX`] faults.
    cut_off: Vec<(Timestamp, Conversation)>,
    last: Option<String>,
}

impl Standing {
    pub(crate) fn new(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    #[inline]
    pub(crate) fn is_taken_out(&self) -> bool {
        self.taken_out.load(Ordering::Relaxed)
    }

    /// Whether the plugin is to be asked about this packet.
    #[inline]
    pub(crate) fn may_be_asked(&self, told: &Descriptor) -> bool {
        !self.is_taken_out()
            && (!self.any_cut_off.load(Ordering::Relaxed) || !self.is_cut_off(told))
    }

    #[cold]
    fn is_cut_off(&self, told: &Descriptor) -> bool {
        let mut faults = lock(&self.faults);
        faults.forgive(Timestamp(told.now));
        self.any_cut_off.store(!faults.cut_off.is_empty(), Ordering::Relaxed);
        let conversation = Conversation::of(told);
        faults.cut_off.iter().any(|(_, other)| *other == conversation)
    }

    /// How many conversations are cut off, as of the last packet.
    pub(crate) fn cut_off(&self) -> usize {
        lock(&self.faults).cut_off.len()
    }

    /// What the last fault was, in one line.
    pub(crate) fn last_fault(&self) -> Option<String> {
        lock(&self.faults).last.clone()
    }

    /// Notes a fault on the packet that `told` describes.
    pub(crate) fn note_fault(&self, text: String, told: &Descriptor) -> Consequence {
        let (now, conversation) = (Timestamp(told.now), Conversation::of(told));
        let mut faults = lock(&self.faults);
        faults.recent.retain(|(at, _)| now.since(*at) < FAULT_WINDOW);
        faults.recent.push_back((now, conversation));
        faults.last = Some(text);
        if faults.recent.len() >= FAULTS_TOTAL_MAX {
            let before = self.taken_out.swap(true, Ordering::Relaxed);
            return if before { Consequence::None } else { Consequence::TakenOut };
        }
        let on_this = faults.recent.iter().filter(|(_, other)| *other == conversation).count();
        let known = faults.cut_off.iter().any(|(_, other)| *other == conversation);
        if on_this < FAULTS_MAX || known {
            return Consequence::None;
        }
        faults.cut_off.push((now, conversation));
        self.any_cut_off.store(true, Ordering::Relaxed);
        Consequence::CutOff
    }

    pub(crate) fn take_out(&self, text: String) {
        lock(&self.faults).last = Some(text);
        self.taken_out.store(true, Ordering::Relaxed);
    }
}

impl Faults {
    fn forgive(&mut self, now: Timestamp) {
        self.cut_off.retain(|(at, _)| now.since(*at) < CUT_OFF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(client: u8, service: u16, second: u64) -> Descriptor {
        let mut told = Descriptor::default();
        (told.source[15], told.destination[15]) = (client, 200);
        (told.source_port, told.destination_port) = (40_000 + second as u16, service);
        told.now = second * 1_000_000_000;
        told
    }

    fn faults(standing: &Standing, count: usize, told: &Descriptor) -> Vec<Consequence> {
        let all = (0..count).map(|_| standing.note_fault("x".into(), told));
        all.filter(|c| *c != Consequence::None).collect()
    }

    #[test]
    fn fault_now_and_then_is_borne() {
        let standing = Standing::default();
        for second in 0..100 {
            assert_eq!(faults(&standing, 1, &told(1, 80, second)), []);
        }
        assert!(standing.may_be_asked(&told(1, 80, 100)));
    }

    #[test]
    fn sixteen_faults_in_ten_seconds_cut_a_conversation_off_and_no_other() {
        let standing = Standing::default();
        assert_eq!(faults(&standing, 20, &told(1, 80, 5)), [Consequence::CutOff]);
        assert!(!standing.may_be_asked(&told(1, 80, 6)));
        let mut reply = told(1, 80, 6);
        std::mem::swap(&mut reply.source, &mut reply.destination);
        std::mem::swap(&mut reply.source_port, &mut reply.destination_port);
        assert!(!standing.may_be_asked(&reply));
        for other in [told(2, 80, 6), told(1, 81, 6)] {
            assert!(standing.may_be_asked(&other));
        }
        assert_eq!(standing.cut_off(), 1);
        assert!(standing.may_be_asked(&told(1, 80, 66)), "another chance after a minute");
        assert_eq!(standing.cut_off(), 0);
    }

    #[test]
    fn faults_on_many_conversations_take_a_plugin_out() {
        let standing = Standing::default();
        for client in 1..=4 {
            assert!(!standing.is_taken_out());
            faults(&standing, 16, &told(client, 80, 1));
        }
        assert!(standing.is_taken_out());
        assert!(!standing.may_be_asked(&told(9, 9, 1)));
        assert_eq!(faults(&standing, 3, &told(9, 9, 1)), []);
        let standing = Standing::default();
        let all: Vec<_> = (0..64).flat_map(|n| faults(&standing, 1, &told(n, 80, 1))).collect();
        assert_eq!(all, [Consequence::TakenOut]);
    }
}
