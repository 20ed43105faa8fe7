//! A Service as it is kept: checked, and no larger than it must be.

use std::sync::Arc;

use crate::address::{Address, Prefix};
use crate::backend::Backends;

/// What an address of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
}

/// One address of a Service. Bytes, as a number would be aligned to twice the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frontend {
    address: [u8; 16],
    pub(crate) kind: Kind,
}

impl Frontend {
    pub(crate) fn new(address: Address, kind: Kind) -> Self {
        Self { address: address.0.to_be_bytes(), kind }
    }

    pub(crate) fn address(&self) -> Address {
        Address(u128::from_be_bytes(self.address))
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// 0: none.
    pub(crate) node_port: u16,
    pub(crate) backends: Backends,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: Arc<str>,
    pub(crate) frontends: Box<[Frontend]>,
    pub(crate) ports: Box<[Port]>,
    /// Seconds; 0: no affinity.
    pub(crate) affinity_s: u32,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) source_ranges: Box<[Prefix]>,
}
