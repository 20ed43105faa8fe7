//! Hears every packet of TCP, UDP and SCTP that comes to a namespace, before it is anybody's.

use std::io;
use std::net::{IpAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::raw::{SCTP, TCP, UDP};

/// What a while's packets take.
const BUFFER: usize = 4 << 20;
/// Header of IPv4 with options, and ports.
const READ: usize = 64;

/// See the module.
pub(super) struct Ear(Vec<(u8, UdpSocket)>);

/// What is looked at of a packet.
pub(super) struct Packet {
    pub(super) from: IpAddr,
    pub(super) protocol: u8,
    /// Source and destination.
    pub(super) ports: (u16, u16),
}

impl Ear {
    /// In the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let of = |(domain, protocol): (Domain, u8)| {
            let number = Protocol::from(i32::from(protocol));
            let socket = Socket::new(domain, Type::RAW, Some(number))?;
            // The kernel bounds it.
            socket.set_recv_buffer_size(BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok((protocol, socket.into()))
        };
        let protocols = [TCP, UDP, SCTP].into_iter();
        let all = protocols.flat_map(|p| [(Domain::IPV4, p), (Domain::IPV6, p)]);
        all.map(of).collect::<io::Result<_>>().map(Self)
    }

    /// Everything that has come since the last time.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Packet)) -> io::Result<()> {
        let mut bytes = [0; READ];
        for (protocol, socket) in &self.0 {
            loop {
                match socket.recv_from(&mut bytes) {
                    Ok((length, from)) => {
                        // Of IPv6 the kernel does not show the header.
                        let header =
                            if from.is_ipv4() { usize::from(bytes[0] & 0x0f) * 4 } else { 0 };
                        let packet = bytes.get(header..length).unwrap_or_default();
                        if let [a, b, c, d, ..] = *packet {
                            let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                            each(Packet { from: from.ip(), protocol: *protocol, ports });
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}
