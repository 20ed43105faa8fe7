//! The key exchange, Noise_IKpsk2 without a pre-shared key, by `snow`: the only module that knows
//! it. Source: WireGuard paper, sections 5.4.2, 5.4.3 and 5.4.5.

use snow::{Builder, HandshakeState};
use weft_model::PublicKey;

use super::message::{INITIATION_NOISE_LEN, RESPONSE_NOISE_LEN};
use crate::SecretKey;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// What takes the place of a pre-shared key that nobody has.
const NO_PRESHARED_KEY: [u8; 32] = [0; 32];

/// TAI64N: seconds and nanoseconds, big-endian, so that they compare as bytes.
pub(crate) type Tai64n = [u8; 12];

/// Transport keys of a new session.
pub(crate) struct Keys {
    pub(crate) send: [u8; 32],
    pub(crate) receive: [u8; 32],
}

/// An initiation of ours that may still be answered.
pub(crate) struct Initiator(HandshakeState);

/// An initiation of somebody who proved to have `remote`'s secret key.
pub(crate) struct Responder {
    state: HandshakeState,
    pub(crate) remote: PublicKey,
    pub(crate) timestamp: Tai64n,
}

impl Initiator {
    /// Begins an exchange; the message is what the initiation carries.
    pub(crate) fn new(
        secret: &SecretKey,
        remote: PublicKey,
        timestamp: &Tai64n,
    ) -> Option<(Self, [u8; INITIATION_NOISE_LEN])> {
        let mut state =
            builder(secret)?.remote_public_key(&remote.0).ok()?.build_initiator().ok()?;
        let mut message = [0; INITIATION_NOISE_LEN];
        let len = state.write_message(timestamp, &mut message).ok()?;
        (len == message.len()).then_some((Self(state), message))
    }

    /// Ends it with what a response carries; `None` if that is no answer to this initiation, which
    /// then waits on.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Option<Keys> {
        let len = self.0.read_message(message, &mut [0; RESPONSE_NOISE_LEN]).ok()?;
        let (send, receive) = self.0.dangerously_get_raw_split();
        (len == 0).then_some(Keys { send, receive })
    }
}

impl Responder {
    /// Reads what an initiation carries; `None` if it is not for `secret` or nobody's.
    pub(crate) fn read(secret: &SecretKey, message: &[u8]) -> Option<Self> {
        let mut state = builder(secret)?.build_responder().ok()?;
        let mut payload = [0; INITIATION_NOISE_LEN];
        let len = state.read_message(message, &mut payload).ok()?;
        let timestamp = *payload.get(..len)?.as_array()?;
        let remote = PublicKey(*state.get_remote_static()?.as_array()?);
        Some(Self { state, remote, timestamp })
    }

    /// What the response carries, and the keys.
    pub(crate) fn answer(mut self) -> Option<([u8; RESPONSE_NOISE_LEN], Keys)> {
        let mut message = [0; RESPONSE_NOISE_LEN];
        let len = self.state.write_message(&[], &mut message).ok()?;
        let (receive, send) = self.state.dangerously_get_raw_split();
        (len == message.len()).then_some((message, Keys { send, receive }))
    }
}

fn builder(secret: &SecretKey) -> Option<Builder<'_>> {
    let builder = Builder::new(PATTERN.parse().ok()?);
    let builder = builder.prologue(IDENTIFIER).ok()?.psk(2, &NO_PRESHARED_KEY).ok()?;
    builder.local_private_key(&secret.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Tai64n = *b"twelve bytes";

    fn secret(byte: u8) -> SecretKey {
        SecretKey([byte; 32])
    }

    #[test]
    fn both_ends_get_the_same_keys() {
        let (mut initiator, message) =
            Initiator::new(&secret(1), secret(2).public_key(), &TIME).unwrap();
        let responder = Responder::read(&secret(2), &message).unwrap();
        assert_eq!((responder.remote, responder.timestamp), (secret(1).public_key(), TIME));
        let (answer, theirs) = responder.answer().unwrap();
        let ours = initiator.finish(&answer).unwrap();
        assert_eq!((ours.send, ours.receive), (theirs.receive, theirs.send));
        assert_ne!(ours.send, ours.receive);
    }

    #[test]
    fn initiation_for_another_key_is_refused() {
        let (_, message) = Initiator::new(&secret(1), secret(2).public_key(), &TIME).unwrap();
        assert!(Responder::read(&secret(3), &message).is_none());
    }

    #[test]
    fn forged_response_leaves_the_initiation_waiting() {
        let (mut initiator, message) =
            Initiator::new(&secret(1), secret(2).public_key(), &TIME).unwrap();
        let (answer, _) = Responder::read(&secret(2), &message).unwrap().answer().unwrap();
        let mut forged = answer;
        forged[40] ^= 1;
        assert!(initiator.finish(&forged).is_none());
        assert!(initiator.finish(&answer).is_some());
    }
}
