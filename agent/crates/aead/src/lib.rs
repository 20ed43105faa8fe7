//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it, in place, by the fastest code for this CPU.
//!
//! `ring` everywhere; on x86-64 with AVX-512 and IFMA, Intel's `ipsec-mb`, which takes about half
//! the time for a full packet. What both write is the same.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(ipsec_mb)]
mod ipsec_mb;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;
/// Length of the tag that a sealed packet ends with, in bytes.
pub const TAG_LEN: usize = 16;

/// Whose code seals and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `ring`, on every CPU.
    Ring,
    /// Intel's `ipsec-mb` with AVX-512. Only of [`Engine::fastest`].
    #[cfg(ipsec_mb)]
    IpsecMb,
}

impl Engine {
    /// The fastest that is built in and that this CPU can run.
    #[must_use]
    pub fn fastest() -> Self {
        // The library asks the processor what it has, but not the system whether it may be used.
        #[cfg(ipsec_mb)]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && ipsec_mb::is_usable()
        {
            return Self::IpsecMb;
        }
        Self::Ring
    }

    /// True for code that needs AVX-512.
    #[must_use]
    pub fn is_avx512(self) -> bool {
        self != Self::Ring
    }
}

/// A key of one direction of a session. Any number of threads may use it at once.
pub struct Key(Inner);

#[allow(clippy::large_enum_variant, reason = "a session, which holds it, is allocated anyway")]
enum Inner {
    Ring(LessSafeKey),
    #[cfg(ipsec_mb)]
    IpsecMb([u8; KEY_LEN]),
}

impl Key {
    /// A key for `engine`. `None` if that cannot be, which does not happen.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_LEN], engine: Engine) -> Option<Self> {
        match engine {
            Engine::Ring => UnboundKey::new(&CHACHA20_POLY1305, bytes)
                .ok()
                .map(|key| Self(Inner::Ring(LessSafeKey::new(key)))),
            #[cfg(ipsec_mb)]
            Engine::IpsecMb => Some(Self(Inner::IpsecMb(*bytes))),
        }
    }

    /// Encrypts `packet` in place and returns its tag. `counter`, the last eight bytes of the
    /// nonce in little endian, must not be used twice with a key.
    ///
    /// `None` if that cannot be, which does not happen; the packet must not be sent then.
    #[must_use]
    pub fn seal(&self, counter: u64, packet: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let nonce = nonce(counter);
        match &self.0 {
            Inner::Ring(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), packet).ok()?;
                tag.as_ref().as_array().copied()
            }
            #[cfg(ipsec_mb)]
            Inner::IpsecMb(key) => ipsec_mb::seal(key, &nonce, packet),
        }
    }

    /// Decrypts what [`Self::seal`] made, tag behind it, in place; returns the packet's length,
    /// [`TAG_LEN`] less than what was given. `None`, and the bytes are worth nothing, if key or
    /// counter are others or if anything was changed.
    #[must_use]
    pub fn open(&self, counter: u64, sealed: &mut [u8]) -> Option<usize> {
        let nonce = nonce(counter);
        match &self.0 {
            Inner::Ring(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::empty(), sealed).ok().map(|packet| packet.len())
            }
            #[cfg(ipsec_mb)]
            Inner::IpsecMb(key) => {
                let (packet, tag) = sealed.split_last_chunk_mut::<TAG_LEN>()?;
                ipsec_mb::open(key, &nonce, packet, tag).then_some(packet.len())
            }
        }
    }
}

/// Source: WireGuard paper, section 5.4.6.
fn nonce(counter: u64) -> [u8; 12] {
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_le_bytes();
    [0, 0, 0, 0, c0, c1, c2, c3, c4, c5, c6, c7]
}
