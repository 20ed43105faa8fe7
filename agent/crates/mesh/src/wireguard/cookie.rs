//! The MACs of handshake messages, and cookies, which bound what strangers can make us compute.
//! Source: WireGuard paper, sections 5.3, 5.4.4 and 5.4.7.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use weft_aead::TAG_LEN;
use weft_model::{PublicKey, Timestamp};

use super::message::{COOKIE_REPLY_LEN, MACS_LEN, TYPE_COOKIE};

/// Handshake messages a second for each of our keys before senders have to show a cookie. One
/// costs about 0.3 ms, so this is a third of a core. Others allow 100 or fewer; but a cookie costs
/// its asker time, and all nodes may greet a restarted one at once.
const HANDSHAKES_PER_SECOND: u32 = 1000;
/// How long a cookie is good, and how long the secret behind it is.
const COOKIE_TTL: Duration = Duration::from_secs(120);

type Mac128 = [u8; 16];

/// What somebody who talks to the holder of a public key derives from it.
struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    fn of(key: PublicKey) -> Self {
        let hash = |label: &[u8]| Blake2s256::new().chain(label).chain(key.0).finalize().into();
        Self { mac1: hash(b"mac1----"), cookie: hash(b"cookie--") }
    }
}

/// What becomes of a handshake message before any expensive operation.
pub(crate) enum Admission {
    /// Its first MAC is right, and so is the second if there is load.
    Admitted,
    /// Its first MAC is for another key.
    NotOurs,
    /// There is load, and the sender has to prove its address: send it this.
    Cookie([u8; COOKIE_REPLY_LEN]),
}

/// Checks the MACs of messages for one of our keys.
pub(crate) struct Gate {
    keys: MacKeys,
    load: Mutex<Load>,
}

#[derive(Default)]
struct Load {
    second: Timestamp,
    messages: u32,
    secret: [u8; 32],
    secret_until: Timestamp,
}

impl Gate {
    pub(crate) fn new(key: PublicKey) -> Self {
        Self { keys: MacKeys::of(key), load: Mutex::new(Load::default()) }
    }

    /// Checks a handshake message that came from `from`; `sender` is the index in it.
    pub(crate) fn admit(
        &self,
        from: SocketAddr,
        sender: u32,
        message: &[u8],
        now: Timestamp,
    ) -> Admission {
        let Some((body, macs)) = message.split_last_chunk::<MACS_LEN>() else {
            return Admission::NotOurs;
        };
        let (mac1, mac2) = macs.split_at(16);
        if !is_mac(&self.keys.mac1, &[body], mac1) {
            return Admission::NotOurs;
        }
        let Some(secret) = self.load.lock().count(now) else { return Admission::Admitted };
        let cookie = cookie_of(&secret, from);
        if is_mac(&cookie, &[body, mac1], mac2) {
            return Admission::Admitted;
        }
        self.reply(sender, &cookie, mac1).map_or(Admission::NotOurs, Admission::Cookie)
    }

    fn reply(&self, receiver: u32, cookie: &Mac128, mac1: &[u8]) -> Option<[u8; COOKIE_REPLY_LEN]> {
        let (nonce, mut sealed) = (random::<24>()?, *cookie);
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&self.keys.cookie));
        let nonce = XNonce::from(nonce);
        let tag = cipher.encrypt_in_place_detached(&nonce, mac1, &mut sealed).ok()?;
        let parts: [&[u8]; 5] = [&TYPE_COOKIE, &receiver.to_le_bytes(), &nonce, &sealed, &tag];
        parts.concat().try_into().ok()
    }
}

impl Load {
    /// Counts a message; the secret that cookies are made of if there are too many.
    fn count(&mut self, now: Timestamp) -> Option<[u8; 32]> {
        if now.since(self.second) >= Duration::from_secs(1) {
            (self.second, self.messages) = (now, 0);
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages <= HANDSHAKES_PER_SECOND {
            return None;
        }
        if now >= self.secret_until {
            (self.secret, self.secret_until) = (random()?, now + COOKIE_TTL);
        }
        Some(self.secret)
    }
}

/// Makes the MACs of messages for a peer's key, with the peer's cookie if it gave one.
pub(crate) struct Stamp {
    keys: MacKeys,
    cookie: Option<(Timestamp, Mac128)>,
    /// Index and first MAC of the last message, which a cookie has to answer.
    last: Option<(u32, Mac128)>,
}

impl Stamp {
    pub(crate) fn new(peer: PublicKey) -> Self {
        Self { keys: MacKeys::of(peer), cookie: None, last: None }
    }

    /// Completes a message whose sender index is `sender`: fills the MACs at its end.
    pub(crate) fn complete(&mut self, sender: u32, message: &mut [u8], now: Timestamp) {
        let Some((body, macs)) = message.split_last_chunk_mut::<MACS_LEN>() else { return };
        let (to_mac1, to_mac2) = macs.split_at_mut(16);
        let mac1 = mac(&self.keys.mac1, &[body]);
        to_mac1.copy_from_slice(&mac1);
        self.cookie = self.cookie.filter(|(since, _)| now.since(*since) < COOKIE_TTL);
        let mac2 = self.cookie.map(|(_, cookie)| mac(&cookie, &[body, &mac1]));
        to_mac2.copy_from_slice(&mac2.unwrap_or_default());
        self.last = Some((sender, mac1));
    }

    /// Takes the cookie out of a reply; false if it is no reply to the last message.
    pub(crate) fn take_cookie(&mut self, receiver: u32, reply: &[u8], now: Timestamp) -> bool {
        let Some((_, mac1)) = self.last.filter(|(sender, _)| *sender == receiver) else {
            return false;
        };
        let Some((nonce, sealed)) = reply.get(8..).and_then(|r| r.split_first_chunk::<24>()) else {
            return false;
        };
        let Some((sealed, tag)) = sealed.split_last_chunk::<TAG_LEN>() else { return false };
        let Ok(mut cookie) = Mac128::try_from(sealed) else { return false };
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&self.keys.cookie));
        let nonce = XNonce::from(*nonce);
        let opened = cipher.decrypt_in_place_detached(&nonce, &mac1, &mut cookie, tag.into());
        if opened.is_ok() {
            self.cookie = Some((now, cookie));
        }
        opened.is_ok()
    }
}

fn cookie_of(secret: &[u8; 32], from: SocketAddr) -> Mac128 {
    let port = from.port().to_be_bytes();
    match from.ip() {
        IpAddr::V4(ip) => mac(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(secret, &[&ip.octets(), &port]),
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Mac128 {
    keyed(key, parts).map_or_else(Mac128::default, |mac| mac.finalize_fixed().into())
}

fn is_mac(key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    keyed(key, parts).is_some_and(|mac| mac.verify_slice(expected).is_ok())
}

/// `None` for keys over 32 bytes, which nobody here has.
fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Blake2sMac<U16>> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| Update::update(&mut mac, part));
    Some(mac)
}

/// `None` if the system has no randomness to give.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok().map(|()| bytes)
}
