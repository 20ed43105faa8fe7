//! The rules, read plainly and slowly, against the plugin.
//!
//! Affinity is left out: it is a matter of which of the admissible backends.

use std::net::{IpAddr, SocketAddr};

use weft_fuzz::Random;
use weft_policy_testing::NativeMap;
use weft_proto::tables::v1::{
    Range, ServicePortTable, ServiceSettings, ServiceTable, ServiceTables, backend, frontend,
};

use super::any::{any_name, any_packet, any_service};
use super::node::*;

/// A backend as its record says.
struct Record {
    at: SocketAddr,
    node: u16,
    bits: u8,
}

fn ip(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}

fn records(port: &ServicePortTable, v4: bool) -> Vec<Record> {
    let (bytes, length) = if v4 { (&port.backends_v4, 4) } else { (&port.backends_v6, 16) };
    let number = |bytes: &[u8]| u16::from_be_bytes(bytes.try_into().unwrap());
    let record = |r: &[u8]| Record {
        at: SocketAddr::new(ip(&r[..length]), number(&r[length..length + 2])),
        node: number(&r[length + 2..length + 4]),
        bits: r[length + 4],
    };
    bytes.chunks(length + 5).map(record).collect()
}

fn contains(range: &Range, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().iter().map(|b| format!("{b:08b}")).collect::<String>(),
        IpAddr::V6(v6) => v6.octets().iter().map(|b| format!("{b:08b}")).collect::<String>(),
    };
    let (own, prefix) = (ip(&range.address), range.prefix as usize);
    own.is_ipv4() == address.is_ipv4() && bits(own)[..prefix] == bits(address)[..prefix]
}

/// What may be answered to a packet of a new flow.
fn admissible(
    tables: &ServiceTables,
    (client, protocol, from, to): (u32, u8, SocketAddr, SocketAddr),
) -> Vec<String> {
    let settings = tables.settings.as_ref().unwrap();
    let own = settings.own_node;
    let mut services: Vec<_> = tables.services.iter().collect();
    services.sort_by_key(|service| &service.name);
    let is_port = |port: &&ServicePortTable, number: u32| {
        port.protocol == u32::from(protocol) && number == u32::from(to.port())
    };
    for service in &services {
        for frontend in service.frontends.iter().filter(|f| ip(&f.address) == to.ip()) {
            let Some(port) = service.ports.iter().find(|p| is_port(p, p.port)) else { continue };
            let restricted = frontend.kind() == frontend::Kind::LoadBalancer;
            if restricted && !allowed(service, settings, client, from.ip(), to.ip()) {
                return vec!["drop 3".to_owned()];
            }
            let local = match frontend.kind() {
                frontend::Kind::ClusterIp => service.internal_local,
                _ => service.external_local && client == OUTSIDE,
            };
            return translated(settings, port, local.then_some(own), client, from);
        }
    }
    let mut nodes: Vec<_> = settings.nodes.iter().collect();
    nodes.sort_by_key(|node| node.node != own);
    let node = if settings.host_sources.iter().any(|a| ip(a) == to.ip()) {
        Some(own)
    } else {
        nodes.iter().find(|n| n.addresses.iter().any(|a| ip(a) == to.ip())).map(|n| n.node)
    };
    if let Some(node) = node {
        if node != own && client == OUTSIDE {
            return vec!["pass".to_owned()];
        }
        for service in &services {
            let port = service.ports.iter().find(|p| p.node_port != 0 && is_port(p, p.node_port));
            let Some(port) = port else { continue };
            let local = service.external_local && (node != own || client == OUTSIDE);
            return translated(settings, port, local.then_some(node), client, from);
        }
        return vec!["pass".to_owned()];
    }
    if services.iter().any(|s| s.frontends.iter().any(|f| ip(&f.address) == to.ip())) {
        return vec!["reject 1".to_owned()];
    }
    if settings.service_cidrs.iter().any(|range| contains(range, to.ip())) {
        return vec!["drop 4".to_owned()];
    }
    vec!["pass".to_owned()]
}

