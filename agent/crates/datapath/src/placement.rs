//! Where a worker runs while there is little to do: where its pods run.
//!
//! A packet that wakes a worker on another CPU waits until that CPU is out of its sleep, which takes
//! longer than all that is done to the packet, and the scheduler prefers a CPU that sleeps to the
//! one where the packet was sent. So a worker that gets one packet at a time keeps itself on the
//! CPU that they come from. It lets go when there is more to do, for pods and workers have more of
//! the machine side by side, or when it had to wait for that CPU, as somebody else is computing there.

use std::time::Duration;

use weft_model::Timestamp;
use weft_netio::{Affinity, Sender};

/// Packets of a turn, super-packets counted once, beyond which there may be much to do: many waited,
/// or one brought forth the next while the turn went on, as between pods of one node ...
const FEW: usize = 8;
/// ... which takes longer for each than this. No more than so many follow each other.
const QUICK: Duration = Duration::from_micros(6);
const MANY: usize = 32;
/// Bytes of a turn beyond which there is much to do.
const LITTLE: usize = 8 * 1024;
/// How many more packets must have come from a CPU than from others before the worker goes there.
const ENOUGH: u32 = 16;
/// What a packet from another CPU takes away of them.
const OTHER: u32 = 4;
/// A packet that waited longer for the worker waited for somebody else on its CPU.
const LATE: Duration = Duration::from_micros(100);
/// Late packets that the worker bears, as one may be anybody's: each counts for as many as this, and
/// one in time takes one away.
const LATE_WEIGHT: u32 = 16;
/// What must come together for it to leave: the third, unless the others were long ago.
const LATE_TOO_OFTEN: u32 = 2 * LATE_WEIGHT + LATE_WEIGHT / 2;
/// How long the worker stays free once it had to leave a CPU. Twice as long each time, ...
const PAUSE: Duration = Duration::from_millis(10);
/// ... up to this if there was much to do, which may be over soon, ...
const PAUSE_MAX_BUSY: Duration = Duration::from_millis(160);
/// ... and up to this if it had to wait, ...
const PAUSE_MAX_LATE: Duration = Duration::from_secs(1);
/// ... unless it was well there for this long.
const SERVED: Duration = Duration::from_secs(1);
/// Without packets from pods for this long, what else comes may come to any CPU.
const FORGET: Duration = Duration::from_millis(100);

/// What a worker had to do in one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// When it began.
    pub(crate) now: Timestamp,
    /// When it was done.
    pub(crate) ended: Timestamp,
    /// Packets, super-packets counted once.
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
    /// Who sent the last packet from the interface, if there was one and it is known.
    pub(crate) sender: Option<Sender>,
}

impl Turn {
    fn is_busy(&self) -> bool {
        let took = self.ended.since(self.now).as_nanos();
        let many = self.packets > FEW && took < QUICK.as_nanos() * self.packets as u128;
        many || self.packets >= MANY || self.bytes > LITTLE
    }
}

/// Where a worker is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    To(usize),
    Anywhere,
}

/// Keeps the thread that it is called in where its packets come from.
#[derive(Default)]
pub(crate) struct Placement {
    decision: Decision,
    /// Where the thread could run before it was kept.
    before: Option<Affinity>,
}

impl Placement {
    /// To be called at the end of each turn. A CPU that the process may not use is left alone.
    pub(crate) fn turn(&mut self, turn: Turn) {
        match self.decision.turn(turn) {
            None => {}
            Some(Move::To(cpu)) => {
                self.before = self.before.or_else(|| Affinity::current().ok());
                if self.before.is_none_or(|before| before.keep_on(cpu).is_err()) {
                    self.decision.refused(turn.now);
                    self.leave();
                }
            }
            Some(Move::Anywhere) => self.leave(),
        }
    }

    fn leave(&mut self) {
        if let Some(Err(error)) = self.before.take().map(|before| before.allow_all()) {
            tracing::warn!(%error, "a worker cannot leave its CPU");
        }
    }
}

#[derive(Default)]
struct Decision {
    kept: Option<Kept>,
    /// The CPU that packets come from, and how surely.
    candidate: usize,
    surely: u32,
    last_sent: Timestamp,
    /// When the last turn was done.
    ended: Timestamp,
    pause: Duration,
    pause_ends: Timestamp,
}

struct Kept {
    cpu: usize,
    since: Timestamp,
    /// How often packets were late of late.
    lateness: u32,
}

impl Kept {
    /// Whether packets wait here too often.
    fn is_late(&mut self, sender: Sender, now: Timestamp) -> bool {
        if now.since(sender.at) > LATE {
            self.lateness += LATE_WEIGHT;
        } else {
            self.lateness = self.lateness.saturating_sub(1);
        }
        self.lateness >= LATE_TOO_OFTEN
    }
}

