//! The tunnel's UDP socket: both families, one per worker, with segmentation and merging by the kernel.
//!
//! Bound to `[::]` it is one dual-stack IPv6 socket: one descriptor to poll and one port to share, and
//! IPv4 peers appear and are addressed as plain IPv4. Where the machine has no IPv6 it falls back to
//! an IPv4 socket by itself. Path MTU discovery is off: the tunnel's MTU is made to fit the underlay,
//! and where the underlay turns out smaller an outer packet is fragmented rather than lost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

mod message;

#[cfg(test)]
mod tests;

/// Segments one `UDP_SEGMENT` send may have: `UDP_MAX_SEGMENTS` of kernels before 6.9, which is 128 since.
const SEGMENTS_MAX: usize = 64;
/// Payload of the longest UDP datagram over IPv4: 65535 - IP header 20 - UDP header 8.
const PAYLOAD_MAX: usize = 65_507;
/// Size asked for both socket buffers, bytes.
const BUFFER_SIZE: usize = 4 << 20;

/// What the kernel does for a batch of equal datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOffloads {
    /// One send of many datagrams, split by the kernel or the device (Linux 4.18).
    pub gso: bool,
    /// One receive of many datagrams (Linux 5.0).
    pub gro: bool,
}

impl UdpOffloads {
    /// Everything on.
    pub const ALL: Self = Self { gso: true, gro: true };
    /// Everything off: one datagram for each call.
    pub const NONE: Self = Self { gso: false, gro: false };

    /// The names used in status reports, with their state.
    #[must_use]
    pub fn named(self) -> [(&'static str, bool); 2] {
        [("udp_gso", self.gso), ("udp_gro", self.gro)]
    }
}

/// What one receive brought: datagrams of one sender, back to back at the start of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// Bytes of all datagrams.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter. Never zero.
    pub segment_size: usize,
    /// The sender; plain IPv4 if it is IPv4.
    pub from: SocketAddr,
}

impl Datagrams {
    /// The single datagrams in `buffer`, the one that was received into.
    pub fn split<'a>(&self, buffer: &'a mut [u8]) -> impl Iterator<Item = &'a mut [u8]> {
        let end = self.len.min(buffer.len());
        buffer.get_mut(..end).unwrap_or_default().chunks_mut(self.segment_size.max(1))
    }
}

/// A non-blocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    /// The socket is IPv6, so IPv4 addresses are mapped on the way in and out.
    mapped: bool,
    gso: AtomicBool,
    gro: bool,
    refused: AtomicU64,
}

impl UdpSocket {
    /// Binds to `local`, together with other sockets of this user bound the same way: the kernel
    /// spreads senders over them. `[::]` means both families.
    ///
    /// Offloads in `wanted` that the kernel does not have are left off, see
    /// [`UdpSocket::offloads`].
    ///
    /// # Errors
    /// The kernel's: `AddrInUse` if another kind of socket has the port, `AddrNotAvailable` if
    /// the address is not of this machine.
    pub fn bind(local: SocketAddr, wanted: UdpOffloads) -> io::Result<Self> {
        match Self::bind_one(local, wanted) {
            Err(error) if local.ip().is_unspecified() && local.is_ipv6() && no_ipv6(&error) => {
                Self::bind_one((Ipv4Addr::UNSPECIFIED, local.port()).into(), wanted)
            }
            result => result,
        }
    }

