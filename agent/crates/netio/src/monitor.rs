//! Changes of links, addresses, routes, rules, traffic control and nftables, as the kernel announces
//! them.
//!
//! The agent listens so that it can put back what somebody else took away. A change tells what to look
//! at, not what is there now: by the time it is read it may be history, and the kernel drops
//! announcements when the reader is slow, which comes as [`Change::Lost`].

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use futures::Stream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;
use nix::sys::socket::NetlinkAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::addr::{self, Address};
use crate::link::{self, Link};
use crate::netns::NetNs;
use crate::route::{self, Route};
use crate::rule::{self, Rule};

/// Room for announcements that wait to be read, bytes: thousands of them.
const BUFFER_SIZE: usize = 4 << 20;
/// Longest datagram of announcements read at once; the kernel makes them up to 32 KiB.
const DATAGRAM_MAX: usize = 64 << 10;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: libc::c_uint = 7;

/// `NFNL_SUBSYS_NFTABLES`, the upper half of a message's type.
const NFTABLES_SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN`, the lower half of the message that ends a transaction.
const NEW_GENERATION: u16 = 15;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and so on.
const TABLE_NAME: u16 = 1;
/// `struct nlmsghdr`, bytes.
const HEADER_LENGTH: usize = 16;

/// Multicast groups of `linux/rtnetlink.h` that are listened to.
const GROUPS: [libc::c_uint; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_TC,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// One announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface was made or changed.
    LinkSet(Link),
    /// An interface was deleted, or moved to another namespace.
    LinkDeleted(Link),
    /// An address was added or changed.
    AddressSet(Address),
    /// An address was removed.
    AddressDeleted(Address),
    /// A route was added or replaced.
    RouteSet(Route),
    /// A route was removed. Routes that go because their interface goes down are not announced by
    /// IPv4.
    RouteDeleted(Route),
    /// A rule was added.
    RuleSet(Rule),
    /// A rule was removed.
    RuleDeleted(Rule),
    /// A qdisc or filter was added or changed on the interface of this index.
    TrafficControlSet {
        /// Interface index.
        index: u32,
    },
    /// A qdisc or filter was removed from the interface of this index.
    TrafficControlDeleted {
        /// Interface index.
        index: u32,
    },
    /// Something in the nftables table of this name was added, changed or removed, or the table
    /// itself. Tables of different families may have one name.
    Nftables {
        /// Name of the table.
        table: String,
    },
    /// Announcements were lost: look at everything.
    Lost,
}

/// A subscription to the changes of one network namespace.
#[derive(Debug)]
pub struct Monitor {
    route: Subscription,
    nftables: Subscription,
    /// Changes of the last datagram that were not taken yet, last first.
    pending: Vec<Change>,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace. Changes from this moment on are seen.
    ///
    /// Must be called in a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`, `ProtocolNotSupported` if the kernel has no
    /// nftables; the kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            route: Subscription::new(libc::NETLINK_ROUTE, &GROUPS)?,
            nftables: Subscription::new(libc::NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            pending: Vec::new(),
        })
    }

    /// Subscribes in `namespace`. As [`Monitor::new`] otherwise.
    ///
    /// # Errors
    /// As [`NetNs::enter`] and [`Monitor::new`].
    pub fn in_netns(namespace: &NetNs) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        namespace.enter(|| {
            let _context = runtime.enter();
            Self::new()
        })?
    }

    /// The next change. Can be dropped while it waits without losing one.
    ///
    /// # Errors
    /// The kernel's; the subscription should be made anew.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.pending.pop() {
                return Ok(change);
            }
            self.pending = tokio::select! {
                datagram = self.route.datagram() => announced(datagram?, route_change),
                datagram = self.nftables.datagram() => announced(datagram?, nftables_change),
            };
            self.pending.reverse();
        }
    }

    /// The changes as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Change>> + Send {
        futures::stream::unfold(Some(self), |monitor| async move {
            let mut monitor = monitor?;
            match monitor.next().await {
                Ok(change) => Some((Ok(change), Some(monitor))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// A netlink socket that gets announcements.
#[derive(Debug)]
struct Subscription {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Subscription {
    fn new(family: libc::c_int, groups: &[libc::c_uint]) -> io::Result<Self> {
        let kind = Type::RAW.nonblocking().cloexec();
        let domain = Domain::from(libc::AF_NETLINK);
        let socket = Socket::new_raw(domain, kind, Some(Protocol::from(family)))?;
        if socket.set_recv_buffer_size(BUFFER_SIZE).is_err() {
            tracing::debug!("netlink monitor keeps the default receive buffer");
        }
        // An unbound socket has the kernel's own port id, 0, and is passed over by announcements.
        nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        for group in groups {
            join(&socket, *group)?;
        }
        // SAFETY: the socket owns its descriptor and gives the same one until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self { socket, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// The next datagram; `None` if the kernel dropped some. Loses nothing if dropped.
    async fn datagram(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            match ready.try_io(|socket| io::Read::read(&mut socket.get_ref(), buffer)) {
                Ok(Ok(length)) => return Ok(Some(self.buffer.get(..length).unwrap_or_default())),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// The changes that a datagram of netlink messages tells, in order.
fn announced(datagram: Option<&[u8]>, read: fn(&[u8]) -> Option<Change>) -> Vec<Change> {
    let Some(datagram) = datagram else { return vec![Change::Lost] };
    messages(datagram).filter_map(read).collect()
}

/// The messages in a datagram, each with its `struct nlmsghdr`.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        // The header, 16 bytes, begins with the length of the message, header included.
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER_LENGTH)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn join(socket: &Socket, group: libc::c_uint) -> io::Result<()> {
    // SAFETY: the option takes an unsigned int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            std::ptr::from_ref(&group).cast(),
            size_of_val(&group) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What cannot be parsed is left out.
fn route_change(message: &[u8]) -> Option<Change> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
        Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(inner), .. }) => change(&inner),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "netlink announcement not understood");
            None
        }
    }
}

/// The table that a message of nftables is of: its attribute 1, whatever the message tells of,
/// but for the one that ends a transaction.
fn nftables_change(message: &[u8]) -> Option<Change> {
    // `nlmsghdr`: length, type, flags, sequence, port. Then `nfgenmsg`, 4 bytes.
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    if kind >> 8 != NFTABLES_SUBSYSTEM || kind & 0xff == NEW_GENERATION {
        return None;
    }
    let mut attributes = message.get(HEADER_LENGTH + 4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if kind == TABLE_NAME {
            let name = CStr::from_bytes_until_nul(attributes.get(4..length)?).ok()?;
            return Some(Change::Nftables { table: name.to_string_lossy().into_owned() });
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    use RouteNetlinkMessage as Message;
    Some(match message {
        Message::NewLink(message) => Change::LinkSet(link::describe(message)),
        Message::DelLink(message) => Change::LinkDeleted(link::describe(message)),
        Message::NewAddress(message) => Change::AddressSet(addr::describe(message)?),
        Message::DelAddress(message) => Change::AddressDeleted(addr::describe(message)?),
        Message::NewRoute(message) => Change::RouteSet(route::describe(message)?),
        Message::DelRoute(message) => Change::RouteDeleted(route::describe(message)?),
        Message::NewRule(message) => Change::RuleSet(rule::describe(message)?),
        Message::DelRule(message) => Change::RuleDeleted(rule::describe(message)?),
        Message::NewQueueDiscipline(message) | Message::NewTrafficFilter(message) => {
            Change::TrafficControlSet { index: index(message)? }
        }
        Message::DelQueueDiscipline(message) | Message::DelTrafficFilter(message) => {
            Change::TrafficControlDeleted { index: index(message)? }
        }
        _ => return None,
    })
}

fn index(message: &TcMessage) -> Option<u32> {
    u32::try_from(message.header.index).ok()
}
