//! The pod's interface as it is: nothing is deleted in a namespace that this plugin did not make there.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::stat::stat;
use serde::{Deserialize, Serialize};
use weft_model::MacAddr;
use weft_model::cni::Wiring;
use weft_netio::{NetNs, segments};

/// An interface in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) mac: Option<MacAddr>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Where an attachment was made, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Device and inode of the namespace. A later namespace may get the same ones.
    pub(crate) netns: (u64, u64),
    /// `None` until the delegate is done.
    pub(crate) interface: Option<Interface>,
}

/// Device and inode of a namespace.
///
/// # Errors
/// If there is no such file.
pub(crate) fn namespace_id(netns: &str) -> io::Result<(u64, u64)> {
    Ok(stat(netns).map(|s| (s.st_dev, s.st_ino))?)
}

/// The interface `ifname` of the namespace, if it has one.
///
/// # Errors
/// If it is no network namespace, or may not be entered.
pub(crate) fn look(netns: &str, ifname: &str) -> io::Result<Option<Interface>> {
    let all = NetNs::open_path(Path::new(netns))?
        .enter(|| getifaddrs().map(|all| all.collect::<Vec<_>>()))??;
    let mut found = None;
    for entry in all.iter().filter(|entry| entry.interface_name == ifname) {
        note(found.get_or_insert_default(), entry);
    }
    Ok(found)
}

/// Bounds the super-packets that the interface's senders make.
///
/// # Errors
/// If it is no network namespace, may not be entered, or the kernel refuses.
pub(crate) fn limit_segments(netns: &str, ifname: &str, segments: u16) -> io::Result<()> {
    NetNs::open_path(Path::new(netns))?.enter(|| segments::limit(ifname, segments))?
}

fn note(interface: &mut Interface, entry: &InterfaceAddress) {
    let Some(address) = &entry.address else { return };
    if let Some(link) = address.as_link_addr() {
        interface.mac = link.addr().map(MacAddr);
    } else if let Some(v4) = address.as_sockaddr_in() {
        interface.addresses.push(v4.ip().into());
    } else if let Some(v6) = address.as_sockaddr_in6() {
        interface.addresses.push(v6.ip().into());
    }
}

impl Interface {
    pub(crate) fn of(wiring: &Wiring) -> Self {
        let addresses = wiring.addresses.iter().map(ipnet::IpNet::addr).collect();
        Self { mac: wiring.mac, addresses }
    }

    /// Whether it can be what `self` was made as. Plugins that run later may change the Ethernet
    /// address, and the pod its addresses.
    fn may_be(&self, there: &Self) -> bool {
        let address = self.addresses.iter().any(|a| there.addresses.contains(a));
        address || (self.mac.is_some() && self.mac == there.mac)
    }
}

impl Made {
    /// Whether the interface `ifname` that is in `netns` now, if any, is the one that was made.
    pub(crate) fn is_in(&self, netns: &str, ifname: &str) -> bool {
        if namespace_id(netns).ok() != Some(self.netns) {
            return false;
        }
        match (look(netns, ifname), &self.interface) {
            (Ok(Some(there)), Some(made)) => made.may_be(&there),
            (Ok(_), _) => true,
            (Err(_), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(mac: [u8; 6], address: [u8; 4]) -> Interface {
        Interface { mac: Some(MacAddr(mac)), addresses: vec![address.into()] }
    }

    /// CNI-062, CNI-082
    #[test]
    fn interface_is_known_by_either_address() {
        let made = interface([2; 6], [10, 0, 0, 2]);
        assert!(made.may_be(&made));
        assert!(made.may_be(&interface([4; 6], [10, 0, 0, 2])), "`tuning` gave it another");
        assert!(made.may_be(&Interface { mac: made.mac, addresses: Vec::new() }));
        assert!(!made.may_be(&interface([4; 6], [10, 0, 0, 3])));
    }

    /// CNI-042, CNI-062
    #[test]
    fn what_is_in_another_namespace_or_in_none_was_not_made() {
        let own = namespace_id("/proc/self/ns/net").unwrap();
        let made = |netns| Made { netns, interface: None };
        assert!(!made((own.0, own.1 + 1)).is_in("/proc/self/ns/net", "eth0"));
        for file in ["/etc/passwd", "/nonexistent"] {
            let id = namespace_id(file).unwrap_or(own);
            assert!(!made(id).is_in(file, "eth0"), "{file}");
        }
    }
}