    fn bind_one(local: SocketAddr, wanted: UdpOffloads) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() {
            socket.set_only_v6(!local.ip().is_unspecified())?;
        }
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        message::allow_fragments(&socket, local.is_ipv6())?;
        message::set_buffers(&socket, BUFFER_SIZE);
        socket.bind(&local.into())?;
        let local = socket.local_addr()?.as_socket().unwrap_or(local);
        let gso = wanted.gso && message::supports_gso(&socket);
        let gro = wanted.gro && message::enable_gro(&socket);
        let gso = AtomicBool::new(gso);
        Ok(Self { mapped: local.is_ipv6(), socket, local, gso, gro, refused: AtomicU64::new(0) })
    }

    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Which offloads are in use. GSO goes off for good when a route turns out not to take it.
    #[must_use]
    pub fn offloads(&self) -> UdpOffloads {
        UdpOffloads { gso: self.gso.load(Ordering::Relaxed), gro: self.gro }
    }

    /// Batches that the kernel refused to segment and that went out one by one.
    #[must_use]
    pub fn refused_batches(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Receives what waits: one datagram, or several of one sender merged by the kernel.
    ///
    /// `None` if nothing waits. `buffer` should hold 64 KiB; what does not fit is cut off. Empty
    /// datagrams are skipped.
    ///
    /// # Errors
    /// The kernel's. The socket can be used further.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<Datagrams>> {
        loop {
            let received = match message::recv(&self.socket, buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if received.len == 0 {
                continue;
            }
            let segment_size =
                received.segment_size.filter(|size| *size > 0).unwrap_or(received.len);
            let from = plain(received.from);
            return Ok(Some(Datagrams { len: received.len, segment_size, from }));
        }
    }

    /// Sends `bytes` to `to`, as one datagram or, given a segment size, as datagrams of that many
    /// bytes, the last of which may be shorter.
    ///
    /// Any number of segments is taken and sent in as few calls as the kernel allows. Returns the
    /// bytes handed to the kernel, always whole datagrams: fewer than given if its buffer is full.
    ///
    /// # Errors
    /// The kernel's, such as `NetworkUnreachable`; nothing after the datagram in error was sent.
    pub fn send(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment_size: Option<u16>,
    ) -> io::Result<usize> {
        let to = self.wire(to)?;
        let size = segment_size.map_or(bytes.len(), usize::from).max(1);
        let mut sent = 0;
        if bytes.len() > size && self.gso.load(Ordering::Relaxed) {
            let batch = size * SEGMENTS_MAX.min(PAYLOAD_MAX / size).max(1);
            for part in bytes.chunks(batch) {
                match self.send_batch(to, part, size)? {
                    Some(count) if count == part.len() => sent += count,
                    Some(count) => return Ok(sent + count),
                    None => return Ok(sent),
                }
            }
            return Ok(sent);
        }
        self.send_singly(to, bytes, size)
    }

    /// Sends up to 64 segments in one call, or one by one where that is refused.
    fn send_batch(&self, to: SocketAddr, part: &[u8], size: usize) -> io::Result<Option<usize>> {
        if part.len() <= size {
            return message::send(&self.socket, to, part, None).or_else(full);
        }
        let segment = u16::try_from(size).unwrap_or(u16::MAX);
        match message::send(&self.socket, to, part, Some(segment)).or_else(full) {
            Err(error) if self.refusal(&error) => self.send_singly(to, part, size).map(Some),
            result => result,
        }
    }

    /// Tells a refusal to segment from other errors, and remembers one that is there to stay.
    ///
    /// `EIO`: the route's device cannot checksum, or there is IPsec on it: always so. `EINVAL` and
    /// `EMSGSIZE`: a segment is longer than the path's MTU: of this batch only.
    fn refusal(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO) => {
                self.gso.store(false, Ordering::Relaxed);
                self.refused.fetch_add(1, Ordering::Relaxed);
                true
            }
            Some(libc::EINVAL | libc::EMSGSIZE) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    fn send_singly(&self, to: SocketAddr, bytes: &[u8], size: usize) -> io::Result<usize> {
        let mut sent = 0;
        for datagram in bytes.chunks(size) {
            match message::send(&self.socket, to, datagram, None).or_else(full)? {
                Some(count) => sent += count,
                None => break,
            }
        }
        Ok(sent)
    }

    /// The address as the socket's family wants it.
    fn wire(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        match to {
            SocketAddr::V4(v4) if self.mapped => {
                Ok(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into())
            }
            SocketAddr::V6(_) if !self.mapped => {
                Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
            }
            to => Ok(to),
        }
    }
}

/// A full buffer is not an error but an answer.
fn full(error: io::Error) -> io::Result<Option<usize>> {
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => (v4, address.port()).into(),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
