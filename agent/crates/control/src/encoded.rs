//! Messages that are kept for long, and read seldom.

use std::marker::PhantomData;
use std::sync::Arc;

use prost::Message;

/// A message as its bytes, which are a fraction of what its strings and lists take in memory; a clone shares
/// them. Equal if the bytes are.
#[derive(Debug)]
pub struct Encoded<M> {
    bytes: Arc<[u8]>,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Encoded<M> {
    /// Encodes it.
    #[must_use]
    pub fn new(message: &M) -> Self {
        Self { bytes: message.encode_to_vec().into(), message: PhantomData }
    }

    /// The message.
    #[must_use]
    pub fn decode(&self) -> M {
        // What was encoded here can be decoded.
        M::decode(&*self.bytes).unwrap_or_default()
    }
}

impl<M> Clone for Encoded<M> {
    fn clone(&self) -> Self {
        Self { bytes: Arc::clone(&self.bytes), message: PhantomData }
    }
}

impl<M> PartialEq for Encoded<M> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes) || self.bytes == other.bytes
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::tables::v1::DnsService;

    use super::*;

    #[test]
    fn message_is_what_was_encoded() {
        let message = DnsService { name: "default/web".into(), ..DnsService::default() };
        let encoded = Encoded::new(&message);
        assert_eq!(encoded.decode(), message);
        assert_eq!(encoded, Encoded::new(&message));
        assert_ne!(encoded, Encoded::new(&DnsService::default()));
    }
}
