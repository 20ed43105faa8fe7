//! The TUN device: multi-queue, with virtio-net headers, so that super-packets pass in one piece.
//!
//! A small wrapper of our own over `ioctl(2)` rather than the crate `tun-rs`: Weft needs to re-attach
//! to a persistent device after a crash, to tell apart why a device cannot be had, to probe offloads
//! one by one, and to notice the deletion of an open device. `tun-rs` hides the virtio header behind
//! its own segmentation, configures addresses and routes that belong to the agent here, and reports
//! these cases as one I/O error. What remains is seven ioctls, a `read` and a `writev`.
//!
//! Each [`TunQueue`] belongs to one worker. The kernel spreads flows over the queues by hash and
//! keeps a flow on the queue it was last written from.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use libc::c_ulong;

use crate::sys::{Control, ifreq, ioctl_ptr, ioctl_value};

mod sender;
mod vnet;
pub use sender::Sender;
use sender::Senders;
pub use vnet::{VNET_HEADER_LEN, VnetHeader};

#[cfg(test)]
mod tests;

/// Length of the device's transmit queue, packets. The default of 500 overflows when super-packets
/// of several flows arrive while a worker is busy with another queue.
const TX_QUEUE_LEN: u32 = 5000;
/// Queues one device can have: `MAX_TAP_QUEUES` of the kernel.
const QUEUES_MAX: usize = 256;
/// Parts of one packet that [`TunQueue::write`] takes.
const PARTS_MAX: usize = 7;

// `linux/if_tun.h`
const TUN_F_CSUM: c_ulong = 0x01;
const TUN_F_TSO4: c_ulong = 0x02;
const TUN_F_TSO6: c_ulong = 0x04;
const TUN_F_USO4: c_ulong = 0x20;
const TUN_F_USO6: c_ulong = 0x40;

/// What the kernel may leave undone on packets it hands over, and does on packets it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TCP super-packets of up to 64 KiB, both families. Needs `checksum`.
    pub tso: bool,
    /// UDP super-packets (`UDP_SEGMENT` of local senders). Needs `checksum` and Linux 6.2.
    pub uso: bool,
    /// Transport checksums may be partial.
    pub checksum: bool,
}

impl Offloads {
    /// Everything on.
    pub const ALL: Self = Self { tso: true, uso: true, checksum: true };
    /// Everything off: each packet is complete and fits the MTU.
    pub const NONE: Self = Self { tso: false, uso: false, checksum: false };

    /// The names used in status reports, with their state.
    #[must_use]
    pub fn named(self) -> [(&'static str, bool); 3] {
        [("tun_tso", self.tso), ("tun_uso", self.uso), ("tun_checksum", self.checksum)]
    }

    fn bits(self) -> c_ulong {
        let mut bits = 0;
        if self.checksum {
            bits |= TUN_F_CSUM;
            if self.tso {
                bits |= TUN_F_TSO4 | TUN_F_TSO6;
            }
            if self.uso {
                bits |= TUN_F_USO4 | TUN_F_USO6;
            }
        }
        bits
    }

    /// This and everything weaker, strongest first.
    fn fallbacks(self) -> impl Iterator<Item = Self> {
        let tso = self.tso && self.checksum;
        let uso = self.uso && self.checksum;
        let checksum = self.checksum;
        [
            Self { tso, uso, checksum },
            Self { tso, uso: false, checksum },
            Self { tso: false, uso: false, checksum },
            Self::NONE,
        ]
        .into_iter()
    }
}

/// Why a TUN device cannot be had. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN support or the container was not given the device.
    #[error("/dev/net/tun is missing: load the module `tun`, or give the container this device")]
    NoDevice,
    /// `CAP_NET_ADMIN` is missing, or the device belongs to another user.
    #[error("no permission to make TUN device {name}: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// Name asked for.
        name: String,
    },
    /// An interface of that name is not a TUN device.
    #[error("interface {name} exists and is a {driver} device, not a TUN: rename or delete it")]
    NameTaken {
        /// Name asked for.
        name: String,
        /// Driver of the device that has the name.
        driver: String,
    },
    /// The TUN device exists in a shape that cannot be attached to (single-queue).
    #[error(
        "TUN device {name} exists but is not multi-queue: delete it with `ip link delete {name}`"
    )]
    WrongShape {
        /// Name asked for.
        name: String,
    },
    /// Another process has queues of the device open.
    #[error("TUN device {name} is in use by another process: is a datapath running already?")]
    Busy {
        /// Name asked for.
        name: String,
    },
    /// The name is not one for an interface, or the number of queues is not 1 to 256.
    #[error(
        "TUN device {name:?} with {queues} queues: name must have 1 to 15 bytes, queues be 1 to 256"
    )]
    Invalid {
        /// Name asked for.
        name: String,
        /// Queues asked for.
        queues: usize,
    },
    /// Any other refusal.
    #[error("cannot {step} TUN device {name}: {source}")]
    Io {
        /// Name asked for.
        name: String,
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a packet could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The device was deleted while open. The queue is dead: open the device again.
    #[error("the TUN device was deleted")]
    Deleted,
    /// The device is down; it can be used again once it is up.
    #[error("the TUN device is down")]
    Down,
    /// The kernel has no memory or queue space for this packet at the moment: it is lost.
    #[error("the kernel has no room for the packet")]
    Full,
    /// The kernel found the packet or its virtio header malformed: it is lost.
    #[error("the kernel refused the packet as malformed")]
    Malformed,
    /// Any other error.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for QueueError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // EFAULT: the queue's socket was shut down while the call was under way.
            Some(libc::EBADFD | libc::EFAULT) => Self::Deleted,
            Some(libc::EIO) => Self::Down,
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Self::Full,
            Some(libc::EINVAL | libc::EMSGSIZE) => Self::Malformed,
            _ => Self::Io(error),
        }
    }
}

