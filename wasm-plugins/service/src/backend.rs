//! Backends of a Service port, and the choice of one.

use weft_proto::tables::v1::backend::{CLUSTER, COUNTS, LOCAL, PLACE};

use crate::address::Address;
use crate::hash::{halves, mix, mix_all};

/// Bytes of a record: address, port, node, bits.
pub(crate) const RECORD_V4: usize = 9;
/// As [`RECORD_V4`].
pub(crate) const RECORD_V6: usize = 21;

/// One record, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) address: Address,
    pub(crate) port: u16,
    /// Index of its node; 0 if it is not known.
    pub(crate) node: u16,
    /// Of `weft_proto::tables::v1::backend`.
    pub(crate) bits: u8,
}

impl Backend {
    #[inline]
    pub(crate) fn v4(record: &[u8; RECORD_V4]) -> Self {
        let [a, b, c, d, port @ .., n0, n1, bits] = *record;
        Self {
            address: Address::v4(u32::from_be_bytes([a, b, c, d])),
            port: u16::from_be_bytes(port),
            node: u16::from_be_bytes([n0, n1]),
            bits,
        }
    }

    #[inline]
    pub(crate) fn v6(record: &[u8; RECORD_V6]) -> Self {
        let [address @ .., p0, p1, n0, n1, bits] = *record;
        Self {
            address: Address(u128::from_be_bytes(address)),
            port: u16::from_be_bytes([p0, p1]),
            node: u16::from_be_bytes([n0, n1]),
            bits,
        }
    }

    /// What a flow or a client remembers of it: a hash of address and port.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        let [high, low] = halves(self.address.0);
        mix_all([high, low, u64::from(self.port)])
    }

    /// True if it is an endpoint that is ready or serving.
    #[inline]
    pub(crate) fn counts(&self) -> bool {
        self.bits & COUNTS != 0
    }

    /// The bits that say where it is.
    #[inline]
    pub(crate) fn place(&self) -> u8 {
        self.bits & PLACE
    }
}

/// Which backends a packet may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those for the whole cluster.
    Cluster,
    /// Those of a node, by its index. There are none on a node that is not known.
    Local(u16),
}

impl Scope {
    #[inline]
    pub(crate) fn has(self, backend: &Backend) -> bool {
        match self {
            Self::Cluster => backend.bits & CLUSTER != 0,
            Self::Local(node) => backend.bits & LOCAL != 0 && backend.node == node && node != 0,
        }
    }
}

/// The one that a hash of the flow gives the most weight, each with the same probability.
///
/// The weight of a backend does not depend on the others: when one goes, only its own flows would go
/// elsewhere, should they be chosen for again.
pub(crate) fn choose(
    backends: impl Iterator<Item = Backend>,
    scope: Scope,
    flow: u64,
) -> Option<Backend> {
    backends.filter(|backend| scope.has(backend)).max_by_key(|backend| {
        let id = backend.id();
        (mix(flow ^ id), id)
    })
}
