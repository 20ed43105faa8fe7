//! Reads and checks configurations.

use std::net::IpAddr;

use domain::base::Name;
use hashbrown::HashMap;
use prost::Message;
use weft_policy_sdk::TokenBucket;
use weft_proto::tables::v1::{
    DnsEndpoints, DnsHost, DnsName, DnsNamespace, DnsPodNames, DnsPort, DnsService, DnsSettings,
    DnsTables,
};

use crate::address::{self, Range};
use crate::name::{LowerName, is_label, wire_of};
use crate::service::{self, Addresses, Endpoints, Kind, OwnedName, Port, Protocol, Service};

/// A configuration that was read. A full one is a change of nothing.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) settings: Option<Settings>,
    pub(crate) services: Vec<Service>,
    /// Keys.
    pub(crate) removed_services: Vec<Box<[u8]>>,
    pub(crate) namespaces: Vec<(u32, Box<[u8]>)>,
    pub(crate) removed_namespaces: Vec<u32>,
    /// `None`: one that goes.
    pub(crate) pods: Vec<(IpAddr, Option<Pod>)>,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Number of its namespace.
    pub(crate) namespace: u32,
    /// It looks names up in its namespace, in the cluster's Services, in the zone, and as they are.
    pub(crate) ordinary_search: bool,
}

/// A name that the operator gave addresses.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) name: OwnedName,
    pub(crate) addresses: Addresses,
}

/// A cluster domain.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub(crate) name: OwnedName,
    pub(crate) lower: LowerName,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// The first one is in answers to PTR.
    pub(crate) zones: Vec<Zone>,
    pub(crate) ttl: u32,
    pub(crate) resolvers: Vec<IpAddr>,
    pub(crate) name_servers: Vec<IpAddr>,
    pub(crate) reverse_ranges: Vec<Range>,
    pub(crate) pod_names: PodNames,
    pub(crate) synced: bool,
    /// By name in wire form, in small letters.
    pub(crate) hosts: HashMap<Box<[u8]>, Host>,
    pub(crate) autopath: bool,
    /// In rising order.
    pub(crate) passed_clients: Box<[IpAddr]>,
    /// What a client may ask; `None`: anything.
    pub(crate) client_limit: Option<TokenBucket>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PodNames {
    #[default]
    None,
    Verified,
    Insecure,
}

/// Bit of a pod's record.
const ORDINARY_SEARCH: u32 = 1 << 31;
/// Longest time to live, in seconds.
const TTL_MAX: u32 = 3600;

/// Reads all of a configuration.
///
/// # Errors
/// A line that names the field.
pub(crate) fn read(bytes: &[u8]) -> Result<Change, String> {
    let message = DnsTables::decode(bytes).map_err(|e| e.to_string())?;
    let mut pods = records::<4>(&message.pods_v4).map_err(|e| format!("pods_v4: {e}"))?;
    pods.extend(records::<16>(&message.pods_v6).map_err(|e| format!("pods_v6: {e}"))?);
    Ok(Change {
        settings: message
            .settings
            .map(settings)
            .transpose()
            .map_err(|e| format!("settings: {e}"))?,
        services: each(message.services, service)?,
        removed_services: each(message.removed_services, |name| {
            key(&name).ok_or_else(|| format!("removed_services: `{name}` is no NAMESPACE/NAME"))
        })?,
        namespaces: each(message.namespaces, namespace)?,
        removed_namespaces: message.removed_namespaces,
        pods,
    })
}

fn each<T, U>(all: Vec<T>, read: impl FnMut(T) -> Result<U, String>) -> Result<Vec<U>, String> {
    all.into_iter().map(read).collect()
}

fn settings(message: DnsSettings) -> Result<Settings, String> {
    if message.ttl_s > TTL_MAX {
        return Err(format!("ttl_s: {} is over {TTL_MAX}", message.ttl_s));
    }
    let pod_names = match message.pod_names() {
        DnsPodNames::Unspecified => PodNames::None,
        DnsPodNames::Verified => PodNames::Verified,
        DnsPodNames::Insecure => PodNames::Insecure,
    };
    let zones = each(message.zones, zone)?;
    if zones.is_empty() {
        return Err("zones: there is none".to_owned());
    }
    let address = |bytes: Vec<u8>| {
        address::of_bytes(&bytes).ok_or_else(|| format!("an address of {} bytes", bytes.len()))
    };
    let mut passed =
        each(message.passed_clients, address).map_err(|e| format!("passed_clients: {e}"))?;
    passed.sort_unstable();
    Ok(Settings {
        zones,
        ttl: message.ttl_s,
        resolvers: each(message.resolvers, address).map_err(|e| format!("resolvers: {e}"))?,
        name_servers: each(message.name_servers, address)
            .map_err(|e| format!("name_servers: {e}"))?,
        reverse_ranges: each(message.reverse_ranges, |range| {
            Range::new(address(range.address)?, range.prefix)
                .ok_or_else(|| format!("a prefix of {} bits", range.prefix))
        })
        .map_err(|e| format!("reverse_ranges: {e}"))?,
        pod_names,
        synced: message.synced,
        hosts: each(message.hosts, host_name)?.into_iter().collect(),
        autopath: message.autopath,
        passed_clients: passed.into(),
        client_limit: (message.client_rate > 0).then(|| {
            let rate = u64::from(message.client_rate);
            TokenBucket::new(rate, rate)
        }),
    })
}

fn zone(text: String) -> Result<Zone, String> {
    let name = name(&text).filter(|n| !n.is_root());
    let name = name.ok_or_else(|| format!("zones: `{text}` is no name of a domain"))?;
    let lower = LowerName::new(&name);
    Ok(Zone { name, lower })
}

