//! The wire between nodes: a bridge in a namespace of its own, one port for each node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use weft_netio::link::Veth;
use weft_netio::route::Route;
use weft_netio::{Netlink, addr, link, netns, route};

use crate::fabric::{Node, Options, State, UnderlayFamily};
use crate::layout::Layout;

const BRIDGE: &str = "underlay";
const PORT: &str = "eth0";
/// `rtm_protocol` of routes that an administrator made: the node's own, not the fabric's.
const PROTOCOL_STATIC: u8 = 4;
/// Host numbers: the bridge itself is the gateway to the world.
const GATEWAY: u8 = 1;
const HUB: u8 = 2;
const FIRST_NODE: u8 = 11;

fn addresses(host: u8) -> Result<[IpNet; 2]> {
    let v4 = IpNet::new(Ipv4Addr::new(198, 18, 0, host).into(), 24)?;
    let v6 = Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, u16::from(host));
    Ok([v4, IpNet::new(v6.into(), 64)?])
}

/// Addresses of the hub and of every node.
pub(crate) fn plan(options: &Options) -> Result<(IpAddr, Vec<Node>)> {
    let hub = addresses(HUB)?;
    let hub_address = match options.underlay {
        UnderlayFamily::V4 => hub[0].addr(),
        UnderlayFamily::V6 => hub[1].addr(),
    };
    let mut nodes = Vec::new();
    for (index, host) in (FIRST_NODE..).take(options.nodes).enumerate() {
        let name = format!("node-{}", index + 1);
        nodes.push(Node { name, addresses: addresses(host)?.to_vec() });
    }
    Ok((hub_address, nodes))
}

/// Makes namespaces, bridge, ports and addresses.
pub(crate) async fn make(layout: &Layout, state: &State) -> Result<()> {
    let mtu = state.options.underlay_mtu;
    let namespace = netns::create(&layout.underlay_namespace())?;
    let netlink = Netlink::in_netns(&namespace)?;
    link::ensure_bridge(&netlink, BRIDGE).await?;
    for address in addresses(GATEWAY)? {
        addr::ensure(&netlink, BRIDGE, address).await?;
    }
    link::ensure_up(&netlink, BRIDGE).await?;
    let mut ports = vec![(layout.hub_namespace(), "hub".to_owned(), addresses(HUB)?.to_vec())];
    for (index, node) in state.nodes.iter().enumerate() {
        let namespace = layout.node(&node.name).namespace;
        ports.push((namespace, format!("port{}", index + 1), node.addresses.clone()));
    }
    for (namespace, port, addresses) in ports {
        plug(&netlink, &namespace, &port, &addresses, mtu)
            .await
            .with_context(|| format!("cannot connect {namespace} to the underlay"))?;
    }
    Ok(())
}

async fn plug(
    underlay: &Netlink,
    namespace: &str,
    port: &str,
    addresses: &[IpNet],
    mtu: u32,
) -> Result<()> {
    let namespace = netns::create(namespace)?;
    let veth = Veth { name: port, peer: PORT, peer_netns: Some(&namespace), mtu: Some(mtu) };
    link::ensure_veth(underlay, &veth).await?;
    link::ensure_master(underlay, port, Some(BRIDGE)).await?;
    link::ensure_up(underlay, port).await?;
    let inside = Netlink::in_netns(&namespace)?;
    for address in addresses {
        addr::ensure(&inside, PORT, *address).await?;
    }
    link::ensure_up(&inside, PORT).await?;
    for gateway in self::addresses(GATEWAY)? {
        let everywhere: IpNet = match gateway {
            IpNet::V4(_) => "0.0.0.0/0".parse()?,
            IpNet::V6(_) => "::/0".parse()?,
        };
        let through = Route {
            gateway: Some(gateway.addr()),
            protocol: PROTOCOL_STATIC,
            ..Route::new(everywhere)
        };
        route::ensure(&inside, &through).await?;
    }
    Ok(())
}
