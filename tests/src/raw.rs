//! Packets that no ordinary socket sends, made from their transport header on, and what a socket hears
//! of errors.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use weft_netio::netns;

use crate::talk::Party;

/// Number of TCP.
pub const TCP: u8 = 6;
/// Number of UDP.
pub const UDP: u8 = 17;
/// Number of SCTP, which the kernel of the test need not know.
pub const SCTP: u8 = 132;

/// Longer than a delayed acknowledgement takes.
const QUIET: Duration = Duration::from_millis(300);

/// A raw socket of one protocol at a party's address: it gets a copy of every packet to it.
#[derive(Debug)]
pub struct Raw(UdpSocket);

impl Raw {
    /// Opens it.
    ///
    /// # Errors
    /// If the namespace or the address is not there.
    pub fn open(at: &Party, protocol: u8) -> Result<Self> {
        let address = SocketAddr::new(at.address, 0);
        let socket = netns::enter(&at.namespace, || {
            let protocol = Protocol::from(i32::from(protocol));
            let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(protocol))?;
            socket.bind(&address.into())?;
            Ok::<_, io::Error>(socket)
        })?;
        let socket = socket.with_context(|| format!("no raw socket at {}", at.address))?;
        socket.set_read_timeout(Some(QUIET))?;
        // The calls that are needed are those of every socket.
        Ok(Self(socket.into()))
    }

    /// From now on only packets from `to` are heard, and errors of what is sent there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect(&self, to: IpAddr) -> io::Result<()> {
        self.0.connect((to, 0))
    }

    /// Sends what follows the IP header.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, to: IpAddr, transport: &[u8]) -> io::Result<()> {
        self.0.send_to(transport, (to, 0)).map(drop)
    }

    /// The next packet from its transport header on, and who sent it.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if there is none for 300 ms.
    pub fn receive(&self) -> io::Result<(IpAddr, Vec<u8>)> {
        let mut packet = vec![0; 65_536];
        let (length, from) = self.0.recv_from(&mut packet)?;
        packet.truncate(length);
        if from.is_ipv4() {
            // Of IPv6 the kernel does not show the header.
            let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
            packet.drain(..header.min(length));
        }
        Ok((from.ip(), packet))
    }

    /// Every packet until there is none for 300 ms.
    ///
    /// # Errors
    /// The kernel's.
    pub fn until_quiet(&self) -> io::Result<Vec<(IpAddr, Vec<u8>)>> {
        let mut packets = Vec::new();
        loop {
            match self.receive() {
                Ok(packet) => packets.push(packet),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(packets),
                Err(e) => return Err(e),
            }
        }
    }
}

/// A TCP segment without options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source and destination.
    pub ports: (u16, u16),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// FIN is 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// As it stands in the header.
    pub window: u16,
    /// Data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Its bytes, with the checksum for these addresses.
    #[must_use]
    pub fn bytes(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([0x50, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.payload);
        let checksum = checksum(from, to, TCP, &bytes);
        bytes.splice(16..18, checksum.to_be_bytes());
        bytes
    }

    /// What is in `bytes`, options left out; `None` if they are too few.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            ports: (u16_at(0)?, u16_at(2)?),
            sequence: u32_at(4)?,
            acknowledgement: u32_at(8)?,
            flags: *bytes.get(13)?,
            window: u16_at(14)?,
            payload: bytes.get(usize::from(bytes.get(12)? >> 4) * 4..)?.to_vec(),
        })
    }
}

/// The Internet checksum of a transport packet whose checksum field is 0.
fn checksum(from: IpAddr, to: IpAddr, protocol: u8, transport: &[u8]) -> u16 {
    let mut covered = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => covered.extend(v4.octets()),
            IpAddr::V6(v6) => covered.extend(v6.octets()),
        }
    }
    let length = u32::try_from(transport.len()).unwrap_or(u32::MAX);
    covered.extend(length.to_be_bytes());
    covered.extend([0, 0, 0, protocol]);
    covered.extend(transport);
    let word =
        |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = covered.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// An SCTP packet of one chunk, with its CRC32c (RFC 9260, 3.1).
#[must_use]
pub fn sctp(ports: (u16, u16), tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunk);
    let checksum = crc32c(&bytes);
    bytes.splice(8..12, checksum.to_le_bytes());
    bytes
}

/// Ports and chunk of an SCTP packet.
///
/// # Errors
/// If it is cut off or its CRC32c is wrong.
pub fn parse_sctp(bytes: &[u8]) -> Result<((u16, u16), Vec<u8>)> {
    let (header, chunk) = bytes.split_first_chunk::<12>().context("no SCTP packet")?;
    let [a, b, c, d, tag @ .., _, _, _, _] = *header;
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let right = sctp(ports, u32::from_be_bytes(tag), chunk);
    anyhow::ensure!(bytes == right, "CRC32c {:x?}, not {:x?}", &bytes[8..12], &right[8..12]);
    Ok((ports, chunk.to_vec()))
}

/// Bit by bit, so that it is not what it is compared with.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// An ICMP error as the socket hears of it that sent what it quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Where the quoted packet was sent to.
    pub about: SocketAddr,
    /// Who sent the error.
    pub from: Option<IpAddr>,
    /// ICMP type and code.
    pub kind: (u8, u8),
    /// The MTU, if it is about one.
    pub mtu: u32,
}

/// Has a socket keep the errors it hears of.
///
/// # Errors
/// The kernel's.
pub fn keep_errors(socket: &UdpSocket) -> Result<()> {
    if socket.local_addr()?.is_ipv4() {
        setsockopt(socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// The next error that a socket has kept.
///
/// # Errors
/// `WouldBlock` if there is none.
pub fn next_error(socket: &UdpSocket) -> Result<Heard> {
    let mut quoted = [0; 2048];
    let mut room = [IoSliceMut::new(&mut quoted)];
    let mut control = nix::cmsg_space!([u8; 128]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let heard =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut room, Some(&mut control), flags)?;
    let about = heard.address.context("an error about no address")?;
    let v4 = about.as_sockaddr_in().map(|a| SocketAddr::from(*a));
    let v6 = about.as_sockaddr_in6().map(|a| SocketAddr::from(*a));
    let about = v4.or(v6).context("an error of another family")?;
    for message in heard.cmsgs()? {
        let (error, from) = match message {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                (error, from.map(|a| IpAddr::from(a.sin_addr.s_addr.to_ne_bytes())))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                (error, from.map(|a| IpAddr::from(a.sin6_addr.s6_addr)))
            }
            _ => continue,
        };
        let kind = (error.ee_type, error.ee_code);
        return Ok(Heard { about, from, kind, mtu: error.ee_info });
    }
    anyhow::bail!("an error without its kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn crc32c_is_that_of_its_examples() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn segments_are_what_was_parsed() {
        let segment = Segment {
            ports: (80, 4_000),
            sequence: 7,
            acknowledgement: 8,
            flags: 16,
            window: 9,
            payload: b"odd".to_vec(),
        };
        let ends = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let bytes = segment.bytes(ends.0, ends.1);
        assert_eq!(Segment::parse(&bytes), Some(segment));
        // With its checksum in place, the sum is that of no error.
        assert_eq!(checksum(ends.0, ends.1, TCP, &bytes), 0);
    }
}