fn host_name(message: DnsName) -> Result<(Box<[u8]>, Host), String> {
    let DnsName { name: text, addresses_v4, addresses_v6 } = message;
    let name = name(&text).filter(|n| n.label_count() > 2);
    let name = name.ok_or_else(|| format!("hosts: `{text}` is no name of two labels or more"))?;
    let addresses =
        addresses(&addresses_v4, &addresses_v6).map_err(|e| format!("hosts: `{text}`: {e}"))?;
    Ok((LowerName::new(&name).as_wire().into(), Host { name, addresses }))
}

/// With or without a dot at its end.
fn name(text: &str) -> Option<OwnedName> {
    Name::from_chars(text.chars()).ok()
}

/// Key of `NAMESPACE/NAME`.
fn key(name: &str) -> Option<Box<[u8]>> {
    let (namespace, name) = name.split_once('/')?;
    wire_of(&[name, namespace])
}

fn namespace(message: DnsNamespace) -> Result<(u32, Box<[u8]>), String> {
    let DnsNamespace { number, name } = message;
    match wire_of(&[&name]) {
        Some(wire) if number != 0 => Ok((number, wire)),
        _ => Err(format!("namespaces: number {number}, name `{name}`")),
    }
}

fn service(message: DnsService) -> Result<Service, String> {
    let name = message.name.clone();
    read_service(message).map_err(|e| format!("service `{name}`: {e}"))
}

fn read_service(message: DnsService) -> Result<Service, String> {
    let key = key(&message.name).ok_or("its name is no NAMESPACE/NAME")?;
    let endpoints: Box<[_]> = each(message.endpoints, endpoints)?.into();
    let kind = if !message.external_name.is_empty() {
        let text = &message.external_name;
        Kind::Alias(name(text).ok_or_else(|| format!("external_name: `{text}` is no name"))?)
    } else if message.cluster_ips.is_empty() {
        Kind::Headless
    } else {
        let ports = ports(message.ports)?;
        let (mut v4, mut v6) = (None, None);
        for bytes in message.cluster_ips {
            let twice = match address::of_bytes(&bytes) {
                Some(IpAddr::V4(address)) => v4.replace(address).is_some(),
                Some(IpAddr::V6(address)) => v6.replace(address).is_some(),
                None => return Err(format!("cluster_ips: an address of {} bytes", bytes.len())),
            };
            if twice {
                return Err("cluster_ips: two of one family".to_owned());
            }
        }
        Kind::ClusterIp { v4, v6, ports }
    };
    Ok(Service { key, kind, endpoints })
}

fn endpoints(message: DnsEndpoints) -> Result<Endpoints, String> {
    let mut hosts = each(message.hosts, host)?;
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some([twice, _]) = hosts.array_windows().find(|[a, b]| a.name == b.name) {
        return Err(format!("host `{}`: is there twice", twice.name));
    }
    Ok(Endpoints {
        unnamed: addresses(&message.addresses_v4, &message.addresses_v6)?,
        hosts: hosts.into(),
        ports: ports(message.ports)?,
    })
}

fn host(message: DnsHost) -> Result<service::Host, String> {
    let DnsHost { mut name, addresses_v4, addresses_v6 } = message;
    if !is_label(&name) {
        return Err(format!("host `{name}`: is no label"));
    }
    name.make_ascii_lowercase();
    let addresses =
        addresses(&addresses_v4, &addresses_v6).map_err(|e| format!("host `{name}`: {e}"))?;
    Ok(service::Host { name: name.into(), addresses })
}

fn addresses(v4: &[u8], v6: &[u8]) -> Result<Addresses, String> {
    let v4 = sorted::<4, _>(v4).map_err(|e| format!("addresses_v4: {e}"))?;
    let v6 = sorted::<16, _>(v6).map_err(|e| format!("addresses_v6: {e}"))?;
    Ok(Addresses { v4, v6 })
}

/// Each once.
fn sorted<const N: usize, A: From<[u8; N]> + Ord>(bytes: &[u8]) -> Result<Box<[A]>, String> {
    let (all, []) = bytes.as_chunks::<N>() else {
        return Err(format!("{} bytes are no addresses of {N}", bytes.len()));
    };
    let mut all: Vec<A> = all.iter().map(|a| A::from(*a)).collect();
    all.sort_unstable();
    all.dedup();
    Ok(all.into())
}

/// Those with a name.
fn ports(all: Vec<DnsPort>) -> Result<Box<[Port]>, String> {
    let named = all.into_iter().filter(|p| !p.name.is_empty());
    let read = |DnsPort { mut name, protocol, port }: DnsPort| {
        name.make_ascii_lowercase();
        let number = u16::try_from(port).ok().filter(|n| *n != 0);
        match (Protocol::from_number(protocol), number) {
            (Some(protocol), Some(number)) if is_label(&name) => {
                Ok(Port { name: name.into(), protocol, number })
            }
            _ => Err(format!("port `{name}`: number {port}, protocol {protocol}")),
        }
    };
    Ok(each(named.collect(), read)?.into())
}

/// Records of an address and a number.
fn records<const N: usize>(bytes: &[u8]) -> Result<Vec<(IpAddr, Option<Pod>)>, String> {
    if !bytes.len().is_multiple_of(N + 4) {
        return Err(format!("{} bytes are no records of {}", bytes.len(), N + 4));
    }
    let read = |record: &[u8]| {
        let (address, number) = record.split_last_chunk::<4>()?;
        let number = u32::from_be_bytes(*number);
        let pod = Pod {
            namespace: number & !ORDINARY_SEARCH,
            ordinary_search: number & ORDINARY_SEARCH != 0,
        };
        Some((address::of_bytes(address)?, (number != 0).then_some(pod)))
    };
    Ok(bytes.chunks_exact(N + 4).filter_map(read).collect())
}
