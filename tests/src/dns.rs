//! A client of DNS that does something with an answer at once, and another server for it to ask.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use weft_netio::netns;

use crate::names::{A, AAAA, query};
use crate::service::{Over, udp_to};
use crate::{TestLab, command_in};

/// Usual port of a [`DnsServer`].
pub const UPSTREAM_PORT: u16 = 5353;

/// Where a query waits for its answer, and what follows it.
const HEADER: usize = 12;
const NO_ERROR: u8 = 0;

/// A `dnsmasq` in the hub's namespace; ended when dropped.
#[derive(Debug)]
pub struct DnsServer(Child);

impl DnsServer {
    /// At that port; knows what the arguments say.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(lab: &TestLab, port: u16, arguments: &[String]) -> Result<Self> {
        let mut command = command_in(&lab.hub_namespace(), "dnsmasq")?;
        command
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
            .args(["--pid-file=", "--user=root", "--log-facility=-"])
            .arg(format!("--port={port}"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn().context("dnsmasq")?))
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Addresses of a name in the family of `family` (0: IPv4), as a server says at once; none if there are none.
///
/// # Errors
/// No answer within a second, or one that says that something failed.
pub fn resolve(
    namespace: &str,
    server: IpAddr,
    over: Over,
    name: &str,
    family: usize,
) -> io::Result<Vec<IpAddr>> {
    let query = query(0x1234, name, if family == 0 { A } else { AAAA });
    let to = SocketAddr::new(server, 53);
    let reply = match over {
        Over::Udp => {
            let socket = udp_to(namespace, to)?;
            socket.send(&query)?;
            let mut reply = vec![0; 4096];
            let length = socket.recv(&mut reply)?;
            reply.truncate(length);
            reply
        }
        Over::Tcp => {
            let mut stream = netns::enter(namespace, || TcpStream::connect(to))??;
            let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
            stream.write_all(&[&length.to_be_bytes()[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut reply)?;
            reply
        }
    };
    addresses(&reply, query.len()).ok_or_else(|| io::Error::other(format!("{name}: {reply:x?}")))
}

/// All addresses in the answer section; `None` if the answer is none, or says that something failed.
fn addresses(reply: &[u8], question_end: usize) -> Option<Vec<IpAddr>> {
    if reply.get(3)? & 0x0f != NO_ERROR || question_end < HEADER {
        return None;
    }
    let count = u16::from_be_bytes([*reply.get(6)?, *reply.get(7)?]);
    let mut rest = reply.get(question_end..)?;
    let mut found = Vec::new();
    for _ in 0..count {
        rest = after_name(rest)?;
        let (fixed, data) = rest.split_at_checked(10)?;
        let length = u16::from_be_bytes([*fixed.get(8)?, *fixed.get(9)?]);
        let (data, next) = data.split_at_checked(length.into())?;
        match (fixed.get(1)?, data.len()) {
            (1, 4) => found.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
            (28, 16) => found.push(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
            _ => {}
        }
        rest = next;
    }
    Some(found)
}

fn after_name(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        match *rest.first()? {
            0 => return rest.get(1..),
            pointer if pointer >= 0xc0 => return rest.get(2..),
            length => rest = rest.get(usize::from(length) + 1..)?,
        }
    }
}
