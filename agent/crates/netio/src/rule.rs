//! Routing policy rules.

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netlink::{Ensured, Family, Mode, Netlink, NetlinkError};
use crate::route::PROTOCOL;

/// A rule that sends packets to a routing table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Which packets: those of this family.
    pub family: Family,
    /// Place in the list; lower is asked first.
    pub priority: u32,
    /// Came in by this interface.
    pub input: Option<String>,
    /// Has every bit of this mark.
    pub mark: Option<u32>,
    /// From this prefix.
    pub from: Option<IpNet>,
    /// To this prefix.
    pub to: Option<IpNet>,
    /// Table to look in; 254 is `main`.
    pub table: u32,
}

/// Every rule that looks in a table, both families, in order of priority.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn list(netlink: &Netlink) -> Result<Vec<Rule>, NetlinkError> {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let mut message = RuleMessage::default();
        message.header.family = family.raw();
        let found = netlink.dump(RouteNetlinkMessage::GetRule(message), "rules").await?;
        rules.extend(found.iter().filter_map(from_message));
    }
    rules.sort();
    Ok(rules)
}

/// Puts a rule in unless the same one is there.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn ensure(netlink: &Netlink, rule: &Rule) -> Result<Ensured, NetlinkError> {
    if list(netlink).await?.contains(rule) {
        return Ok(Ensured::Unchanged);
    }
    let request = RouteNetlinkMessage::NewRule(message(rule));
    match netlink.change(request, Mode::Create, "add rule", || subject(rule)).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

/// Takes a rule out if it is there.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove(netlink: &Netlink, rule: &Rule) -> Result<Ensured, NetlinkError> {
    if !list(netlink).await?.contains(rule) {
        return Ok(Ensured::Unchanged);
    }
    let request = RouteNetlinkMessage::DelRule(message(rule));
    match netlink.change(request, Mode::Plain, "remove rule", || subject(rule)).await {
        Ok(()) => Ok(Ensured::Changed),
        Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
        Err(error) => Err(error),
    }
}

fn subject(rule: &Rule) -> String {
    format!("{} for table {}", rule.priority, rule.table)
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.raw();
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    attributes.extend(rule.input.clone().map(RuleAttribute::Iifname));
    if let Some(mark) = rule.mark {
        attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark)]);
    }
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        attributes.push(RuleAttribute::Destination(to.network()));
    }
    message
}

fn from_message(message: &RouteNetlinkMessage) -> Option<Rule> {
    match message {
        RouteNetlinkMessage::NewRule(message) => describe(message),
        _ => None,
    }
}

pub(crate) fn describe(message: &RuleMessage) -> Option<Rule> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let mut rule = Rule {
        family: Family::from_raw(message.header.family)?,
        priority: 0,
        input: None,
        mark: None,
        from: None,
        to: None,
        table: message.header.table.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
            RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
            RuleAttribute::Source(ip) => rule.from = IpNet::new(*ip, message.header.src_len).ok(),
            RuleAttribute::Destination(ip) => {
                rule.to = IpNet::new(*ip, message.header.dst_len).ok()
            }
            _ => {}
        }
    }
    Some(rule)
}
