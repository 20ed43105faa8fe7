//! Reads and checks configurations.
//!
//! Sets and programs are read one at a time and addresses not at all: all of a configuration at
//! once, as messages, would take several times the room that it is kept in.

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field, uint32};
use weft_proto::tables::v1::policy_rule::Action as ActionMessage;
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyBlock, PolicyLearned, PolicyPort, PolicyProgram,
    PolicyRule, PolicySettings, PolicySubject, Range,
};

use crate::OWN_NUMBERS;
use crate::address::{Address, Span};
use crate::memory::NAMES_END;
use crate::names::Pair;
use crate::program::Program;
use crate::rules::{Action, NewRule, PeersBuilder, PortRange, Rules, ServicePort};
use crate::tables::{DNS_PORT, Settings, Subject};

/// A configuration that was read. A full one is a change of nothing.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    pub(crate) settings: Option<Settings>,
    pub(crate) addresses: AddressChange<'a>,
    pub(crate) sets: BTreeMap<u32, SetChange>,
    /// `None`: it goes.
    pub(crate) programs: BTreeMap<u32, Option<Program>>,
    /// As `programs`.
    pub(crate) subjects: BTreeMap<u32, Option<Subject>>,
    /// Numbers of names in rising order; none: the address is known no more.
    pub(crate) learned: BTreeMap<Pair, Box<[u64]>>,
}

/// Records of an address and the number of its identity, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AddressChange<'a> {
    pub(crate) v4: &'a [[u8; 8]],
    pub(crate) v6: &'a [[u8; 20]],
}

/// What becomes of a set. Identities are in rising order.
#[derive(Debug)]
pub(crate) enum SetChange {
    Whole(Box<[u32]>),
    Difference { added: Vec<u32>, removed: Vec<u32> },
    Remove,
}

/// Reads all of a configuration.
///
/// # Errors
/// A line that names the field.
pub(crate) fn read(bytes: &[u8]) -> Result<Change<'_>, String> {
    let (mut change, mut settings) = (Change::default(), None::<PolicySettings>);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (field, wire_type, mut content) = field(&mut rest)?;
        match field {
            1 => settings
                .get_or_insert_default()
                .merge(content)
                .map_err(|e| format!("settings: {e}"))?,
            2 => {
                change.addresses.v4 = records(content).map_err(|e| format!("addresses_v4: {e}"))?
            }
            3 => change.addresses.v6 = addresses_v6(content)?,
            4 => {
                let message = IdentitySet::decode(content).map_err(|e| format!("sets: {e}"))?;
                let number = number("sets", message.number)?;
                check_identities(&message.identities)
                    .map_err(|e| format!("set {number}: identities: {e}"))?;
                let whole = SetChange::Whole(message.identities.into());
                once("set", number, change.sets.insert(number, whole))?;
            }
            5 => {
                let message =
                    IdentitySetChange::decode(content).map_err(|e| format!("changed_sets: {e}"))?;
                let (number, difference) = difference(message)?;
                once("set", number, change.sets.insert(number, difference))?;
            }
            6 => {
                for n in numbers("removed_sets", wire_type, &mut content)? {
                    once("set", n, change.sets.insert(n, SetChange::Remove))?;
                }
            }
            7 => {
                let message =
                    PolicyProgram::decode(content).map_err(|e| format!("programs: {e}"))?;
                let number = number("programs", message.number)?;
                let program = program(&message).map_err(|e| format!("program {number}: {e}"))?;
                once("program", number, change.programs.insert(number, Some(program)))?;
            }
            8 => {
                for n in numbers("removed_programs", wire_type, &mut content)? {
                    once("program", n, change.programs.insert(n, None))?;
                }
            }
            9 => {
                let message =
                    PolicySubject::decode(content).map_err(|e| format!("subjects: {e}"))?;
                let identity = number("subjects", message.identity)?;
                let subject = Subject { ingress: message.ingress, egress: message.egress };
                once("subject", identity, change.subjects.insert(identity, Some(subject)))?;
            }
            10 => {
                for n in numbers("removed_subjects", wire_type, &mut content)? {
                    once("subject", n, change.subjects.insert(n, None))?;
                }
            }
            11 => {
                let message =
                    PolicyLearned::decode(content).map_err(|e| format!("learned: {e}"))?;
                let (pair, names) = learned(&message).map_err(|e| format!("learned: {e}"))?;
                if change.learned.insert(pair, names).is_some() {
                    return Err("learned: one is there twice".to_owned());
                }
            }
            _ => {}
        }
    }
    if let Some(message) = settings {
        change.settings = Some(read_settings(&message).map_err(|e| format!("settings: {e}"))?);
    }
    Ok(change)
}