impl Decision {
    fn turn(&mut self, turn: Turn) -> Option<Move> {
        // What was sent during a turn may be what the worker's own writing brought forth, such as an
        // acknowledgement: it says where the worker is, and not where pods are.
        let before = std::mem::replace(&mut self.ended, turn.ended);
        let sender = turn.sender.filter(|sender| sender.at > before);
        if turn.is_busy() {
            return self.flee(turn.now, PAUSE_MAX_BUSY);
        }
        let Some(sender) = sender else {
            let forgotten = turn.now.since(self.last_sent) > FORGET;
            return if forgotten { self.leave() } else { None };
        };
        self.last_sent = turn.now;
        if self.kept.as_mut().is_some_and(|kept| kept.is_late(sender, turn.now)) {
            return self.flee(turn.now, PAUSE_MAX_LATE);
        }
        if sender.cpu == self.candidate {
            self.surely = (self.surely + 1).min(ENOUGH);
        } else if self.surely > OTHER {
            self.surely -= OTHER;
        } else {
            (self.candidate, self.surely) = (sender.cpu, 1);
            return self.kept.take().map(|_| Move::Anywhere);
        }
        let there = self.kept.as_ref().is_some_and(|kept| kept.cpu == self.candidate);
        if there || self.surely < ENOUGH || turn.now < self.pause_ends {
            return None;
        }
        self.kept = Some(Kept { cpu: self.candidate, since: turn.now, lateness: 0 });
        Some(Move::To(self.candidate))
    }

    fn leave(&mut self) -> Option<Move> {
        self.surely = 0;
        self.kept.take().map(|_| Move::Anywhere)
    }

    /// Leaves, and stays away the longer the sooner it had to leave.
    fn flee(&mut self, now: Timestamp, pause_max: Duration) -> Option<Move> {
        if let Some(kept) = &self.kept {
            let well = now.since(kept.since) > SERVED;
            self.pause = if well { PAUSE } else { (self.pause * 2).clamp(PAUSE, pause_max) };
        }
        self.pause_ends = self.pause_ends.max(now + self.pause.clamp(PAUSE, pause_max));
        self.leave()
    }

