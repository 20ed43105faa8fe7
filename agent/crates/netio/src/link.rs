//! Network interfaces.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use std::os::fd::{AsFd, AsRawFd};
use weft_model::MacAddr;

use crate::netlink::{Ensured, Mode, Netlink, NetlinkError};
use crate::netns::NetNs;

/// An interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace while it exists.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind of a virtual device: `veth`, `bridge`, `tun`, `vxlan`...; empty for hardware.
    pub kind: String,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
}

/// A veth pair to be made.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// Name of the near end, in the namespace of the connection.
    pub name: &'a str,
    /// Name of the far end.
    pub peer: &'a str,
    /// Where the far end goes; the same namespace if not given.
    pub peer_netns: Option<&'a NetNs>,
    /// MTU of both ends, bytes; the kernel's 1500 if not given.
    pub mtu: Option<u32>,
}

/// Every interface of the namespace, by index.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn list(netlink: &Netlink) -> Result<Vec<Link>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut links: Vec<Link> =
        netlink.dump(request, "interfaces").await?.into_iter().filter_map(from_message).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The interface `name`, if there is one.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn get(netlink: &Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let found = netlink.get(RouteNetlinkMessage::GetLink(message), || name.to_owned()).await?;
    Ok(found.and_then(from_message))
}

/// The interface `name`.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is none.
pub async fn require(netlink: &Netlink, name: &str) -> Result<Link, NetlinkError> {
    let missing = || NetlinkError::NoInterface { name: name.to_owned() };
    get(netlink, name).await?.ok_or_else(missing)
}

/// Makes the pair unless an interface of that name is a veth already.
///
/// The far end of an existing pair is not looked at: it may have been renamed or moved.
///
/// # Errors
/// [`NetlinkError::WrongKind`] if something else has the name; the kernel's `EEXIST` if something
/// has the name of the far end.
pub async fn ensure_veth(netlink: &Netlink, veth: &Veth<'_>) -> Result<Ensured, NetlinkError> {
    if let Some(link) = get(netlink, veth.name).await? {
        return match link.kind.as_str() {
            "veth" => Ok(Ensured::Unchanged),
            _ => Err(NetlinkError::WrongKind { name: veth.name.to_owned(), wanted: "veth" }),
        };
    }
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(veth.peer.to_owned()));
    peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    if let Some(namespace) = veth.peer_netns {
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
    }
    let data = InfoData::Veth(InfoVeth::Peer(peer));
    let mut message = new_link(veth.name, InfoKind::Veth, Some(data));
    message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    add(netlink, message, veth.name).await
}

/// Makes a bridge unless there is one of that name.
///
/// # Errors
/// [`NetlinkError::WrongKind`] if something else has the name.
pub async fn ensure_bridge(netlink: &Netlink, name: &str) -> Result<Ensured, NetlinkError> {
    match get(netlink, name).await? {
        Some(link) if link.kind == "bridge" => Ok(Ensured::Unchanged),
        Some(_) => Err(NetlinkError::WrongKind { name: name.to_owned(), wanted: "bridge" }),
        None => add(netlink, new_link(name, InfoKind::Bridge, None), name).await,
    }
}

/// Brings an interface up.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is none.
pub async fn ensure_up(netlink: &Netlink, name: &str) -> Result<Ensured, NetlinkError> {
    let link = require(netlink, name).await?;
    if link.up {
        return Ok(Ensured::Unchanged);
    }
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    set(netlink, &link, message, "bring up").await
}

/// Takes an interface down.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is none.
pub async fn ensure_down(netlink: &Netlink, name: &str) -> Result<Ensured, NetlinkError> {
    let link = require(netlink, name).await?;
    if !link.up {
        return Ok(Ensured::Unchanged);
    }
    let mut message = LinkMessage::default();
    message.header.change_mask = LinkFlags::Up;
    set(netlink, &link, message, "take down").await
}

/// Gives an interface its MTU, bytes.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is none; the kernel's `EINVAL` for a size the device
/// does not take.
pub async fn ensure_mtu(netlink: &Netlink, name: &str, mtu: u32) -> Result<Ensured, NetlinkError> {
    let link = require(netlink, name).await?;
    if link.mtu == mtu {
        return Ok(Ensured::Unchanged);
    }
    set_attribute(netlink, &link, LinkAttribute::Mtu(mtu), "set the MTU of").await
}

/// Gives an interface its Ethernet address.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is none.
pub async fn ensure_mac(
    netlink: &Netlink,
    name: &str,
    mac: MacAddr,
) -> Result<Ensured, NetlinkError> {
    let link = require(netlink, name).await?;
    if link.mac == Some(mac) {
        return Ok(Ensured::Unchanged);
    }
    let attribute = LinkAttribute::Address(mac.0.to_vec());
    set_attribute(netlink, &link, attribute, "set the Ethernet address of").await
}

/// Makes an interface a port of a bridge, or of none.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if either is missing.
pub async fn ensure_master(
    netlink: &Netlink,
    name: &str,
    master: Option<&str>,
) -> Result<Ensured, NetlinkError> {
    let link = require(netlink, name).await?;
    let wanted = match master {
        Some(master) => Some(require(netlink, master).await?.index),
        None => None,
    };
    if link.master == wanted {
        return Ok(Ensured::Unchanged);
    }
    let attribute = LinkAttribute::Controller(wanted.unwrap_or(0));
    set_attribute(netlink, &link, attribute, "set the bridge of").await
}

/// Moves an interface into another namespace, where it is down and without addresses.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if it is not here; the kernel's `EEXIST` if the name is taken
/// there.
pub async fn move_to(netlink: &Netlink, name: &str, namespace: &NetNs) -> Result<(), NetlinkError> {
    let link = require(netlink, name).await?;
    let attribute = LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd());
    set_attribute(netlink, &link, attribute, "move").await.map(drop)
}

/// Deletes an interface if it is there.
///
/// # Errors
/// The kernel's, such as `EOPNOTSUPP` for hardware.
pub async fn remove(netlink: &Netlink, name: &str) -> Result<Ensured, NetlinkError> {
    let Some(link) = get(netlink, name).await? else { return Ok(Ensured::Unchanged) };
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let request = RouteNetlinkMessage::DelLink(message);
    match netlink.change(request, Mode::Plain, "delete interface", || name.to_owned()).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

fn new_link(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

async fn add(netlink: &Netlink, message: LinkMessage, name: &str) -> Result<Ensured, NetlinkError> {
    let request = RouteNetlinkMessage::NewLink(message);
    netlink.change(request, Mode::Create, "add interface", || name.to_owned()).await?;
    Ok(Ensured::Changed)
}

async fn set_attribute(
    netlink: &Netlink,
    link: &Link,
    attribute: LinkAttribute,
    action: &'static str,
) -> Result<Ensured, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(attribute);
    set(netlink, link, message, action).await
}

async fn set(
    netlink: &Netlink,
    link: &Link,
    mut message: LinkMessage,
    action: &'static str,
) -> Result<Ensured, NetlinkError> {
    message.header.index = link.index;
    let request = RouteNetlinkMessage::SetLink(message);
    netlink.change(request, Mode::Plain, action, || link.name.clone()).await?;
    Ok(Ensured::Changed)
}

fn from_message(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(describe(&message)),
        _ => None,
    }
}

pub(crate) fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => {
                link.master = Some(*index).filter(|index| *index != 0)
            }
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::LinkInfo(info) => {
                let kind = info.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}
