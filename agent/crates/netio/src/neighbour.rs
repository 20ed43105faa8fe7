//! Addresses that the kernel answers neighbours for, though they are not the host's (proxy ARP and NDP),
//! and what makes neighbours believe it at once.

use std::collections::BTreeSet;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{Ensured, Mode, Netlink, NetlinkError};
use crate::route::PROTOCOL;

/// Addresses that the kernel answers for because Weft told it to, each with the index of its interface.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn proxies(netlink: &Netlink) -> Result<BTreeSet<(u32, IpAddr)>, NetlinkError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.header.flags = NeighbourFlags::Proxy;
        let all = netlink.dump(RouteNetlinkMessage::GetNeighbour(message), "neighbours").await?;
        found.extend(all.iter().filter_map(proxy));
    }
    Ok(found)
}

fn proxy(message: &RouteNetlinkMessage) -> Option<(u32, IpAddr)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    if !message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let ours = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Protocol(protocol) if u8::from(*protocol) == PROTOCOL);
    if !message.attributes.iter().any(ours) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    });
    Some((message.header.ifindex, address?))
}

/// Has the kernel answer for an address. It does so if it would route it to another interface.
///
/// # Errors
/// The kernel's: `ENODEV` if the interface is gone.
pub async fn add_proxy(netlink: &Netlink, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::NewNeighbour(message(index, address));
    netlink.change(request, Mode::Replace, "answer for", || address.to_string()).await
}

/// Has the kernel answer no longer.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove_proxy(
    netlink: &Netlink,
    index: u32,
    address: IpAddr,
) -> Result<Ensured, NetlinkError> {
    let request = RouteNetlinkMessage::DelNeighbour(message(index, address));
    let removed =
        netlink.change(request, Mode::Plain, "stop answering for", || address.to_string());
    match removed.await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Proxy;
    message.header.state = NeighbourState::Permanent;
    let (family, address) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    message
}

/// Tells everybody on an interface's link that an address is at the interface's Ethernet address: a
/// gratuitous ARP request (RFC 5227 section 3) or an unsolicited neighbour advertisement that
/// overrides what is known (RFC 4861 section 7.2.6).
///
/// # Errors
/// The kernel's: `ENODEV`, `ENETDOWN`, or `EPERM` without `CAP_NET_RAW`.
pub fn announce(index: u32, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
    let (frame, protocol) = match address {
        IpAddr::V4(v4) => (arp(mac, v4), libc::ETH_P_ARP),
        IpAddr::V6(v6) => (advertisement(mac, v6), libc::ETH_P_IPV6),
    };
    // SAFETY: a plain call; the descriptor is owned by nobody else.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: checked above to be a new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a plain C structure for which all zeroes is a value.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = (protocol as u16).to_be();
    to.sll_ifindex = index.cast_signed();
    // SAFETY: frame and address outlive the call, which only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac].concat();
    // Ethernet type; hardware Ethernet, protocol IPv4, lengths, request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type, code, checksum, flags router and override, target, its link-layer address.
    let mut body = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
    body.extend(address.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let length = u16::try_from(body.len()).unwrap_or(0);
    // From the address itself: the link-local one of the interface need not be known for it.
    let pseudo = [address.octets(), ALL_NODES.octets()].concat();
    let [high, low] = length.to_be_bytes();
    let sum = checksum(&[pseudo, vec![0, 0, high, low, 0, 0, 0, 58], body.clone()].concat());
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    // Ethernet type; version 6, payload length, ICMPv6, hop limit 255.
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Namespace, wait_for};

    fn sh(namespace: &Namespace, command: &str) -> String {
        let run = || std::process::Command::new("sh").args(["-c", command]).output().unwrap();
        let output = namespace.handle.enter(run).unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// SVC-107: neighbours find an address where it is answered for, and a new owner at once.
    #[test]
    fn neighbours_find_an_address_where_it_is_answered_for() {
        let (Some(near), Some(far)) = (Namespace::new(), Namespace::new()) else { return };
        near.connect(&far, &["10.9.0.1/24", "fd09::1/64"], &["10.9.0.2/24", "fd09::2/64"]);
        sh(
            &near,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
            net.ipv6.conf.near.proxy_ndp=1 net.ipv4.neigh.near.proxy_delay=0 \
            net.ipv6.neigh.near.proxy_delay=0; ip link add other type bridge; \
            ip link set other up; ip route add 10.9.0.77 dev other; \
            ip route add fd09::77 dev other",
        );
        let link = sh(&near, "ip -o link show near");
        let mac = link.split("link/ether ").nth(1).unwrap()[..17].to_owned();
        let octets: Vec<u8> = mac.split(':').map(|o| u8::from_str_radix(o, 16).unwrap()).collect();
        let octets: [u8; 6] = octets.try_into().unwrap();
        let index: u32 = link.split(':').next().unwrap().parse().unwrap();
        for address in ["10.9.0.77", "fd09::77"] {
            let ip: IpAddr = address.parse().unwrap();
            let known = || sh(&far, &format!("ip neigh show {address} dev far")).contains(&mac);
            near.run(|| async {
                let netlink = Netlink::new().unwrap();
                add_proxy(&netlink, index, ip).await.unwrap();
                add_proxy(&netlink, index, ip).await.unwrap();
                assert!(proxies(&netlink).await.unwrap().contains(&(index, ip)));
            });
            // What an operator has the kernel answer for is not Weft's.
            let family = if ip.is_ipv4() { "" } else { "-6" };
            let theirs = if ip.is_ipv4() { "10.9.0.88" } else { "fd09::88" };
            sh(&near, &format!("ip {family} neigh add proxy {theirs} dev near"));
            let found = near.run(|| async { proxies(&Netlink::new().unwrap()).await });
            assert_eq!(found.unwrap(), BTreeSet::from([(index, ip)]));
            wait_for(|| {
                sh(&far, &format!("ping -c1 -W1 {address} >/dev/null; true"));
                known().then_some(())
            });
            let stale = "lladdr 02:00:00:00:00:09 nud stale";
            sh(&far, &format!("ip neigh replace {address} dev far {stale}"));
            assert!(!known());
            near.handle.enter(|| announce(index, octets, ip)).unwrap().unwrap();
            wait_for(|| known().then_some(()));
            near.run(|| async {
                let netlink = Netlink::new().unwrap();
                let removed = remove_proxy(&netlink, index, ip).await.unwrap();
                assert_eq!(removed, Ensured::Changed);
                let again = remove_proxy(&netlink, index, ip).await.unwrap();
                assert_eq!(again, Ensured::Unchanged);
                assert!(!proxies(&netlink).await.unwrap().contains(&(index, ip)));
            });
        }
    }
}
