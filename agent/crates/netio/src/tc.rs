//! Traffic control at a pod's port, the host end of its veth: everything the pod sends is checked for
//! its source and redirected into the TUN device, before the host's routing and netfilter see it.
//!
//! A `clsact` qdisc carries two filters on ingress: a classic BPF program (see `filter`), then a
//! match-all `u32` filter that redirects. Both are set up by netlink, without the `tc` program, and
//! need the kernel's `cls_bpf`, `cls_u32` and `act_mirred` only.
//!
//! Order matters, because a frame that no filter takes goes to the host unchecked: the redirect is put
//! in before the program, and a wrong one is replaced before it is taken out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcBpfFlags, TcFilterBpfOption, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcStats2, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use weft_model::MacAddr;

pub use delivery::Delivery;

use crate::link;
use crate::netlink::{Ensured, Mode, Netlink, NetlinkError};

mod delivery;
mod filter;
#[cfg(test)]
mod tests;

/// Who sends at a port: what it may call itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address; not checked if it is not known.
    pub mac: Option<MacAddr>,
    /// Link-local addresses that are others': it may use any other one.
    pub foreign: Vec<Ipv6Addr>,
}

/// Place of the program among the filters.
const PROGRAM_PRIORITY: u16 = 1;
/// Places of the redirect; a new one is put in at the one that is free.
const REDIRECT_PRIORITIES: [u16; 2] = [2, 3];
/// `ETH_P_ALL` in network byte order, as the header has it.
const PROTOCOL_ALL: u16 = 0x0003_u16.to_be();
/// Handle of the one program of its filter.
const PROGRAM_HANDLE: TcHandle = TcHandle { major: 0, minor: 1 };
/// `ffff:fff2`, what comes in; `ffff:fff3`, what goes out.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_EGRESS };

// `linux/pkt_cls.h`
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;

/// Makes the port `host_if` check that sources are of `sender` and redirect into the interface
/// `weft0_index`.
///
/// Tells whether it was so already; anything of it that is missing or different (the TUN device has
/// a new index after it was deleted) is put right without a moment in which frames pass unchecked.
/// Filters of others are left alone.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is no interface `host_if`,
/// [`NetlinkError::TooManyAddresses`] for more than 16 addresses, the kernel's `ENODEV` if there is no
/// interface `weft0_index`, `EEXIST` or `EINVAL` if a foreign filter is in the place.
pub async fn ensure_port(
    netlink: &Netlink,
    host_if: &str,
    weft0_index: u32,
    sender: &Sender,
) -> Result<Ensured, NetlinkError> {
    refuse_too_many(host_if, &sender.addresses)?;
    let index = link::require(netlink, host_if).await?.index;
    let port = Port { netlink, name: host_if, index };
    let qdisc = port.ensure_qdisc().await?;
    let filters = port.filters(INGRESS).await?;
    let redirect = port.ensure_redirect(&filters, weft0_index).await?;
    let program = port.ensure_program(&filters, &filter::program(sender)).await?;
    Ok(qdisc.or(redirect).or(program))
}

/// Whether the port `host_if` is as [`ensure_port`] makes it; changes nothing.
///
/// # Errors
/// [`NetlinkError::NoInterface`] if there is no interface `host_if`,
/// [`NetlinkError::TooManyAddresses`] for more than 16 addresses, else the kernel's.
pub async fn check_port(
    netlink: &Netlink,
    host_if: &str,
    weft0_index: u32,
    sender: &Sender,
) -> Result<bool, NetlinkError> {
    refuse_too_many(host_if, &sender.addresses)?;
    let index = link::require(netlink, host_if).await?.index;
    let port = Port { netlink, name: host_if, index };
    if !port.has_qdisc().await? {
        return Ok(false);
    }
    let filters = port.filters(INGRESS).await?;
    let mut redirects = filters.iter().filter_map(redirect_of).map(|(_, index)| index).peekable();
    let redirected = redirects.peek().is_some() && redirects.all(|index| index == weft0_index);
    Ok(redirected && has_program(&filters, &filter::program(sender)))
}

fn refuse_too_many(host_if: &str, allowed: &[IpAddr]) -> Result<(), NetlinkError> {
    if allowed.len() <= filter::ADDRESSES_MAX {
        return Ok(());
    }
    Err(NetlinkError::TooManyAddresses {
        name: host_if.to_owned(),
        count: allowed.len(),
        max: filter::ADDRESSES_MAX,
    })
}

/// Takes what [`ensure_port`] put in out again, if it or the interface is still there. The qdisc stays
/// if somebody else has filters on it.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn remove_port(netlink: &Netlink, host_if: &str) -> Result<Ensured, NetlinkError> {
    let Some(link) = link::get(netlink, host_if).await? else { return Ok(Ensured::Unchanged) };
    let port = Port { netlink, name: host_if, index: link.index };
    if !port.has_qdisc().await? {
        return Ok(Ensured::Unchanged);
    }
    let filters = port.filters(INGRESS).await?;
    let mut changed = Ensured::Unchanged;
    if filters.iter().any(is_program) {
        changed = changed.or(port.delete_filter(PROGRAM_PRIORITY, "bpf").await?);
    }
    for (priority, _) in filters.iter().filter_map(redirect_of) {
        changed = changed.or(port.delete_filter(priority, "u32").await?);
    }
    Ok(changed.or(port.delete_unused_qdisc().await?))
}

