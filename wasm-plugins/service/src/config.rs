//! Reads and checks configurations.
//!
//! Services are read one at a time: all of them at once, as the messages they came in, would take
//! several times the room that they are kept in.

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use weft_proto::tables::v1::{
    Frontend as FrontendMessage, Range, ServicePortTable, ServiceSettings, ServiceTable,
    backend as bits, frontend,
};

use crate::address::{Address, Family, Prefix};
use crate::backend::{Backends, RECORD_V4, RECORD_V6};
use crate::service::{Frontend, Kind, Port, Service};
use crate::settings::{Settings, Sources};

/// Claims of one Service at most: a frontend with a port is one. Small messages could ask for
/// more than there is memory for otherwise.
const CLAIMS_MAX: usize = 65_536;

const BITS: u8 = bits::CLUSTER | bits::LOCAL | bits::COUNTS | bits::PLACE;

/// One part of a configuration.
#[derive(Debug)]
pub(crate) enum Part<'a> {
    Settings(Settings),
    Service(Service),
    Removed(&'a str),
}

/// Hands over each Service and each removal as it is read, then the settings if there are any.
///
/// # Errors
/// A line that names the Service and the field, or what `take` refuses.
pub(crate) fn read<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(Part<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let (mut settings, mut table) = (None::<ServiceSettings>, ServiceTable::default());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (field, content) = field(&mut rest)?;
        match field {
            1 => settings
                .get_or_insert_default()
                .merge(content)
                .map_err(|e| format!("settings: {e}"))?,
            2 => {
                table.clear();
                table.merge(content).map_err(|e| format!("service {:?}: {e}", table.name))?;
                take(Part::Service(service(&table)?))?;
            }
            3 => {
                let name = std::str::from_utf8(content);
                take(Part::Removed(name.map_err(|_| "removed: a name that is not UTF-8")?))?;
            }
            _ => {}
        }
    }
    match settings {
        Some(message) => {
            let settings = self::settings(&message).map_err(|e| format!("settings: {e}"))?;
            take(Part::Settings(settings))
        }
        None => Ok(()),
    }
}

