//! What a flow is found by.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use weft_packet::{FiveTuple, Rewrite, protocol};

/// A five-tuple in 40 bytes: addresses as IPv4-mapped IPv6 numbers, so that comparing and hashing
/// need no branch on the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    source: u128,
    destination: u128,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
}

/// Secret words of the hash, so that nobody outside can choose tuples that collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashSeed([u64; 4]);

impl HashSeed {
    /// Expands one random word (splitmix64).
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }
}

impl HashSeed {
    /// One of the secret words.
    pub(crate) fn word(&self) -> u64 {
        self.0[3]
    }
}

/// Both halves of a 128-bit product, folded: every bit of the input reaches every bit.
#[inline]
#[allow(clippy::cast_possible_truncation)] // halves of a product
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl FlowKey {
    /// Bytes of [`Self::to_bytes`].
    pub(crate) const LEN: usize = 37;

    /// The key of a packet that goes from `source` to `destination`.
    #[must_use]
    #[inline]
    pub fn new(protocol: u8, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            source: number(source.0),
            destination: number(destination.0),
            source_port: source.1,
            destination_port: destination.1,
            protocol,
        }
    }

    /// The key of the answers.
    #[must_use]
    #[inline]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// IANA protocol number.
    #[must_use]
    #[inline]
    pub fn protocol(self) -> u8 {
        self.protocol
    }

    /// Where the packet comes from; port zero where the protocol has none.
    #[must_use]
    pub fn source(self) -> SocketAddr {
        SocketAddr::new(address(self.source), self.source_port)
    }

    /// Where the packet goes to; port zero where the protocol has none.
    #[must_use]
    pub fn destination(self) -> SocketAddr {
        SocketAddr::new(address(self.destination), self.destination_port)
    }

    /// Source and destination port.
    #[inline]
    pub(crate) fn ports(self) -> (u16, u16) {
        (self.source_port, self.destination_port)
    }

    #[inline]
    pub(crate) fn same_source(&self, other: &Self) -> bool {
        self.source == other.source
    }

    #[inline]
    pub(crate) fn same_destination(&self, other: &Self) -> bool {
        self.destination == other.destination
    }

    /// Source and destination address as the plugin ABI has them: IPv4-mapped for IPv4.
    #[inline]
    pub(crate) fn mapped_addresses(self) -> ([u8; 16], [u8; 16]) {
        (self.source.to_be_bytes(), self.destination.to_be_bytes())
    }

    /// The same from another port; of an ICMP echo both are its identifier. `None` if the protocol
    /// has neither.
    #[inline]
    pub(crate) fn with_source_port(self, source_port: u16) -> Option<Self> {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => Some(Self { source_port, ..self }),
            protocol::ICMP | protocol::ICMPV6 => {
                Some(Self { source_port, destination_port: source_port, ..self })
            }
            _ => None,
        }
    }

    /// The same with the destination of `other`.
    #[inline]
    pub(crate) fn with_destination_of(self, other: Self) -> Self {
        Self { destination: other.destination, destination_port: other.destination_port, ..self }
    }

    /// What takes a packet from this tuple to `other`.
    pub(crate) fn rewrite_to(self, other: Self) -> Rewrite {
        Rewrite {
            source: (self.source != other.source).then(|| address(other.source)),
            destination: (self.destination != other.destination)
                .then(|| address(other.destination)),
            source_port: (self.source_port != other.source_port).then_some(other.source_port),
            destination_port: (self.destination_port != other.destination_port)
                .then_some(other.destination_port),
        }
    }

    /// Equal for a tuple and its reverse, so that both directions are found in one shard.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // halves of an address
    pub(crate) fn hash(&self, seed: &HashSeed) -> u64 {
        let [a, b, c, d] = seed.0;
        let end = |address: u128, port: u16| {
            fold(address as u64 ^ a, (address >> 64) as u64 ^ (u64::from(port) << 40) ^ b)
        };
        let ends = end(self.source, self.source_port)
            .wrapping_add(end(self.destination, self.destination_port));
        fold(ends ^ c, u64::from(self.protocol) ^ d)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..16].copy_from_slice(&self.source.to_be_bytes());
        bytes[16..32].copy_from_slice(&self.destination.to_be_bytes());
        bytes[32..34].copy_from_slice(&self.source_port.to_be_bytes());
        bytes[34..36].copy_from_slice(&self.destination_port.to_be_bytes());
        bytes[36] = self.protocol;
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut word = [0; 16];
        word.copy_from_slice(&bytes[0..16]);
        let source = u128::from_be_bytes(word);
        word.copy_from_slice(&bytes[16..32]);
        Self {
            source,
            destination: u128::from_be_bytes(word),
            source_port: u16::from_be_bytes([bytes[32], bytes[33]]),
            destination_port: u16::from_be_bytes([bytes[34], bytes[35]]),
            protocol: bytes[36],
        }
    }
}

impl From<FiveTuple> for FlowKey {
    #[inline]
    fn from(tuple: FiveTuple) -> Self {
        Self::new(tuple.protocol, tuple.source, tuple.destination)
    }
}

#[inline]
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => (0xffff << 32) | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128) -> IpAddr {
    Ipv6Addr::from_bits(number).to_canonical()
}