/// An attached TUN device: its name, what was negotiated, and its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    index: u32,
    offloads: Offloads,
    queues: Vec<TunQueue>,
}

impl Tun {
    /// Opens the persistent device `name` in the calling thread's network namespace, making it if
    /// need be, attaches `queues` queues, sets `mtu` and brings it up.
    ///
    /// `wanted` is what the caller can handle; [`Tun::offloads`] says what the kernel agreed to.
    /// A device left over from a process that ended is attached to as it is, with its addresses
    /// and routes.
    ///
    /// # Errors
    /// See [`TunError`]. A device made by a failing call is not left behind.
    pub fn open(name: &str, queues: usize, mtu: u16, wanted: Offloads) -> Result<Self, TunError> {
        if queues == 0 || queues > QUEUES_MAX || ifreq(name).is_err() {
            return Err(TunError::Invalid { name: name.to_owned(), queues });
        }
        let failed = |step| move |source| TunError::Io { name: name.to_owned(), step, source };
        let control = Control::open().map_err(failed("query"))?;
        if control.index(name).map_err(failed("query"))?.is_some() {
            check_existing(&control, name)?;
        }
        let opened: Vec<TunQueue> =
            (0..queues).map(|_| TunQueue::attach(name)).collect::<Result<_, _>>()?;
        let first = opened.first().ok_or(TunError::Invalid { name: name.to_owned(), queues })?;
        let offloads = negotiate(first, wanted).map_err(failed("set the offloads of"))?;
        control.set_tx_queue_len(name, TX_QUEUE_LEN).map_err(failed("set the queue length of"))?;
        control.set_mtu(name, mtu).map_err(failed("set the MTU of"))?;
        control.set_up(name).map_err(failed("bring up"))?;
        first.set_persistent(true).map_err(failed("make persistent"))?;
        let index = control.index(name).map_err(failed("query"))?;
        let index =
            index.ok_or_else(|| failed("find")(io::Error::from_raw_os_error(libc::ENODEV)))?;
        Ok(Self { name: name.to_owned(), index, offloads, queues: opened })
    }

    /// Deletes the persistent device `name` if it is there and no process has it open.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn delete(name: &str) -> Result<(), TunError> {
        let failed = |step| move |source| TunError::Io { name: name.to_owned(), step, source };
        let control = Control::open().map_err(failed("query"))?;
        if control.index(name).map_err(failed("query"))?.is_none() {
            return Ok(());
        }
        check_existing(&control, name)?;
        TunQueue::attach(name)?.set_persistent(false).map_err(failed("delete"))
    }

    /// Has the kernel note who sends, so that [`TunQueue::last_sender`] knows.
    ///
    /// # Errors
    /// The kernel's: it has no such thing, or wants `CAP_BPF` for it.
    pub fn watch_senders(&mut self) -> io::Result<()> {
        let Some(first) = self.queues.first() else { return Ok(()) };
        let senders = Arc::new(Senders::watch(first.as_fd(), self.queues.len())?);
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.senders = Some((Arc::clone(&senders), index));
        }
        Ok(())
    }

    /// Takes away what an earlier process left of [`Tun::watch_senders`].
    ///
    /// # Errors
    /// The kernel's: it has no such thing.
    pub fn unwatch_senders(&self) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |first| Senders::unwatch(first.as_fd()))
    }

    /// Changes the MTU of the device.
    ///
    /// # Errors
    /// The kernel's, `ENODEV` if the device was deleted.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        Control::open()?.set_mtu(&self.name, mtu)
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel agreed to.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The queues, one for each worker.
    #[must_use]
    pub fn queues(&self) -> &[TunQueue] {
        &self.queues
    }

    /// Gives the queues away. The device stays when they are closed.
    #[must_use]
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }
}

