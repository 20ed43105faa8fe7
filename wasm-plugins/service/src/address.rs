//! Addresses of both families as one number, and ranges of them.

use std::net::{IpAddr, Ipv6Addr};

/// An address as a number in network order; IPv4 in its mapped form, `::ffff:a.b.c.d`, as the host
/// tells of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u128);

/// A family of addresses. Nothing is ever translated from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Address {
    /// Of 4 or 16 bytes. `None` for another length, and for IPv4 in 16 bytes, which no packet of
    /// IPv6 can be meant by.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::v4(u32::from_be_bytes(v4)));
        }
        let address = Self(u128::from_be_bytes(bytes.try_into().ok()?));
        (address.family() == Family::V6).then_some(address)
    }

    #[inline]
    pub(crate) fn v4(address: u32) -> Self {
        Self(0xffff << 32 | u128::from(address))
    }

    #[inline]
    pub(crate) fn family(self) -> Family {
        if self.0 >> 32 == 0xffff { Family::V4 } else { Family::V6 }
    }

    #[inline]
    pub(crate) fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    address: Address,
    mask: u128,
}

impl Prefix {
    /// `bits` count from the family's first bit, and bits of `address` after them do not matter.
    /// `None` if the family has not as many.
    pub(crate) fn new(address: Address, bits: u32) -> Option<Self> {
        let free = match address.family() {
            Family::V4 => 32_u32.checked_sub(bits)?,
            Family::V6 => 128_u32.checked_sub(bits)?,
        };
        Some(Self { address, mask: u128::MAX.checked_shl(free).unwrap_or(0) })
    }

    pub(crate) fn family(&self) -> Family {
        self.address.family()
    }

    #[inline]
    pub(crate) fn contains(&self, address: Address) -> bool {
        self.family() == address.family() && (self.address.0 ^ address.0) & self.mask == 0
    }
}
