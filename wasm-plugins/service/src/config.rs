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
use crate::backend::{Backend, RECORD_V4, RECORD_V6};
use crate::blocks;
use crate::service::{Configured, Frontend, Kind, Numbers, Port, Service};
use crate::settings::{Settings, Sources};

/// Claims of one Service at most: a frontend with a port is one. Small messages could ask for
/// more than there is memory for otherwise.
const CLAIMS_MAX: usize = 65_536;

/// Fields of a configuration: each is a message or a text.
const FIELDS: std::ops::RangeInclusive<u32> = 1..=3;

const BITS: u8 = bits::CLUSTER | bits::LOCAL | bits::COUNTS | bits::PLACE;

/// One part of a configuration.
#[derive(Debug)]
pub(crate) enum Part<'a> {
    Settings(Settings),
    Service(Configured),
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
    for field in fields(bytes) {
        match field? {
            (1, Some(content)) => settings
                .get_or_insert_default()
                .merge(content)
                .map_err(|e| format!("settings: {e}"))?,
            (2, Some(content)) => {
                table.clear();
                table.merge(content).map_err(|e| format!("service {:?}: {e}", table.name))?;
                take(Part::Service(service(&mut table)?))?;
            }
            (3, Some(content)) => {
                let name = std::str::from_utf8(content);
                take(Part::Removed(name.map_err(|_| "removed: a name that is not UTF-8")?))?;
            }
            (number, None) if FIELDS.contains(&number) => return Err(broken(no_message(number))),
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

/// How much there is of what a configuration needs the most room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) services: usize,
    /// Of [`crate::blocks`].
    pub(crate) lines: usize,
}

/// The room that a configuration needs; none if it cannot be read to its end.
pub(crate) fn room(bytes: &[u8]) -> Room {
    count(bytes).unwrap_or_default()
}

fn count(bytes: &[u8]) -> Result<Room, String> {
    let mut room = Room::default();
    for field in fields(bytes) {
        let (2, Some(service)) = field? else { continue };
        room.services += 1;
        for field in fields(service) {
            let (3, Some(port)) = field? else { continue };
            let (mut bytes_v4, mut bytes_v6) = (0, 0);
            for field in fields(port) {
                match field? {
                    (4, Some(backends)) => bytes_v4 = backends.len(),
                    (5, Some(backends)) => bytes_v6 = backends.len(),
                    _ => {}
                }
            }
            room.lines += blocks::lines(bytes_v4, bytes_v6);
        }
    }
    Ok(room)
}

fn broken(why: String) -> String {
    format!("not a ServiceTables message: {why}")
}

fn no_message(field: u32) -> String {
    format!("field {field} is no message")
}

/// The fields of a message: number, and the bytes of those that have some. Ends after an error.
#[inline]
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u32, Option<&[u8]>), String>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(field) = short_field(&mut rest) {
            return Some(Ok(field));
        }
        let field = field(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field.map_err(broken))
    })
}

/// A field that begins as nearly all do: a configuration is looked through twice, within the time
/// that a plugin has for it.
#[inline]
fn short_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let (key, value, after) = match **rest {
        [key @ 8..0x80, value @ ..0x80, ref after @ ..] => (key, usize::from(value), after),
        [key @ 8..0x80, low, high @ ..0x80, ref after @ ..] => {
            (key, usize::from(high) << 7 | usize::from(low & 0x7f), after)
        }
        _ => return None,
    };
    let (content, after) = match key & 7 {
        0 => (None, after),
        2 => after.split_at_checked(value).map(|(content, after)| (Some(content), after))?,
        _ => return None,
    };
    *rest = after;
    Some((u32::from(key >> 3), content))
}

