//! How large the super-packets of an interface may be.
//!
//! One request and its answer on a socket of its own, since `weft-cni` has no runtime to wait on.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::sys::Control;

/// Limits the TCP super-packets that senders on interface `name` of the calling thread's namespace
/// make to `segments`, 1 to 65535.
///
/// # Errors
/// The kernel's; `NotFound` if there is no such interface.
pub fn limit(name: &str, segments: u16) -> io::Result<()> {
    let index = Control::open()?.index(name)?.ok_or(io::ErrorKind::NotFound)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::GsoMaxSegs(segments.into()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetLink(link));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
    let socket = socket(family, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut answer = vec![0; 8192];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(len);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer) {
        Ok(NetlinkMessage { payload: NetlinkPayload::Error(error), .. }) => {
            error.code.map_or(Ok(()), |_| Err(error.to_io()))
        }
        Ok(_) | Err(_) => Err(malformed()),
    }
}
