//! The key of a flow.

use std::net::IpAddr;

/// Protocol, addresses and ports of one direction of a flow.
///
/// Ports are 0 where the protocol has none and in later fragments; of an ICMP echo both are its
/// identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FiveTuple {
    /// IP protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// Address and port of the sender.
    pub source: (IpAddr, u16),
    /// Address and port of the receiver.
    pub destination: (IpAddr, u16),
}

impl FiveTuple {
    /// The other direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}
