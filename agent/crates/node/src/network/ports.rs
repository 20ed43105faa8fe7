//! Pods' ports in the kernel: [`Ports`] through `weft_netio::tc`.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::Mutex;
use weft_model::MacAddr;
use weft_netio::link::Link;
use weft_netio::tc::Sender;
use weft_netio::{Ensured, NetNs, Netlink, NetlinkError, addr, link, sysctl, tc};

use super::delivery::Deliveries;
use crate::cni::{Ports, Record};

/// Redirects what pods send into the fabric's interface, and has what is for them delivered from
/// there. Clones share a lock: filters are put in in several steps, and CNI and the network's loop may
/// work on one port at once.
#[derive(Clone, Debug)]
pub(crate) struct KernelPorts {
    netlink: Netlink,
    interface: String,
    turn: Arc<Mutex<Known>>,
}

/// What is known of all ports.
#[derive(Debug)]
struct Known {
    /// Which Ethernet address each has, so that no pod takes that of another.
    macs: BTreeMap<String, MacAddr>,
    deliveries: Deliveries,
}

impl KernelPorts {
    /// For redirects into `interface`, the fabric's, and deliveries from it if they are `direct`.
    pub(crate) fn new(netlink: Netlink, interface: String, direct: bool) -> Self {
        let known = Known { macs: BTreeMap::new(), deliveries: Deliveries::new(direct) };
        Self { netlink, interface, turn: Arc::new(Mutex::new(known)) }
    }

    /// Whether what is for pods does not take the way through the host's routing.
    pub(crate) async fn delivers(&self) -> bool {
        self.turn.lock().await.deliveries.are_direct()
    }

    /// Sees to it that delivery is on the fabric's interface, or is not if it is not wanted.
    ///
    /// # Errors
    /// See [`Deliveries::ensure`].
    pub(crate) async fn ensure_delivery(&self) -> Result<Ensured, NetlinkError> {
        self.turn.lock().await.deliveries.ensure(&self.netlink, &self.interface).await
    }

    /// Forgets ports that are gone. Looks itself: what a caller saw before may lack a port that was
    /// attached since.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn forget_gone(&self) -> Result<(), NetlinkError> {
        let mut known = self.turn.lock().await;
        known.forget_all_but(&link::list(&self.netlink).await?);
        Ok(())
    }

    /// [`Ports::ensure`] into the interface of index `into`.
    ///
    /// # Errors
    /// See [`tc::ensure_port`].
    pub(crate) async fn ensure_into(
        &self,
        into: u32,
        record: &Record,
    ) -> Result<Ensured, NetlinkError> {
        let mut known = self.turn.lock().await;
        let links = link::list(&self.netlink).await?;
        let (port, bridge) = port_and_bridge(&links, record)?;
        for device in [Some(port), bridge].into_iter().flatten() {
            // CNI-047: the pod's gateway answers at once; on a bridge that is the bridge.
            addr::settle(&self.netlink, &device.name).await?;
            for (key, error) in ensure_settings(&device.name, has_ipv6(record)) {
                tracing::warn!(key, %error, "setting of a pod's port not made");
            }
        }
        known.forget_all_but(&links);
        let sender = self.sender(record, &links, &known.macs).await?;
        match sender.mac {
            Some(mac) => known.macs.insert(port.name.clone(), mac),
            None => known.macs.remove(&port.name),
        };
        known.deliveries.put(record, bridge.unwrap_or(port).index);
        tc::ensure_port(&self.netlink, &port.name, into, &sender).await
    }

    /// What the pod may call itself.
    async fn sender(
        &self,
        record: &Record,
        links: &[Link],
        macs: &BTreeMap<String, MacAddr>,
    ) -> Result<Sender, NetlinkError> {
        let (port, bridge) = port_and_bridge(links, record)?;
        // CNI-082: plugins that run later may give the pod another one.
        let taken = |mac: &MacAddr| {
            links.iter().any(|l| l.mac == Some(*mac))
                || macs.iter().any(|(name, other)| *name != port.name && other == mac)
        };
        let now = mac_in_pod(record).await.filter(|mac| !taken(mac));
        let hosts = |a: &&addr::Address| {
            a.index == port.index || bridge.is_some_and(|bridge| a.index == bridge.index)
        };
        let addresses = addr::list(&self.netlink).await?;
        let foreign = addresses.iter().filter(hosts).filter_map(|a| match a.net.addr() {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
            _ => None,
        });
        Ok(Sender {
            addresses: record.addresses(),
            mac: now.or(record.wiring.mac),
            foreign: foreign.collect(),
        })
    }
}

