//! `sendmsg` and `recvmsg` with the segmentation control messages, and the socket options.

use std::io;
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use libc::{c_int, c_void};
use socket2::{SockAddr, Socket};

/// Room for one control message with an `int`, aligned for its header.
#[repr(align(8))]
struct Control([u8; 64]);

/// One `recvmsg`.
pub(super) struct Received {
    pub(super) len: usize,
    pub(super) segment_size: Option<usize>,
    pub(super) from: SocketAddr,
}

/// Sends `bytes` in one call, segmented by the kernel if `segment_size` is given.
pub(super) fn send(
    socket: &Socket,
    to: SocketAddr,
    bytes: &[u8],
    segment_size: Option<u16>,
) -> io::Result<Option<usize>> {
    let to = SockAddr::from(to);
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    // SAFETY: msghdr is a plain C structure for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast::<c_void>();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if let Some(size) = segment_size {
        message.msg_control = control.0.as_mut_ptr().cast::<c_void>();
        // SAFETY: `control` outlives the call, is aligned, and is longer than CMSG_SPACE(2).
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(size);
        }
    }
    loop {
        // SAFETY: every pointer in `message` is to a live local or argument; sendmsg only reads.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(Some(sent));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives into `buffer` and reads the size of merged datagrams, if several were merged.
pub(super) fn recv(socket: &Socket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut vector =
        libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    let mut control = Control([0; 64]);
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: msghdr is a plain C structure for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast::<c_void>();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast::<c_void>();
    message.msg_controllen = size_of_val(&control.0) as _;
    // SAFETY: every pointer in `message` is to a live, exclusively borrowed local or argument.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the storage was zeroed, so it is initialised whatever the kernel wrote.
    let from = unsafe { address(&name.assume_init()) };
    Ok(Received { len: len.min(buffer.len()), segment_size: merged_size(&message), from })
}

/// The payload of the `UDP_GRO` control message.
fn merged_size(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel filled msg_control and set msg_controllen to what it used; the CMSG_*
    // walk stays inside it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(header).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn address(storage: &libc::sockaddr_storage) -> SocketAddr {
    let storage = std::ptr::from_ref(storage);
    // SAFETY: sockaddr_storage is as large and as aligned as each address family's structure, and
    // the family says which one the kernel wrote; all bit patterns are values of both.
    unsafe {
        match c_int::from((*storage).ss_family) {
            libc::AF_INET => {
                let v4 = &*storage.cast::<libc::sockaddr_in>();
                (v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port)).into()
            }
            libc::AF_INET6 => {
                let v6 = &*storage.cast::<libc::sockaddr_in6>();
                let port = u16::from_be(v6.sin6_port);
                // The scope is zero but for link-local senders, who cannot be answered without it.
                SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), port, 0, v6.sin6_scope_id).into()
            }
            _ => (Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }
}

/// Turns path MTU discovery off: no DF on IPv4, and fragments at the sender for both families.
pub(super) fn allow_fragments(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
}

/// Asks for buffers beyond the system's limit, and where that is not allowed for what is.
pub(super) fn set_buffers(socket: &Socket, bytes: usize) {
    let value = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    if set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value).is_err() {
        let _ = socket.set_recv_buffer_size(bytes);
    }
    if set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value).is_err() {
        let _ = socket.set_send_buffer_size(bytes);
    }
}

/// Whether the kernel knows `UDP_SEGMENT`. The option is left at zero: sizes come with each send.
pub(super) fn supports_gso(socket: &Socket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Turns merging on, if the kernel has it.
pub(super) fn enable_gro(socket: &Socket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

fn set(socket: &Socket, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: each option used here takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast::<c_void>(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
