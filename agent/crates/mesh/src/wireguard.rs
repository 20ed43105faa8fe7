//! WireGuard: handshakes and cookies, sessions and their timers, data messages.
//!
//! A [`Tunnel`] is one pair of static keys, ours and a peer's. It keeps sessions and decides when
//! they are made anew; whom to talk to, when to begin a first handshake and what waits for it is
//! decided outside. Workers seal and open with a [`Session`] on their own; the tunnel, behind the
//! lock of its peer, is only needed when something changes.

mod cookie;
mod message;
mod noise;
mod session;
mod tunnel;
mod window;

use std::time::Duration;

use weft_aead::Engine;
use weft_model::PublicKey;

use crate::SecretKey;
pub(crate) use cookie::Admission;
use cookie::Gate;
pub(crate) use message::{DATA_HEADER_LEN, Message, OVERHEAD, classify};
pub(crate) use noise::Responder;
pub(crate) use session::Session;
pub(crate) use tunnel::{Established, Inbound, Tunnel};

/// How long an initiation waits for its answer. Source: WireGuard paper, section 6.1.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to try before giving up. Source: WireGuard paper, section 6.1.
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How often timers are to be asked; they are this exact.
pub(crate) const TICK_INTERVAL: Duration = Duration::from_millis(250);

/// What tunnels are told of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    /// Unix time at the zero of timestamps.
    pub(crate) epoch: Duration,
    /// What seals and opens.
    pub(crate) engine: Engine,
}

/// One of our key pairs.
pub(crate) struct Identity {
    secret: SecretKey,
    public: PublicKey,
    /// What handshake messages for this key have to pass.
    pub(crate) gate: Gate,
}

impl Identity {
    pub(crate) fn new(key: &SecretKey) -> Self {
        let public = key.public_key();
        Self { secret: key.clone(), public, gate: Gate::new(public) }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Reads an initiation: three Diffie-Hellman operations. `None` if it proves nothing.
    pub(crate) fn read(&self, initiation: &[u8]) -> Option<Responder> {
        let noise = initiation.get(8..)?.get(..message::INITIATION_NOISE_LEN)?;
        Responder::read(&self.secret, noise)
    }
}
