//! Seeded random inputs: a failure is found again by running the test again.
//!
//! Every parser of bytes from outside has a test whose name begins with `fuzz`. It makes inputs from
//! a corpus with [`mutate`], as many as [`iterations`] says, and holds a [`Report`] while one is
//! looked at.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::print_stderr, reason = "used by tests only")]

use std::fmt::Write as _;

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends and has no other use")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number under `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// One of `all`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Something like one of `corpus`: one to four edits, in which `telling` bytes are likelier than
/// others. Flips and replaces more often than it cuts, grows, repeats and splices.
///
/// # Panics
/// If there is no corpus, or no telling byte.
#[must_use]
pub fn mutate<T: AsRef<[u8]>>(random: &mut Random, corpus: &[T], telling: &[u8]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].as_ref().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(16) {
            _ if bytes.is_empty() => bytes.push(random.pick(telling)),
            0..4 => bytes[at] ^= 1 << random.below(8),
            4..7 => bytes[at] = random.pick(telling),
            7..9 => bytes[at] = random.byte(),
            9 => bytes[at] = bytes[at].wrapping_add(1),
            10 => bytes.truncate(at),
            11 => bytes.insert(at, random.pick(telling)),
            12 => drop(bytes.remove(at)),
            13 => {
                let end = (at + random.below(16)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            14 => {
                let other = corpus[random.below(corpus.len())].as_ref();
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len())..]);
            }
            _ => {
                let more = random.below(64);
                bytes.extend((0..more).map(|_| random.byte()));
            }
        }
    }
    bytes
}

/// How many inputs a test tries: `WEFT_FUZZ_ITERATIONS`, or 20,000.
///
/// # Panics
/// If the variable is no number.
#[must_use]
pub fn iterations() -> usize {
    std::env::var("WEFT_FUZZ_ITERATIONS")
        .map_or(20_000, |text| text.parse().expect("WEFT_FUZZ_ITERATIONS is a number"))
}

/// Prints the input, as hex, if the test panics while this is held.
#[derive(Debug)]
pub struct Report<'a> {
    /// Which of the inputs it is.
    pub iteration: usize,
    /// The input.
    pub input: &'a [u8],
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let hex = self.input.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        eprintln!("input {}: {hex}", self.iteration);
    }
}
