//! Delivery: what comes out of the TUN device for a pod of this node goes to the pod's device at
//! once, instead of through the host's routing and netfilter.
//!
//! A program on the TUN device's ingress looks the destination up in a map. Only the way is shorter:
//! the neighbour's Ethernet address, the device's queues and what listens there are as before.
//! What is not in the map, or is too big for the device and has to be answered, is routed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_route::tc::TcMessage;

use super::{INGRESS, PROGRAM_PRIORITY, Port, is_program, value_of};
use crate::bpf::{
    self, BPF_MTU_CHK_SEGS, CHECK_MTU, Code, MAP_LOOKUP_ELEM, REDIRECT_NEIGH, SKB_CHANGE_HEAD,
    SKB_LOAD_BYTES,
};
use crate::link;
use crate::netlink::{Ensured, Netlink, NetlinkError};

/// Addresses that the map can hold; a node has a few hundred pods at most.
const ADDRESSES_MAX: usize = 16_384;
/// An IPv6 address, or an IPv4 address mapped into one.
type Key = [u8; 16];
/// The index of a device.
type Value = [u8; 4];

// `linux/pkt_cls.h`
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// The next filter is asked; there is none, so that the packet goes on to the host.
const TC_ACT_UNSPEC: i32 = -1;

/// Name of the program in listings.
const NAME: &[u8] = b"weft-delivery\0";

/// The program and its map. A filter keeps both alive when this is dropped, so that delivery goes on
/// as it was while nobody can change it.
#[derive(Debug)]
pub struct Delivery {
    map: OwnedFd,
    program: OwnedFd,
    id: u32,
}

impl Delivery {
    /// Loads the program, which delivers nothing yet.
    ///
    /// # Errors
    /// The kernel's: it is older than 5.12, or wants `CAP_BPF`.
    pub fn new() -> io::Result<Self> {
        let sizes = (size_of::<Key>(), size_of::<Value>());
        let map = bpf::create_map(bpf::BPF_MAP_TYPE_HASH, sizes, ADDRESSES_MAX, 0)?;
        let program = program(map.as_fd()).load(bpf::BPF_PROG_TYPE_SCHED_CLS)?;
        let id = bpf::program_id(program.as_fd())?;
        Ok(Self { map, program, id })
    }

    /// Delivers what is for `address` through the device of index `device`, on which the address is
    /// a neighbour.
    ///
    /// # Errors
    /// The kernel's, `E2BIG` beyond 16384 addresses. The address is routed then.
    pub fn put(&self, address: IpAddr, device: u32) -> io::Result<()> {
        let value: Value = device.to_ne_bytes();
        // SAFETY: made with keys and values of these types.
        unsafe { bpf::update(self.map.as_fd(), &key(address), &value) }
    }

    /// Leaves `address` to the host's routing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, address: IpAddr) -> io::Result<()> {
        // SAFETY: made with keys of this type.
        match unsafe { bpf::delete(self.map.as_fd(), &key(address)) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Puts the program on the ingress of `interface`, in the place of an earlier one.
    ///
    /// # Errors
    /// [`NetlinkError::NoInterface`] if there is no such interface, else the kernel's.
    pub async fn ensure(
        &self,
        netlink: &Netlink,
        interface: &str,
    ) -> Result<Ensured, NetlinkError> {
        let index = link::require(netlink, interface).await?.index;
        let port = Port { netlink, name: interface, index };
        let qdisc = port.ensure_qdisc().await?;
        if port.filters(INGRESS).await?.iter().any(|filter| id_of(filter) == Some(self.id)) {
            return Ok(qdisc);
        }
        let program = self.program.as_raw_fd().to_ne_bytes();
        port.put_program([(TCA_BPF_FD, &program), (TCA_BPF_NAME, NAME)], "put delivery on").await
    }

    /// Takes a program off that an earlier [`Self::ensure`] put on `interface`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn take_off(netlink: &Netlink, interface: &str) -> Result<Ensured, NetlinkError> {
        let Some(link) = link::get(netlink, interface).await? else {
            return Ok(Ensured::Unchanged);
        };
        let port = Port { netlink, name: interface, index: link.index };
        if !port.has_qdisc().await? || !port.filters(INGRESS).await?.iter().any(is_delivery) {
            return Ok(Ensured::Unchanged);
        }
        let removed = port.delete_filter(PROGRAM_PRIORITY, "bpf").await?;
        Ok(removed.or(port.delete_unused_qdisc().await?))
    }
}

fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Whether a filter was put on by some [`Delivery`].
fn is_delivery(filter: &TcMessage) -> bool {
    is_program(filter) && value_of(filter, TCA_BPF_NAME).as_deref() == Some(NAME)
}

/// The kernel's number of a filter's program.
fn id_of(filter: &TcMessage) -> Option<u32> {
    let id = value_of(filter, TCA_BPF_ID).filter(|_| is_delivery(filter))?;
    Some(u32::from_ne_bytes(*id.as_array()?))
}

/// `device = map[destination]; if the packet fits, send it to the neighbour there; else route it`
fn program(map: BorrowedFd<'_>) -> Code {
    // Kept in registers.
    const PACKET: u8 = 6;
    const DEVICE: u8 = 7;
    const FAMILY: u8 = 8;
    // Offsets in `struct __sk_buff`.
    const LEN: i16 = 0;
    const PROTOCOL: i16 = 16;
    // On the stack: the destination; `struct bpf_redir_neigh`, which is a family and an address; a
    // length.
    const DESTINATION: i16 = -16;
    const NEIGHBOUR: i16 = -36;
    const LENGTH: i16 = -40;
    let [ipv4, ipv6] = [0x0800_u16, 0x86dd].map(|protocol| i32::from(protocol.to_be()));
    let at = |code: &mut Code, register, offset| {
        code.copy(register, 10).add(register, i32::from(offset));
    };
    let mut code = Code::default();
    let mut routed = Vec::new();
    code.copy(PACKET, 1).load_word(0, PACKET, PROTOCOL);
    let to_ipv4 = code.jump_if(0, ipv4);
    routed.push(code.jump_unless(0, ipv6));

    code.set(FAMILY, libc::AF_INET6);
    code.copy(1, PACKET).set(2, 24);
    at(&mut code, 3, DESTINATION);
    code.set(4, 16).call(SKB_LOAD_BYTES);
    routed.push(code.jump_unless(0, 0));
    for word in 0..4 {
        code.load_word(0, 10, DESTINATION + 4 * word).store_word(10, NEIGHBOUR + 4 + 4 * word, 0);
    }
    let look_up = code.jump();

    code.land([to_ipv4]).set(FAMILY, libc::AF_INET);
    let mapped = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
    for (word, value) in [(0, 0), (1, 0), (2, mapped)] {
        code.store_value(10, DESTINATION + 4 * word, value);
    }
    code.copy(1, PACKET).set(2, 16);
    at(&mut code, 3, DESTINATION + 12);
    code.set(4, 4).call(SKB_LOAD_BYTES);
    routed.push(code.jump_unless(0, 0));
    code.load_word(0, 10, DESTINATION + 12).store_word(10, NEIGHBOUR + 4, 0);
    for word in 2..5 {
        code.store_value(10, NEIGHBOUR + 4 * word, 0);
    }

    code.land([look_up]).map(1, map);
    at(&mut code, 2, DESTINATION);
    code.call(MAP_LOOKUP_ELEM);
    routed.push(code.jump_if(0, 0));
    code.load_word(DEVICE, 0, 0).store_word(10, NEIGHBOUR, FAMILY);

    // The host tells the sender of a packet that is too big: by its length, then by its segments.
    code.load_word(0, PACKET, LEN).store_word(10, LENGTH, 0);
    for check in [0, BPF_MTU_CHK_SEGS] {
        code.copy(1, PACKET).copy(2, DEVICE);
        at(&mut code, 3, LENGTH);
        code.set(4, 0).set(5, check).call(CHECK_MTU);
        routed.push(code.jump_unless(0, 0));
        code.store_value(10, LENGTH, 0);
    }

    // Room for an Ethernet header, which the neighbour's is written over.
    code.copy(1, PACKET).set(2, 14).set(3, 0).call(SKB_CHANGE_HEAD);
    routed.push(code.jump_unless(0, 0));
    code.copy(1, DEVICE);
    at(&mut code, 2, NEIGHBOUR);
    code.set(3, 20).set(4, 0).call(REDIRECT_NEIGH).exit();

    code.land(routed).set(0, TC_ACT_UNSPEC).exit();
    code
}

#[cfg(test)]
mod tests;