impl Known {
    fn forget_all_but(&mut self, links: &[Link]) {
        let there = |name: &str| links.iter().any(|l| l.name == name);
        self.macs.retain(|name, _| there(name));
        self.deliveries.retain_ports(there);
    }
}

/// The port of an attachment, and the bridge that it is on if it is on one.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if the port is not there.
pub(crate) fn port_and_bridge<'a>(
    links: &'a [Link],
    record: &Record,
) -> Result<(&'a Link, Option<&'a Link>), NetlinkError> {
    let name = &record.wiring.host_interface;
    let missing = || NetlinkError::NoInterface { name: name.clone() };
    let port = links.iter().find(|l| l.name == *name).ok_or_else(missing)?;
    Ok((port, links.iter().find(|l| port.master == Some(l.index))))
}

/// `None` if the pod's namespace cannot be looked into: its path may be one of the runtime's only.
async fn mac_in_pod(record: &Record) -> Option<MacAddr> {
    let namespace = NetNs::open_path(Path::new(&record.wiring.netns)).ok()?;
    let netlink = Netlink::in_netns(&namespace).ok()?;
    link::get(&netlink, &record.attachment.ifname).await.ok()??.mac
}

pub(crate) fn has_ipv6(record: &Record) -> bool {
    record.addresses().iter().any(IpAddr::is_ipv6)
}

/// Sets what the host's end of a pod needs; returns what could not be set. A setting that does not
/// exist is of an interface that vanished, or of IPv6 where there is none.
pub(crate) fn ensure_settings(device: &str, ipv6: bool) -> Vec<(String, io::Error)> {
    // CNI-002: the way to the pod leads through the fabric's interface, so a strict check of the way
    // back would refuse the pod's ARP. The larger value of `all` and this one holds.
    let mut settings = vec![
        (format!("net/ipv4/conf/{device}/rp_filter"), "2"),
        (format!("net/ipv4/conf/{device}/forwarding"), "1"),
    ];
    if ipv6 {
        settings.push((format!("net/ipv6/conf/{device}/forwarding"), "1"));
    }
    let ensured = settings.into_iter().map(|(key, value)| {
        let result = sysctl::ensure(&key, value);
        (key, result)
    });
    ensured
        .filter_map(|(key, result)| Some((key, result.err()?)))
        .filter(|(_, error)| error.kind() != io::ErrorKind::NotFound)
        .collect()
}

impl Ports for KernelPorts {
    async fn exists(&self, interface: &str) -> bool {
        // In doubt it is there: nothing is forgotten because the kernel was busy.
        !matches!(link::get(&self.netlink, interface).await, Ok(None))
    }

    async fn ensure(&self, record: &Record) -> anyhow::Result<()> {
        let into = link::require(&self.netlink, &self.interface).await;
        let into = into.context("does the datapath run?")?;
        self.ensure_into(into.index, record).await?;
        Ok(())
    }

    async fn remove(&self, interface: &str) -> anyhow::Result<()> {
        let mut known = self.turn.lock().await;
        known.macs.remove(interface);
        known.deliveries.retain_ports(|port| port != interface);
        tc::remove_port(&self.netlink, interface).await?;
        Ok(())
    }

    async fn delete(&self, interface: &str) -> anyhow::Result<()> {
        link::remove(&self.netlink, interface).await?;
        Ok(())
    }

    async fn check(&self, record: &Record) -> anyhow::Result<bool> {
        let Some(into) = link::get(&self.netlink, &self.interface).await? else { return Ok(false) };
        let known = self.turn.lock().await;
        let links = link::list(&self.netlink).await?;
        let sender = self.sender(record, &links, &known.macs).await?;
        let interface = &record.wiring.host_interface;
        Ok(tc::check_port(&self.netlink, interface, into.index, &sender).await?)
    }
}