fn allowed(
    service: &ServiceTable,
    settings: &ServiceSettings,
    client: u32,
    from: IpAddr,
    to: IpAddr,
) -> bool {
    let ranges: Vec<_> = service
        .source_ranges
        .iter()
        .filter(|range| ip(&range.address).is_ipv4() == from.is_ipv4())
        .collect();
    let inside = |address: IpAddr| ranges.iter().any(|range| contains(range, address));
    if ranges.is_empty() || inside(from) {
        return true;
    }
    let own = settings.nodes.iter().filter(|node| node.node == settings.own_node);
    let own = own.flat_map(|node| &node.addresses).chain(&settings.node_sources);
    let speaks_as_other = from == to || settings.host_sources.iter().any(|a| ip(a) == from);
    client == HOST && speaks_as_other && own.into_iter().any(|address| inside(ip(address)))
}

fn translated(
    settings: &ServiceSettings,
    port: &ServicePortTable,
    local: Option<u32>,
    client: u32,
    from: SocketAddr,
) -> Vec<String> {
    let records = records(port, from.is_ipv4());
    let set = records.iter().filter(|record| match local {
        None => record.bits & backend::CLUSTER != 0,
        Some(node) => {
            record.bits & backend::LOCAL != 0 && node != 0 && u32::from(record.node) == node
        }
    });
    let source = |addresses: &[Vec<u8>], to: SocketAddr| {
        let source = addresses.iter().map(|a| ip(a)).find(|a| a.is_ipv4() == from.is_ipv4());
        source.map_or("drop 5".to_owned(), |source| {
            format!("to {to} from {}", SocketAddr::new(source, 0))
        })
    };
    let answers: Vec<_> = set
        .map(|record| match record.bits & backend::PLACE {
            backend::HOST if client == HOST => source(&settings.host_sources, record.at),
            backend::ELSEWHERE if client != POD => source(&settings.host_sources, record.at),
            _ if record.at.ip() == from.ip() => source(&settings.node_sources, record.at),
            backend::REMOTE_POD if client == OUTSIDE => source(&settings.node_sources, record.at),
            _ => format!("to {}", record.at),
        })
        .collect();
    if !answers.is_empty() {
        answers
    } else if records.iter().any(|record| record.bits & backend::COUNTS != 0) {
        vec!["drop 2".to_owned()]
    } else {
        vec!["reject 1".to_owned()]
    }
}

/// All rules for new flows: 400 tables, 100 packets for each.
#[test]
fn plugin_answers_as_the_rules_read() {
    let mut random = Random::new(4);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..400 {
        let mut services = std::collections::BTreeMap::new();
        for _ in 0..random.below(10) {
            let name = any_name(&mut random);
            services.insert(name, any_service(&mut random, name));
        }
        let mut tables = tables(&services.into_values().collect::<Vec<_>>());
        if let Some(settings) = tables.settings.as_mut().filter(|_| random.below(8) == 0) {
            settings.host_sources.truncate(random.below(2));
            settings.node_sources.truncate(random.below(2));
            settings.own_node = random.below(3) as u32;
        }
        let mut node = Node::with(&tables, NativeMap::default());
        for _ in 0..100 {
            let packet @ (client, protocol, from, to) = any_packet(&mut random);
            node.forget();
            let answer = node.told(client, protocol, from, to);
            let admissible = admissible(&tables, packet);
            assert!(admissible.contains(&answer), "{packet:?} {answer} {admissible:?} {tables:#?}");
            let kind = answer.split_once(" from").map_or(&*answer, |_| "to from");
            let kind = if kind.starts_with("to ") && kind != "to from" { "to" } else { kind };
            *seen.entry(kind.to_owned()).or_default() += 1;
        }
    }
    let kinds = ["drop 2", "drop 3", "drop 4", "drop 5", "pass", "reject 1", "to", "to from"];
    assert!(kinds.iter().all(|kind| seen.get(*kind).is_some_and(|n| *n > 30)), "{seen:?}");
}

