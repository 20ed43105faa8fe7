//! Routes, in any table.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use crate::netlink::{Ensured, Family, Mode, Netlink, NetlinkError};

/// Who made a route or rule (`rtm_protocol`): marks those of Weft. Not taken by any daemon in
/// iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 157;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where packets go, `0.0.0.0/0` or `::/0` for everything.
    pub destination: IpNet,
    /// Table number; 254 is `main`.
    pub table: u32,
    /// Index of the interface they leave by.
    pub output: Option<u32>,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// Source address of packets that this host sends by this route.
    pub source: Option<IpAddr>,
    /// The largest packet in bytes, whatever the interface says and hears; `None`: the interface's.
    pub mtu: Option<u32>,
    /// Metric. None given means the kernel's choice: 0 for IPv4, 1024 for IPv6.
    pub metric: Option<u32>,
    /// `rtm_protocol`: who made it.
    pub protocol: u8,
    /// `rtm_type`: 1 is unicast, 6 blackhole, 7 unreachable.
    pub kind: u8,
}

/// `rtm_type` of a route that drops packets.
pub const BLACKHOLE: u8 = 6;
/// `rtm_type` of a route that refuses packets with an ICMP error.
pub const UNREACHABLE: u8 = 7;
/// `rtm_type` of an ordinary route.
pub const UNICAST: u8 = 1;
/// In `RTAX_LOCK`, a bit for each metric: the kernel leaves `RTAX_MTU`, number 2, as it is.
const LOCKED_MTU: u32 = 1 << 2;
/// The table `main`.
pub const MAIN: u32 = 254;

impl Route {
    /// A unicast route of ours in the table `main`, with nothing but a destination.
    #[must_use]
    pub fn new(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            table: MAIN,
            output: None,
            gateway: None,
            source: None,
            mtu: None,
            metric: None,
            protocol: PROTOCOL,
            kind: UNICAST,
        }
    }

    /// Whether `other`, as the kernel shows it, does what this one asks for.
    fn is_met_by(&self, other: &Self) -> bool {
        self.same_place(other)
            && self.output == other.output
            && self.gateway == other.gateway
            && self.source == other.source
            && (self.mtu.is_none() || self.mtu == other.mtu)
            && self.kind == other.kind
    }

    /// Whether `other` is in the place this one would take.
    fn same_place(&self, other: &Self) -> bool {
        self.destination.trunc() == other.destination
            && self.table == other.table
            && (self.effective_metric() == other.effective_metric())
    }

    fn effective_metric(&self) -> u32 {
        let default = match self.destination {
            IpNet::V4(_) => 0,
            IpNet::V6(_) => 1024,
        };
        self.metric.unwrap_or(default)
    }
}

/// Every unicast, local and refusing route of the namespace in every table, sorted. Cached clones
/// and multipath routes are left out.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn list(netlink: &Netlink) -> Result<Vec<Route>, NetlinkError> {
    let mut routes = Vec::new();
    for family in Family::BOTH {
        routes.extend(list_family(netlink, family).await?);
    }
    routes.sort();
    Ok(routes)
}

async fn list_family(netlink: &Netlink, family: Family) -> Result<Vec<Route>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family.raw();
    let found = netlink.dump(RouteNetlinkMessage::GetRoute(message), "routes").await?;
    Ok(found.iter().filter_map(from_message).collect())
}

/// Puts a route in, in the place of one with the same destination, table and metric.
///
/// # Errors
/// The kernel's: `ENODEV` if the interface is not there, `ENETDOWN` if it is down,
/// `EINVAL` or `ENETUNREACH` if the source is not an address of this host or the gateway cannot be
/// reached.
pub async fn ensure(netlink: &Netlink, route: &Route) -> Result<Ensured, NetlinkError> {
    let there = list_family(netlink, Family::of(&route.destination)).await?;
    if there.iter().any(|other| route.is_met_by(other)) {
        return Ok(Ensured::Unchanged);
    }
    let request = RouteNetlinkMessage::NewRoute(message(route));
    let subject = || format!("{} to table {}", route.destination, route.table);
    netlink.change(request, Mode::Replace, "add route", subject).await?;
    Ok(Ensured::Changed)
}

/// Takes out the route with this destination, table and (if given) metric and output, if it is there.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove(netlink: &Netlink, route: &Route) -> Result<Ensured, NetlinkError> {
    let request = RouteNetlinkMessage::DelRoute(message(route));
    let subject = || format!("{} from table {}", route.destination, route.table);
    match netlink.change(request, Mode::Plain, "remove route", subject).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = Family::of(&route.destination).raw();
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = RouteType::from(route.kind);
    header.scope = match (route.kind, route.gateway, route.destination) {
        (UNICAST, None, IpNet::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(address(route.destination.network())));
    attributes.extend(route.output.map(RouteAttribute::Oif));
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(address(ip))));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(address(ip))));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(route.mtu.map(|mtu| {
        RouteAttribute::Metrics(vec![RouteMetric::Lock(LOCKED_MTU), RouteMetric::Mtu(mtu)])
    }));
    message
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn from_message(message: &RouteNetlinkMessage) -> Option<Route> {
    match message {
        RouteNetlinkMessage::NewRoute(message) => describe(message),
        _ => None,
    }
}

fn mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

pub(crate) fn describe(message: &RouteMessage) -> Option<Route> {
    use netlink_packet_route::route::RouteFlags;
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let everything: IpAddr = match Family::from_raw(message.header.address_family)? {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut destination = everything;
    let mut route = Route::new(IpNet::new(everything, 0).ok()?);
    route.table = message.header.table.into();
    route.protocol = message.header.protocol.into();
    route.kind = message.header.kind.into();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = plain(to)?,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => route.output = Some(*index),
            RouteAttribute::Gateway(ip) => route.gateway = plain(ip),
            RouteAttribute::PrefSource(ip) => route.source = plain(ip),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => route.mtu = metrics.iter().find_map(mtu),
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(route)
}
