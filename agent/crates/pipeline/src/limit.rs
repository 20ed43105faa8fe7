//! How often senders are told that their packets go no further: a flood of what is refused must not
//! become a flood of answers.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use weft_model::Timestamp;

/// Buckets for senders; those that share one share its tokens.
const BUCKETS: usize = 1024;

/// The kernel's numbers for ICMP errors: `icmp_ratelimit` with its burst for each sender,
/// `icmp_msgs_per_sec` and `icmp_msgs_burst` for all of them.
const ERRORS_EACH: Rate = Rate { interval: Duration::from_secs(1), burst: 6 };
const ERRORS_ALL: Rate = Rate { interval: Duration::from_millis(1), burst: 50 };
/// Nobody who waits for one of these should come near: without a reset a client tries for minutes,
/// and without the MTU its connection stands still. The kernel bounds neither.
const PROMPT_EACH: Rate = Rate { interval: Duration::from_millis(1), burst: 1000 };
const PROMPT_ALL: Rate = Rate { interval: Duration::from_micros(100), burst: 10_000 };

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// That a packet was rejected, by ICMP.
    Error,
    /// That a connection is, or that a packet is too big.
    Prompt,
}

/// One worker's token buckets.
pub(crate) struct AnswerLimit {
    errors: Limit,
    prompt: Limit,
}

impl AnswerLimit {
    /// Every bucket is full.
    pub(crate) fn new() -> Self {
        Self {
            errors: Limit::new(ERRORS_EACH, ERRORS_ALL),
            prompt: Limit::new(PROMPT_EACH, PROMPT_ALL),
        }
    }

    /// Takes a token for an answer to `sender`; false if there is none.
    pub(crate) fn take(&mut self, answer: Answer, sender: IpAddr, now: Timestamp) -> bool {
        let limit = match answer {
            Answer::Error => &mut self.errors,
            Answer::Prompt => &mut self.prompt,
        };
        limit.take(sender, now)
    }
}

struct Limit {
    each: Rate,
    all: Rate,
    /// When a bucket will be full again, by the sender's hash.
    senders: Box<[Timestamp; BUCKETS]>,
    together: Timestamp,
}

impl Limit {
    fn new(each: Rate, all: Rate) -> Self {
        let senders = Box::new([Timestamp::ZERO; BUCKETS]);
        Self { each, all, senders, together: Timestamp::ZERO }
    }

    fn take(&mut self, sender: IpAddr, now: Timestamp) -> bool {
        let mut hasher = DefaultHasher::new();
        sender.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % BUCKETS as u64).unwrap_or(0);
        let Some(bucket) = self.senders.get_mut(index) else { return false };
        // The sender's first: one who has none takes nothing from the others.
        let Some(own) = self.each.next(*bucket, now) else { return false };
        let Some(together) = self.all.next(self.together, now) else { return false };
        (*bucket, self.together) = (own, together);
        true
    }
}

/// A token each `interval`, of which a bucket holds `burst`.
struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// When a bucket will be full after a token is taken; `None` if it has none.
    fn next(&self, full: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let next = full.max(now) + self.interval;
        (next.since(now) <= self.interval * self.burst).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(5_000_000_000);

    fn sender(n: u16) -> IpAddr {
        IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]])
    }

    /// How many of a thousand are told at that moment.
    fn told(limit: &mut AnswerLimit, answer: Answer, sender: IpAddr, now: Timestamp) -> usize {
        (0..1000).filter(|_| limit.take(answer, sender, now)).count()
    }

    #[test]
    fn sender_gets_a_burst_and_then_one_each_interval() {
        let mut limit = AnswerLimit::new();
        assert_eq!(told(&mut limit, Answer::Error, sender(1), NOW), 6);
        let later = |millis| NOW + Duration::from_millis(millis);
        assert_eq!(told(&mut limit, Answer::Error, sender(1), later(999)), 0);
        assert_eq!(told(&mut limit, Answer::Error, sender(1), later(1000)), 1);
        assert_eq!(told(&mut limit, Answer::Error, sender(1), later(3500)), 2);
        assert_eq!(told(&mut limit, Answer::Error, sender(1), later(60_000)), 6, "never more");
    }

    #[test]
    fn sender_without_tokens_takes_none_from_others() {
        let mut limit = AnswerLimit::new();
        told(&mut limit, Answer::Error, sender(1), NOW);
        assert_eq!(told(&mut limit, Answer::Error, sender(2), NOW), 6);
        assert_eq!(told(&mut limit, Answer::Prompt, sender(1), NOW), 1000);
    }

    #[test]
    fn all_together_are_bounded() {
        let mut limit = AnswerLimit::new();
        let mut round = |now| {
            let told = (0..1000).filter(|n| limit.take(Answer::Error, sender(*n), now));
            told.count()
        };
        assert_eq!(round(NOW), 50);
        assert_eq!(round(NOW + Duration::from_millis(20)), 20);
    }
}