/// Whether the Service port that a packet is sent to lists a backend, whatever its bits say.
/// `None` if there is no such port.
fn lists(tables: &ServiceTables, to: SocketAddr, protocol: u8, at: SocketAddr) -> Option<bool> {
    // All that is in force: asked as by a pod without restrictions, backends of any bits.
    let mut open = tables.clone();
    for service in &mut open.services {
        (service.internal_local, service.external_local) = (false, false);
        service.source_ranges.clear();
        for port in &mut service.ports {
            let records_v4 = port.backends_v4.chunks_mut(9).map(|r| &mut r[8]);
            let records_v6 = port.backends_v6.chunks_mut(21).map(|r| &mut r[20]);
            records_v4.chain(records_v6).for_each(|bits| *bits = READY);
        }
    }
    let from = if to.is_ipv4() { "10.0.1.99:9" } else { "[fd00:1::99]:9" };
    let probe = (POD, protocol, from.parse().unwrap(), to);
    let is_served = admissible(&full(&open), probe)[0].starts_with("to ");
    is_served.then(|| admissible(&open, probe).contains(&format!("to {at}")))
}

/// The same Services, each port with a local pod of each family and nothing else.
fn full(tables: &ServiceTables) -> ServiceTables {
    let mut full = tables.clone();
    let with = service("").ready(TCP, 1, 0, &["10.0.1.77:1", "[fd00:1::77]:1"]);
    for port in full.services.iter_mut().flat_map(|service| &mut service.ports) {
        port.backends_v4.clone_from(&with.ports[0].backends_v4);
        port.backends_v6.clone_from(&with.ports[0].backends_v6);
    }
    full
}

/// What may be answered to a packet of a flow that went on before: to `before`, or untranslated.
fn admissible_again(
    tables: &ServiceTables,
    packet @ (_, protocol, _, to): (u32, u8, SocketAddr, SocketAddr),
    before: Option<SocketAddr>,
) -> Vec<String> {
    let pass = vec!["pass".to_owned()];
    let fresh = admissible(tables, packet);
    match (protocol, before) {
        // Packets are such as open a connection.
        (TCP, None) => fresh,
        (TCP, Some(_)) | (SCTP, _) => pass,
        (_, None) => fresh,
        (_, Some(at)) => match lists(tables, to, protocol, at) {
            None | Some(true) => pass,
            Some(false) if fresh.iter().all(|answer| !answer.starts_with("to ")) => pass,
            Some(false) => fresh
                .iter()
                // No source: it cannot be chosen.
                .map(|answer| answer.replace("drop 5", "pass"))
                .collect(),
        },
    }
}

/// All rules for flows that are known: 300 histories of 8 configurations, 40 flows in each.
#[test]
fn plugin_answers_as_the_rules_read_when_it_is_asked_again() {
    let mut random = Random::new(5);
    let mut moved = 0;
    for _ in 0..300 {
        let packets: Vec<_> = (0..40).map(|_| any_packet(&mut random)).collect();
        let mut state = std::collections::HashMap::new();
        let mut node = Node::new(&[]);
        for _ in 0..8 {
            let mut services = std::collections::BTreeMap::new();
            for _ in 0..random.below(10) {
                let name = any_name(&mut random);
                services.insert(name, any_service(&mut random, name));
            }
            let services: Vec<_> = services.into_values().collect();
            let tables = tables(&services);
            node.full(&services);
            for &packet in &packets {
                let (client, protocol, from, to) = packet;
                let known = state.get(&(protocol, from, to)).copied();
                let answer = node.told(client, protocol, from, to);
                let admissible = match known {
                    None => admissible(&tables, packet),
                    Some(before) => admissible_again(&tables, packet, before),
                };
                assert!(
                    admissible.contains(&answer),
                    "{packet:?} {known:?} {answer} {admissible:?} {tables:#?}"
                );
                let target = answer.strip_prefix("to ").and_then(|text| text.split(' ').next());
                match target {
                    Some(target) => {
                        moved += usize::from(known.flatten().is_some());
                        state.insert((protocol, from, to), Some(target.parse().unwrap()));
                    }
                    None if answer == "pass" => {
                        state.entry((protocol, from, to)).or_insert(None);
                    }
                    None => {}
                }
            }
        }
    }
    assert!(moved > 300, "{moved}");
}
