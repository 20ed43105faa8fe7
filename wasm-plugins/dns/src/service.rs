//! A Service, as far as names are about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::Name;

use crate::address::dashed;

/// A name that is held.
pub(crate) type OwnedName = Name<Vec<u8>>;

#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Wire form of NAME.NAMESPACE in small letters, without a root label.
    pub(crate) key: Box<[u8]>,
    pub(crate) kind: Kind,
    /// Ready endpoints, those with the same ports together.
    pub(crate) endpoints: Box<[Endpoints]>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    ClusterIp { v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, ports: Box<[Port]> },
    Headless,
    Alias(OwnedName),
}

#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    pub(crate) unnamed: Addresses,
    /// By name.
    pub(crate) hosts: Box<[Host]>,
    pub(crate) ports: Box<[Port]>,
}

/// In rising order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) v4: Box<[Ipv4Addr]>,
    pub(crate) v6: Box<[Ipv6Addr]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// In small letters.
    pub(crate) name: Box<str>,
    pub(crate) addresses: Addresses,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// In small letters.
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As in names of SRV records.
    pub(crate) fn of_label(label: &[u8]) -> Option<Self> {
        match label {
            b"_tcp" => Some(Self::Tcp),
            b"_udp" => Some(Self::Udp),
            b"_sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl Addresses {
    pub(crate) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.iter().copied().map(IpAddr::V4).chain(self.v6.iter().copied().map(IpAddr::V6))
    }

    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.binary_search(&v4).is_ok(),
            IpAddr::V6(v6) => self.v6.binary_search(&v6).is_ok(),
        }
    }
}

impl Endpoints {
    pub(crate) fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.unnamed.iter().chain(self.hosts.iter().flat_map(|h| h.addresses.iter()))
    }

    /// Names of the endpoints below the Service's, each with its addresses.
    pub(crate) fn names(&self) -> impl Iterator<Item = (String, Vec<IpAddr>)> {
        let unnamed = self.unnamed.iter().map(|address| (dashed(address), vec![address]));
        let hosts = self.hosts.iter();
        unnamed.chain(hosts.map(|h| (h.name.to_string(), h.addresses.iter().collect())))
    }

    /// What an endpoint is called below its Service's name.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<String> {
        if self.unnamed.holds(address) {
            return Some(dashed(address));
        }
        let host = self.hosts.iter().find(|h| h.addresses.holds(address))?;
        Some(host.name.to_string())
    }

    pub(crate) fn host(&self, label: &[u8]) -> Option<&Host> {
        let found = self.hosts.binary_search_by(|h| h.name.as_bytes().cmp(label));
        found.ok().and_then(|at| self.hosts.get(at))
    }
}
