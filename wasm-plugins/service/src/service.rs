//! A Service as it is configured, and what is kept of it: no larger than it must be.

use std::sync::Arc;

use crate::address::{Address, Prefix};

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

/// What a port of a Service is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// 0: none.
    pub(crate) node_port: u16,
}

/// One port of a Service, as it is configured.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) numbers: Numbers,
    /// Records back to back.
    pub(crate) backends_v4: Vec<u8>,
    pub(crate) backends_v6: Vec<u8>,
}

/// A Service as it is configured, checked.
#[derive(Clone, Debug)]
pub(crate) struct Configured {
    pub(crate) kept: Service,
    pub(crate) ports: Box<[Port]>,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
}

/// What is kept of a Service beside [`crate::blocks`]. Few packets need it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: Arc<str>,
    pub(crate) frontends: Box<[Frontend]>,
    /// Seconds; 0: no affinity.
    pub(crate) affinity_s: u32,
    pub(crate) source_ranges: Box<[Prefix]>,
}
