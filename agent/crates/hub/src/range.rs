//! Addresses that follow each other, to give out one by one.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpAddrRange, IpNet, Ipv4AddrRange, Ipv6AddrRange};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As `spec.ipFamilies` and `addressType` call it.
    pub(crate) fn from_kubernetes(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// From one address to another of its family, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// `None` if the first comes after the last or they are of two families.
    pub(crate) fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let fits = first <= last && first.is_ipv4() == last.is_ipv4();
        fits.then_some(Self { first, last })
    }

    /// Every address of a subnet.
    pub(crate) fn of(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.first)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        // All of IPv4 is less than all of IPv6, so a family cannot be missed.
        (self.first..=self.last).contains(&address)
    }

    pub(crate) fn overlaps(&self, net: &IpNet) -> bool {
        self.first <= net.broadcast() && net.network() <= self.last
    }

    pub(crate) fn iter(&self) -> IpAddrRange {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                IpAddrRange::V4(Ipv4AddrRange::new(first, last))
            }
            (first, last) => IpAddrRange::V6(Ipv6AddrRange::new(v6(first), v6(last))),
        }
    }
}

fn v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}