fn read_settings(message: &PolicySettings) -> Result<Settings, String> {
    let sorted = |name: &str, items: &[Vec<u8>]| -> Result<Box<[Address]>, String> {
        let mut all = each(items, |bytes| address(bytes)).map_err(|e| format!("{name}{e}"))?;
        all.sort_unstable();
        Ok(all.into())
    };
    Ok(Settings {
        own_addresses: sorted("own_addresses", &message.own_addresses)?,
        resolvers: sorted("resolvers", &message.resolvers)?,
        resolver_port: match message.resolver_port {
            0 => DNS_PORT,
            port => u16::try_from(port).map_err(|_| format!("resolver_port: {port}"))?,
        },
    })
}

/// The next field of a `PolicyTables`, and its bytes; those of fields that it does not have are
/// left out.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, WireType, &'a [u8]), String> {
    let broken = |e: &dyn std::fmt::Display| format!("not a PolicyTables message: {e}");
    let (field, wire_type) = decode_key(rest).map_err(|e| broken(&e))?;
    if wire_type == WireType::LengthDelimited {
        let length = decode_varint(rest).map_err(|e| broken(&e))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let content = rest.get(..length).ok_or_else(|| broken(&"it is cut short"))?;
        rest.advance(length);
        return Ok((field, wire_type, content));
    }
    let content = *rest;
    skip_field(wire_type, field, rest, DecodeContext::default()).map_err(|e| broken(&e))?;
    let content = content.get(..content.len() - rest.len()).unwrap_or_default();
    match (field, wire_type) {
        // Numbers may come one by one.
        (6 | 8 | 10, WireType::Varint) => Ok((field, wire_type, content)),
        (1..=11, _) => Err(broken(&format!("field {field} is of another type"))),
        _ => Ok((0, wire_type, &[])),
    }
}

fn numbers(field: &str, wire_type: WireType, content: &mut &[u8]) -> Result<Vec<u32>, String> {
    let mut all = Vec::new();
    let mut read = |content: &mut &[u8]| {
        uint32::merge_repeated(WireType::Varint, &mut all, content, DecodeContext::default())
            .map_err(|e| format!("{field}: {e}"))
    };
    match wire_type {
        WireType::LengthDelimited => {
            while !content.is_empty() {
                read(content)?;
            }
        }
        _ => read(content)?,
    }
    Ok(all)
}

fn number(field: &str, number: u32) -> Result<u32, String> {
    if number == 0 { Err(format!("{field}: one with number 0")) } else { Ok(number) }
}

/// `before`: what the message said of the same before.
fn once<T>(what: &str, number: u32, before: Option<T>) -> Result<(), String> {
    before.map_or(Ok(()), |_| Err(format!("{what} {number}: it is there twice")))
}

fn records<const LENGTH: usize>(bytes: &[u8]) -> Result<&[[u8; LENGTH]], String> {
    match bytes.as_chunks() {
        (records, []) => Ok(records),
        _ => Err(format!("{} bytes: expected records of {LENGTH}", bytes.len())),
    }
}

fn addresses_v6(bytes: &[u8]) -> Result<&[[u8; 20]], String> {
    let named = |e: String| format!("addresses_v6: {e}");
    let records = records::<20>(bytes).map_err(named)?;
    for [record @ .., _, _, _, _] in records {
        address(record).map_err(named)?;
    }
    Ok(records)
}

fn difference(mut message: IdentitySetChange) -> Result<(u32, SetChange), String> {
    let number = number("changed_sets", message.number)?;
    message.added.sort_unstable();
    message.removed.sort_unstable();
    let named = |field, e: String| format!("set {number}: {field}: {e}");
    check_identities(&message.added).map_err(|e| named("added", e))?;
    check_identities(&message.removed).map_err(|e| named("removed", e))?;
    if let Some(both) = message.added.iter().find(|i| message.removed.binary_search(i).is_ok()) {
        return Err(named("added", format!("identity {both} is in removed too")));
    }
    let IdentitySetChange { added, removed, .. } = message;
    Ok((number, SetChange::Difference { added, removed }))
}

fn learned(message: &PolicyLearned) -> Result<(Pair, Box<[u64]>), String> {
    let [pod, peer] = [&message.pod, &message.address].map(|bytes| address(bytes));
    let pair = (pod?, peer?);
    if matches!(pair.0, Address::V4(_)) != matches!(pair.1, Address::V4(_)) {
        return Err("an address of another family than its pod's".to_owned());
    }
    check_names(&message.names)?;
    match message.names.array_windows().find(|[a, b]| a >= b) {
        Some([a, b]) => Err(format!("name {b} after {a}: expected rising order")),
        None => Ok((pair, message.names.as_slice().into())),
    }
}