/// Frames that each port dropped since its qdisc was made, by interface index, wrapping at 32 bits.
/// One request for all ports of a node.
///
/// # Errors
/// See [`NetlinkError`].
pub async fn all_drops(netlink: &Netlink) -> Result<BTreeMap<u32, u64>, NetlinkError> {
    let qdiscs = qdiscs(netlink).await?;
    Ok(qdiscs.iter().filter_map(|qdisc| Some((index_of(qdisc)?, dropped(qdisc)))).collect())
}

/// Every clsact qdisc of the namespace.
async fn qdiscs(netlink: &Netlink) -> Result<Vec<TcMessage>, NetlinkError> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = netlink.dump(request, "qdiscs").await?;
    let of_kind = |message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            Some(qdisc).filter(|qdisc| kind_of(qdisc) == Some("clsact"))
        }
        _ => None,
    };
    Ok(found.into_iter().filter_map(of_kind).collect())
}

struct Port<'a> {
    netlink: &'a Netlink,
    name: &'a str,
    index: u32,
}

impl Port<'_> {
    fn message(&self, parent: TcHandle, handle: TcHandle, kind: &str) -> TcMessage {
        let mut message = TcMessage::with_index(self.index.cast_signed());
        message.header.parent = parent;
        message.header.handle = handle;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message
    }

    fn filter(&self, priority: u16, handle: TcHandle, kind: &str) -> TcMessage {
        let mut message = self.message(INGRESS, handle, kind);
        message.header.info = TcHandle { major: priority, minor: PROTOCOL_ALL }.into();
        message
    }

    fn qdisc(&self) -> TcMessage {
        self.message(TcHandle::CLSACT, TcHandle { major: 0xffff, minor: 0 }, "clsact")
    }

    fn subject(&self) -> String {
        self.name.to_owned()
    }

    async fn has_qdisc(&self) -> Result<bool, NetlinkError> {
        Ok(qdiscs(self.netlink).await?.iter().any(|qdisc| index_of(qdisc) == Some(self.index)))
    }

    async fn ensure_qdisc(&self) -> Result<Ensured, NetlinkError> {
        if self.has_qdisc().await? {
            return Ok(Ensured::Unchanged);
        }
        let request = RouteNetlinkMessage::NewQueueDiscipline(self.qdisc());
        match self.netlink.change(request, Mode::Create, "add clsact to", || self.subject()).await {
            Ok(()) => Ok(Ensured::Changed),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(Ensured::Unchanged),
            Err(error) => Err(error),
        }
    }

    /// Unless somebody has filters on it.
    async fn delete_unused_qdisc(&self) -> Result<Ensured, NetlinkError> {
        let left = self.filters(INGRESS).await?.len() + self.filters(EGRESS).await?.len();
        if left == 0 { self.delete_qdisc().await } else { Ok(Ensured::Unchanged) }
    }

    async fn delete_qdisc(&self) -> Result<Ensured, NetlinkError> {
        let request = RouteNetlinkMessage::DelQueueDiscipline(self.qdisc());
        self.netlink.change(request, Mode::Plain, "remove clsact from", || self.subject()).await?;
        Ok(Ensured::Changed)
    }

    async fn filters(&self, parent: TcHandle) -> Result<Vec<TcMessage>, NetlinkError> {
        let mut message = TcMessage::with_index(self.index.cast_signed());
        message.header.parent = parent;
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        let found = self.netlink.dump(request, "filters").await?;
        let of_port = |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        };
        Ok(found.into_iter().filter_map(of_port).collect())
    }

    async fn ensure_program(
        &self,
        filters: &[TcMessage],
        program: &[u8],
    ) -> Result<Ensured, NetlinkError> {
        if has_program(filters, program) {
            return Ok(Ensured::Unchanged);
        }
        let instructions = u16::try_from(program.len() / 8).unwrap_or(u16::MAX);
        let attributes =
            [(TCA_BPF_OPS_LEN, &instructions.to_ne_bytes()[..]), (TCA_BPF_OPS, program)];
        self.put_program(attributes, "put the source check on").await
    }

    /// Puts a program, which `attributes` say, in its place among the filters.
    async fn put_program(
        &self,
        attributes: [(u16, &[u8]); 2],
        action: &'static str,
    ) -> Result<Ensured, NetlinkError> {
        let attribute = |(kind, value): (u16, &[u8])| {
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(kind, value.to_vec())))
        };
        let direct = TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction));
        let options = attributes.map(attribute).into_iter().chain([direct]).collect();
        let mut message = self.filter(PROGRAM_PRIORITY, PROGRAM_HANDLE, "bpf");
        message.attributes.push(TcAttribute::Options(options));
        self.add_filter(message, Mode::Replace, action).await
    }

    async fn ensure_redirect(
        &self,
        filters: &[TcMessage],
        to: u32,
    ) -> Result<Ensured, NetlinkError> {
        let there: Vec<(u16, u32)> = filters.iter().filter_map(redirect_of).collect();
        let (right, wrong): (Vec<_>, Vec<_>) = there.iter().partition(|(_, index)| *index == to);
        let mut changed = Ensured::Unchanged;
        if right.is_empty() {
            let taken = |priority: &u16| there.iter().any(|(other, _)| other == priority);
            let [first, second] = REDIRECT_PRIORITIES;
            let priority = if taken(&first) { second } else { first };
            if taken(&priority) {
                self.delete_filter(priority, "u32").await?;
            }
            changed =
                self.add_filter(self.redirect(priority, to), Mode::Create, "redirect").await?;
        }
        for (priority, _) in wrong {
            changed = changed.or(self.delete_filter(priority, "u32").await?);
        }
        Ok(changed)
    }

    /// `u32 match u32 0 0 action mirred egress redirect dev TO`
    fn redirect(&self, priority: u16, to: u32) -> TcMessage {
        let mut everything = TcU32Selector::default();
        everything.flags = TcU32SelectorFlags::Terminal;
        everything.nkeys = 1;
        everything.keys = vec![TcU32Key::default()];
        let mut mirror = TcMirror::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = to;
        let mut action = TcAction::default();
        action.tab = 1;
        action.attributes = vec![
            TcActionAttribute::Kind("mirred".to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
                mirror,
            ))]),
        ];
        let mut message = self.filter(priority, TcHandle::UNSPEC, "u32");
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]));
        message
    }

    async fn add_filter(
        &self,
        message: TcMessage,
        mode: Mode,
        action: &'static str,
    ) -> Result<Ensured, NetlinkError> {
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        self.netlink.change(request, mode, action, || self.subject()).await?;
        Ok(Ensured::Changed)
    }

    /// Deletes every filter of a priority.
    async fn delete_filter(&self, priority: u16, kind: &str) -> Result<Ensured, NetlinkError> {
        let message = self.filter(priority, TcHandle::UNSPEC, kind);
        let request = RouteNetlinkMessage::DelTrafficFilter(message);
        match self
            .netlink
            .change(request, Mode::Plain, "remove filter from", || self.subject())
            .await
        {
            Ok(()) => Ok(Ensured::Changed),
            Err(error) if error.is_absent() => Ok(Ensured::Unchanged),
            Err(error) => Err(error),
        }
    }
}