/// Any field.
#[cold]
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Option<&'a [u8]>), String> {
    let (field, wire_type) = decode_key(rest).map_err(|e| e.to_string())?;
    if wire_type != WireType::LengthDelimited {
        return match skip_field(wire_type, field, rest, DecodeContext::default()) {
            // Which is worse than that it cannot be skipped.
            Err(_) if FIELDS.contains(&field) => Err(no_message(field)),
            Err(e) => Err(e.to_string()),
            Ok(()) => Ok((field, None)),
        };
    }
    let length = decode_varint(rest).map_err(|e| e.to_string())?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let content = rest.get(..length).ok_or("it is cut short")?;
    rest.advance(length);
    Ok((field, Some(content)))
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

/// Takes the records out of the message.
fn service(table: &mut ServiceTable) -> Result<Configured, String> {
    if table.name.is_empty() {
        return Err("services: one without a name".to_owned());
    }
    let name = &table.name;
    let named = |e: String| format!("service {name:?}: {e}");
    let claims = (table.frontends.len() + 1).saturating_mul(table.ports.len());
    if claims > CLAIMS_MAX {
        return Err(named(format!("frontends and ports make {claims} claims: too many")));
    }
    let frontends = each(table.frontends.iter(), |i, message| {
        frontend(message).map_err(|e| format!("frontend {}: {e}", i + 1))
    });
    let frontends = frontends.map_err(named)?;
    let ports = each(table.ports.iter_mut(), |_, message| port(message)).map_err(named)?;
    let source_ranges = ranges(&table.source_ranges);
    let source_ranges = source_ranges.map_err(|e| named(format!("source_ranges: {e}")))?;
    let (name, affinity_s) = (table.name.as_str().into(), table.affinity_s);
    Ok(Configured {
        kept: Service { name, frontends, affinity_s, source_ranges },
        ports,
        internal_local: table.internal_local,
        external_local: table.external_local,
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

fn port(message: &mut ServicePortTable) -> Result<Port, String> {
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
    let backends_v4 = std::mem::take(&mut message.backends_v4);
    check_length(&backends_v4, RECORD_V4).map_err(|e| named(format!("backends_v4: {e}")))?;
    let backends_v6 = std::mem::take(&mut message.backends_v6);
    check_length(&backends_v6, RECORD_V6).map_err(|e| named(format!("backends_v6: {e}")))?;
    let v4 = backends_v4.as_chunks().0.iter().map(Backend::v4);
    let v6 = backends_v6.as_chunks().0.iter().map(Backend::v6);
    for backend in v4.chain(v6.clone()) {
        let at = |e| named(format!("backend {}: {e}", backend.address.ip()));
        if backend.port == 0 {
            return Err(at("port 0".to_owned()));
        }
        if backend.bits & !BITS != 0 {
            return Err(at(format!("bits {:#04x} are not known", backend.bits & !BITS)));
        }
    }
    let misplaced = { v6 }.find(|backend| backend.address.family() == Family::V4);
    if let Some(backend) = misplaced {
        return Err(named(format!("backends_v6: {} is IPv4", backend.address.ip())));
    }
    Ok(Port { numbers: Numbers { protocol, port, node_port }, backends_v4, backends_v6 })
}

fn check_length(bytes: &[u8], length: usize) -> Result<(), String> {
    if !bytes.len().is_multiple_of(length) {
        return Err(format!("{} bytes: expected records of {length}", bytes.len()));
    }
    Ok(())
}

fn ranges(messages: &[Range]) -> Result<Box<[Prefix]>, String> {
    each(messages.iter(), |_, message| {
        let address = address(&message.address)?;
        let prefix = Prefix::new(address, message.prefix);
        prefix.ok_or_else(|| format!("prefix {} of {} is too long", message.prefix, address.ip()))
    })
}

/// Turns all of `messages`, into no more room than they take.
fn each<M, T>(
    messages: impl ExactSizeIterator<Item = M>,
    mut turn: impl FnMut(usize, M) -> Result<T, String>,
) -> Result<Box<[T]>, String> {
    let mut all = Vec::with_capacity(messages.len());
    for (index, message) in messages.enumerate() {
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
