//! Addresses of balancers that this node answers for in its network segment (ARP, NDP): the hub says
//! which, the kernel answers, and neighbours are told when an address comes here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use weft_netio::{Netlink, link, neighbour};

use crate::config::AgentConfig;
use crate::core::{Core, State};

/// Who names problems.
const WHO: &str = "announce";
/// How often what is there is compared with what should be.
const INTERVAL: Duration = Duration::from_secs(1);
/// A new address is announced in each of so many intervals: a frame may be lost.
const FIRST: u32 = 3;
/// And then each time so many have gone by.
const AGAIN: u32 = 10;

/// What this node shall answer for.
pub(crate) fn addresses(config: &AgentConfig, state: &State) -> BTreeSet<IpAddr> {
    let gateways = state.underlay.as_ref().map(|u| &u.gateways);
    let free = |address: &IpAddr| gateways.is_none_or(|g| !g.contains(address));
    asked(config, state).into_iter().filter(free).collect()
}

/// What the hub says that it shall answer for.
fn asked(config: &AgentConfig, state: &State) -> BTreeSet<IpAddr> {
    let services = state.snapshot.iter().flat_map(|s| s.services.values());
    let announced = services.flat_map(|s| &s.announcers);
    announced.filter(|(_, node)| **node == config.node_name).map(|(address, _)| *address).collect()
}

/// Answers for what the hub says, while there is a datapath to serve it; never ends. A node that hears
/// nothing of the hub goes on as it was told last.
pub(crate) async fn run(core: Arc<Core>, netlink: Netlink) {
    let mut changes = core.changes();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut announcer = Announcer { netlink, ages: BTreeMap::new(), interface: None };
    loop {
        changes.borrow_and_update();
        let ready = core.applied().borrow().connected;
        let (interface, wanted, gateways) = core.read(|state| {
            let interface = state.underlay.as_ref().map(|u| u.interface.clone());
            let wanted = addresses(&core.config, state);
            let gateways: Vec<_> =
                asked(&core.config, state).difference(&wanted).copied().collect();
            (interface, if ready { wanted } else { BTreeSet::new() }, gateways)
        });
        let failed = announcer.bring_about(interface, &wanted).await.err();
        let mut problems: Vec<_> = failed.into_iter().map(|e| format!("{e:#}")).collect();
        problems.extend(gateways.iter().map(|address| {
            format!(
                "{address} is a router of this node and not answered for: take it out of its pool"
            )
        }));
        core.set_problems(WHO, problems);
        tokio::select! {
            _ = changes.changed() => {}
            _ = ticks.tick() => announcer.grow_older(),
        }
    }
}

/// Takes every address away that the kernel answers for on the node's interfaces.
pub(crate) async fn withdraw(netlink: &Netlink) -> anyhow::Result<()> {
    for (index, address) in neighbour::proxies(netlink).await? {
        neighbour::remove_proxy(netlink, index, address).await?;
    }
    Ok(())
}

struct Announcer {
    netlink: Netlink,
    /// Intervals since each address came here, and the last in which neighbours were told.
    ages: BTreeMap<IpAddr, (u32, Option<u32>)>,
    interface: Option<String>,
}

impl Announcer {
    fn grow_older(&mut self) {
        self.ages.values_mut().for_each(|(age, _)| *age = age.saturating_add(1));
    }

    async fn bring_about(
        &mut self,
        interface: Option<String>,
        wanted: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<()> {
        if self.interface != interface {
            // What was announced at another interface, also by an agent before this one.
            withdraw(&self.netlink).await?;
            self.ages.clear();
            self.interface = interface;
        }
        if wanted.is_empty() && self.ages.is_empty() {
            return Ok(());
        }
        let Some(interface) = &self.interface else { return Ok(()) };
        let Some(link) = link::get(&self.netlink, interface).await? else { return Ok(()) };
        let there = neighbour::proxies(&self.netlink).await?.into_iter();
        let there: BTreeSet<_> =
            there.filter(|(index, _)| *index == link.index).map(|(_, address)| address).collect();
        for address in there.difference(wanted) {
            neighbour::remove_proxy(&self.netlink, link.index, *address).await?;
            tracing::info!(%address, interface, "answered for no longer");
        }
        self.ages.retain(|address, _| wanted.contains(address));
        for address in wanted {
            if !there.contains(address) {
                neighbour::add_proxy(&self.netlink, link.index, *address).await?;
                tracing::info!(%address, interface, "answered for");
                self.ages.remove(address);
            }
            let (age, told) = self.ages.entry(*address).or_insert((0, None));
            let due = *age < FIRST || *age % AGAIN == 0;
            if due && *told != Some(*age) {
                let mac = link.mac.map(|mac| mac.0).unwrap_or_default();
                neighbour::announce(link.index, mac, *address)?;
                *told = Some(*age);
            }
        }
        Ok(())
    }
}
