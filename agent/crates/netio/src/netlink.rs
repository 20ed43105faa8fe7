//! The connection to the kernel's routing netlink, and what every request on it shares.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use tokio::sync::Mutex;

use crate::netns::NetNs;

/// What an `ensure_*` or `remove` function found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// Everything was as wanted.
    Unchanged,
    /// Something had to be made, changed or removed.
    Changed,
}

impl Ensured {
    /// Whether something had to be done.
    #[must_use]
    pub fn changed(self) -> bool {
        self == Self::Changed
    }

    /// `Changed` if either is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self.changed() { self } else { other }
    }
}

/// An address family of routes and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a prefix.
    #[must_use]
    pub fn of(net: &ipnet::IpNet) -> Self {
        match net {
            ipnet::IpNet::V4(_) => Self::V4,
            ipnet::IpNet::V6(_) => Self::V6,
        }
    }

    pub(crate) fn raw(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    pub(crate) fn from_raw(raw: AddressFamily) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.raw() == raw)
    }
}

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("cannot {action} {subject}: {source}")]
    Refused {
        /// What was tried, as a verb: "add route".
        action: &'static str,
        /// What it was tried on.
        subject: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An interface that must be there is not.
    #[error("there is no interface {name}")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// An interface has the name but is of another kind.
    #[error("interface {name} exists and is not a {wanted}: rename or delete it")]
    WrongKind {
        /// Its name.
        name: String,
        /// The kind it should have.
        wanted: &'static str,
    },
    /// More addresses than the filter of one port can hold.
    #[error("interface {name}: {count} addresses are more than a port can have ({max})")]
    TooManyAddresses {
        /// Name of the port.
        name: String,
        /// Addresses given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The task that serves the connection ended.
    #[error("the netlink connection is closed")]
    Closed,
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::NoInterface { .. } => Some(libc::ENODEV),
            Self::WrongKind { .. } | Self::TooManyAddresses { .. } | Self::Closed => None,
        }
    }

    /// Whether the thing asked for, or the interface it is on, is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }
}

/// A routing netlink connection, bound to the network namespace it was opened in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// Held during a dump: the kernel refuses a second one on the same socket (EBUSY).
    dump: Arc<Mutex<()>>,
}

/// A dump whose caller went away half-way is still being read by the connection: how often, and
/// how long, the next one waits for it.
const DUMP_TRIES: usize = 50;
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// How a request is to be taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Add, refuse if it is there.
    Create,
    /// Add or put in the place of what is there.
    Replace,
    /// Change or delete what is there.
    Plain,
}

impl Netlink {
    /// Connects in the calling thread's network namespace.
    ///
    /// Must be called in a tokio runtime with I/O and time enabled, which serves the connection until the
    /// last clone is dropped.
    ///
    /// # Errors
    /// The kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, dump: Arc::default() })
    }

    /// Connects in `namespace`, for a caller that is in another one. As [`Netlink::new`] otherwise.
    ///
    /// # Errors
    /// As [`NetNs::enter`] and [`Netlink::new`].
    pub fn in_netns(namespace: &NetNs) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        namespace.enter(|| {
            let _context = runtime.enter();
            Self::new()
        })?
    }

    /// Sends a change and waits for the kernel's word.
    pub(crate) async fn change(
        &self,
        message: RouteNetlinkMessage,
        mode: Mode,
        action: &'static str,
        subject: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let flags = match mode {
            Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
            Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Mode::Plain => 0,
        };
        match self.request(message, NLM_F_ACK | flags).await? {
            Answer::Done(_) => Ok(()),
            Answer::Refused(source) => {
                Err(NetlinkError::Refused { action, subject: subject(), source })
            }
        }
    }

    /// Asks for one object by `message`; `None` if the kernel says it is not there.
    pub(crate) async fn get(
        &self,
        message: RouteNetlinkMessage,
        subject: impl FnOnce() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        match self.request(message, 0).await? {
            Answer::Done(found) => Ok(found.into_iter().next()),
            Answer::Refused(source) => {
                let error = NetlinkError::Refused { action: "query", subject: subject(), source };
                if error.is_absent() { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Asks for every object that matches `message`.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        subject: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let _turn = self.dump.lock().await;
        let mut tries = DUMP_TRIES;
        loop {
            match self.request(message.clone(), NLM_F_DUMP).await? {
                Answer::Done(found) => return Ok(found),
                Answer::Refused(e) if e.raw_os_error() == Some(libc::EBUSY) && tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(DUMP_PAUSE).await;
                }
                Answer::Refused(source) => {
                    let subject = subject.to_owned();
                    return Err(NetlinkError::Refused { action: "list", subject, source });
                }
            }
        }
    }

    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer, NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let mut stream = handle.request(request).map_err(|_| NetlinkError::Closed)?;
        let mut found = Vec::new();
        while let Some(answer) = stream.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Ok(Answer::Refused(error.to_io()));
                }
                _ => {}
            }
        }
        Ok(Answer::Done(found))
    }
}

enum Answer {
    Done(Vec<RouteNetlinkMessage>),
    Refused(io::Error),
}
