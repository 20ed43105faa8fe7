//! Thin safe wrappers over the interface ioctls (`netdevice(7)`, `tun.h`, `ethtool.h`).
//!
//! Each works in the network namespace of the calling thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong};

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`: names the driver of a device.
const ETHTOOL_GDRVINFO: u32 = 0x03;
/// `ETHTOOL_GLINK` of `linux/ethtool.h`: carrier, after pending link events are applied.
const ETHTOOL_GLINK: u32 = 0x0a;

/// An `ifreq` with its name filled in and every other byte zero.
///
/// # Errors
/// `InvalidInput` if the name is empty, longer than 15 bytes or has a NUL or a slash.
pub(crate) fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes.len() >= libc::IFNAMSIZ
        || bytes.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "interface name must have 1 to 15 bytes",
        ));
    }
    // SAFETY: ifreq is a plain C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// Issues an ioctl whose argument is a pointer to `argument`.
///
/// # Safety
/// `request` must be an ioctl of `fd` that reads or writes at most `size_of::<T>()` bytes there.
pub(crate) unsafe fn ioctl_ptr<T>(
    fd: BorrowedFd<'_>,
    request: c_ulong,
    argument: &mut T,
) -> io::Result<()> {
    // SAFETY: the pointer is valid for the size the caller vouches for.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) })
}

/// Issues an ioctl whose argument is an integer.
///
/// # Safety
/// `request` must be an ioctl of `fd` that takes its argument by value.
pub(crate) unsafe fn ioctl_value(
    fd: BorrowedFd<'_>,
    request: c_ulong,
    argument: c_ulong,
) -> io::Result<()> {
    // SAFETY: no memory is handed over.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram socket that interface ioctls can be issued on.
pub(crate) struct Control(OwnedFd);

impl Control {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: plain call; the descriptor it returns is owned by nobody else.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(fd)?;
        // SAFETY: checked above to be a new descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn ifreq_ioctl(&self, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
        use std::os::fd::AsFd;
        // SAFETY: every caller below passes an SIOC* request that works on one ifreq.
        unsafe { ioctl_ptr(self.0.as_fd(), request as c_ulong, argument) }
    }

    /// Index of the interface, `None` if there is none of that name.
    pub(crate) fn index(&self, name: &str) -> io::Result<Option<u32>> {
        let mut request = ifreq(name)?;
        match self.ifreq_ioctl(libc::SIOCGIFINDEX as libc::Ioctl, &mut request) {
            // SAFETY: SIOCGIFINDEX fills this member of the union.
            Ok(()) => Ok(u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).ok()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = ifreq(name)?;
        request.ifr_ifru.ifru_mtu = c_int::from(mtu);
        self.ifreq_ioctl(libc::SIOCSIFMTU as libc::Ioctl, &mut request)
    }

    /// Sets the length of the device's transmit queue, in packets.
    pub(crate) fn set_tx_queue_len(&self, name: &str, packets: u32) -> io::Result<()> {
        let mut request = ifreq(name)?;
        // The queue length shares the union with the other plain integers.
        request.ifr_ifru.ifru_metric = c_int::try_from(packets).unwrap_or(c_int::MAX);
        self.ifreq_ioctl(libc::SIOCSIFTXQLEN as libc::Ioctl, &mut request)
    }

    pub(crate) fn is_up(&self, name: &str) -> io::Result<bool> {
        let mut request = ifreq(name)?;
        self.ifreq_ioctl(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
        // SAFETY: SIOCGIFFLAGS fills this member of the union.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & libc::IFF_UP != 0)
    }

    pub(crate) fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = ifreq(name)?;
        self.ifreq_ioctl(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
        // SAFETY: SIOCGIFFLAGS fills this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        if c_int::from(flags) & libc::IFF_UP != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.ifreq_ioctl(libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
    }

    /// Driver and bus names, such as `("tun", "tun")`; empty if the device does not tell.
    pub(crate) fn driver(&self, name: &str) -> io::Result<(String, String)> {
        /// `struct ethtool_drvinfo`; the names are at fixed places before the padding.
        #[repr(C)]
        struct DriverInfo {
            command: u32,
            driver: [u8; 32],
            version: [u8; 32],
            firmware: [u8; 32],
            bus: [u8; 32],
            rest: [u8; 64],
        }
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware: [0; 32],
            bus: [0; 32],
            rest: [0; 64],
        };
        match self.ethtool(name, &mut info) {
            Ok(()) => Ok((text(&info.driver), text(&info.bus))),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Default::default()),
            Err(error) => Err(error),
        }
    }

    /// Whether the device has a carrier; for a TUN: whether any queue of it is open.
    ///
    /// Tells the truth for devices that are up only.
    pub(crate) fn has_carrier(&self, name: &str) -> io::Result<bool> {
        let mut value = [ETHTOOL_GLINK, 0];
        self.ethtool(name, &mut value)?;
        Ok(value[1] != 0)
    }

    fn ethtool<T>(&self, name: &str, command: &mut T) -> io::Result<()> {
        let mut request = ifreq(name)?;
        request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
        self.ifreq_ioctl(libc::SIOCETHTOOL as libc::Ioctl, &mut request)
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}
