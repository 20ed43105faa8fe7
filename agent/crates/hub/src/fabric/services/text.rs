//! Addresses as manifests write them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// An address. Leading zeros are decimal, as Kubernetes has always read them, and an IPv4-mapped
/// IPv6 address is the IPv4 one.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let parsed = text.parse::<IpAddr>().ok().or_else(|| decimal(text).map(IpAddr::V4));
    parsed.map(|a| a.to_canonical())
}

fn decimal(text: &str) -> Option<Ipv4Addr> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let octet = |part: &str| if digits(part) { part.parse::<u8>().ok() } else { None };
    let octets = text.split('.').map(octet).collect::<Option<Vec<_>>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

/// A subnet; bits behind its prefix do not count.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let (base, prefix) = text.trim().split_once('/')?;
    let prefix: u8 = prefix.parse().ok()?;
    let mapped = base.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6() && a.to_canonical().is_ipv4());
    let net = match address(base)? {
        IpAddr::V4(v4) if mapped => Ipv4Net::new(v4, prefix.checked_sub(96)?).ok()?.into(),
        address => IpNet::new(address, prefix).ok()?,
    };
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SVC-015, SVC-016.
    #[test]
    fn old_and_mapped_forms_are_ipv4() {
        let read = |text| address(text).map(|a| a.to_string()).unwrap_or_default();
        assert_eq!(read("010.001.000.020"), "10.1.0.20");
        assert_eq!(read("::ffff:10.1.0.20"), "10.1.0.20");
        assert_eq!(read(" fd00::1 "), "fd00::1");
        for bad in ["", "10.1.0", "10.1.0.256", "10.1.0.+1", "10.1..1", "x", "10.1.0.0/16"] {
            assert_eq!(read(bad), "", "{bad}");
        }
    }

    #[test]
    fn networks_are_read_alike() {
        let read = |text| network(text).map(|n| n.to_string()).unwrap_or_default();
        assert_eq!(read(" 010.1.2.3/8 "), "10.0.0.0/8");
        assert_eq!(read("::ffff:10.1.0.0/112"), "10.1.0.0/16");
        assert_eq!(read("fd00::1/64"), "fd00::/64");
        for bad in ["10.1.0.0", "10.1.0.0/33", "::ffff:10.0.0.0/95", "/8"] {
            assert_eq!(read(bad), "", "{bad}");
        }
    }
}