fn check_names(names: &[u64]) -> Result<(), String> {
    match names.iter().find(|name| !(1..NAMES_END).contains(*name)) {
        Some(name) => Err(format!("name {name}: expected 1 to {}", NAMES_END - 1)),
        None => Ok(()),
    }
}

fn check_identities(identities: &[u32]) -> Result<(), String> {
    if identities.first() == Some(&0) {
        return Err("identity 0".to_owned());
    }
    match identities.array_windows().find(|[a, b]| a >= b) {
        Some([a, b]) => Err(format!("{b} after {a}: expected rising order")),
        None => Ok(()),
    }
}

fn program(message: &PolicyProgram) -> Result<Program, String> {
    if message.isolated || message.watched {
        check_drop("isolation", message.isolation)?;
    }
    let tier = |name: &str, rules: &[PolicyRule], action: fn(&PolicyRule) -> _| {
        each(rules, |message| rule(message, action(message)?)).map_err(|e| format!("{name}{e}"))
    };
    Ok(Program {
        admin: Rules::in_order(tier("admin", &message.admin, decides)?),
        isolated: message.isolated,
        watched: message.watched,
        allowed: Rules::united(tier("allowed", &message.allowed, allows)?),
        baseline: Rules::in_order(tier("baseline", &message.baseline, decides)?),
        isolation: message.isolation,
    })
}

/// Action of a rule of a tier in which the first that matches decides.
fn decides(message: &PolicyRule) -> Result<Action, String> {
    match message.action() {
        ActionMessage::Accept => Ok(Action::Accept),
        ActionMessage::Pass => Ok(Action::Pass),
        ActionMessage::Deny => {
            check_drop("number", message.number)?;
            Ok(Action::Deny(message.number))
        }
        ActionMessage::Unspecified => Err(format!("action {} is not known", message.action)),
    }
}

fn allows(message: &PolicyRule) -> Result<Action, String> {
    if message.action == i32::from(ActionMessage::Unspecified) {
        Ok(Action::Accept)
    } else {
        Err(format!("action {}: expected none", message.action))
    }
}

fn check_drop(field: &str, number: u32) -> Result<(), String> {
    if number < OWN_NUMBERS {
        return Err(format!("{field} {number}: expected {OWN_NUMBERS} or more"));
    }
    Ok(())
}

pub(crate) fn rule(message: &PolicyRule, action: Action) -> Result<NewRule, String> {
    let mut peers = PeersBuilder {
        any: message.any_peer,
        sets: message.sets.clone(),
        names: message.names.clone(),
        ..Default::default()
    };
    if peers.sets.contains(&0) {
        return Err("sets: one with number 0".to_owned());
    }
    check_names(&peers.names)?;
    for (block, except) in each(&message.blocks, block).map_err(|e| format!("blocks{e}"))? {
        peers.blocks.add(block, &except);
    }
    let ports = each(&message.ports, port).map_err(|e| format!("ports{e}"))?;
    Ok(NewRule { action, watched: message.watched, peers, ports })
}

fn block(message: &PolicyBlock) -> Result<(Span, Vec<Span>), String> {
    let range = message.range.as_ref().ok_or("no range")?;
    let block = span(range)?;
    let except = each(&message.except, span).map_err(|e| format!("except{e}"))?;
    Ok((block, except))
}

fn span(message: &Range) -> Result<Span, String> {
    let address = address(&message.address)?;
    let span = Span::of_prefix(address, message.prefix);
    span.ok_or_else(|| format!("prefix {} of {} is too long", message.prefix, address.ip()))
}

fn port(message: &PolicyPort) -> Result<PortRange, String> {
    let protocol = match message.protocol {
        6 => 6,
        17 => 17,
        132 => 132,
        other => return Err(format!("protocol {other}: expected 6, 17 or 132")),
    };
    let port = |port| u16::try_from(port).ok().filter(|port| *port != 0);
    let (first, last) = match (message.first, message.last) {
        (0, 0) => (0, u16::MAX),
        (first, last) => match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => (first, last),
            _ => return Err(format!("{first} to {last}: expected a range in 1 to 65535")),
        },
    };
    let [first, last] = [first, last].map(|port| ServicePort::new(protocol, port));
    Ok(PortRange { first, last })
}

/// Turns all of `messages`; what is wrong with one follows its place, from 1.
fn each<M, T>(
    messages: &[M],
    mut turn: impl FnMut(&M) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut all = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        all.push(turn(message).map_err(|e| format!(" {}: {e}", index + 1))?);
    }
    Ok(all)
}

fn address(bytes: &[u8]) -> Result<Address, String> {
    Address::from_bytes(bytes).ok_or_else(|| match bytes.len() {
        16 => "an IPv4 address in 16 bytes: expected 4".to_owned(),
        length => format!("an address of {length} bytes: expected 4 or 16"),
    })
}