/// Makes sure that an existing device is a TUN that nobody else has open.
fn check_existing(control: &Control, name: &str) -> Result<(), TunError> {
    let failed = |step| move |source| TunError::Io { name: name.to_owned(), step, source };
    let (driver, bus) = control.driver(name).map_err(failed("query"))?;
    if driver != "tun" || bus != "tun" {
        let driver = match (driver.as_str(), bus.as_str()) {
            ("tun", _) => "tap".to_owned(),
            ("", _) => "different".to_owned(),
            _ => driver,
        };
        return Err(TunError::NameTaken { name: name.to_owned(), driver });
    }
    // The carrier tells whether queues are attached, but is only kept for devices that are up.
    if !control.is_up(name).map_err(failed("query"))? {
        control.set_up(name).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => TunError::NotPermitted { name: name.to_owned() },
            _ => failed("bring up")(source),
        })?;
    }
    if control.has_carrier(name).map_err(failed("query"))? {
        return Err(TunError::Busy { name: name.to_owned() });
    }
    Ok(())
}

/// Offers `wanted`, then less and less; offloads are of the device, so one queue speaks for all.
fn negotiate(queue: &TunQueue, wanted: Offloads) -> io::Result<Offloads> {
    let mut refused = None;
    for offloads in wanted.fallbacks() {
        match queue.set_offloads(offloads) {
            Ok(()) => return Ok(offloads),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// One queue of a [`Tun`]: non-blocking, owned by one worker. Closing it detaches it.
pub struct TunQueue {
    file: File,
    /// With the number of this queue in them.
    senders: Option<(Arc<Senders>, usize)>,
}

impl TunQueue {
    fn attach(name: &str) -> Result<Self, TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
                Some(libc::EPERM | libc::EACCES) => {
                    TunError::NotPermitted { name: name.to_owned() }
                }
                _ => TunError::Io { name: name.to_owned(), step: "open /dev/net/tun for", source },
            })?;
        let mut request =
            ifreq(name).map_err(|_| TunError::Invalid { name: name.to_owned(), queues: 1 })?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF works on one ifreq.
        let attached = unsafe { ioctl_ptr(file.as_fd(), libc::TUNSETIFF as c_ulong, &mut request) };
        match attached {
            Ok(()) => Ok(Self { file, senders: None }),
            Err(source) => Err(match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    TunError::NotPermitted { name: name.to_owned() }
                }
                Some(libc::EBUSY | libc::E2BIG) => TunError::Busy { name: name.to_owned() },
                Some(libc::EINVAL) => TunError::WrongShape { name: name.to_owned() },
                _ => TunError::Io { name: name.to_owned(), step: "make", source },
            }),
        }
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { ioctl_value(self.file.as_fd(), libc::TUNSETOFFLOAD as c_ulong, offloads.bits()) }
    }

    fn set_persistent(&self, on: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        unsafe { ioctl_value(self.file.as_fd(), libc::TUNSETPERSIST as c_ulong, on.into()) }
    }

    /// Reads one packet or super-packet into `buffer`.
    ///
    /// Returns where in `buffer` the packet lies (after the [`VNET_HEADER_LEN`] bytes of header),
    /// and the header; `None` if nothing waits. `buffer` should hold 64 KiB and the header: a
    /// longer packet is cut short.
    ///
    /// # Errors
    /// [`QueueError::Deleted`] if the device is gone.
    pub fn read(
        &self,
        buffer: &mut [u8],
    ) -> Result<Option<(Range<usize>, VnetHeader)>, QueueError> {
        let length = match io::Read::read(&mut &self.file, buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(header) = buffer.first_chunk::<VNET_HEADER_LEN>() else {
            return Err(QueueError::Malformed);
        };
        if length < VNET_HEADER_LEN {
            return Err(QueueError::Malformed);
        }
        Ok(Some((VNET_HEADER_LEN..length, VnetHeader::parse(header))))
    }

    /// Who sent the last packet that came to this queue; `None` if there was none yet, or without
    /// [`Tun::watch_senders`].
    #[must_use]
    pub fn last_sender(&self) -> Option<Sender> {
        let (senders, index) = self.senders.as_ref()?;
        senders.last(*index)
    }

    /// Writes one packet or super-packet, given in up to 7 parts, for the host to take in.
    ///
    /// # Errors
    /// See [`QueueError`]. Whatever the error, the packet is lost and the next may pass.
    pub fn write(&self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> Result<(), QueueError> {
        let head = header.emit();
        let mut all = [IoSlice::new(&[]); PARTS_MAX + 1];
        let Some((first, rest)) = all.split_first_mut() else { return Err(QueueError::Malformed) };
        if parts.len() > rest.len() {
            return Err(QueueError::Malformed);
        }
        *first = IoSlice::new(&head);
        for (to, from) in rest.iter_mut().zip(parts) {
            *to = *from;
        }
        let used = all.get(..=parts.len()).unwrap_or_default();
        io::Write::write_vectored(&mut &self.file, used)?;
        Ok(())
    }
}

impl fmt::Debug for TunQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunQueue").field("fd", &self.file.as_raw_fd()).finish()
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
