//! Pods' ports in the kernel: [`Ports`] through `weft_netio::tc`.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::Mutex;
use weft_netio::{Ensured, Netlink, NetlinkError, addr, link, tc};

use crate::cni::Ports;

/// Redirects what pods send into the fabric's interface. Clones share a lock: filters are put in in
/// several steps, and CNI and the network's loop may work on one port at once.
#[derive(Clone, Debug)]
pub(crate) struct KernelPorts {
    netlink: Netlink,
    interface: String,
    turn: Arc<Mutex<()>>,
}

impl KernelPorts {
    /// For redirects into `interface`, the fabric's.
    pub(crate) fn new(netlink: Netlink, interface: String) -> Self {
        Self { netlink, interface, turn: Arc::default() }
    }

    /// [`Ports::ensure`] into the interface of index `into`.
    ///
    /// # Errors
    /// See [`tc::ensure_port`].
    pub(crate) async fn ensure_into(
        &self,
        into: u32,
        interface: &str,
        addresses: &[IpAddr],
    ) -> Result<Ensured, NetlinkError> {
        let _turn = self.turn.lock().await;
        // CNI-047: the pod's gateway answers at once; on a bridge that is the bridge.
        addr::settle(&self.netlink, interface).await?;
        if let Some(master) = link::require(&self.netlink, interface).await?.master {
            let links = link::list(&self.netlink).await?;
            if let Some(bridge) = links.iter().find(|l| l.index == master) {
                addr::settle(&self.netlink, &bridge.name).await?;
            }
        }
        tc::ensure_port(&self.netlink, interface, into, addresses).await
    }
}

impl Ports for KernelPorts {
    async fn exists(&self, interface: &str) -> bool {
        // In doubt it is there: nothing is forgotten because the kernel was busy.
        !matches!(link::get(&self.netlink, interface).await, Ok(None))
    }

    async fn ensure(&self, interface: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let into = link::require(&self.netlink, &self.interface).await;
        let into = into.context("does the datapath run?")?;
        self.ensure_into(into.index, interface, addresses).await?;
        Ok(())
    }

    async fn remove(&self, interface: &str) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        tc::remove_port(&self.netlink, interface).await?;
        Ok(())
    }

    async fn check(&self, interface: &str, addresses: &[IpAddr]) -> anyhow::Result<bool> {
        let Some(into) = link::get(&self.netlink, &self.interface).await? else { return Ok(false) };
        Ok(tc::check_port(&self.netlink, interface, into.index, addresses).await?)
    }
}
