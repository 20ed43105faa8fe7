//! What the node's network should be, and what has to be done to what is there. Sans-IO.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_netio::Family;
use weft_netio::addr::Address;
use weft_netio::link::Link;
use weft_netio::route::{MAIN, PROTOCOL, Route};
use weft_netio::rule::Rule;

use super::announce;
use super::ruleset::{ANSWER, Services, ruleset};
use crate::cni::Record;
use crate::config::AgentConfig;
use crate::core::State;

/// Routing table of the fabric.
pub(crate) const TABLE: u32 = 5100;
/// Where answers of the host go that have to pass the fabric: into it, whoever they are for.
pub(crate) const ANSWERS: u32 = 5101;
/// What comes out of the fabric's interface is routed as anything else.
pub(crate) const PRIORITY_OUT: u32 = 100;
/// What goes to a pod goes into it.
pub(crate) const PRIORITY_IN: u32 = 101;
/// Answers of the host that are marked.
pub(crate) const PRIORITY_ANSWERS: u32 = 102;
/// Larger than any interface's: an answer was cut for the route to its client, before it was marked.
/// The largest that the kernel takes.
const ANSWERS_MTU: u32 = 65_520;
/// Name of the nftables table, family `inet`.
pub(crate) const NFT_TABLE: &str = "weft";

