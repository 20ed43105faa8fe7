//! The window of counters that were received. Source: RFC 6479.

/// Words of the bitmap, one of which is partly in the future.
const WORDS: usize = 128;
/// How far behind the newest a counter may be and still count: what workers that seal and sockets
/// that are read side by side may put out of order.
const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// Which of the last counters were seen.
pub(crate) struct Window {
    /// One more than the newest.
    next: u64,
    /// Word `counter / 64` of all counters is at that index modulo `WORDS`.
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl Window {
    /// Notes a counter; false if it was seen or is too old to tell.
    pub(crate) fn take(&mut self, counter: u64) -> bool {
        if counter.saturating_add(WINDOW) < self.next {
            return false;
        }
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / 64;
            let ahead = (counter / 64 - newest).min(WORDS as u64);
            for step in 1..=ahead {
                if let Some(word) = self.word(newest + step) {
                    *word = 0;
                }
            }
            self.next = counter + 1;
        }
        let bit = 1 << (counter % 64);
        let Some(word) = self.word(counter / 64) else { return false };
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn word(&mut self, number: u64) -> Option<&mut u64> {
        self.words.get_mut((number % WORDS as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_counter_counts_once() {
        let mut window = Window::default();
        assert!((0..1000).all(|c| window.take(c)));
        assert!((0..1000).all(|c| !window.take(c)));
    }

    #[test]
    fn what_is_behind_the_window_is_refused() {
        let mut window = Window::default();
        assert!(window.take(WINDOW + 10));
        assert!(!window.take(9));
        assert!(window.take(11));
        assert!(window.take(u64::MAX - (1 << 13)));
        assert!(!window.take(WINDOW + 10));
    }

    #[test]
    fn window_agrees_with_a_set() {
        let mut random = weft_fuzz::Random::new(6479);
        let (mut window, mut seen, mut newest) = (Window::default(), HashSet::new(), 0_u64);
        for _ in 0..200_000 {
            let jump = match random.next() % 100 {
                0 => random.next() % (3 * WINDOW),
                1..50 => random.next() % 80,
                _ => 0,
            };
            let counter = (newest + jump).saturating_sub(random.next() % 200);
            let fresh = counter + WINDOW > newest && seen.insert(counter);
            // At the very edge the window is a counter wider than `fresh` says.
            if counter + WINDOW != newest {
                assert_eq!(window.take(counter), fresh, "{counter} after {newest}");
            }
            newest = newest.max(counter);
        }
    }
}
