//! Backends of a Service port, and the choice of one.

use weft_proto::tables::v1::backend::{CLUSTER, COUNTS, LOCAL, PLACE};

use crate::address::{Address, Family};
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
    fn v4(record: &[u8; RECORD_V4]) -> Self {
        let [a, b, c, d, port @ .., n0, n1, bits] = *record;
        Self {
            address: Address::v4(u32::from_be_bytes([a, b, c, d])),
            port: u16::from_be_bytes(port),
            node: u16::from_be_bytes([n0, n1]),
            bits,
        }
    }

    #[inline]
    fn v6(record: &[u8; RECORD_V6]) -> Self {
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
    fn has(self, backend: &Backend) -> bool {
        match self {
            Self::Cluster => backend.bits & CLUSTER != 0,
            Self::Local(node) => backend.bits & LOCAL != 0 && backend.node == node && node != 0,
        }
    }
}

/// All backends of a Service port, as they came: records back to back, nothing to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backends {
    pub(crate) v4: Box<[u8]>,
    pub(crate) v6: Box<[u8]>,
}

impl Backends {
    /// Every one of a family.
    #[inline]
    pub(crate) fn of(&self, family: Family) -> impl Iterator<Item = Backend> {
        let (v4, v6) = match family {
            Family::V4 => (&*self.v4, &[][..]),
            Family::V6 => (&[][..], &*self.v6),
        };
        let v4 = v4.as_chunks().0.iter().map(Backend::v4);
        v4.chain(v6.as_chunks().0.iter().map(Backend::v6))
    }

    /// True if a family has an endpoint anywhere that is ready or serving.
    pub(crate) fn count(&self, family: Family) -> bool {
        self.of(family).any(|backend| backend.bits & COUNTS != 0)
    }

    /// The one with this id, whatever its bits say: it serves.
    pub(crate) fn lists(&self, family: Family, id: u64) -> bool {
        self.of(family).any(|backend| backend.id() == id)
    }

    /// The one with this id, if new connections may go there.
    pub(crate) fn find(&self, family: Family, scope: Scope, id: u64) -> Option<Backend> {
        self.of(family).find(|backend| scope.has(backend) && backend.id() == id)
    }

    /// The one that a hash of the flow gives the most weight, each with the same probability.
    ///
    /// The weight of a backend does not depend on the others: when one goes, only its own flows
    /// would go elsewhere, should they be chosen for again.
    pub(crate) fn choose(&self, family: Family, scope: Scope, flow: u64) -> Option<Backend> {
        let members = self.of(family).filter(|backend| scope.has(backend));
        members.max_by_key(|backend| {
            let id = backend.id();
            (mix(flow ^ id), id)
        })
    }
}