/// Everything the fabric needs from the node, but for the interface itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The fabric's interface.
    pub interface: String,
    /// Its addresses: the gateways of pods.
    pub addresses: Vec<IpNet>,
    /// Destinations that go into it, each with the address the host sends from.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
    /// The same of answers that are led into it: everything, of the families that have Services.
    pub answers: Vec<IpNet>,
    /// Policy rules.
    pub rules: Vec<Rule>,
    /// Settings of the interface, which vanish with it.
    pub interface_sysctls: Vec<(String, &'static str)>,
    /// Settings of the node; uninstall puts the old values back.
    pub node_sysctls: Vec<(String, &'static str)>,
    /// The nftables table, as text that replaces it.
    pub ruleset: String,
    /// Pods by the name of their port.
    pub ports: BTreeMap<String, Record>,
}

impl Desired {
    /// From what is known; `None` until the node has a subnet. Nothing but the ports if the fabric
    /// must not be put in force here.
    pub(crate) fn new(config: &AgentConfig, state: &State) -> Option<Self> {
        let cluster = &state.snapshot.as_ref()?.cluster;
        let addresses = state.gateways(config);
        if addresses.is_empty() {
            return None;
        }
        let overlap = state.overlap().is_some();
        let addresses = if overlap { Vec::new() } else { addresses };
        let underlay = state.underlay.as_ref();
        let source = |family: Family| {
            let own = underlay.into_iter().flat_map(|u| &u.addresses).copied();
            let gateways = addresses.iter().map(IpNet::addr);
            own.chain(gateways).find(|a| Family::of(&IpNet::from(*a)) == family)
        };
        let cidrs: &[IpNet] = if overlap { &[] } else { &cluster.pod_cidrs };
        let announcing = !announce::addresses(config, state).is_empty();
        let announces = underlay.filter(|_| announcing).map(|u| u.interface.as_str());
        let services = state.snapshot.as_ref().filter(|_| !overlap).map(Services::of);
        let services = services.unwrap_or_default();
        let ipv6 = cidrs.iter().any(|c| matches!(c, IpNet::V6(_)));
        let interface = config.interface.clone();
        // The way to the hub, to routers and other nodes must not lead through what they have to say.
        let nodes = state.snapshot.iter().flat_map(|s| s.nodes.values());
        let machines =
            nodes.flat_map(|n| n.addresses.iter().copied().chain(n.endpoint.map(|e| e.ip())));
        let routers = underlay.into_iter().flat_map(|u| u.gateways.iter().copied());
        let machines: BTreeSet<IpAddr> = machines.chain(routers).chain(state.hub).collect();
        let of_services = services.destinations(cidrs).filter(|d| !machines.contains(&d.addr()));
        let destinations = cidrs.iter().map(IpNet::trunc).chain(of_services);
        Some(Self {
            routes: destinations.map(|d| (d, source(Family::of(&d)))).collect(),
            answers: services.answered(cidrs).collect(),
            rules: rules(&interface, cidrs, &services),
            interface_sysctls: interface_sysctls(&interface, ipv6),
            node_sysctls: if overlap { Vec::new() } else { node_sysctls(ipv6, announces) },
            ruleset: ruleset(&interface, cidrs, config.masquerade, cluster.port, &services),
            ports: state
                .attachments
                .values()
                .map(|r| (r.wiring.host_interface.clone(), r.clone()))
                .collect(),
            interface,
            addresses,
        })
    }
}

fn rules(interface: &str, cidrs: &[IpNet], services: &Services) -> Vec<Rule> {
    let rule = |net: &IpNet, priority, input: Option<&str>, mark: Option<u32>, table| Rule {
        family: Family::of(net),
        priority,
        input: input.map(str::to_owned),
        mark,
        from: None,
        to: None,
        table,
    };
    let mut rules = Vec::new();
    for cidr in cidrs {
        rules.push(rule(cidr, PRIORITY_OUT, Some(interface), None, MAIN));
        rules.push(rule(cidr, PRIORITY_IN, None, None, TABLE));
    }
    let answers = services.answered(cidrs);
    rules.extend(answers.map(|n| rule(&n, PRIORITY_ANSWERS, None, Some(ANSWER), ANSWERS)));
    rules
}

fn interface_sysctls(interface: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let mut sysctls = vec![
        // The same source comes in here and at the pod's port: loose is as strict as it can be.
        (format!("net/ipv4/conf/{interface}/rp_filter"), "2"),
        // What the node sends to a pod passes the datapath and comes in again, from the node.
        (format!("net/ipv4/conf/{interface}/accept_local"), "1"),
        (format!("net/ipv4/conf/{interface}/forwarding"), "1"),
        (format!("net/ipv6/conf/{interface}/accept_ra"), "0"),
    ];
    if ipv6 {
        sysctls.push((format!("net/ipv6/conf/{interface}/disable_ipv6"), "0"));
        sysctls.push((format!("net/ipv6/conf/{interface}/forwarding"), "1"));
    }
    sysctls
}

/// `announces`: the interface on which the node answers for addresses of balancers.
fn node_sysctls(ipv6: bool, announces: Option<&str>) -> Vec<(String, &'static str)> {
    let mut sysctls = vec![("net/ipv4/ip_forward".to_owned(), "1")];
    if let Some(interface) = announces {
        // The kernel would think about an answer for up to 0.8 s.
        sysctls.push((format!("net/ipv4/neigh/{interface}/proxy_delay"), "0"));
        if ipv6 {
            sysctls.push((format!("net/ipv6/neigh/{interface}/proxy_delay"), "0"));
            sysctls.push((format!("net/ipv6/conf/{interface}/proxy_ndp"), "1"));
        }
    }
    if ipv6 {
        sysctls.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    sysctls
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actual {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
}

impl Actual {
    /// The interface of that name.
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    AddAddress(IpNet),
    RemoveAddress(IpNet),
    AddRoute(Route),
    RemoveRoute(Route),
    AddRule(Rule),
    RemoveRule(Rule),
    /// The gateway's address on a pod's port.
    AddPortAddress(String, IpNet),
    /// The route to a pod out of its port.
    AddPortRoute(Route),
}

/// What takes `actual` to `desired`, in an order in which nothing that lives is interrupted:
/// additions first, and routes before the rules that use them.
pub(crate) fn plan(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let mut actions = Vec::new();
    let Some(link) = actual.link(&desired.interface) else { return actions };
    let there: Vec<IpNet> =
        actual.addresses.iter().filter(|a| a.index == link.index).map(|a| a.net).collect();
    let missing = desired.addresses.iter().filter(|a| !there.contains(a));
    actions.extend(missing.copied().map(Action::AddAddress));
    if link.up {
        for route in routes(desired, link.index) {
            if !actual.routes.iter().any(|r| same_route(&route, r)) {
                actions.push(Action::AddRoute(route));
            }
        }
    }
    let missing = desired.rules.iter().filter(|r| !actual.rules.contains(r));
    actions.extend(missing.cloned().map(Action::AddRule));
    let stale = actual.rules.iter().filter(|r| is_ours(r, &desired.interface));
    actions.extend(stale.filter(|r| !desired.rules.contains(r)).cloned().map(Action::RemoveRule));
    let wanted = |r: &Route| match r.table {
        ANSWERS => desired.answers.contains(&r.destination),
        _ => desired.routes.iter().any(|(d, _)| *d == r.destination),
    };
    let stale = actual.routes.iter().filter(|r| is_our_route(r) && !wanted(r));
    actions.extend(stale.cloned().map(Action::RemoveRoute));
    let stale = there.into_iter().filter(|a| !is_link_local(a) && !desired.addresses.contains(a));
    actions.extend(stale.map(Action::RemoveAddress));
    actions
}

/// What the delegate `ptp` made at pods' ports and somebody took away: the gateway's address and the
/// route to the pod. The kernel takes routes away too when a port goes down.
pub(crate) fn plan_ports(desired: &Desired, actual: &Actual) -> Vec<Action> {
    let mut actions = Vec::new();
    for (name, record) in desired.ports.iter().filter(|(_, r)| r.wiring.bridge.is_none()) {
        let Some(link) = actual.link(name).filter(|l| l.up && l.master.is_none()) else { continue };
        for address in record.addresses() {
            let gateway = record.wiring.gateway(&address);
            let there = |a: &Address| a.index == link.index && Some(a.net.addr()) == gateway;
            if let Some(gateway) = gateway.filter(|_| !actual.addresses.iter().any(there)) {
                actions.push(Action::AddPortAddress(name.clone(), gateway.into()));
            }
            let route = Route { output: Some(link.index), ..Route::new(address.into()) };
            let there = |r: &Route| {
                r.destination == route.destination
                    && r.table == MAIN
                    && r.output == Some(link.index)
            };
            if !actual.routes.iter().any(there) {
                actions.push(Action::AddPortRoute(route));
            }
        }
    }
    actions
}

/// One line for each pod whose bridge is gone. Its port could be put on a new one, but only the
/// delegate knows how it had set up the bridge.
pub(crate) fn unbridged(desired: &Desired, actual: &Actual) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, record) in &desired.ports {
        let Some(bridge) = &record.wiring.bridge else { continue };
        let Some(port) = actual.link(name) else { continue };
        if port.master.is_none() || port.master != actual.link(bridge).map(|l| l.index) {
            let pod = record.pod_name().map_or_else(
                || record.attachment.container_id.clone(),
                |n| format!("{}/{}", n.namespace, n.name),
            );
            lines.push(format!(
                "the pod {pod} is cut off, since {name} is not on the bridge {bridge} any more: delete the pod, so that it is made again"
            ));
        }
    }
    lines
}

/// What has to go when the fabric leaves the node; the interface's addresses and routes go with it.
pub(crate) fn plan_removal(interface: &str, actual: &Actual) -> Vec<Action> {
    let rules = actual.rules.iter().filter(|r| is_ours(r, interface)).cloned();
    let routes = actual.routes.iter().filter(|r| is_our_route(r));
    rules.map(Action::RemoveRule).chain(routes.cloned().map(Action::RemoveRoute)).collect()
}

fn routes(desired: &Desired, index: u32) -> impl Iterator<Item = Route> + '_ {
    let into = desired.routes.iter().map(move |(destination, source)| Route {
        table: TABLE,
        output: Some(index),
        source: *source,
        ..Route::new(*destination)
    });
    into.chain(desired.answers.iter().map(move |everything| Route {
        table: ANSWERS,
        output: Some(index),
        mtu: Some(ANSWERS_MTU),
        ..Route::new(*everything)
    }))
}

fn same_route(wanted: &Route, there: &Route) -> bool {
    wanted.destination == there.destination
        && wanted.table == there.table
        && wanted.output == there.output
        && wanted.source == there.source
        && (wanted.mtu.is_none() || wanted.mtu == there.mtu)
}

fn is_ours(rule: &Rule, interface: &str) -> bool {
    let out = rule.priority == PRIORITY_OUT && rule.input.as_deref() == Some(interface);
    out || [(PRIORITY_IN, TABLE), (PRIORITY_ANSWERS, ANSWERS)]
        .contains(&(rule.priority, rule.table))
}

fn is_our_route(route: &Route) -> bool {
    matches!(route.table, TABLE | ANSWERS) && route.protocol == PROTOCOL
}

fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