/// How many Services a configuration has; 0 if it cannot be read to its end.
pub(crate) fn count(bytes: &[u8]) -> usize {
    let (mut rest, mut services) = (bytes, 0);
    while !rest.is_empty() {
        match field(&mut rest) {
            Ok((2, _)) => services += 1,
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
    services
}

/// The next field of a `ServiceTables` and its bytes; those of fields that it does not have are
/// left out.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let broken = |e: &dyn std::fmt::Display| format!("not a ServiceTables message: {e}");
    let (field, wire_type) = decode_key(rest).map_err(|e| broken(&e))?;
    if wire_type != WireType::LengthDelimited {
        if (1..=3).contains(&field) {
            return Err(broken(&format!("field {field} is no message")));
        }
        skip_field(wire_type, field, rest, DecodeContext::default()).map_err(|e| broken(&e))?;
        return Ok((0, &[]));
    }
    let length = decode_varint(rest).map_err(|e| broken(&e))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let content = rest.get(..length).ok_or_else(|| broken(&"it is cut short"))?;
    rest.advance(length);
    Ok((field, content))
}

fn settings(message: &ServiceSettings) -> Result<Settings, String> {
    let index = |n: u32| u16::try_from(n).map_err(|_| format!("node {n}: expected up to 65535"));
    let mut nodes = Vec::new();
    for node in &message.nodes {
        let index = index(node.node)?;
        if index == 0 {
            return Err("nodes: node 0: expected 1 to 65535".to_owned());
        }
        for bytes in &node.addresses {
            let address = address(bytes).map_err(|e| format!("node {index}: {e}"))?;
            nodes.push((address, index));
        }
    }
    Ok(Settings::new(
        index(message.own_node).map_err(|e| format!("own_node: {e}"))?,
        sources(&message.node_sources).map_err(|e| format!("node_sources: {e}"))?,
        sources(&message.host_sources).map_err(|e| format!("host_sources: {e}"))?,
        ranges(&message.service_cidrs).map_err(|e| format!("service_cidrs: {e}"))?,
        &nodes,
    ))
}

fn sources(addresses: &[Vec<u8>]) -> Result<Sources, String> {
    let mut sources = Sources::default();
    for bytes in addresses {
        if !sources.set(address(bytes)?) {
            return Err("more than one of a family".to_owned());
        }
    }
    Ok(sources)
}

fn service(table: &ServiceTable) -> Result<Service, String> {
    if table.name.is_empty() {
        return Err("services: one without a name".to_owned());
    }
    let named = |e: String| format!("service {:?}: {e}", table.name);
    let claims = (table.frontends.len() + 1).saturating_mul(table.ports.len());
    if claims > CLAIMS_MAX {
        return Err(named(format!("frontends and ports make {claims} claims: too many")));
    }
    Ok(Service {
        name: table.name.as_str().into(),
        frontends: each(&table.frontends, |i, message| {
            frontend(message).map_err(|e| format!("frontend {}: {e}", i + 1))
        })
        .map_err(named)?,
        ports: each(&table.ports, |_, message| port(message)).map_err(named)?,
        affinity_s: table.affinity_s,
        internal_local: table.internal_local,
        external_local: table.external_local,
        source_ranges: ranges(&table.source_ranges)
            .map_err(|e| named(format!("source_ranges: {e}")))?,
    })
}

fn frontend(message: &FrontendMessage) -> Result<Frontend, String> {
    let kind = match message.kind() {
        frontend::Kind::ClusterIp => Kind::ClusterIp,
        frontend::Kind::LoadBalancer => Kind::LoadBalancer,
        frontend::Kind::ExternalIp => Kind::ExternalIp,
        frontend::Kind::Unspecified => {
            return Err(format!("kind {} is not known", message.kind));
        }
    };
    Ok(Frontend::new(address(&message.address)?, kind))
}

fn port(message: &ServicePortTable) -> Result<Port, String> {
    let protocol = match message.protocol {
        6 => 6,
        17 => 17,
        132 => 132,
        other => return Err(format!("protocol {other}: expected 6, 17 or 132")),
    };
    let port = match u16::try_from(message.port) {
        Ok(port) if port != 0 => port,
        _ => return Err(format!("port {}: expected 1 to 65535", message.port)),
    };
    let named = |e: String| format!("port {port}: {e}");
    let node_port = u16::try_from(message.node_port)
        .map_err(|_| named(format!("node_port {}: expected up to 65535", message.node_port)))?;
    let backends = Backends {
        v4: records(&message.backends_v4, RECORD_V4)
            .map_err(|e| named(format!("backends_v4: {e}")))?,
        v6: records(&message.backends_v6, RECORD_V6)
            .map_err(|e| named(format!("backends_v6: {e}")))?,
    };
    for backend in [Family::V4, Family::V6].into_iter().flat_map(|f| backends.of(f)) {
        let at = |e| named(format!("backend {}: {e}", backend.address.ip()));
        if backend.port == 0 {
            return Err(at("port 0".to_owned()));
        }
        if backend.bits & !BITS != 0 {
            return Err(at(format!("bits {:#04x} are not known", backend.bits & !BITS)));
        }
    }
    let misplaced = backends.of(Family::V6).find(|b| b.address.family() == Family::V4);
    if let Some(backend) = misplaced {
        return Err(named(format!("backends_v6: {} is IPv4", backend.address.ip())));
    }
    Ok(Port { protocol, port, node_port, backends })
}

fn records(bytes: &[u8], length: usize) -> Result<Box<[u8]>, String> {
    if !bytes.len().is_multiple_of(length) {
        return Err(format!("{} bytes: expected records of {length}", bytes.len()));
    }
    Ok(bytes.into())
}

fn ranges(messages: &[Range]) -> Result<Box<[Prefix]>, String> {
    each(messages, |_, message| {
        let address = address(&message.address)?;
        let prefix = Prefix::new(address, message.prefix);
        prefix.ok_or_else(|| format!("prefix {} of {} is too long", message.prefix, address.ip()))
    })
}

/// Turns all of `messages`, into no more room than they take.
fn each<M, T>(
    messages: &[M],
    mut turn: impl FnMut(usize, &M) -> Result<T, String>,
) -> Result<Box<[T]>, String> {
    let mut all = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        all.push(turn(index, message)?);
    }
    Ok(all.into_boxed_slice())
}

fn address(bytes: &[u8]) -> Result<Address, String> {
    Address::from_bytes(bytes).ok_or_else(|| match bytes.len() {
        16 => "an IPv4 address in 16 bytes: expected 4".to_owned(),
        length => format!("an address of {length} bytes: expected 4 or 16"),
    })
}
