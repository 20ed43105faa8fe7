//! Addresses of both families, and ranges of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as a number in network order. Nothing that is said of one family holds for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Address {
    V4(u32),
    V6(u128),
}

impl Address {
    /// Of 4 or 16 bytes. `None` for another length, and for IPv4 in 16 bytes, which no packet of
    /// IPv6 can be meant by.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::V4(u32::from_be_bytes(v4)));
        }
        let address = Self::from_mapped(bytes.try_into().ok()?);
        matches!(address, Self::V6(_)).then_some(address)
    }

    /// As the host tells of packets: IPv4 as `::ffff:a.b.c.d`.
    #[inline]
    pub(crate) fn from_mapped(bytes: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(bytes);
        if number >> 32 == 0xffff { Self::V4(number as u32) } else { Self::V6(number) }
    }

    /// The reverse of [`Self::from_mapped`].
    #[inline]
    pub(crate) fn mapped(self) -> u128 {
        match self {
            Self::V4(v4) => 0xffff << 32 | u128::from(v4),
            Self::V6(v6) => v6,
        }
    }

    pub(crate) fn ip(self) -> IpAddr {
        match self {
            Self::V4(v4) => Ipv4Addr::from(v4).into(),
            Self::V6(v6) => Ipv6Addr::from(v6).into(),
        }
    }
}

/// First and last address of a range: none where they are of two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: Address,
    pub(crate) last: Address,
}

impl Span {
    /// `bits` count from the family's first bit, and bits of `address` after them do not matter.
    /// `None` if the family has not as many.
    pub(crate) fn of_prefix(address: Address, bits: u32) -> Option<Self> {
        Some(match address {
            Address::V4(v4) => {
                let free = u32::MAX.checked_shr(bits).unwrap_or(0);
                (bits <= 32).then_some(())?;
                Self { first: Address::V4(v4 & !free), last: Address::V4(v4 | free) }
            }
            Address::V6(v6) => {
                let free = u128::MAX.checked_shr(bits).unwrap_or(0);
                (bits <= 128).then_some(())?;
                Self { first: Address::V6(v6 & !free), last: Address::V6(v6 | free) }
            }
        })
    }
}
