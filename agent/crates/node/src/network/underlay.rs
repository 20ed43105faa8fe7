//! Which address and interface carry the mesh.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use weft_model::RESOLVERS;
use weft_netio::addr::Address;

use super::plan::Actual;
use crate::config::Underlay;
use crate::core::UnderlayState;

/// Where the default route leads; documentation addresses (RFC 5737, RFC 3849), nothing is sent.
const ANYWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];

/// The address the host sends from to `to`, as its routes have it.
pub(crate) fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() {
        SocketAddr::from(([0, 0, 0, 0], 0))
    } else {
        SocketAddr::from(([0u16; 8], 0))
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(is_global)
}

/// The address the host sends from to the world.
pub(crate) fn source_anywhere() -> Option<IpAddr> {
    ANYWHERE.iter().find_map(|to| source_towards(to.parse().ok()?))
}

/// Finds the underlay; `towards_hub` and `anywhere` are what the routes say.
///
/// # Errors
/// One line for the operator.
pub(crate) fn find(
    wanted: &Underlay,
    fabric: &str,
    actual: &Actual,
    sources: &[IpAddr],
) -> Result<UnderlayState, String> {
    let own = |address: &IpAddr| {
        actual.addresses.iter().find(|a| a.net.addr() == *address).filter(|_| is_global(address))
    };
    let chosen = match wanted {
        Underlay::Address(address) => own(address).ok_or_else(|| {
            format!("the underlay address {address} is on no interface of this node")
        })?,
        Underlay::Interface(name) => {
            let link = actual.link(name);
            let link = link.ok_or_else(|| format!("there is no underlay interface {name}"))?;
            first_global(actual, |a| a.index == link.index)
                .ok_or_else(|| format!("the underlay interface {name} has no global address"))?
        }
        Underlay::TowardsHub => {
            let fabric = actual.link(fabric).map(|l| l.index);
            let routed = sources.iter().find_map(own).filter(|a| Some(a.index) != fabric);
            let up = |a: &Address| {
                Some(a.index) != fabric && actual.links.iter().any(|l| l.index == a.index && l.up)
            };
            routed
                .or_else(|| first_global(actual, up))
                .ok_or_else(|| "this node has no global address: is its network up?".to_owned())?
        }
    };
    let link = actual.links.iter().find(|l| l.index == chosen.index);
    let link = link.ok_or_else(|| "the underlay interface just vanished".to_owned())?;
    let address = chosen.net.addr();
    let on_link = || actual.addresses.iter().filter(|a| a.index == link.index).map(|a| a.net);
    let on_link = || on_link().filter(|net| is_global(&net.addr()));
    let mut addresses = vec![address];
    addresses.extend(on_link().map(|net| net.addr()).filter(|a| *a != address));
    Ok(UnderlayState {
        interface: link.name.clone(),
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        address,
        addresses,
        prefixes: on_link().map(|net| net.trunc()).collect(),
        gateways: actual.routes.iter().filter_map(|r| r.gateway).collect(),
    })
}

/// Every address of the host that a pod could send to.
pub(crate) fn host_addresses(actual: &Actual) -> BTreeSet<IpAddr> {
    actual.addresses.iter().map(|a| a.net.addr()).filter(is_global).collect()
}

fn first_global(actual: &Actual, of: impl Fn(&Address) -> bool) -> Option<&Address> {
    let mut found: Vec<&Address> =
        actual.addresses.iter().filter(|a| is_global(&a.net.addr()) && of(a)).collect();
    found.sort_by_key(|a| (a.net.addr().is_ipv6(), a.index));
    found.first().copied()
}

fn is_global(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    // The node's DNS server is no more than that to pods: what holds for their node does not for it.
    let resolver = RESOLVERS.contains(address);
    !(link_local
        || resolver
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use weft_netio::link::Link;

    use super::*;

    fn actual() -> Actual {
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            kind: String::new(),
            mtu: 1400 + index,
            mac: None,
            up: true,
            master: None,
        };
        let address = |index, net: &str| Address { index, net: net.parse().unwrap() };
        Actual {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "weft0")],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "192.0.2.1/24"),
                address(2, "2001:db8::1/64"),
                address(2, "fe80::1/64"),
                address(3, "198.51.100.7/24"),
                address(4, "10.42.1.1/32"),
            ],
            ..Actual::default()
        }
    }

    fn found(wanted: &Underlay, sources: &[&str]) -> Result<UnderlayState, String> {
        let sources: Vec<IpAddr> = sources.iter().map(|s| s.parse().unwrap()).collect();
        find(wanted, "weft0", &actual(), &sources)
    }

    #[test]
    fn source_towards_the_hub_decides() {
        let underlay = found(&Underlay::TowardsHub, &["198.51.100.7", "192.0.2.1"]).unwrap();
        assert_eq!((underlay.interface.as_str(), underlay.mtu), ("eth1", 1403));
        let underlay = found(&Underlay::TowardsHub, &["2001:db8::1"]).unwrap();
        assert_eq!(underlay.addresses.len(), 2);
        assert!(underlay.address.is_ipv6());
    }

    #[test]
    fn without_a_route_the_first_interface_is_taken_but_never_the_fabric_or_loopback() {
        for sources in [&[][..], &["127.0.0.1"], &["10.42.1.1"]] {
            assert_eq!(found(&Underlay::TowardsHub, sources).unwrap().interface, "eth0");
        }
    }

    #[test]
    fn what_the_operator_named_has_to_be_there() {
        let underlay = found(&Underlay::Interface("eth0".into()), &[]).unwrap();
        assert_eq!(underlay.address.to_string(), "192.0.2.1");
        assert!(found(&Underlay::Interface("eth9".into()), &[]).unwrap_err().contains("eth9"));
        let missing = Underlay::Address("192.0.2.9".parse().unwrap());
        assert!(found(&missing, &[]).unwrap_err().contains("192.0.2.9"));
    }

    #[test]
    fn host_addresses_are_those_a_pod_can_send_to() {
        let texts: Vec<String> =
            host_addresses(&actual()).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.42.1.1", "192.0.2.1", "198.51.100.7", "2001:db8::1"]);
    }
}