    /// The worker could not go where it should.
    fn refused(&mut self, now: Timestamp) {
        self.kept = None;
        self.surely = 0;
        self.pause_ends = now + PAUSE_MAX_LATE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    struct Worker {
        decision: Decision,
        now: Timestamp,
    }

    impl Worker {
        fn new() -> Self {
            Self { decision: Decision::default(), now: Timestamp::ZERO + Duration::from_secs(5) }
        }

        /// A turn 100 us after the last, or later if it takes that, for one packet of a pod that
        /// waited for `wait`.
        fn packet(&mut self, cpu: usize, wait: Duration) -> Option<Move> {
            self.now = self.now + (wait + 20 * US).max(100 * US);
            let at = Timestamp(self.now.0 - wait.as_nanos() as u64);
            let sender = Some(Sender { cpu, at });
            let (now, ended) = (self.now, self.now + 10 * US);
            self.decision.turn(Turn { now, ended, packets: 1, bytes: 60, sender })
        }

        fn packets(&mut self, cpu: usize, count: usize) -> Vec<Move> {
            (0..count).filter_map(|_| self.packet(cpu, 5 * US)).collect()
        }

        fn of_mesh(&mut self, packets: usize, bytes: usize) -> Option<Move> {
            self.now = self.now + 100 * US;
            let (now, ended) = (self.now, self.now + 10 * US);
            self.decision.turn(Turn { now, ended, packets, bytes, sender: None })
        }
    }

    #[test]
    fn worker_goes_once_where_its_packets_come_from() {
        let mut worker = Worker::new();
        assert_eq!(worker.packets(3, 100), [Move::To(3)]);
    }

    #[test]
    fn answers_from_the_mesh_do_not_matter() {
        let mut worker = Worker::new();
        let mut moves = Vec::new();
        for _ in 0..100 {
            moves.extend(worker.packet(1, 5 * US));
            moves.extend(worker.of_mesh(1, 60));
        }
        assert_eq!(moves, [Move::To(1)]);
    }

    #[test]
    fn acknowledgements_from_the_workers_own_cpu_do_not_matter() {
        let mut worker = Worker::new();
        let mut moves = Vec::new();
        for _ in 0..100 {
            moves.extend(worker.packet(1, 5 * US));
            // Sent while that turn was under way, on the CPU that the worker was on.
            worker.decision.ended = worker.now + 115 * US;
            moves.extend(worker.packet(0, 5 * US));
        }
        assert_eq!(moves, [Move::To(1)]);
    }

    #[test]
    fn much_to_do_sets_the_worker_free_at_once() {
        for (packets, bytes) in [(1, 64_000), (FEW + 1, 600)] {
            let mut worker = Worker::new();
            worker.packets(1, 20);
            assert_eq!(worker.of_mesh(packets, bytes), Some(Move::Anywhere));
            assert_eq!(worker.of_mesh(packets, bytes), None);
            // Acknowledgements between super-packets do not bring it back.
            for _ in 0..100 {
                assert_eq!(worker.packets(1, 50), []);
                assert_eq!(worker.of_mesh(packets, bytes), None);
            }
            assert_eq!(worker.packets(1, 120), [Move::To(1)]);
        }
    }

    #[test]
    fn much_to_do_again_and_again_keeps_the_worker_away_for_a_moment_only() {
        let mut worker = Worker::new();
        for _ in 0..20 {
            while worker.packet(1, 5 * US).is_none() {}
            assert_eq!(worker.of_mesh(1, 64_000), Some(Move::Anywhere));
        }
        let left = worker.now;
        while worker.packet(1, 5 * US).is_none() {}
        assert_eq!(worker.now.since(left), PAUSE_MAX_BUSY);
    }

    #[test]
    fn packets_that_follow_each_other_within_a_turn_are_not_much() {
        let mut worker = Worker::new();
        worker.packets(1, 20);
        let (now, ended) = (worker.now + 100 * US, worker.now + 250 * US);
        let sender = Some(Sender { cpu: 1, at: worker.now + 95 * US });
        let mut turn = Turn { now, ended, packets: 15, bytes: 800, sender };
        assert_eq!(worker.decision.turn(turn), None);
        turn.packets = 30;
        assert_eq!(worker.decision.turn(turn), Some(Move::Anywhere));
        // However long the sender, on the same CPU, interrupted it.
        worker.packets(1, 200);
        let (now, ended) = (worker.now + 100 * US, worker.now + 4000 * US);
        turn = Turn { now, ended, packets: MANY, bytes: 1800, sender };
        assert_eq!(worker.decision.turn(turn), Some(Move::Anywhere));
    }

    #[test]
    fn worker_moves_with_its_pod() {
        let mut worker = Worker::new();
        worker.packets(1, 100);
        let moves = worker.packets(2, 100);
        assert_eq!(moves, [Move::Anywhere, Move::To(2)]);
    }

    #[test]
    fn now_and_then_a_packet_from_elsewhere_changes_nothing() {
        let mut worker = Worker::new();
        let mut moves = worker.packets(1, 20);
        for _ in 0..100 {
            moves.extend(worker.packets(1, 9));
            moves.extend(worker.packets(2, 1));
        }
        assert_eq!(moves, [Move::To(1)]);
    }

    #[test]
    fn worker_between_pods_of_two_cpus_stays_free() {
        let mut worker = Worker::new();
        for round in 0..1000 {
            assert_eq!(worker.packet(round % 2, 5 * US), None);
        }
    }

    #[test]
    fn worker_leaves_a_cpu_that_lets_it_wait_and_longer_each_time() {
        let mut worker = Worker::new();
        worker.packets(1, 20);
        let mut absences = Vec::new();
        for _ in 0..4 {
            assert_eq!(worker.packet(1, 2 * LATE), None);
            assert_eq!(worker.packet(1, 2 * LATE), None);
            assert_eq!(worker.packet(1, 2 * LATE), Some(Move::Anywhere));
            let left = worker.now;
            while worker.packet(1, 5 * US).is_none() {}
            absences.push(worker.now.since(left).as_millis());
        }
        assert_eq!(absences, [10, 20, 40, 80]);
        // Served well for a while, it is as patient as in the beginning.
        worker.packets(1, 11_000);
        while worker.packet(1, 2 * LATE).is_none() {}
        let left = worker.now;
        while worker.packet(1, 5 * US).is_none() {}
        assert_eq!(worker.now.since(left).as_millis(), 10);
    }

    #[test]
    fn now_and_then_a_late_packet_is_borne() {
        let mut worker = Worker::new();
        worker.packets(1, 20);
        for _ in 0..100 {
            assert_eq!(worker.packet(1, 2 * LATE), None);
            assert_eq!(worker.packets(1, 20), []);
        }
    }

    #[test]
    fn worker_is_free_for_what_comes_when_pods_are_silent() {
        let mut worker = Worker::new();
        worker.packets(1, 20);
        assert_eq!(worker.of_mesh(1, 60), None);
        worker.now = worker.now + FORGET;
        assert_eq!(worker.of_mesh(1, 60), Some(Move::Anywhere));
    }

    #[test]
    fn a_cpu_that_may_not_be_used_is_not_asked_for_again_at_once() {
        let mut worker = Worker::new();
        assert_eq!(worker.packets(1, 20), [Move::To(1)]);
        let now = worker.now;
        worker.decision.refused(now);
        assert_eq!(worker.packets(1, 1000), []);
    }
}