fn index_of(message: &TcMessage) -> Option<u32> {
    u32::try_from(message.header.index).ok()
}

fn kind_of(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn dropped(qdisc: &TcMessage) -> u64 {
    let counted = qdisc.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Stats2(stats) => stats.iter().find_map(|stats| match stats {
            TcStats2::Queue(queue) => Some(u64::from(queue.drops)),
            _ => None,
        }),
        _ => None,
    });
    counted.unwrap_or(0)
}

fn options(filter: &TcMessage) -> impl Iterator<Item = &TcOption> {
    filter.attributes.iter().flat_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.as_slice(),
        _ => &[],
    })
}

fn priority_of(filter: &TcMessage) -> u16 {
    TcHandle::from(filter.header.info).major
}

/// Whether a filter is the program's, with direct action.
fn is_program(filter: &TcMessage) -> bool {
    let direct = |option: &TcOption| {
        matches!(option, TcOption::Bpf(TcFilterBpfOption::Flags(flags))
            if flags.contains(TcBpfFlags::DirectAction))
    };
    priority_of(filter) == PROGRAM_PRIORITY
        && kind_of(filter) == Some("bpf")
        && options(filter).any(direct)
}

fn has_program(filters: &[TcMessage], program: &[u8]) -> bool {
    let is = |filter: &TcMessage| value_of(filter, TCA_BPF_OPS).as_deref() == Some(program);
    filters.iter().any(|filter| is_program(filter) && is(filter))
}

/// An attribute of a filter with a program.
fn value_of(filter: &TcMessage, kind: u16) -> Option<Vec<u8>> {
    options(filter).find_map(|option| match option {
        TcOption::Bpf(option) if option.kind() == kind => {
            let mut value = vec![0; option.value_len()];
            option.emit_value(&mut value);
            Some(value)
        }
        _ => None,
    })
}

/// Priority and target of a filter that redirects everything.
fn redirect_of(filter: &TcMessage) -> Option<(u16, u32)> {
    let priority = priority_of(filter);
    if !REDIRECT_PRIORITIES.contains(&priority) || kind_of(filter) != Some("u32") {
        return None;
    }
    let actions = options(filter).find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let mirror = actions.iter().flat_map(|action| &action.attributes).find_map(mirror_of)?;
    Some((priority, mirror.ifindex))
}

fn mirror_of(attribute: &TcActionAttribute) -> Option<&TcMirror> {
    let TcActionAttribute::Options(options) = attribute else { return None };
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror),
        _ => None,
    })
}
