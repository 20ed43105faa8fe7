//! One 64-bit mix for everything that is hashed here: tables, backends, flows.
//!
//! It has no seed of its own, so that every worker, and a node after a restart, chooses alike.

use std::hash::{BuildHasherDefault, Hasher};

/// A map whose hashes cost a few multiplications. Its keys come from the agent, not from packets.
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Finalizer of `SplitMix64`: every bit of the input changes half of the output's.
#[inline]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One hash of several words, in their order.
#[inline]
pub(crate) fn mix_all<const N: usize>(words: [u64; N]) -> u64 {
    words.into_iter().fold(N as u64, |hash, word| mix(hash ^ word))
}

/// Upper and lower half.
#[inline]
pub(crate) fn halves(value: u128) -> [u64; 2] {
    [(value >> 64) as u64, value as u64]
}

/// Hashes with [`mix`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        let rest = rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        self.write_u64(rest ^ (bytes.len() as u64) << 56);
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hash of a text, the same everywhere.
pub(crate) fn of_text(text: &str) -> u64 {
    let mut mixer = Mixer::default();
    mixer.write(text.as_bytes());
    mixer.finish()
}
