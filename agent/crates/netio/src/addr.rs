//! Addresses of interfaces.

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use std::net::IpAddr;

use crate::link;
use crate::netlink::{Ensured, Family, Mode, Netlink, NetlinkError};

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address, with the length of its on-link prefix.
    pub net: IpNet,
}

/// Every address of the namespace, sorted.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn list(netlink: &Netlink) -> Result<Vec<Address>, NetlinkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let found = netlink.dump(request, "addresses").await?;
    let mut addresses: Vec<Address> = found.iter().filter_map(from_message).collect();
    addresses.sort();
    Ok(addresses)
}

/// Gives an interface an address.
///
/// An IPv6 address skips duplicate address detection and so is usable at once.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is no interface `name`.
pub async fn ensure(netlink: &Netlink, name: &str, net: IpNet) -> Result<Ensured, NetlinkError> {
    let index = link::require(netlink, name).await?.index;
    let wanted = Address { index, net };
    if list(netlink).await?.contains(&wanted) {
        return Ok(Ensured::Unchanged);
    }
    let request = RouteNetlinkMessage::NewAddress(message(wanted));
    let subject = || format!("{net} to {name}");
    match netlink.change(request, Mode::Create, "add address", subject).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

/// Takes an address from an interface, if both are there.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove(netlink: &Netlink, name: &str, net: IpNet) -> Result<Ensured, NetlinkError> {
    let Some(link) = link::get(netlink, name).await? else { return Ok(Ensured::Unchanged) };
    let request = RouteNetlinkMessage::DelAddress(message(Address { index: link.index, net }));
    let subject = || format!("{net} from {name}");
    match netlink.change(request, Mode::Plain, "remove address", subject).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

/// Ends duplicate address detection on an interface: each address that is still tentative is put
/// there again without it.
///
/// For point-to-point wiring, where nobody else can have the address, and the second that the
/// detection takes is a second in which neighbours are not answered.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn settle(netlink: &Netlink, name: &str) -> Result<Ensured, NetlinkError> {
    let index = link::require(netlink, name).await?.index;
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut settled = Ensured::Unchanged;
    for found in netlink.dump(request, "addresses").await? {
        let RouteNetlinkMessage::NewAddress(found) = found else { continue };
        let tentative = found.header.flags.contains(AddressHeaderFlags::Tentative);
        let Some(address) = describe(&found).filter(|a| a.index == index && tentative) else {
            continue;
        };
        remove(netlink, name, address.net).await?;
        settled = settled.or(ensure(netlink, name, address.net).await?);
    }
    Ok(settled)
}

fn message(address: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(&address.net).raw();
    message.header.prefix_len = address.net.prefix_len();
    message.header.index = address.index;
    let ip = address.net.addr();
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    match ip {
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    message
}

fn from_message(message: &RouteNetlinkMessage) -> Option<Address> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => describe(message),
        _ => None,
    }
}

pub(crate) fn describe(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net })
}
