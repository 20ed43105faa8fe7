//! Pods' ports in the kernel: [`Ports`] through `weft_netio::tc`.

use std::net::IpAddr;

use anyhow::Context;
use weft_netio::{Netlink, link, tc};

use crate::cni::Ports;

/// Redirects what pods send into the fabric's interface.
#[derive(Clone, Debug)]
pub(crate) struct KernelPorts {
    pub netlink: Netlink,
    /// The fabric's interface.
    pub interface: String,
}

impl Ports for KernelPorts {
    async fn exists(&self, interface: &str) -> bool {
        // In doubt it is there: nothing is forgotten because the kernel was busy.
        !matches!(link::get(&self.netlink, interface).await, Ok(None))
    }

    async fn ensure(&self, interface: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let into = link::require(&self.netlink, &self.interface).await;
        let into = into.context("does the datapath run?")?;
        tc::ensure_port(&self.netlink, interface, into.index, addresses).await?;
        Ok(())
    }

    async fn remove(&self, interface: &str) -> anyhow::Result<()> {
        tc::remove_port(&self.netlink, interface).await?;
        Ok(())
    }

    async fn check(&self, interface: &str) -> anyhow::Result<bool> {
        Ok(tc::drops(&self.netlink, interface).await?.is_some())
    }
}
