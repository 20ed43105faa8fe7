//! Which pods get what is for them straight from the fabric's interface.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_netio::tc::Delivery;
use weft_netio::{Ensured, Netlink, NetlinkError};

use crate::cni::Record;

/// Where an address is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The pod's port.
    port: String,
    /// Index of the device on which it is a neighbour: the port, or the bridge that the port is on.
    device: u32,
}

/// What the kernel delivers. Pods that it does not know of are reached through the host's routing.
#[derive(Debug)]
pub(crate) struct Deliveries {
    /// `None` where it is not wanted or the kernel cannot.
    kernel: Option<Delivery>,
    places: BTreeMap<IpAddr, Place>,
}

impl Deliveries {
    /// Nothing yet; never anything unless `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        let loaded = wanted.then(Delivery::new).transpose();
        let kernel = loaded.unwrap_or_else(|error| {
            tracing::info!(%error, "pods are reached through the host's routing");
            None
        });
        Self { kernel, places: BTreeMap::new() }
    }

    /// Whether pods are delivered to.
    pub(crate) fn are_direct(&self) -> bool {
        self.kernel.is_some()
    }

    /// Delivers to the pod of `record` through the device of index `device`, and nowhere else.
    pub(crate) fn put(&mut self, record: &Record, device: u32) {
        let port = &record.wiring.host_interface;
        let addresses = record.addresses();
        self.retain(|address, place| place.port != *port || addresses.contains(address));
        let Some(kernel) = &self.kernel else { return };
        for address in addresses {
            let place = Place { port: port.clone(), device };
            if self.places.get(&address) == Some(&place) {
                continue;
            }
            match kernel.put(address, device) {
                Ok(()) => drop(self.places.insert(address, place)),
                Err(error) => tracing::warn!(%address, %error, "a pod is not delivered to"),
            }
        }
    }

    /// Delivers no longer to ports that are not `kept`.
    pub(crate) fn retain_ports(&mut self, kept: impl Fn(&str) -> bool) {
        self.retain(|_, place| kept(&place.port));
    }

    fn retain(&mut self, kept: impl Fn(&IpAddr, &Place) -> bool) {
        let Self { kernel: Some(kernel), places } = self else { return };
        places.retain(|address, place| {
            kept(address, place)
                || kernel.remove(*address).is_err_and(|error| {
                    tracing::warn!(%address, %error, "a pod that is gone is still delivered to");
                    true
                })
        });
    }

    /// Puts delivery on `interface`, or takes it off where it is not wanted.
    ///
    /// # Errors
    /// See [`Delivery::ensure`].
    pub(crate) async fn ensure(
        &self,
        netlink: &Netlink,
        interface: &str,
    ) -> Result<Ensured, NetlinkError> {
        match &self.kernel {
            Some(kernel) => kernel.ensure(netlink, interface).await,
            None => Delivery::take_off(netlink, interface).await,
        }
    }
}
